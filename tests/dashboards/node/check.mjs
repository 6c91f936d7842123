// Checks the dashboards, the rules and the runbook without running anything, and writes every query
// with the selectors in it to a file, for verify.py.
//
//     node check.mjs REPOSITORY QUERIES.json
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { parser as logql } from '@grafana/lezer-logql';
import { parser as promql } from '@prometheus-io/lezer-promql';
import { parse as yaml } from 'yaml';

const here = dirname(fileURLToPath(import.meta.url));
const [repository, output] = process.argv.slice(2);
const read = (file) => readFileSync(join(repository, file), 'utf8');
const DASHBOARDS = 'deploy/grafana/dashboards';
const RULES = 'deploy/prometheus/tailwater-alerts.yml';
const RULE_TESTS = 'deploy/prometheus/tests/tailwater-alerts.test.yml';
const RUNBOOK = 'docs/src/operations/runbook.md';
const PAGES = ['docs/src/operations/watching.md', RUNBOOK];

let passed = 0;
let failed = 0;
function check(name, problems) {
  console.log(`${problems.length ? 'FAIL' : 'ok  '}  ${name}`);
  problems.slice(0, 8).forEach((problem) => console.log(`        ${problem.trim()}`));
  if (problems.length > 8) console.log(`        ... and ${problems.length - 8} more`);
  if (problems.length) failed += 1;
  else passed += 1;
}

const duplicates = (values) => values.filter((value, at) => values.indexOf(value) !== at);

// The values that Grafana substitutes for its variables. Those of a dashboard select all values at first.
const VARIABLES = { $__rate_interval: '4s', $__range: '1h' };
const interpolate = (query) => query.replace(/\$\w+/g, (name) => VARIABLES[name] ?? '.+');

// The selectors and functions of a query, and its errors.
function parsed(parser, query) {
  const selectors = [];
  const calls = [];
  const errors = [];
  parser.parse(query).iterate({
    enter(node) {
      const text = query.slice(node.from, node.to);
      if (node.type.isError) errors.push(`error at ${node.from}: ${query}`);
      if (node.name === 'VectorSelector') selectors.push(text);
      if (node.name === 'FunctionCall') calls.push(text);
    },
  });
  return { selectors, calls, errors };
}

// Every query, for verify.py, and the errors of the parser.
const queries = [];
const promqlErrors = [];
function query(where, expr) {
  const interpolated = interpolate(expr);
  const { selectors, errors } = parsed(promql, interpolated);
  promqlErrors.push(...errors.map((error) => `${where}: ${error}`));
  queries.push({ where, expr: interpolated, selectors });
}

// --- Dashboards ---

const files = readdirSync(join(repository, DASHBOARDS)).sort();
const dashboards = files.map((file) => [file, JSON.parse(read(join(DASHBOARDS, file)))]);
const panels = dashboards.flatMap(([file, { panels: all }]) =>
  all.map((panel) => [`${file}: ${panel.type} "${panel.title}"`, panel]),
);
const drawn = panels.filter(([, panel]) => panel.type !== 'row');
const TYPES = { row: 'Row', stat: 'Stat', table: 'Table', timeseries: 'Graph' };

// Each part as a literal of its type, so that the compiler finds unknown keys, too.
function checkTypes() {
  const problems = [];
  const names = [];
  const lines = [`import type * as t from './types.ts';`];
  const constant = (name, type, value) => {
    names.push(name);
    lines.push(`export const c${names.length}: t.${type} = ${JSON.stringify(value)};`);
  };
  for (const [file, { panels: _, ...whole }] of dashboards) constant(file, 'Whole', whole);
  for (const [where, panel] of panels) {
    if (!TYPES[panel.type]) problems.push(`${where} has a type that is not checked`);
    else constant(where, TYPES[panel.type], panel);
    const custom = panel.fieldConfig?.defaults.custom;
    if (custom) constant(`${where}, custom`, `${TYPES[panel.type]}Custom`, custom);
  }
  writeFileSync(join(here, 'dashboards.ts'), lines.join('\n'));
  try {
    const options = '--noEmit --strict --skipLibCheck --allowImportingTsExtensions';
    const modules = '--module esnext --moduleResolution bundler';
    const tsc = join(here, 'node_modules/typescript/bin/tsc');
    const all = [tsc, ...options.split(' '), ...modules.split(' '), 'dashboards.ts'];
    execFileSync(process.execPath, all, { cwd: here, encoding: 'utf8' });
  } catch (error) {
    for (const line of error.stdout.split('\n').filter((text) => text.includes('error TS'))) {
      const at = Number(/dashboards\.ts\((\d+)/.exec(line)?.[1]);
      problems.push(`${names[at - 2]}: ${line.slice(line.indexOf('error TS'))}`);
    }
  }
  check(`dashboards have the types of @grafana/schema (${names.length} parts)`, problems);
}

function checkIds() {
  const problems = duplicates(dashboards.map(([, { uid }]) => uid));
  for (const [file, { uid, panels: all }] of dashboards) {
    if (uid !== `tailwater-${file.replace('.json', '')}`) problems.push(`${file}: uid ${uid}`);
    for (const id of duplicates(all.map((panel) => panel.id))) problems.push(`${file}: id ${id}`);
    const shown = all.filter(({ type }) => type !== 'row');
    for (const title of duplicates(shown.map((panel) => panel.title)))
      problems.push(`${file}: two panels "${title}"`);
  }
  for (const [where, { targets }] of drawn)
    for (const refId of duplicates(targets.map((one) => one.refId)))
      problems.push(`${where}: refId ${refId}`);
  check('ids of dashboards, panels and queries are unique and stable', problems);
}

function checkLayout() {
  const problems = [];
  for (const [file, { panels: all }] of dashboards) {
    if (all[0].type !== 'row') problems.push(`${file}: the first panel is no row`);
    const taken = new Map();
    for (const { title, gridPos: at } of all) {
      if (at.x + at.w > 24) problems.push(`${file}: "${title}" is too wide`);
      for (let x = at.x; x < at.x + at.w; x += 1)
        for (let y = at.y; y < at.y + at.h; y += 1) {
          const key = `${x},${y}`;
          if (taken.has(key)) problems.push(`${file}: "${title}" covers "${taken.get(key)}"`);
          taken.set(key, title);
        }
    }
  }
  check('panels stand in rows and do not overlap', problems);
}

function checkWords() {
  const problems = [];
  for (const [where, { description, fieldConfig, targets }] of drawn) {
    if (!/[.]$/.test(description ?? '')) problems.push(`${where}: no description in sentences`);
    const { unit } = fieldConfig.defaults;
    const units = fieldConfig.overrides.flatMap(({ properties }) => properties);
    if (!unit || (unit === 'none' && fieldConfig.overrides.length && !units.length))
      problems.push(`${where}: no unit`);
    if (targets.length > 1 && targets.some(({ legendFormat }) => !legendFormat))
      problems.push(`${where}: a query without a legend`);
  }
  for (const [file, dashboard] of dashboards)
    for (const [alert] of JSON.stringify(dashboard).matchAll(/Tailwater[A-Z]\w+/g))
      if (!names.includes(alert)) problems.push(`${file}: there is no alert ${alert}`);
  check('every panel has a description, a unit and legends, and names alerts that exist', problems);
}

function checkVariables() {
  const problems = [];
  const isRef = (source) => source?.type === 'prometheus' && source.uid === '${datasource}';
  for (const [file, { templating }] of dashboards) {
    const [source, ...others] = templating.list;
    if (source.type !== 'datasource' || source.query !== 'prometheus')
      problems.push(`${file}: the first variable is no data source`);
    for (const { name, datasource, query: asked } of others) {
      if (!isRef(datasource)) problems.push(`${file}: $${name} has a data source of its own`);
      const call = /^label_values\((.*), (\w+)\)$/.exec(asked);
      if (!call) problems.push(`${file}: $${name}: ${asked}`);
      else query(`${file}: $${name}`, call[1]);
    }
    const known = new Set(others.map(({ name }) => `$${name}`));
    for (const [where, { targets }] of drawn.filter(([where]) => where.startsWith(file)))
      for (const { expr } of targets)
        for (const used of expr.match(/\$\w+/g))
          if (!known.has(used) && !used.startsWith('$__')) problems.push(`${where}: no ${used}`);
  }
  for (const [where, { datasource, targets }] of drawn)
    if (![datasource, ...targets.map((one) => one.datasource)].every(isRef))
      problems.push(`${where}: not the data source variable`);
  check('the variables are defined, and the data source variable is used everywhere', problems);
}

function checkQueries() {
  const problems = [];
  for (const [where, { targets, type }] of drawn)
    for (const { expr } of targets) {
      query(where, expr);
      const known = expr.replaceAll('$__rate_interval', '7m').replaceAll('$__range', '8m');
      const { selectors, calls } = parsed(promql, known);
      for (const selector of selectors)
        if (!/\{job=~"\$job", instance=~"\$instance"/.test(selector))
          problems.push(`${where}: ${selector} is not of the chosen instances`);
      for (const call of calls) {
        const name = /^\w+/.exec(call)[0];
        const range = /\[(\w+)\]\)$/.exec(call)?.[1];
        // A single number may be the mean of the whole time range.
        const allowed = type === 'timeseries' && name === 'rate' ? ['7m'] : ['7m', '8m'];
        if (/^(rate|increase)$/.test(name) && !allowed.includes(range))
          problems.push(`${where}: ${expr}`);
        if (/^(irate|delta|idelta|changes)$/.test(name)) problems.push(`${where}: ${name}`);
      }
      // Apart from the number of series.
      const values = expr.replace(/count (by \([\w, ]*\) )?\(\w+\{[^}]*\}\)/g, '');
      const counters = /_(total|bucket|count|sum)\{[^}]*\}(?!\[)/.exec(values);
      const isLedger = /unaccounted/i.test(where);
      if (counters && !isLedger) problems.push(`${where}: ${counters[0]} without rate`);
    }
  check('rates have $__rate_interval, and all queries the selected job and instance', problems);
}

// --- Rules and runbook ---

const rules = yaml(read(RULES)).groups.flatMap((group) => group.rules);
const alerts = rules.filter((rule) => rule.alert);
const names = [...new Set(alerts.map((rule) => rule.alert))];
// The identifiers that mdBook and GitHub give to headings.
const anchor = (heading) =>
  heading
    .toLowerCase()
    .replace(/[^\w\- ]/g, '')
    .replaceAll(' ', '-');
const sections = new Map(
  read(RUNBOOK)
    .split(/^## /m)
    .slice(1)
    .map((text) => [text.slice(0, text.indexOf('\n')), text]),
);
const blocks = (text, language) =>
  [...text.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, 'gms'))].map((found) => found[1]);

function checkRules() {
  for (const rule of rules) query(rule.alert ?? rule.record, rule.expr);
  const problems = [];
  for (const { alert, labels, annotations } of alerts) {
    const { summary, description, runbook_url: url } = annotations;
    if (!['critical', 'warning', 'info'].includes(labels.severity))
      problems.push(`${alert}: severity ${labels.severity}`);
    if (!/^[^{]+\.$/.test(summary ?? '')) problems.push(`${alert}: the summary is no fixed sentence`);
    if (!/\$value|minutes/.test(description ?? '')) problems.push(`${alert}: no figure`);
    const [page, heading] = url.replace(/^https:\/\/.*\/blob\/main\//, '').split('#');
    const headings = [...read(page).matchAll(/^#+ (.*)$/gm)].map((found) => anchor(found[1]));
    if (!headings.includes(heading)) problems.push(`${alert}: there is no ${page}#${heading}`);
    if (heading !== alert.toLowerCase()) problems.push(`${alert}: ${url} is of another alert`);
  }
  check(`${names.length} alerts have severity, summary, figure, and a runbook that exists`, problems);
}

function checkRuleTests() {
  const tests = yaml(read(RULE_TESTS)).tests.flatMap((one) => one.alert_rule_test ?? []);
  const of = (name) => tests.filter((one) => one.alertname === name);
  const problems = [];
  for (const name of names) {
    if (!of(name).some((one) => one.exp_alerts?.length)) problems.push(`${name}: never fires`);
    if (!of(name).some((one) => !one.exp_alerts?.length)) problems.push(`${name}: is never silent`);
  }
  for (const { alertname } of tests)
    if (!names.includes(alertname)) problems.push(`there is no ${alertname}`);
  check('promtool tests have each alert firing and silent', problems);
}

function checkRunbook() {
  const problems = [];
  const parts = ['**Meaning.**', '**Causes.**', '**Look at.**', '**Do.**'];
  for (const name of names) {
    const text = sections.get(name);
    if (!text) {
      problems.push(`no heading ${name}`);
      continue;
    }
    for (const part of parts) if (!text.includes(part)) problems.push(`${name}: no ${part}`);
    const asked = blocks(text, 'promql').flatMap((block) => block.trim().split('\n'));
    if (asked.length < 2 || asked.length > 3) problems.push(`${name}: ${asked.length} queries`);
    if (blocks(text, 'logql').length !== 1) problems.push(`${name}: not one query of the log`);
  }
  for (const heading of sections.keys())
    if (/^Tailwater/.test(heading) && !names.includes(heading))
      problems.push(`${heading} is no alert`);
  check('the runbook has a heading for each alert, with queries', problems);
}

// A query of the log must ask for a text that the source writes.
function checkLogQueries() {
  const folder = join(repository, 'src');
  const isCode = (name) => name.endsWith('.rs');
  const sources = readdirSync(folder, { recursive: true }).filter(isCode);
  const code = sources
    .map((name) => readFileSync(join(folder, name), 'utf8').replace(/\\\n\s*/g, ''))
    .join('\n');
  const problems = [];
  let count = 0;
  for (const page of PAGES)
    for (const block of blocks(read(page), 'logql')) {
      count += 1;
      problems.push(...parsed(logql, block.trim()).errors.map((error) => `${page}: ${error}`));
      for (const [, filter] of block.matchAll(/\|[=~] "([^"]*)"/g))
        for (const text of filter.split('|'))
          if (!code.includes(text)) problems.push(`${page}: no log line has "${text}"`);
    }
  check(`${count} log queries are LogQL, and their words are in the source`, problems);
}

// Grafana reads $$ in these files as $.
function checkProvisioning() {
  const problems = [];
  const { datasources } = yaml(read('deploy/grafana/provisioning/datasources/tailwater.yml'));
  const uids = datasources.map(({ uid }) => uid);
  for (const [, uid] of JSON.stringify(datasources).matchAll(/"datasourceUid":"([^"]*)"/g))
    if (!uids.includes(uid)) problems.push(`there is no data source ${uid}`);
  for (const { jsonData } of datasources)
    for (const { name, query: asked } of jsonData.tracesToMetrics?.queries ?? [])
      for (const error of parsed(promql, asked.replace('$$__tags', 'service="a"')).errors)
        problems.push(`${name}: ${error}`);
  const { providers } = yaml(read('deploy/grafana/provisioning/dashboards/tailwater.yml'));
  if (!providers.every(({ options }) => options.path)) problems.push('a provider without a path');
  check('provisioning files refer to their own data sources', problems);
}

function checkPromql() {
  for (const page of PAGES)
    for (const block of blocks(read(page), 'promql'))
      for (const line of block.trim().split('\n')) query(page, line);
  check(`${queries.length} queries are PromQL`, promqlErrors);
}

checkTypes();
checkIds();
checkLayout();
checkWords();
checkVariables();
checkQueries();
checkRules();
checkRuleTests();
checkRunbook();
checkLogQueries();
checkProvisioning();
checkPromql();
writeFileSync(output, JSON.stringify(queries, null, 1));
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;

// Plays the shop's plan through the Node OpenTelemetry SDK, and writes down what the SDK made.
//
//     node send.mjs --plan plan.json --endpoint HOST:PORT --http-endpoint HOST:PORT \
//         --sent node.json --node-port node.port
//
// `../send.py` is the same program in the other language. After its own rounds this one is the
// payment service that the Python gateway calls: it writes its port into the file of --node-port,
// and ends with POST /close. Services that the plan says so of export OTLP/JSON over HTTP.

import { createHash } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import { ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags, trace } from '@opentelemetry/api';
import { W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter as GrpcExporter } from '@opentelemetry/exporter-trace-otlp-grpc';
import { OTLPTraceExporter as JsonExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';

const PAUSE_MS = 150; // between the exports of a round
const LATE_MS = 2500; // after the last root: the decision is due after 1 s
const HAS_IS_REMOTE = 0x100;
const IS_REMOTE = 0x200;

const w3c = new W3CTraceContextPropagator();
const setter = { set: (carrier, key, value) => { carrier[key] = value; } };
const getter = { get: (carrier, key) => carrier[key], keys: (carrier) => Object.keys(carrier) };

const string = { type: 'string' };
const { values: options } = parseArgs({
  options: {
    plan: string,
    endpoint: string,
    'http-endpoint': string,
    sent: string,
    'node-port': string,
  },
});
const plan = JSON.parse(readFileSync(options.plan, 'utf8'));
const sent = [];
const kinds = {};

// Ids that are the same in every run; the SDK's own generator can't be seeded.
let idsMade = 0;
const nextId = (digits) =>
  createHash('sha256').update(`${plan.seed} ${idsMade++}`).digest('hex').slice(0, digits);
const idGenerator = { generateTraceId: () => nextId(32), generateSpanId: () => nextId(16) };

// Written values (see values.py) to JavaScript's and back.
function native(value) {
  const [[kind, written]] = Object.entries(value);
  if (kind === 'array') return written.map(native);
  return kind === 'int' || kind === 'double' ? number(written) : written;
}

function number(written) {
  return { nan: NaN, inf: Infinity, '-inf': -Infinity }[written] ?? Number(written);
}

const nativeAttributes = (attributes) =>
  Object.fromEntries(attributes.map(([key, value]) => [key, native(value)]));

// `isJson`: JSON knows no NaN and no infinity, and the SDK's exporter writes null.
function typed(value, isJson) {
  if (Array.isArray(value)) return { array: value.map((one) => typed(one, isJson)) };
  if (isJson && typeof value === 'number' && !Number.isFinite(value)) return { none: true };
  if (typeof value !== 'number') return { [typeof value === 'boolean' ? 'bool' : 'string']: value };
  // JavaScript has one kind of number; the SDK sends what is whole as an integer.
  return Number.isInteger(value) ? { int: String(value) } : { double: String(value) };
}

const typedAttributes = (attributes, isJson) =>
  Object.entries(attributes ?? {}).map(([key, value]) => [key, typed(value, isJson)]);

// Nanoseconds as a string to the SDK's [seconds, nanoseconds] and back.
const hrTime = (ns) => [Number(BigInt(ns) / 1_000_000_000n), Number(BigInt(ns) % 1_000_000_000n)];
const nanoseconds = ([s, ns]) => String(BigInt(s) * 1_000_000_000n + BigInt(ns));

const flags = (traceFlags, isRemote) => HAS_IS_REMOTE | (isRemote ? IS_REMOTE : 0) | traceFlags;

// A span as the SDK made it.
function written(span, isJson) {
  const context = span.spanContext();
  const parent = span.parentSpanContext;
  return {
    trace_id: context.traceId,
    span_id: context.spanId,
    parent_id: parent?.spanId ?? '',
    tracestate: context.traceState?.serialize() ?? '',
    flags: flags(context.traceFlags, parent?.isRemote),
    name: span.name,
    kind: SpanKind[span.kind],
    start: nanoseconds(span.startTime),
    end: nanoseconds(span.endTime),
    attributes: typedAttributes(span.attributes, isJson),
    events: span.events.map((event) => ({
      name: event.name,
      at: nanoseconds(event.time),
      attributes: typedAttributes(event.attributes, isJson),
    })),
    links: span.links.map((link) => ({
      trace_id: link.context.traceId,
      span_id: link.context.spanId,
      flags: flags(link.context.traceFlags, link.context.isRemote),
      attributes: typedAttributes(link.attributes, isJson),
    })),
    status: { code: SpanStatusCode[span.status.code], message: span.status.message ?? '' },
    resource: typedAttributes(span.resource.attributes, isJson),
    resource_schema_url: span.resource.schemaUrl ?? '',
    scope: {
      name: span.instrumentationScope.name,
      version: span.instrumentationScope.version,
      schema_url: span.instrumentationScope.schemaUrl ?? '',
      attributes: typedAttributes(span.instrumentationScope.attributes, isJson),
    },
  };
}

// Exports, and remembers what was exported and when.
class Recorder {
  constructor(isJson) {
    this.isJson = isJson;
    this.inner = isJson
      ? new JsonExporter({ url: `http://${options['http-endpoint']}/v1/traces` })
      : new GrpcExporter({ url: `http://${options.endpoint}` });
  }

  export(spans, done) {
    const sentAt = Date.now() / 1000;
    this.inner.export(spans, (result) => {
      if (result.error) throw result.error;
      const times = { sent_at: sentAt, acked_at: Date.now() / 1000 };
      sent.push(...spans.map((span) => ({ ...written(span, this.isJson), ...times })));
      done(result);
    });
  }

  forceFlush() {
    return this.inner.forceFlush();
  }

  shutdown() {
    return this.inner.shutdown();
  }
}

// One service of the shop: its own provider, resource and connection; exports only when told to.
// No service has as many spans in one round as would make the processor export by itself.
function service(planned) {
  const provider = new NodeTracerProvider({
    idGenerator,
    resource: defaultResource().merge(
      resourceFromAttributes(nativeAttributes(planned.resource), {
        schemaUrl: planned.resource_schema_url,
      }),
    ),
    spanProcessors: [
      new BatchSpanProcessor(new Recorder(planned.json_in_node), {
        maxQueueSize: 2048,
        scheduledDelayMillis: 3_600_000,
      }),
    ],
  });
  const { name, version, schema_url: schemaUrl } = planned.scope;
  return { provider, tracer: provider.getTracer(name, version, { schemaUrl }) };
}

const services = Object.fromEntries(
  Object.entries(plan.services).map(([name, planned]) => [name, service(planned)]),
);

// Start the spans of a trace, parents first, and return each with its plan. `context` is where the
// first one hangs.
function open(planned, context) {
  const opened = [];
  for (const one of planned.spans) {
    opened.push({ planned: one, span: start(one, parentContext(context, opened, one)) });
  }
  kinds[opened[0].span.spanContext().traceId] = planned.kind;
  return opened;
}

function start(planned, context) {
  const made = {
    kind: SpanKind[planned.kind],
    attributes: nativeAttributes(planned.attributes),
    links: planned.links.map(link),
    startTime: hrTime(planned.start),
  };
  const span = services[planned.service].tracer.startSpan(planned.name, made, context);
  for (const event of planned.events) {
    span.addEvent(event.name, nativeAttributes(event.attributes), hrTime(event.at));
  }
  if (planned.status) {
    const { code, message } = planned.status;
    span.setStatus({ code: SpanStatusCode[code], ...(message && { message }) });
  }
  return span;
}

function link(planned) {
  const context = {
    traceId: planned.trace_id,
    spanId: planned.span_id,
    traceFlags: TraceFlags.SAMPLED,
    isRemote: true,
  };
  return { context, attributes: nativeAttributes(planned.attributes) };
}

// The parent of a span: directly for a span of the same service, by W3C headers for another one's.
function parentContext(context, opened, planned) {
  if (planned.parent === null) return context;
  const parent = opened[planned.parent];
  const within = trace.setSpan(ROOT_CONTEXT, parent.span);
  if (parent.planned.service === planned.service) return within;
  const carrier = {};
  w3c.inject(within, carrier, setter);
  return w3c.extract(ROOT_CONTEXT, carrier, getter);
}

function incomingContext(incoming) {
  if (!incoming) return ROOT_CONTEXT;
  const carrier = { traceparent: `00-${incoming.trace_id}-${incoming.span_id}-01` };
  if (incoming.tracestate) carrier.tracestate = incoming.tracestate;
  return w3c.extract(ROOT_CONTEXT, carrier, getter);
}

// End the spans of these services, children first.
function finish(opened, names) {
  for (const { planned, span } of opened.toReversed()) {
    if (names.includes(planned.service)) span.end(hrTime(planned.end));
  }
}

const flush = (name) => services[name].provider.forceFlush();

async function playRound({ waves, traces }) {
  const all = traces.map((one) => open(one, incomingContext(one.incoming)));
  for (const opened of all) finish(opened, plan.late_services);
  for (const wave of waves) {
    for (const name of wave) {
      for (const opened of all) finish(opened, [name]);
      await flush(name);
    }
    await sleep(PAUSE_MS);
  }
}

// The payment service that the Python gateway calls.
async function charge(index, headers) {
  const opened = open(plan.calls[index].called, w3c.extract(ROOT_CONTEXT, headers, getter));
  finish(opened, ['payment']);
  await flush('payment');
}

function serveCalls() {
  return new Promise((resolve, reject) => {
    const server = createServer(async (request, response) => {
      try {
        const [, path, index] = request.url.split('/');
        if (path === 'charge') await charge(Number(index), request.headers);
        response.end();
        if (path === 'close') server.close(resolve);
      } catch (error) {
        reject(error);
      }
    });
    server.listen(0, '127.0.0.1', () => {
      // Renamed into place, so that nobody reads half a number.
      const path = options['node-port'];
      writeFileSync(`${path}.new`, String(server.address().port));
      renameSync(`${path}.new`, path);
    });
  });
}

for (const round of plan.rounds.node) await playRound(round);
const roundsEnded = Date.now();
await serveCalls();
for (const name of plan.late_services) {
  await sleep(Math.max(0, roundsEnded + LATE_MS - Date.now()));
  await flush(name);
}
writeFileSync(options.sent, JSON.stringify({ kinds, spans: sent }));
process.exit(0); // the SDK's connections would hold the process

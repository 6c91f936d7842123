// The page of a running service in a real browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";
import { HOSTILE, SECRET, send, start } from "./service.mjs";

const [binary, executablePath, folder] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let checks = 0;
const check = async (what, work) => {
  await work();
  checks += 1;
  console.log(`ok: ${what}`);
};

// Waits until `wanted` holds, for at most ten seconds. The page refreshes every two seconds.
const until = async (what, wanted) => {
  for (let attempt = 0; attempt < 100; attempt++) {
    if (await wanted()) return;
    await new Promise((done) => setTimeout(done, 100));
  }
  throw new Error(`not seen within ten seconds: ${what}`);
};

const service = await start(binary, folder);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
// Everything that goes wrong without a check that asks for it: errors, violations of the
// Content-Security-Policy, and requests to anywhere else.
const faults = [];
const open = async (options) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => request.url().startsWith(`${service.url}/`) || faults.push(request.url()));
  await page.goto(`${service.url}/`);
  return page;
};
const status = async () => (await fetch(`${service.url}/-/status`)).json();
const atRest = async () => {
  await until("everything decided and sent", async () => {
    const { ledger } = await status();
    return ledger.buffered === "0" && ledger.queued === "0";
  });
  return status();
};
// The figures of a list of terms, by term.
const figures = (page, id) => page.locator(`#${id} dl > dt, #${id} dl div > dt`).evaluateAll((terms) =>
  Object.fromEntries(terms.map((term) => [term.textContent, term.nextElementSibling.textContent])));
const withCommas = (text) => BigInt(text).toLocaleString("en-US");

try {
  const ids = await send(service.traces, 140);
  const decided = await atRest();
  const page = await open({ colorScheme: "light" });

  await check("the ledger of the page is that of /-/status", async () => {
    const { accepted, dropped, sent, kept } = decided.ledger;
    assert.equal(accepted, "280");
    const shown = await figures(page, "ledger");
    const expected = { accepted, "+ dropped": dropped, "= kept": kept, "= sent": sent, "+ lost": "0" };
    for (const [term, value] of Object.entries(expected)) {
      assert.equal(shown[term], withCommas(value), term);
    }
  });

  await check("each policy has its row, with the figures of /-/status", async () => {
    const rows = page.locator("#policies tbody tr");
    assert.equal(await rows.count(), decided.policies.length);
    for (const [index, policy] of decided.policies.entries()) {
      const row = rows.nth(index);
      assert.ok((await row.locator("th").innerText()).startsWith(policy.name), policy.name);
      if (!policy.shadow) {
        assert.equal(await row.locator("td").nth(1).innerText(), withCommas(policy.matchedTraces));
      }
    }
  });

  await check("what somebody wrote is text", async () => {
    await page.getByLabel("Trace ID").fill(HOSTILE);
    await page.keyboard.press("Enter");
    await page.waitForURL(/trace_id=/);
    assert.equal(await page.getByLabel("Trace ID").inputValue(), HOSTILE);
    const text = await page.locator("#configuration").evaluate((part) => part.textContent);
    assert.ok(text.includes(JSON.stringify(HOSTILE)), text);
    assert.equal(await page.title(), "Tailwater");
    assert.equal(await page.locator("img").count(), 0);
  });

  await check("the configuration is shown, and its secrets are not", async () => {
    const text = await page.locator("#configuration").evaluate((part) => part.textContent);
    assert.ok(text.includes("decision_wait = \"2s\""), text);
    assert.ok(!(await page.content()).includes(SECRET));
  });

  await check("a trace is explained, in every form in which people paste its id", async () => {
    const id = decided.recentDecisions[0].traceId;
    assert.ok(ids.includes(id));
    const uuid = id.toUpperCase().replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
    for (const form of [id, uuid, ` ${id} `]) {
      await page.getByLabel("Trace ID").fill(form);
      await Promise.all([page.waitForNavigation(), page.getByRole("button", { name: "Explain" }).click()]);
      const answer = await page.locator("#answer").innerText();
      assert.ok(answer.includes(id) && /kept|dropped/.test(answer), answer);
    }
    await page.getByLabel("Trace ID").fill("<b>no id</b>");
    await page.keyboard.press("Enter");
    await page.waitForURL(/no\+id/);
    assert.match(await page.locator("#answer").innerText(), /hexadecimal/);
    assert.equal(await page.getByLabel("Trace ID").inputValue(), "<b>no id</b>");
  });

  await check("the page stays live, and what somebody types stays", async () => {
    await page.goto(`${service.url}/`);
    await page.getByLabel("Trace ID").fill("half an id");
    await send(service.traces, 10);
    await until("the new spans", async () => (await figures(page, "ledger")).accepted === "300");
    assert.equal(await page.getByLabel("Trace ID").inputValue(), "half an id");
  });

  await check("after a reload it shows what is in force, and opened files stay open", async () => {
    const hash = () => page.locator("#loaded dd").nth(1).innerText();
    const heading = page.locator("#files summary").first();
    const before = await hash();
    await heading.click();
    service.reload((text) => text.replace('name = "baseline"', 'name = "remainder"'));
    await until("the new hash", async () => (await hash()) !== before);
    await until("the new text", async () => (await page.locator("#files pre").innerText()).includes("remainder"));
    assert.ok(await page.locator("#files details").first().evaluate((file) => file.open));
    assert.ok(await heading.evaluate((it) => it === document.activeElement), "the focus stays");
    service.reload((text) => text.replace('decision_wait = "2s"', 'decision_wait = "3s"'));
    await until("what waits", async () => (await page.locator("#loaded").innerText()).includes("[sampling]"));
    assert.equal(await page.locator("#files details").count(), 2);
    service.reload((text) => text.replace('decision_wait = "3s"', 'decision_wait = "2s"'));
    await until("the end of the wait", async () => (await page.locator("#files details").count()) === 1);
  });

  await check("it stays live if it was opened with a name and a password", async () => {
    const context = await browser.newContext();
    const named = await context.newPage();
    await named.goto(service.url.replace("//", "//name:password@"));
    await named.waitForTimeout(4500);
    assert.equal(await named.locator("#live").innerText(), "live");
    await context.close();
  });

  await check("it can be paused", async () => {
    await page.getByRole("button", { name: "Pause" }).click();
    await send(service.traces, 10);
    let asked = 0;
    page.on("request", () => { asked += 1; });
    await page.waitForTimeout(4500);
    assert.equal(asked, 0);
    assert.equal((await figures(page, "ledger")).accepted, "300");
    await page.getByRole("button", { name: "Resume" }).click();
    await until("the new spans", async () => (await figures(page, "ledger")).accepted === "320");
  });

  await check("axe finds nothing, in light, in dark and on a phone", async () => {
    const looks = {
      light: { colorScheme: "light" },
      dark: { colorScheme: "dark" },
      phone: { colorScheme: "light", viewport: { width: 390, height: 844 }, isMobile: true, deviceScaleFactor: 2 },
    };
    for (const [name, options] of Object.entries(looks)) {
      const seen = await open(options);
      await seen.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
      // The page forbids scripts of others, so axe comes past the policy and not through it.
      const violations = await seen.evaluate(`${axe}; axe.run().then((found) => found.violations
        .map(({ id, help, nodes }) => id + ": " + help + ": " + nodes[0].html))`);
      assert.deepEqual(violations, [], name);
      const overflow = await seen.evaluate("document.documentElement.scrollWidth - innerWidth");
      assert.ok(overflow <= 0, `${name}: ${overflow} pixels too wide`);
      await seen.context().close();
    }
  });

  await check("without JavaScript it is complete, and offers no button that does nothing", async () => {
    const still = await open({ javaScriptEnabled: false });
    assert.match(await still.locator("#ledger").innerText(), /accepted\s+320/);
    assert.ok(await still.getByRole("rowheader", { name: "errors" }).isVisible());
    assert.equal(await still.getByRole("button", { name: "Pause" }).count(), 0);
    await still.goto(`${service.url}/?trace_id=${ids[0]}`);
    assert.ok((await still.locator("#answer").innerText()).includes(ids[0]));
  });

  assert.deepEqual(faults, [], "errors, violations of the policy, or requests to elsewhere");

  await check("when the service is gone the page says that its figures are old", async () => {
    await service.stop();
    await until("the words", async () => /no answer/.test(await page.locator("#live").innerText()));
  });
} finally {
  await browser.close();
  await service.stop();
}
console.log(`page: ${checks} checks passed; screenshots in ${folder}`);

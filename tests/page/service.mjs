// A real service with a sink behind it, and traffic for it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { randomBytes } from "node:crypto";
import { createServer as createSocketServer } from "node:net";

// Hostile text for every field that takes any text.
export const HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
export const SECRET = "a-secret-that-nobody-may-see";

const freePort = async () => {
  const server = createSocketServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
};

export const start = async (binary, folder) => {
  const sink = createServer((request, answer) => {
    request.resume();
    request.on("end", () => answer.writeHead(200, { "content-type": "application/x-protobuf" }).end());
  }).listen(0, "127.0.0.1");
  await once(sink, "listening");
  const [grpc, http, telemetry] = await Promise.all([freePort(), freePort(), freePort()]);
  const configuration = "tailwater.toml";
  writeFileSync(`${folder}/${configuration}`, `
[receiver.grpc]
endpoint = "127.0.0.1:${grpc}"
[receiver.http]
endpoint = "127.0.0.1:${http}"
[sampling]
decision_wait = "2s"
decision_wait_after_root_received = "500ms"
[exporter.otlp]
endpoint = "http://127.0.0.1:${sink.address().port}"
protocol = "http/protobuf"
headers = { "x-token" = "${SECRET}" }
[telemetry]
endpoint = "127.0.0.1:${telemetry}"
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]
[[policy]]
name = "slow"
type = "latency"
threshold_ms = 500
[[policy]]
name = "tried"
type = "string_attribute"
key = "service.name"
values = ["shop", ${JSON.stringify(HOSTILE)}]
shadow = true
[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 10
`);
  const child = spawn(binary, ["run", "--config", configuration], {
    cwd: folder,
    stdio: ["ignore", "inherit", "inherit"],
  });
  const url = `http://127.0.0.1:${telemetry}`;
  for (let attempt = 0; ; attempt++) {
    const isReady = await fetch(`${url}/-/ready`).then((answer) => answer.ok, () => false);
    if (isReady) break;
    if (attempt === 100 || child.exitCode !== null) throw new Error("the service does not get ready");
    await new Promise((done) => setTimeout(done, 100));
  }
  const stop = async () => {
    if (child.exitCode === null) {
      child.kill("SIGTERM");
      await once(child, "exit");
    }
    sink.close();
    sink.closeAllConnections();
  };
  const file = `${folder}/${configuration}`;
  const reload = (change) => {
    writeFileSync(file, change(readFileSync(file, "utf8")));
    child.kill("SIGHUP");
  };
  return { url, stop, reload, traces: `http://127.0.0.1:${http}/v1/traces` };
};

// Sends `count` traces of two spans each. Returns their ids.
export const send = async (traces, count) => {
  const now = BigInt(Date.now()) * 1_000_000n;
  const ids = [];
  const spans = [];
  for (let index = 0; index < count; index++) {
    const traceId = randomBytes(16).toString("hex");
    const root = randomBytes(8).toString("hex");
    const lasts = index % 7 === 0 ? 900_000_000n : 20_000_000n;
    ids.push(traceId);
    const span = (spanId, parentSpanId, name) => ({
      traceId, spanId, parentSpanId, name, kind: 2,
      startTimeUnixNano: `${now}`, endTimeUnixNano: `${now + lasts}`,
      status: index % 5 === 0 ? { code: 2 } : {},
    });
    spans.push(span(root, "", "GET /checkout"), span(randomBytes(8).toString("hex"), root, HOSTILE));
  }
  const service = { key: "service.name", value: { stringValue: "shop" } };
  const answer = await fetch(traces, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ resourceSpans: [{ resource: { attributes: [service] }, scopeSpans: [{ spans }] }] }),
  });
  if (!answer.ok) throw new Error(`traces: ${answer.status} ${await answer.text()}`);
  return ids;
};

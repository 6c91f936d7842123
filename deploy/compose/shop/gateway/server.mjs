// The front of the shop: every order is a trace, and calls the checkout service. Settings are those of the
// OpenTelemetry SDK, CHECKOUT_URL and ORDERS_PER_SECOND.

import { setTimeout as sleep } from 'node:timers/promises';

import { SpanKind, SpanStatusCode, context, propagation, trace } from '@opentelemetry/api';
import { W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-grpc';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';

const provider = new NodeTracerProvider({
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
});
provider.register({ propagator: new W3CTraceContextPropagator() });
const tracer = trace.getTracer('shop');

const checkout = process.env.CHECKOUT_URL;
const pauseMs = 1000 / Number(process.env.ORDERS_PER_SECOND ?? 20);
const routes = ['/products', '/products', '/products', '/cart', '/api/checkout'];

async function call(route) {
  const attributes = { 'http.request.method': 'POST', 'server.address': 'checkout' };
  await tracer.startActiveSpan('POST /charge', { kind: SpanKind.CLIENT, attributes }, async (span) => {
    try {
      const headers = {};
      propagation.inject(context.active(), headers);
      const answer = await fetch(`${checkout}/charge`, { method: 'POST', headers, body: route });
      span.setAttribute('http.response.status_code', answer.status);
      if (!answer.ok) throw new Error(`checkout answers ${answer.status}`);
    } catch (error) {
      span.recordException(error);
      span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
      throw error;
    } finally {
      span.end();
    }
  });
}

async function order(route) {
  const attributes = { 'http.request.method': 'GET', 'http.route': route };
  await tracer.startActiveSpan(`GET ${route}`, { kind: SpanKind.SERVER, attributes }, async (span) => {
    try {
      await tracer.startActiveSpan('render', async (inner) => {
        await sleep(5 + Math.random() * 20);
        inner.end();
      });
      if (route === '/api/checkout') await call(route);
      span.setAttribute('http.response.status_code', 200);
    } catch (error) {
      span.setAttribute('http.response.status_code', 500);
      span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
    } finally {
      span.end();
    }
  });
}

let isOpen = true;
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => { isOpen = false; });

while (isOpen) {
  order(routes[Math.floor(Math.random() * routes.length)]);
  await sleep(pauseMs);
}
await provider.shutdown();

//! The content of the spans: a shop's web requests and the database calls below them.
//!
//! A span has about 681 encoded bytes with its share of the resource. A resource has eleven
//! attributes, a span 13 or 14, and every fifth span an event. Shares are exact, not random: of
//! every 400 traces 4 have an error (1 %), 8 last over 2 s (2 %) and 11 belong to a premium
//! customer (2.75 %). Together with 4.5 % of the other 94.25 %, the policies keep 10.0 % of the
//! traces. The deciding span is the root or the span before it, and these arrive last, so hardly
//! any policy can be decided from the first span alone.

use fastrand::Rng;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ScopeSpans, Span, Status, span, status},
};
use tailwater::testing::{attribute, text};

use crate::diverse;

/// The attribute that the bench's `string_attribute` policy reads; every web span has it.
pub(crate) const TIER_KEY: &str = "customer.tier";
/// The value that the policy matches.
pub(crate) const TIER_WANTED: &str = "premium";
/// The `latency` policy's threshold.
pub(crate) const SLOW_MS: u64 = 2000;
/// The percentage that the `probabilistic` policy keeps.
pub(crate) const BASELINE_PERCENT: f64 = 4.5;

/// The attributes that small spans keep.
const SMALL_KEYS: [&str; 5] =
    [TIER_KEY, "http.route", "db.operation.name", "thread.name", "server.address"];
/// Lines of a large span's stack trace, 48 bytes each.
const FRAMES: usize = 74;
const NANOS_PER_MS: u64 = 1_000_000;
const SERVICES: [&str; 10] = [
    "gateway",
    "cart",
    "checkout",
    "payment",
    "shipping",
    "inventory",
    "catalogue",
    "search",
    "accounts",
    "mailer",
];
const ROUTES: [&str; 6] =
    ["/api/cart", "/api/checkout", "/api/payment", "/api/orders/{id}", "/api/search", "/"];
const STATEMENTS: [&str; 4] = [
    "SELECT id, sku, quantity, unit_price FROM cart_items WHERE cart_id = $1 ORDER BY added_at",
    "UPDATE inventory SET reserved = reserved + $2 WHERE sku = $1 AND available >= reserved + $2",
    "INSERT INTO orders (id, customer_id, total, currency, placed_at) VALUES ($1, $2, $3, $4, $5)",
    "SELECT balance, currency FROM accounts WHERE customer = $1 AND closed_at IS NULL FOR UPDATE",
];

const USER_AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
    (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36";

/// Why a trace is kept, if a rule matches it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ordinary,
    Error,
    Slow,
    Premium,
}

/// The encoded size of a span, with its share of the resource.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Size {
    /// About 200 bytes: the attributes that policies read, and little else.
    Small,
    /// About 680 bytes.
    Medium,
    /// About 4,000 bytes: each span has a stack trace.
    Large,
    /// Some 700 bytes of 2,400 different operations in 120 services.
    Diverse,
}

impl Size {
    fn fit(self, mut span: Span, rng: &mut Rng) -> Span {
        match self {
            Self::Small => {
                span.events.clear();
                span.attributes.retain(|pair| SMALL_KEYS.contains(&pair.key.as_str()));
            }
            Self::Medium | Self::Diverse => {}
            Self::Large => {
                let frame =
                    |_| format!("\tat net.example.shop.C{:08x}.call(C.java)\n", rng.u32(..));
                let frames: String = (0..FRAMES).map(frame).collect();
                span.attributes.push(text("exception.stacktrace", &frames));
            }
        }
        span
    }
}

/// One trace of the corpus, before its spans are placed in requests.
pub(crate) struct Trace {
    pub(crate) kind: Kind,
    root_id: u64,
    start_ns: u64,
    size: Size,
}

impl Trace {
    /// The trace numbered `number`; the number alone determines its kind.
    pub(crate) fn new(number: u64, start_ns: u64, size: Size, rng: &mut Rng) -> Self {
        // 173 and 400 have no common divisor, so the special traces are spread, and their shares
        // stay exact.
        let kind = match number * 173 % 400 {
            0..4 => Kind::Error,
            4..12 => Kind::Slow,
            12..23 => Kind::Premium,
            _ => Kind::Ordinary,
        };
        Self { kind, root_id: rng.u64(1..), start_ns, size }
    }

    /// The root span. It ends last and, in a slow trace, late. If it is the `only` span, it has the
    /// error too.
    pub(crate) fn root(&self, placeholder: [u8; 16], only: bool, rng: &mut Rng) -> Span {
        let ms = if self.kind == Kind::Slow { SLOW_MS + 400 } else { rng.u64(80..900) };
        let is_diverse = self.size == Size::Diverse;
        let mut root = if is_diverse { diverse::entry(rng) } else { web_span(rng) };
        root.kind = span::SpanKind::Server.into();
        root.span_id = self.root_id.to_be_bytes().to_vec();
        root.start_time_unix_nano = self.start_ns;
        root.end_time_unix_nano = self.start_ns + ms * NANOS_PER_MS;
        if self.kind == Kind::Premium {
            set_tier(&mut root);
        }
        if only {
            root.status = self.status();
        }
        self.size.fit(Span { trace_id: placeholder.to_vec(), ..root }, rng)
    }

    /// A span below the root; `last` marks the one that carries the error of an error trace.
    pub(crate) fn child(&self, placeholder: [u8; 16], last: bool, rng: &mut Rng) -> Span {
        let mut child = match self.size {
            Size::Diverse => diverse::span(rng),
            _ if rng.u8(..100) < 45 => web_span(rng),
            _ => database_span(rng),
        };
        child.kind = span::SpanKind::Client.into();
        child.span_id = rng.u64(1..).to_be_bytes().to_vec();
        child.parent_span_id = self.root_id.to_be_bytes().to_vec();
        child.start_time_unix_nano = self.start_ns + rng.u64(1..40) * NANOS_PER_MS;
        child.end_time_unix_nano = child.start_time_unix_nano + rng.u64(1..30) * NANOS_PER_MS;
        if last {
            child.status = self.status();
        }
        self.size.fit(Span { trace_id: placeholder.to_vec(), ..child }, rng)
    }

    /// The status of the span that carries the error of an error trace.
    fn status(&self) -> Option<Status> {
        (self.kind == Kind::Error).then(|| Status {
            message: "connection reset by peer".into(),
            code: status::StatusCode::Error.into(),
        })
    }
}

/// The resource numbered `number`: one of ten services, or of more, with a pod of its own.
pub(crate) fn resource(number: usize, size: Size) -> Resource {
    let service = match size {
        Size::Diverse => diverse::service(number),
        _ => SERVICES[number % SERVICES.len()].to_owned(),
    };
    let pod =
        format!("{service}-{:08x}-{number:05}", number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
    let attributes = vec![
        text("service.name", &service),
        text("service.namespace", "shop"),
        text("service.version", "3.14.2"),
        text("service.instance.id", &pod),
        text("deployment.environment.name", "production"),
        text("host.name", format!("node-{:03}.eu-central.example.net", number % 64)),
        text("k8s.namespace.name", "shop-production"),
        text("k8s.pod.name", &pod),
        text("telemetry.sdk.name", "opentelemetry"),
        text("telemetry.sdk.language", "java"),
        text("telemetry.sdk.version", "1.54.1"),
    ];
    Resource { attributes, ..Default::default() }
}

/// The one instrumentation scope of a resource, without spans yet.
pub(crate) fn scope() -> ScopeSpans {
    ScopeSpans {
        scope: Some(InstrumentationScope {
            name: "io.opentelemetry.shop".into(),
            version: "2.20.1-alpha".into(),
            ..Default::default()
        }),
        spans: Vec::new(),
        schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
    }
}

fn web_span(rng: &mut Rng) -> Span {
    let route = ROUTES[rng.usize(..ROUTES.len())];
    let order = rng.u32(..);
    let tier = if rng.bool() { "standard" } else { "free" };
    with_event(
        Span {
            name: format!("GET {route}"),
            attributes: vec![
                text("http.request.method", "GET"),
                text("http.route", route),
                text("url.path", format!("{route}/{order:08x}/items/page/1")),
                text("url.scheme", "https"),
                text("server.address", "shop.example.net"),
                whole("server.port", 8443),
                whole("http.response.status_code", 200),
                whole("http.response.body.size", rng.i64(200..90_000)),
                text("network.protocol.version", "1.1"),
                text("client.address", format!("10.{}.{}.{}", rng.u8(..), rng.u8(..), rng.u8(..))),
                text("user_agent.original", USER_AGENT),
                text(TIER_KEY, tier),
                text("session.id", format!("{:016x}{:016x}", rng.u64(..), rng.u64(..))),
                text("thread.name", format!("http-nio-8443-exec-{}", rng.u8(1..64))),
            ],
            ..Default::default()
        },
        rng,
    )
}

fn database_span(rng: &mut Rng) -> Span {
    let statement = STATEMENTS[rng.usize(..STATEMENTS.len())];
    with_event(
        Span {
            name: "shop.query".into(),
            attributes: vec![
                text("db.system.name", "postgresql"),
                text("db.namespace", "shop"),
                text("db.query.text", statement),
                text("db.operation.name", &statement[..6]),
                text("db.collection.name", "orders_2026"),
                text("server.address", "orders-primary.db.shop.svc.cluster.local"),
                whole("server.port", 5432),
                text("network.peer.address", format!("10.8.{}.{}", rng.u8(..), rng.u8(..))),
                whole("db.response.returned_rows", rng.i64(0..500)),
                text("db.client.connection.pool.name", "orders-rw"),
                text(
                    "code.function.name",
                    "net.example.shop.orders.OrderRepository.findAllOpenByCustomerId",
                ),
                whole("code.line.number", 217),
                text("thread.name", format!("hikari-orders-rw-{}", rng.u8(1..64))),
            ],
            ..Default::default()
        },
        rng,
    )
}

/// Adds an event to every fifth span.
fn with_event(mut span: Span, rng: &mut Rng) -> Span {
    if rng.u8(..5) == 0 {
        span.events.push(span::Event {
            name: "session.cache.lookup".into(),
            attributes: vec![
                text("cache.key", format!("session:{:016x}", rng.u64(..))),
                whole("cache.hit", i64::from(rng.bool())),
            ],
            ..Default::default()
        });
    }
    span
}

fn set_tier(span: &mut Span) {
    for attribute in span.attributes.iter_mut().filter(|attribute| attribute.key == TIER_KEY) {
        attribute.value = Some(AnyValue { value: Some(Value::StringValue(TIER_WANTED.into())) });
    }
}

pub(crate) fn whole(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

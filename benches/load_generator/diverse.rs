//! Spans as a platform of many services sends them: 2,400 operations of seven families, each with a
//! name, attributes and texts of its own, and in every span fresh ids, addresses, sizes and times.
//!
//! The spans of `traffic` repeat ten routes and statements, which flatters every codec and every
//! cache. Here the routes, statements, peers and functions are put together from lists of words, by
//! a fixed seed. A span picks its operation with a bias to the first ones, as in real traffic.

use std::sync::LazyLock;

use fastrand::Rng;
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    trace::v1::{Span, span::Event},
};

use tailwater::testing::text;

use crate::traffic::{TIER_KEY, whole};

const OPERATIONS: usize = 2400;
/// Services in the corpus.
pub(crate) const SERVICES: usize = 120;

const NOUNS: [&str; 48] = [
    "account",
    "address",
    "agreement",
    "alert",
    "article",
    "balance",
    "basket",
    "booking",
    "campaign",
    "carrier",
    "catalogue",
    "claim",
    "contract",
    "coupon",
    "credit",
    "customer",
    "delivery",
    "device",
    "discount",
    "document",
    "employee",
    "fulfilment",
    "invoice",
    "label",
    "ledger",
    "listing",
    "location",
    "manifest",
    "merchant",
    "message",
    "notification",
    "offer",
    "order",
    "parcel",
    "partner",
    "payment",
    "price",
    "product",
    "profile",
    "quote",
    "refund",
    "reservation",
    "return",
    "review",
    "shipment",
    "subscription",
    "supplier",
    "warehouse",
];
const VERBS: [&str; 20] = [
    "apply",
    "archive",
    "assign",
    "calculate",
    "cancel",
    "confirm",
    "create",
    "enrich",
    "export",
    "fetch",
    "list",
    "merge",
    "publish",
    "reconcile",
    "resolve",
    "schedule",
    "search",
    "update",
    "validate",
    "verify",
];
const COLUMNS: [&str; 24] = [
    "id",
    "status",
    "created_at",
    "updated_at",
    "tenant_id",
    "owner_id",
    "currency",
    "amount",
    "total",
    "version",
    "external_reference",
    "country_code",
    "valid_from",
    "valid_until",
    "quantity",
    "sku",
    "weight_grams",
    "email",
    "channel",
    "priority",
    "attempts",
    "region",
    "checksum",
    "payload",
];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "PATCH"];
const DATABASES: [(&str, i64); 4] =
    [("postgresql", 5432), ("mysql", 3306), ("microsoft.sql_server", 1433), ("oracle.db", 1521)];
const PLATFORMS: [&str; 8] = [
    "Windows NT 10.0; Win64; x64",
    "Macintosh; Intel Mac OS X 10_15_7",
    "X11; Linux x86_64",
    "Linux; Android 15; Pixel 9",
    "iPhone; CPU iPhone OS 18_5 like Mac OS X",
    "iPad; CPU OS 17_7 like Mac OS X",
    "Linux; Android 14; SM-S921B",
    "X11; CrOS x86_64 14541.0.0",
];

/// A span without what differs from call to call.
struct Operation {
    name: String,
    attributes: Vec<KeyValue>,
    family: Family,
    path: String,
}

#[derive(Clone, Copy)]
enum Family {
    Server,
    Client,
    Sql,
    KeyValue,
    Messaging,
    Rpc,
    Internal,
}

static ALL: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let mut rng = Rng::with_seed(41);
    (0..OPERATIONS).map(|_| Operation::new(&mut rng)).collect()
});

/// A span of some operation. It has no ids, times and status yet.
pub(crate) fn span(rng: &mut Rng) -> Span {
    let near_zero = rng.f64() * rng.f64();
    ALL[(near_zero * OPERATIONS as f64) as usize].span(rng)
}

/// A request from outside, which begins a trace.
pub(crate) fn entry(rng: &mut Rng) -> Span {
    loop {
        let operation = &ALL[rng.usize(..OPERATIONS)];
        if matches!(operation.family, Family::Server) {
            return operation.span(rng);
        }
    }
}

/// The name of a service.
pub(crate) fn service(number: usize) -> String {
    let number = number % SERVICES;
    format!("{}-{}", NOUNS[number * 7 % NOUNS.len()], VERBS[number % VERBS.len()])
}

fn one<'a>(words: &[&'a str], rng: &mut Rng) -> &'a str {
    words[rng.usize(..words.len())]
}

fn pascal(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

impl Operation {
    fn new(rng: &mut Rng) -> Self {
        match rng.u8(..100) {
            0..25 => Self::server(rng),
            25..40 => Self::client(rng),
            40..65 => Self::sql(rng),
            65..75 => Self::key_value(rng),
            75..85 => Self::messaging(rng),
            85..95 => Self::rpc(rng),
            _ => Self::internal(rng),
        }
    }

    fn server(rng: &mut Rng) -> Self {
        let (method, noun) = (one(&METHODS, rng), one(&NOUNS, rng));
        let mut route = format!("/v{}/{noun}s/{{{noun}Id}}", rng.u8(1..4));
        if rng.bool() {
            route += &format!("/{}", one(&NOUNS, rng));
        }
        if rng.bool() {
            route += &format!("/{}", one(&VERBS, rng));
        }
        let attributes = vec![
            text("http.request.method", method),
            text("http.route", &route),
            text("url.scheme", "https"),
            text("server.address", format!("{noun}.api.example.net")),
            whole("server.port", 8443),
            text("network.protocol.version", if rng.bool() { "1.1" } else { "2" }),
        ];
        let (name, family) = (format!("{method} {route}"), Family::Server);
        Operation { name, attributes, family, path: route.replace(&format!("{{{noun}Id}}"), "") }
    }

    fn client(rng: &mut Rng) -> Self {
        let (method, noun) = (one(&METHODS, rng), one(&NOUNS, rng));
        let peer = format!("{noun}-{}.shop.svc.cluster.local", one(&VERBS, rng));
        let attributes = vec![
            text("http.request.method", method),
            text("server.address", &peer),
            whole("server.port", 8080),
            text("network.protocol.version", "1.1"),
            text("url.template", format!("/internal/{noun}s/{{id}}")),
        ];
        let path = format!("http://{peer}:8080/internal/{noun}s/");
        Operation { name: method.to_owned(), attributes, family: Family::Client, path }
    }

    fn sql(rng: &mut Rng) -> Self {
        let (noun, (system, port)) = (one(&NOUNS, rng), DATABASES[rng.usize(..DATABASES.len())]);
        let table = format!("{noun}_{}s", one(&NOUNS, rng));
        let mut columns = COLUMNS.to_vec();
        rng.shuffle(&mut columns);
        let (some, key) = (columns[..rng.usize(3..10)].join(", "), columns[11]);
        let (verb, query) = match rng.u8(..4) {
            0 => ("INSERT", format!("INSERT INTO {table} ({some}) VALUES (?, ?, ?) RETURNING id")),
            1 => (
                "UPDATE",
                format!(
                    "UPDATE {table} SET {key} = ?, version = version + 1 \
                WHERE id = ? AND {} <= ?",
                    columns[12]
                ),
            ),
            _ => (
                "SELECT",
                format!(
                    "SELECT {some} FROM {table} AS t JOIN {noun} AS o ON \
                o.id = t.{noun}_id WHERE t.{key} = ? ORDER BY t.{} DESC LIMIT ?",
                    columns[12]
                ),
            ),
        };
        let class = format!("{}Repository", pascal(noun));
        let attributes = vec![
            text("db.system.name", system),
            text("db.namespace", noun),
            text("db.query.text", &query),
            text("db.operation.name", verb),
            text("db.collection.name", &table),
            text("server.address", format!("{noun}-primary.db.shop.svc.cluster.local")),
            whole("server.port", port),
            text("db.client.connection.pool.name", format!("{noun}-rw")),
            text("code.function.name", format!("net.example.{noun}.{class}.findBy{key}")),
            whole("code.line.number", rng.i64(30..900)),
        ];
        let name = format!("{verb} {table}");
        Operation { name, attributes, family: Family::Sql, path: noun.to_owned() }
    }

    fn key_value(rng: &mut Rng) -> Self {
        let command = one(&["GET", "SET", "HGETALL", "ZADD", "EXPIRE", "DEL", "EVALSHA"], rng);
        let noun = one(&NOUNS, rng);
        let attributes = vec![
            text("db.system.name", "redis"),
            text("db.operation.name", command),
            whole("db.namespace", rng.i64(..16)),
            text("server.address", format!("{noun}-cache.shop.svc.cluster.local")),
            whole("server.port", 6379),
        ];
        let path = format!("{command} {noun}:{}:", one(&VERBS, rng));
        Operation { name: command.to_owned(), attributes, family: Family::KeyValue, path }
    }

    fn messaging(rng: &mut Rng) -> Self {
        let topic = format!("{}.{}.v{}", one(&NOUNS, rng), one(&VERBS, rng), rng.u8(1..5));
        let does = if rng.bool() { "publish" } else { "process" };
        let attributes = vec![
            text("messaging.system", "kafka"),
            text("messaging.destination.name", &topic),
            text("messaging.operation.name", does),
            text("messaging.consumer.group.name", format!("{}-workers", one(&NOUNS, rng))),
            text("messaging.client.id", format!("{}-{}", one(&NOUNS, rng), rng.u16(..))),
        ];
        let name = format!("{does} {topic}");
        Operation { name, attributes, family: Family::Messaging, path: topic }
    }

    fn rpc(rng: &mut Rng) -> Self {
        let (noun, verb) = (one(&NOUNS, rng), one(&VERBS, rng));
        let service = format!("example.{noun}.v{}.{}Service", rng.u8(1..3), pascal(noun));
        let method = format!("{}{}", pascal(verb), pascal(one(&NOUNS, rng)));
        let attributes = vec![
            text("rpc.system", "grpc"),
            text("rpc.service", &service),
            text("rpc.method", &method),
            text("server.address", format!("{noun}.grpc.shop.svc.cluster.local")),
            whole("server.port", 9090),
        ];
        let name = format!("{service}/{method}");
        Operation { name, attributes, family: Family::Rpc, path: String::new() }
    }

    fn internal(rng: &mut Rng) -> Self {
        let (noun, verb) = (one(&NOUNS, rng), one(&VERBS, rng));
        let class = format!("{}{}Handler", pascal(noun), pascal(verb));
        let attributes = vec![
            text("code.function.name", format!("net.example.{noun}.domain.{class}.{verb}")),
            text("code.file.path", format!("{class}.java")),
            whole("code.line.number", rng.i64(30..900)),
            text("feature_flag.key", format!("{noun}-{verb}-enabled")),
            text("feature_flag.result.variant", if rng.bool() { "on" } else { "off" }),
        ];
        let name = format!("{class}.{verb}");
        Operation { name, attributes, family: Family::Internal, path: String::new() }
    }

    fn span(&self, rng: &mut Rng) -> Span {
        let mut span = Span {
            name: self.name.clone(),
            attributes: self.attributes.clone(),
            ..Span::default()
        };
        let path = &self.path;
        let mut add = |key: &str, value: &str| span.attributes.push(text(key, value));
        match self.family {
            Family::Server => {
                add("url.path", &format!("{path}{}", uuid(rng)));
                add("url.query", &format!("page={}&size=50&trace={:x}", rng.u8(..), rng.u64(..)));
                add("client.address", &address(rng));
                add("user_agent.original", &user_agent(rng));
                add(TIER_KEY, if rng.bool() { "standard" } else { "free" });
                add("session.id", &uuid(rng));
                add("enduser.id", &format!("u-{:08}", rng.u32(..100_000_000)));
            }
            Family::Client => {
                add("url.full", &format!("{path}{}?expand={}", uuid(rng), one(&NOUNS, rng)));
                add("network.peer.address", &address(rng));
                add("http.request.header.x-request-id", &uuid(rng));
            }
            Family::Sql => {
                add("network.peer.address", &address(rng));
                add("thread.name", &format!("hikari-{path}-rw-{}", rng.u8(1..64)));
                add("db.query.parameter.0", &uuid(rng));
            }
            Family::KeyValue => {
                add("db.query.text", &format!("{path}{}", uuid(rng)));
                add("network.peer.address", &address(rng));
                add("thread.name", &format!("lettuce-nio-{}", rng.u8(1..32)));
            }
            Family::Messaging => {
                add("messaging.message.id", &uuid(rng));
                add("messaging.kafka.message.key", &format!("{:016x}", rng.u64(..)));
                add("messaging.destination.partition.id", &rng.u8(..48).to_string());
                add("messaging.kafka.offset", &rng.u32(..).to_string());
            }
            Family::Rpc => {
                add("network.peer.address", &address(rng));
                add("rpc.message.id", &uuid(rng));
                add("thread.name", &format!("grpc-default-executor-{}", rng.u8(..96)));
            }
            Family::Internal => add("correlation.id", &uuid(rng)),
        }
        span.attributes.extend(self.numbers(rng));
        if rng.u8(..5) == 0 {
            span.events.push(Event {
                name: format!("{}.{}", one(&NOUNS, rng), one(&VERBS, rng)),
                attributes: vec![text("item.id", uuid(rng)), whole("item.count", rng.i64(..500))],
                ..Event::default()
            });
        }
        span
    }

    fn numbers(&self, rng: &mut Rng) -> Vec<KeyValue> {
        let status = [200, 200, 200, 201, 204, 304, 404, 503][rng.usize(..8)];
        let numbers = match self.family {
            Family::Server => vec![
                whole("http.response.status_code", status),
                whole("http.response.body.size", rng.i64(200..90_000)),
                whole("network.peer.port", rng.i64(1024..65_536)),
            ],
            Family::Client => vec![
                whole("http.response.status_code", status),
                whole("http.request.body.size", rng.i64(..9_000)),
            ],
            Family::Sql => vec![whole("db.response.returned_rows", rng.i64(..500))],
            Family::Messaging => vec![whole("messaging.message.body.size", rng.i64(80..20_000))],
            Family::Rpc => vec![whole("rpc.grpc.status_code", 0)],
            Family::KeyValue | Family::Internal => vec![],
        };
        numbers.into_iter().chain([whole("thread.id", rng.i64(1..400))]).collect()
    }
}

fn uuid(rng: &mut Rng) -> String {
    let (high, low) = (rng.u64(..), rng.u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        high & 0xffff,
        high >> 16 & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

fn address(rng: &mut Rng) -> String {
    format!("10.{}.{}.{}", rng.u8(..), rng.u8(..), rng.u8(..))
}

fn user_agent(rng: &mut Rng) -> String {
    let (platform, version) = (one(&PLATFORMS, rng), rng.u8(118..141));
    format!(
        "Mozilla/5.0 ({platform}) AppleWebKit/537.36 (KHTML, like Gecko) \
         Chrome/{version}.0.{}.{} Safari/537.36",
        rng.u16(5000..7400),
        rng.u8(..)
    )
}

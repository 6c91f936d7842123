//! The parameters of `budget` and `rare`, which divide traces into kinds by keys.

use crate::policy::{BudgetSpec, KindsSpec, LimitSpec, Number, RareSpec, Rate};

use super::{
    diagnostics::{Problem, quote},
    limits::above_zero,
    section::{Read, Section},
};

/// Each key costs 8 bytes for every buffered trace, and for every span while it is walked.
const KEYS_MAX: usize = 16;

const RATES: [&str; 2] = ["spans_per_second", "bytes_per_second"];

/// `budget`, without its parts.
pub(super) fn budget(section: &mut Section<'_, '_>) -> Option<BudgetSpec> {
    let kinds = kinds(section);
    let power = power(section);
    let rates = RATES.map(|key| above_zero(section, key));
    let spec = |of: f64| Rate { per_second: of, burst: BudgetSpec::BURST_SECONDS * of };
    let rate = match rates {
        [Read::Set(..), Read::Set(_, span)] => {
            let problem = Problem::new("a budget can only have one rate");
            section.error(span, problem.hint("keep `spans_per_second` or `bytes_per_second`"));
            None
        }
        [Read::Unset, Read::Unset] => {
            let problem = Problem::new("the budget has no rate");
            let hint = "write spans_per_second = 500, or bytes_per_second";
            section.require_any(&RATES, problem.hint(hint));
            None
        }
        [Read::Bad, _] | [_, Read::Bad] => None,
        [spans, bytes] => {
            Some(LimitSpec { spans: spans.good().map(spec), bytes: bytes.good().map(spec) })
        }
    };
    Some(BudgetSpec { rate: rate?, kinds: kinds?, power: power? })
}

/// `rare`, without its parts.
pub(super) fn rare(section: &mut Section<'_, '_>) -> Option<RareSpec> {
    let kinds = kinds(section);
    let interval = section.literal_duration_or_default("interval");
    let traces = section.integer_or_default("traces");
    let interval_millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    Some(RareSpec { kinds: kinds?, interval_millis, traces })
}

/// Reads `keys` and `max_keys`.
fn kinds(section: &mut Section<'_, '_>) -> Option<KindsSpec> {
    let kinds_max = section.integer_or_default("max_keys");
    let written = section.literals("keys");
    let problem = Problem::new("the policy has no `keys`");
    section.require("keys", &written, problem.hint(r#"write keys = ["service.name"]"#));
    let Read::Set(written, span) = written else { return None };
    if written.is_empty() || written.len() > KEYS_MAX {
        let problem = Problem::new(format!("`keys` has {} keys", written.len()));
        section.error(span, problem.hint(format!("name 1 to {KEYS_MAX}")));
        return None;
    }
    let mut keys: Vec<String> = Vec::with_capacity(written.len());
    let mut is_good = true;
    for (key, span) in written {
        if key.is_empty() {
            section.error(span, Problem::new("a key is empty"));
            is_good = false;
        } else if keys.contains(&key) {
            section.error(span, Problem::new(format!("`keys` has {} twice", quote(&key))));
            is_good = false;
        } else {
            if looks_like_an_id(&key) {
                let message = format!(
                    "the key {} looks like an id: nearly every trace would be its own kind",
                    quote(&key)
                );
                let hint = "use attributes with few values, such as `service.name` or `http.route`";
                section.warn(span, Problem::new(message).hint(hint));
            }
            keys.push(key);
        }
    }
    is_good.then_some(KindsSpec { keys, kinds_max })
}

fn power(section: &mut Section<'_, '_>) -> Option<f64> {
    let (power, span) = match section.number("power") {
        Read::Set(power, span) => (power, span),
        Read::Unset => return Some(0.0),
        Read::Bad => return None,
    };
    let power = match power {
        Number::Int(power) => power as f64,
        Number::Double(power) => power,
    };
    if (0.0..=1.0).contains(&power) {
        return Some(power);
    }
    let problem = Problem::new("`power` must be between 0 and 1");
    section.error(span, problem.hint("0 gives equal shares, 1 shares in proportion to traffic"));
    None
}

/// Whether an attribute, judging by its name, probably has a new value for nearly every trace.
fn looks_like_an_id(key: &str) -> bool {
    /// Attributes that have a value of their own for nearly every request, or very many values.
    const MANY: &[&str] = &[
        "url.full",
        "url.path",
        "url.query",
        "http.url",
        "http.target",
        "db.statement",
        "db.query.text",
        "client.address",
        "client.port",
        "network.peer.address",
        "network.peer.port",
        "net.peer.ip",
        "net.peer.port",
        "exception.message",
        "exception.stacktrace",
    ];
    const WORDS: &[&str] = &[
        "id",
        "uuid",
        "guid",
        "uid",
        "traceid",
        "requestid",
        "sessionid",
        "userid",
        "orderid",
        "email",
        "timestamp",
        "token",
        "nonce",
        "ip",
    ];
    /// Ids that have few values in a system.
    const FEW: &[&str] = &["tenant", "organization", "org", "project", "account", "region", "zone"];
    let words = words(key);
    let is_of_few = words.iter().rev().nth(1).is_some_and(|word| FEW.contains(&word.as_str()));
    MANY.contains(&key.to_ascii_lowercase().as_str())
        || words.last().is_some_and(|word| WORDS.contains(&word.as_str())) && !is_of_few
}

/// The words of a key in lower case: `customerId` and `customerID` have two, as `customer.id`.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in key.chars() {
        if (was_lower && c.is_ascii_uppercase()) || !c.is_ascii_alphanumeric() {
            words.push(String::new());
        }
        if c.is_ascii_alphanumeric() {
            words.last_mut().expect("at least one word").push(c.to_ascii_lowercase());
        }
        was_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
    }
    words
}

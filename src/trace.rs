//! Domain values that all stages share: trace ids, randomness, thresholds, and the facts of a
//! trace.
//!
//! A *threshold* T and a *randomness* R are 56-bit numbers. A trace is kept if and only if R >= T,
//! so the probability of keeping it is `1 - T / 2^56`. All policies compare the same R, so the
//! union of policies is exactly the minimum of their thresholds, and the intersection is the
//! maximum.
//!
//! Source: OpenTelemetry specification, "TraceState: Probability Sampling" and "Probability
//! Sampling".

use std::fmt;

/// The number of characters of a UUID, and the positions of its dashes.
const UUID_CHARS: usize = 36;
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];

/// A W3C trace id: 16 bytes, never all zero after the walker has accepted it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Parses 32 hexadecimal digits (either case); `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|id| TraceId(id.to_be_bytes()))
    }

    /// Parses an id in any form that tools show: 32 hexadecimal digits, fewer if leading zeros are
    /// left out, or a UUID, in upper or lower case, with white space around it. `None` for anything
    /// else, and for zero.
    pub(crate) fn from_any_form(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_uuid = text.len() == UUID_CHARS
            && text.bytes().enumerate().all(|(at, b)| (b == b'-') == UUID_DASHES.contains(&at));
        let digits = if is_uuid { text.replace('-', "") } else { text.to_owned() };
        // At least one digit, at most 32: an id of 33 digits was copied wrongly.
        let id = (1..=32).contains(&digits.len()).then(|| format!("{digits:0>32}"))?;
        Self::from_hex(&id).filter(|id| id.0 != [0; 16])
    }

    /// Parses an id as people paste it: in any of the forms of [`Self::from_any_form`], with white
    /// space, quotes or brackets around it, with `0x` before it, with dashes anywhere, or within a
    /// `traceparent`.
    pub(crate) fn from_pasted(text: &str) -> Option<Self> {
        let around = |c: char| c.is_whitespace() || "\"'`{}()[]<>,;".contains(c);
        let text = text.trim_matches(around);
        let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        let parts: Vec<_> = text.splitn(5, '-').collect();
        let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
        match (&parts[..], &lengths[..]) {
            ([_version, id, _parent, _flags], [2, 32, 16, 2]) => Self::from_any_form(id),
            // Long text is not copied: no id has that many dashes.
            _ if text.len() > 2 * UUID_CHARS => None,
            _ => Self::from_any_form(&text.replace('-', "")),
        }
    }

    /// The randomness in the id itself: its low 56 bits.
    pub fn randomness(self) -> Randomness {
        let [.., b7, b6, b5, b4, b3, b2, b1, b0] = self.0;
        let _ = b7;
        Randomness(u64::from_be_bytes([0, b6, b5, b4, b3, b2, b1, b0]))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The 56 bits that decide every probability for one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Randomness(pub u64);

impl Randomness {
    /// The randomness of a trace whose spans have different values: the lowest.
    pub(crate) fn lowest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl fmt::Display for Randomness {
    /// 14 lower-case hexadecimal digits, as in `ot=rv`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}

/// A rejection threshold: a trace is kept if its randomness is at or above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold(u64);

impl Threshold {
    /// The threshold that keeps everything: 100 %.
    pub const ALWAYS: Threshold = Threshold(0);
    /// The threshold that keeps nothing. It is above every randomness, so `ot=th` cannot express
    /// it.
    pub const NEVER: Threshold = Threshold(1 << 56);

    /// The threshold of a percentage, `2^56 - round(p / 100 * 2^56)`; [`Self::NEVER`] for 0 and
    /// less.
    pub fn from_percentage(percentage: f64) -> Self {
        let scale = (1u64 << 56) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the product is clamped to 0..=2^56, which an f64 holds exactly"
        )]
        let kept = (percentage / 100.0 * scale).round().clamp(0.0, scale) as u64;
        Threshold(Self::NEVER.0 - kept)
    }

    /// The percentage that it keeps: the number with the fewest decimals that
    /// [`Self::from_percentage`] converts to this threshold.
    pub fn percentage(self) -> f64 {
        let exact = (Self::NEVER.0 - self.0) as f64 / (1u64 << 56) as f64 * 100.0;
        let written = (0..=17).filter_map(|decimals| format!("{exact:.decimals$}").parse().ok());
        written
            .into_iter()
            .find(|percentage: &f64| Self::from_percentage(*percentage) == self)
            .unwrap_or(exact)
    }

    /// A threshold from its 56-bit value; larger values are [`Self::NEVER`].
    pub fn from_bits(bits: u64) -> Self {
        Threshold(bits.min(Self::NEVER.0))
    }

    /// The 56-bit value; `2^56` for [`Self::NEVER`].
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether a trace with this randomness is kept.
    pub fn keeps(self, randomness: Randomness) -> bool {
        randomness.0 >= self.0
    }

    /// Whether any trace can be kept, which is the meaning of "the policy matched".
    pub fn matches(self) -> bool {
        self < Self::NEVER
    }
}

impl fmt::Display for Threshold {
    /// The value of `ot=th`: hexadecimal with trailing zeros trimmed, `0` for 100 %.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:014x}", self.0);
        let trimmed = digits.trim_end_matches('0');
        f.write_str(if trimmed.is_empty() { "0" } else { trimmed })
    }
}

/// The `status.code` of a span, with OTLP's numbers. Numbers outside 0..=2 are none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCode {
    /// No status, or code 0.
    Unset = 0,
    /// Code 1.
    Ok = 1,
    /// Code 2.
    Error = 2,
}

impl StatusCode {
    /// This code's bit in [`Facts::status_mask`].
    pub fn mask(self) -> u8 {
        1 << self as u8
    }
}

/// The `kind` of a span, with OTLP's numbers. Numbers outside 0..=5 are none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// No kind, or kind 0.
    Unspecified = 0,
    /// Kind 1.
    Internal = 1,
    /// Kind 2.
    Server = 2,
    /// Kind 3.
    Client = 3,
    /// Kind 4.
    Producer = 4,
    /// Kind 5.
    Consumer = 5,
}

impl SpanKind {
    /// This kind's bit in a mask of kinds.
    pub(crate) fn mask(self) -> u8 {
        1 << self as u8
    }
}

/// The reason why a trace was decided at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// `decision_wait` has passed since the first span.
    DecisionWait = 0,
    /// `decision_wait_after_root_received` has passed since the root span.
    RootReceived = 1,
    /// Memory was above the soft limit, and the trace was among the oldest.
    Memory = 2,
    /// The trace reached `max_trace_spans` or `max_trace_bytes_mib`.
    TraceLimit = 3,
    /// The service is shutting down.
    Shutdown = 4,
}

impl Trigger {
    /// Every trigger, in the order of its number.
    pub(crate) const ALL: [Trigger; 5] = [
        Trigger::DecisionWait,
        Trigger::RootReceived,
        Trigger::Memory,
        Trigger::TraceLimit,
        Trigger::Shutdown,
    ];

    /// The name in metrics, in stamps and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::DecisionWait => "decision_wait",
            Trigger::RootReceived => "root_received",
            Trigger::Memory => "memory",
            Trigger::TraceLimit => "trace_limit",
            Trigger::Shutdown => "shutdown",
        }
    }

    /// Whether the decision came before the trace was due. Conditions that can still change must
    /// not veto then.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Trigger::Memory | Trigger::TraceLimit | Trigger::Shutdown)
    }
}

/// The facts of a buffered trace, available without reading its spans again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The earliest non-zero start in Unix nanoseconds; 0 if there is none.
    pub start_unix_nano: u64,
    /// The latest end in Unix nanoseconds; 0 if there is none. The end of a span counts as its
    /// start if it is earlier.
    pub end_unix_nano: u64,
    /// The number of spans so far.
    pub spans: u32,
    /// Encoded bytes of those spans.
    pub bytes: u32,
    /// One bit for each [`StatusCode`] seen.
    pub status_mask: u8,
    /// Whether a span without a parent has been seen.
    pub root_seen: bool,
}

impl Facts {
    /// The latest end minus the earliest start in nanoseconds; 0 if either is unknown.
    pub(crate) fn duration_nanos(&self) -> u64 {
        if self.start_unix_nano == 0 {
            return 0;
        }
        self.end_unix_nano.saturating_sub(self.start_unix_nano)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_written_as_the_specification_does() {
        let th = |p: f64| Threshold::from_percentage(p).to_string();
        assert_eq!(th(100.0), "0");
        assert_eq!(th(10.0), "e6666666666666");
        assert_eq!(th(50.0), "8");
        assert_eq!(th(25.0), "c");
        assert_eq!(th(75.0), "4");
        assert!(!Threshold::from_percentage(0.0).matches());
        for percentage in [0.0, 0.001, 1.0, 5.0, 10.0, 33.3, 50.0, 99.99, 100.0] {
            assert_eq!(Threshold::from_percentage(percentage).percentage(), percentage);
        }
        assert!(!Threshold::NEVER.keeps(Randomness((1 << 56) - 1)));
        assert!(Threshold::ALWAYS.keeps(Randomness(0)));
    }

    #[test]
    fn randomness_is_the_low_56_bits() {
        let id = TraceId::from_hex("0123456789abcdeffedcba9876543210").expect("hex");
        assert_eq!(id.randomness().to_string(), "dcba9876543210");
        assert_eq!(id.to_string(), "0123456789abcdeffedcba9876543210");
        assert_eq!(TraceId::from_hex("+123456789abcdeffedcba9876543210"), None);
        assert_eq!(TraceId::from_hex("01"), None);
        let parsed = |text: &str| TraceId::from_any_form(text).map(|id| id.to_string());
        let id = "000000000000000000000000000a1b2c";
        let uuid = "00000000-0000-0000-0000-0000000A1B2C";
        for text in [id, "a1b2c", "0A1b2C", uuid, &uuid.to_lowercase(), " a1b2c\n"] {
            assert_eq!(parsed(text).as_deref(), Some(id), "{text}");
        }
        let pasted = |text: &str| TraceId::from_pasted(text).map(|id| id.to_string());
        let traceparent = format!("00-{id}-00f067aa0ba902b7-01");
        for text in ["a1b2c", " 0xA1B2C\n", "\"a1b2c\"", "{a1-b2c}", "`a1b2c`,", &traceparent, uuid]
        {
            assert_eq!(pasted(text).as_deref(), Some(id), "{text}");
        }
        let long = "-".repeat(1 << 20);
        for text in ["", "0x", "-", "a1b2c d", "00-a1b2c-0-01x", &format!("0{id}"), &long, "é"] {
            assert_eq!(pasted(text), None, "{text:.50}");
        }
        let full = "01234567-89ab-cdef-FEDC-ba9876543210";
        assert_eq!(parsed(full).as_deref(), Some("0123456789abcdeffedcba9876543210"));
        for text in [
            "",
            "0",
            "x",
            "+1",
            "-1",
            "1-",
            &format!("0{id}"),
            &id.replace("a1b2c", "00000"),
            "0123456789ab-cdef-fedc-ba98-76543210",
            "01234567-89ab-cdef-fedc-ba987654321",
            "01234567-89ab-cdef-fedc-ba98765-3210",
            "é1234567-89ab-cdef-fedc-ba987654321",
            "{01234567-89ab-cdef-fedc-ba9876543210}",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}

//! `limit` of a policy: the rate limits of the Collector and the shares of a composite.

/// A rate, and for a part of a composite the spans of its share beside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limit {
    /// `spans_per_second` or `bytes_per_second`.
    pub(super) rate: &'static str,
    pub(super) per_second: i64,
    /// Twice the rate without it, in the Collector and in Tailwater.
    pub(super) burst: Option<i64>,
    /// A second rate, beside one of bytes.
    pub(super) spans_per_second: Option<i64>,
}

impl Limit {
    pub(super) fn of_spans(per_second: i64) -> Self {
        Limit { rate: "spans_per_second", per_second, burst: None, spans_per_second: None }
    }

    /// This limit on no more than so many spans a second; nothing where it cannot be expressed.
    pub(super) fn within(self, spans: i64) -> Option<Self> {
        let burst = self.burst.filter(|burst| *burst != self.per_second.saturating_mul(2));
        if self.rate == "bytes_per_second" {
            return burst.is_none().then_some(Limit {
                burst: None,
                spans_per_second: Some(spans),
                ..self
            });
        }
        let per_second = self.per_second.min(spans);
        let burst = burst.map(|burst| burst.min(per_second.saturating_mul(2)));
        Some(Limit { per_second, burst, ..self })
    }

    pub(super) fn toml(&self) -> String {
        let mut keys = vec![format!("{} = {}", self.rate, self.per_second)];
        keys.extend(self.spans_per_second.map(|spans| format!("spans_per_second = {spans}")));
        keys.extend(self.burst.map(|burst| format!("burst_capacity = {burst}")));
        format!("{{ {} }}", keys.join(", "))
    }
}

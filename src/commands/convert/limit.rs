//! The `limit` of a converted policy: from the Collector's rate limits and a composite's shares.

/// A rate limit; for a part of a composite also the part's share in spans.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limit {
    /// `spans_per_second` or `bytes_per_second`.
    pub(super) rate: &'static str,
    pub(super) per_second: i64,
    /// `None` means twice the rate, in the Collector and in Tailwater.
    pub(super) burst: Option<i64>,
    /// A second limit, in spans, beside one in bytes.
    pub(super) spans_per_second: Option<i64>,
}

impl Limit {
    pub(super) fn of_spans(per_second: i64) -> Self {
        Limit { rate: "spans_per_second", per_second, burst: None, spans_per_second: None }
    }

    /// Adds a limit of `spans` a second. `None` if both together cannot be expressed.
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

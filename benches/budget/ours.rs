//! A policy of type `budget`, decided by the plan that the service uses.

use std::sync::Arc;

use tailwater::{
    policy::{
        Begins, BudgetSpec, Evidence, KindsSpec, LimitSpec, Plan, PolicySpec, Rate, RuleKind,
        RuleSpec, Tick,
    },
    trace::{Facts, Randomness, TraceId},
};

use super::traffic::{Sampler, TICKS_PER_SECOND};

/// A budget.
pub(crate) struct Budget {
    pub(crate) plan: Arc<Plan>,
    /// The spans of each trace.
    pub(crate) spans: u32,
}

impl Budget {
    /// A budget of `per_second` spans per second, with equal shares and 4,096 kinds.
    pub(crate) fn new(per_second: f64) -> Self {
        Budget::with(per_second, 4096, 0.0)
    }

    pub(crate) fn with(per_second: f64, kinds_max: usize, power: f64) -> Self {
        let spans = Some(Rate { per_second, burst: BudgetSpec::BURST_SECONDS * per_second });
        let budget = BudgetSpec {
            rate: LimitSpec { spans, bytes: None },
            kinds: KindsSpec { keys: vec!["kind".to_owned()], kinds_max },
            power,
        };
        let kind = RuleKind::Budget(Vec::new(), budget);
        let policy = PolicySpec::new("budget", RuleSpec { kind, sampling_percentage: 100.0 });
        Budget { plan: Arc::new(Plan::compile(&[policy])), spans: 1 }
    }

    /// Decides the traces of a tick by their kinds, randomness and spans.
    pub(crate) fn decide(&self, traces: &[(u64, Randomness, u32)]) -> Vec<Option<f64>> {
        let facts = |spans| Facts { spans, bytes: 100 * spans, ..Facts::default() };
        let all: Vec<_> = traces.iter().map(|&(.., spans)| facts(spans)).collect();
        // The words that the walker would write: the rank of the span, and the hash of the value.
        let words: Vec<_> = traces.iter().map(|&(kind, ..)| [1, kind + 1]).collect();
        let evidence = |index: usize| Evidence {
            trace_id: TraceId((index as u128 + 1).to_be_bytes()),
            facts: &all[index],
            bits: &words[index],
            randomness: traces[index].1,
            forced: false,
        };
        let mut tick = Tick::new(Begins::All, 1.0 / TICKS_PER_SECOND as f64);
        tick.join(&self.plan);
        (0..traces.len()).for_each(|index| tick.add(&self.plan, &evidence(index), 0));
        tick.begin();
        let decide = |index| {
            let verdict = self.plan.decide(&evidence(index), &mut Vec::new());
            verdict.kept.then(|| {
                self.plan.charge(&evidence(index));
                1.0 - verdict.threshold.bits() as f64 / (1u64 << 56) as f64
            })
        };
        (0..traces.len()).map(decide).collect()
    }
}

impl Sampler for Budget {
    fn tick(&mut self, traces: &[(u64, Randomness)]) -> Vec<Option<f64>> {
        let with_spans = |&(kind, randomness): &(u64, Randomness)| (kind, randomness, self.spans);
        self.decide(&traces.iter().map(with_spans).collect::<Vec<_>>())
    }
}

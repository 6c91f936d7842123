//! Measures what span metrics and a budget cost in Tailwater's own code: takes in and decides the
//! same requests without and with them, in alternation, by the CPU time of the thread. The metrics
//! have about 2,000 series, from the services, operations and pods of the traffic, and one
//! dimension. The budget has three keys and keeps little.

use std::{sync::Arc, time::Duration};

use tailwater::{
    budget::Budget,
    policy::{BudgetSpec, KindsSpec, LimitSpec, Plan, PolicySpec, Rate, RuleKind, RuleSpec},
    sampler::{Decided, Sampler, Scratch, Which},
    span_metrics::{Dimension, Settings, SpanMetrics, Style},
    window::{Millis, Waits},
};

use crate::{
    ENDED, Result, WARM_UP, arrival_ms,
    corpus::{Corpus, GRPC_PREFIX_BYTES, SPANS_PER_REQUEST, Shape},
    limits, measured, parts, plan, specs,
};

/// Compares with metrics of the kind that the default counts of this traffic.
pub(crate) fn span_metrics_of_servers(requests: u64) -> Result<()> {
    span_metrics("SERVER", 1 << 2, 330, requests)
}

/// Compares with metrics of all kinds.
pub(crate) fn span_metrics_of_all(requests: u64) -> Result<()> {
    span_metrics("all kinds", 0x3f, 120, requests)
}

fn span_metrics(label: &str, kinds: u8, resources: usize, requests: u64) -> Result<()> {
    let mut corpus = Corpus::build(&Shape { resources, ..Shape::plain(64) })?;
    let mut sides = [Side::new(plan(), None), Side::new(plan(), Some(kinds))];
    compare(&mut corpus, &format!("span metrics, {label}"), &mut sides, requests)?;
    let totals = sides[1].sampler.span_metrics().map(|metrics| metrics.totals());
    let totals = totals.unwrap_or_default();
    let spans = (WARM_UP + requests) * SPANS_PER_REQUEST;
    println!(
        "  {} series, {:.0} % of the spans counted",
        totals.series,
        totals.spans as f64 / spans as f64 * 100.0
    );
    Ok(())
}

/// Compares the policies with and without a budget.
pub(crate) fn budget(requests: u64) -> Result<()> {
    let keys = ["service.name", "http.route", "span.name"].map(str::to_owned).to_vec();
    let spans = Some(Rate { per_second: 100.0, burst: 100.0 * BudgetSpec::BURST_SECONDS });
    let budget = BudgetSpec {
        rate: LimitSpec { spans, bytes: None },
        kinds: KindsSpec { keys, kinds_max: 4096 },
        power: 0.0,
    };
    let kind = RuleKind::Budget(Vec::new(), budget);
    let policy = PolicySpec::new("budget", RuleSpec { kind, sampling_percentage: 100.0 });
    let with_budget = Plan::compile(&specs().into_iter().chain([policy]).collect::<Vec<_>>());
    let mut corpus = Corpus::build(&Shape::plain(64))?;
    let mut sides = [Side::new(plan(), None), Side::new(with_budget, None)];
    compare(&mut corpus, "budget", &mut sides, requests)
}

struct Side {
    sampler: Sampler,
    scratch: Scratch,
    decided: Decided,
    time: Duration,
}

impl Side {
    fn new(plan: Plan, kinds: Option<u8>) -> Self {
        let budget = Budget::new(4 << 30);
        let pod = "k8s.pod.name".to_owned();
        let dimension = Dimension { attribute: pod, label: "k8s_pod_name".to_owned() };
        let metrics = kinds.map(|kinds| {
            let settings = Settings {
                style: Style::Tempo,
                kinds,
                dimensions: vec![dimension],
                max_series: 10_000,
                stale_after: Duration::from_secs(900),
                exemplars: true,
            };
            Arc::new(SpanMetrics::new(settings, &budget))
        });
        let limits = limits(Waits { decision_wait: 1000, after_root: None });
        let sampler = Sampler::new(Arc::new(plan), limits, &budget, 8);
        let sampler = sampler.with_span_metrics(metrics);
        let (scratch, decided, time) = Default::default();
        Side { sampler, scratch, decided, time }
    }

    fn take(&mut self, now: Millis, request: &[u8], ticks: bool) -> Result<()> {
        let Side { sampler, scratch, decided, .. } = self;
        let began = parts::thread_cpu();
        sampler.ingest(now, request, scratch, decided)?;
        if ticks {
            sampler.begin_tick(now, 0.1);
            for shard in 0..sampler.shards() {
                sampler.decide(shard, now, Which::Due, usize::MAX, decided);
            }
        }
        if let Some(metrics) = sampler.span_metrics() {
            metrics.kept(&decided.spans, 1);
        }
        decided.clear();
        self.time += parts::thread_cpu() - began;
        Ok(())
    }
}

fn compare(corpus: &mut Corpus, label: &str, sides: &mut [Side; 2], requests: u64) -> Result<()> {
    let mut tick = 0;
    for sequence in 0..WARM_UP + requests {
        if sequence == WARM_UP {
            sides.iter_mut().for_each(|side| side.time = Duration::ZERO);
        }
        let now = arrival_ms(sequence);
        let body = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
        let ticks = now / 100 != tick;
        tick = now / 100;
        // They take turns at going first, because the second one finds the request in the CPU
        // cache.
        let first = (sequence % 2) as usize;
        for side in [first, 1 - first] {
            let take = || sides[side].take(Millis(now), &body, ticks);
            if side == 0 { measured::without(take) } else { measured::with(take) }?;
        }
    }
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / (requests * SPANS_PER_REQUEST) as f64;
    let [off, on] = [0, 1].map(|side: usize| nanos(sides[side].time));
    println!("{label}: {off:.0} ns a span off, {on:.0} on, {:.3} times", on / off);
    Ok(())
}

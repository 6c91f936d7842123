//! The checks at the end of a run, span by span.

use std::collections::BTreeMap;

use tailwater::{
    sampler::{Lookup, Sampler},
    trace::TraceId,
};

use crate::{
    harness::{self, Metrics},
    journal::{Attempt, Fate, Journal, Sent, span_id},
    policies::SETS,
};

/// The journal's record of a trace.
#[derive(Default)]
struct Trace {
    /// Spans of attempts that were answered OK, with their ids.
    taken: Vec<(u64, Sent)>,
    /// Whether an attempt has no answer, and may have been stored.
    has_unknown: bool,
    /// Spans that the backend has, of both kinds of attempts.
    stored: usize,
}

/// Compares the journal with the metrics and the decisions. A forgetful sampler may decide a trace
/// twice.
pub fn at_the_end(journal: &Journal, metrics: &Metrics, sampler: &Sampler, is_forgetful: bool) {
    let attempts = journal.attempts();
    let stored = journal.stored();
    counts(journal, metrics, &attempts);
    deliveries(journal, metrics, &attempts, &stored);
    traces(journal, metrics, sampler, (&attempts, &stored), is_forgetful);
    for (series, value) in metrics.nonzero() {
        if !series.contains("timestamp_seconds") {
            journal.note(format_args!("{series} {value}"));
        }
    }
}

/// Checks that the answers to senders agree with the counters.
fn counts(journal: &Journal, metrics: &Metrics, attempts: &[Attempt]) {
    let valid = |attempt: &Attempt| attempt.spans.iter().filter(|span| !span.is_bad).count() as f64;
    let sum = |fate| attempts.iter().filter(|a| a.fate == fate).map(valid).sum::<f64>();
    let (taken, unknown) = (sum(Fate::Taken), sum(Fate::Unknown));
    let accepted = metrics.sum("receiver_accepted_spans_total");
    journal.check((taken..=taken + unknown).contains(&accepted), || {
        format!("{accepted} accepted, {taken} acknowledged, {unknown} without an answer")
    });
    let restarts = metrics.sum("task_restarts_total");
    journal.check(restarts == 0.0, || format!("{restarts} panics"));
    let left = metrics.sum("window_spans") + metrics.sum("exporter_queue_spans");
    journal.check(left == 0.0, || format!("{left} spans left behind"));
}

/// Checks that the backend has only spans that were sent, in attempts that were not refused.
fn deliveries(
    journal: &Journal,
    metrics: &Metrics,
    attempts: &[Attempt],
    stored: &BTreeMap<u64, u32>,
) {
    for &id in stored.keys() {
        let attempt = (id >> 32).checked_sub(1).and_then(|attempt| attempts.get(attempt as usize));
        let span = attempt.and_then(|a| a.spans.get((id & 0xffff_ffff) as usize).map(|s| (a, s)));
        let is_sound = span.is_some_and(|(a, span)| a.fate != Fate::Refused && !span.is_bad);
        journal.check(is_sound, || format!("the backend has {id:x}, which was never taken"));
    }
    let stored = stored.len() as f64;
    let sent = metrics.sum("exporter_sent_spans_total");
    let failed = metrics.sum("exporter_failed_spans_total");
    journal.check((sent..=sent + failed).contains(&stored), || {
        format!("{sent} sent, {failed} failed, but the backend has {stored}")
    });
}

fn traces(
    journal: &Journal,
    metrics: &Metrics,
    sampler: &Sampler,
    (attempts, stored): (&[Attempt], &BTreeMap<u64, u32>),
    is_forgetful: bool,
) {
    let mut traces = BTreeMap::<u64, Trace>::new();
    for (number, attempt) in attempts.iter().enumerate() {
        let spans = attempt.spans.iter().enumerate().filter(|(_, span)| !span.is_bad);
        for (index, span) in spans.filter(|_| attempt.fate != Fate::Refused) {
            let trace = traces.entry(span.trace).or_default();
            let id = span_id(number, index);
            trace.stored += usize::from(stored.contains_key(&id));
            match attempt.fate {
                Fate::Taken => trace.taken.push((id, *span)),
                _ => trace.has_unknown = true,
            }
        }
    }
    let (sets, plan) = (journal.sets(), sampler.plan());
    let (mut decided, mut missing) = (0, 0);
    let (mut kept, mut has_unknown) = (0, false);
    let decisions = metrics.sum("decisions_total");
    for (&number, trace) in &traces {
        has_unknown |= trace.has_unknown;
        let id = TraceId(harness::trace_id(number).try_into().expect("16 bytes"));
        let Lookup::Decided(decision, logged) = sampler.look_up(Default::default(), id) else {
            let is_fine = trace.taken.is_empty() || is_forgetful;
            journal.check(is_fine, || format!("trace {number:x} was never decided"));
            continue;
        };
        decided += 1;
        let is_kept = decision.verdict.kept;
        journal.note(format_args!("trace {number:x} {is_kept} {:?}", decision.trigger));
        if is_forgetful {
            continue;
        }
        journal.check(is_kept || trace.stored == 0, || {
            format!("trace {number:x} was dropped, but the backend has {} spans", trace.stored)
        });
        if is_kept {
            kept += trace.taken.len();
            missing += trace.taken.iter().filter(|(id, _)| !stored.contains_key(id)).count();
        }
        let is_whole = logged.is_some_and(|l| l.record.spans as usize == trace.taken.len());
        if is_whole && !trace.has_unknown {
            let spans: Vec<Sent> = trace.taken.iter().map(|&(_, span)| span).collect();
            let by = plan.name(decision.verdict.policy);
            let set = sets.iter().find(|set| by.starts_with(&format!("{set}-")));
            let is_right = set.is_some_and(|&set| {
                SETS[set].keeps(number, &spans).is_none_or(|expected| expected == is_kept)
            });
            journal.check(is_right, || format!("trace {number:x} kept: {is_kept} by {by}"));
        }
    }
    if is_forgetful {
        return;
    }
    journal.check(decisions == f64::from(decided), || {
        format!("{decided} traces, but {decisions} decisions")
    });
    let failed = metrics.sum("exporter_failed_spans_total");
    let cut = metrics.0.iter().filter(|(series, _)| series.contains("reason=\"trace_bytes\""));
    let cut: f64 = cut.map(|(_, value)| value).sum();
    journal.check(f64::from(missing as u32) <= failed + cut, || {
        format!("{missing} spans of kept traces are missing, {failed} failed, {cut} cut")
    });
    let counted = metrics.sum("spans_kept_total") + cut;
    let is_exact = counted == kept as f64;
    journal.check(is_exact || (has_unknown && counted > kept as f64), || {
        format!("{counted} spans counted as kept, {kept} are of kept traces")
    });
}

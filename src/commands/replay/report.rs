//! Formats the result of a replay as text or JSON.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{
    Format,
    decide::Outcome,
    totals::{Change, OfPolicy, Sum, Totals},
};
use crate::{commands::aligned::aligned, control::figures};

pub(super) fn print(outcome: &Outcome, format: Format) -> String {
    match format {
        Format::Text => text(outcome),
        Format::Json => format!("{:#}\n", to_json(outcome)),
    }
}

fn to_json(outcome: &Outcome) -> Value {
    let mut input = sum(&outcome.input);
    input["from"] = json!(time(outcome.from));
    input["to"] = json!(time(outcome.to));
    input["skipped"] = json!(outcome.skipped);
    input["weighted"] = json!(outcome.is_weighted);
    input["decided_early"] = json!(outcome.early);
    let mut answer = json!({ "input": input });
    for (name, totals) in ["result", "against"].into_iter().zip(&outcome.totals) {
        answer[name] = of_set(totals);
    }
    if outcome.totals.len() > 1 {
        answer["changed"] = json!({
            "newly_kept": change(&outcome.newly_kept),
            "newly_dropped": change(&outcome.newly_dropped),
        });
    }
    answer
}

fn sum(sum: &Sum) -> Value {
    json!({
        "traces": number(sum.traces),
        "spans": number(sum.spans),
        "bytes": number(sum.bytes),
    })
}

fn of_set(totals: &Totals) -> Value {
    let policy = |policy: &OfPolicy| {
        json!({
            "policy": policy.name,
            "matched_traces": number(policy.matched_traces),
            "kept_traces": number(policy.kept.traces),
            "kept_spans": number(policy.kept.spans),
            "kept_bytes": number(policy.kept.bytes),
            "dropped_traces": number(policy.dropped_traces),
        })
    };
    let mut answer = sum(&totals.kept);
    answer["policies"] = totals.policies.iter().map(policy).collect();
    answer
}

fn change(change: &Change) -> Value {
    let mut answer = sum(&change.sum);
    answer["examples"] = change.examples.iter().map(|id| json!(id.to_string())).collect();
    answer
}

/// An integer if the value is whole, otherwise a number with six decimals.
fn number(count: f64) -> Value {
    let rounded = (count * 1e6).round() / 1e6;
    // Sums of whole traces are exact far beyond the size of any recording.
    if rounded.fract() == 0.0 { json!(rounded.max(0.0) as u64) } else { json!(rounded) }
}

/// A time in RFC 3339; `None` for 0.
fn time(unix_nanos: u64) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_nanos(unix_nanos);
    (unix_nanos != 0).then(|| humantime::format_rfc3339(time).to_string())
}

fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    let Sum { traces, spans, bytes } = outcome.input;
    let (traces, spans, bytes) = (grouped(traces), grouped(spans), in_units(bytes));
    let _ = writeln!(text, "input: {traces} traces, {spans} spans, {bytes}");
    if outcome.from > 0 {
        let to_millis = |unix_nanos| {
            humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(unix_nanos))
        };
        let (from, to) = (to_millis(outcome.from), to_millis(outcome.to));
        let _ = writeln!(text, "from {from} to {to}");
    }
    text.push_str(match outcome.is_weighted {
        true => "The traces were sampled before: all figures estimate the original traffic.\n",
        false => "No span carries a sampling threshold: the input is taken to be all traffic.\n",
    });
    if outcome.early > 0 {
        let _ = writeln!(
            text,
            "Memory was full: {} traces were decided before everything was read. Spans of them \
             that came later count as new traces. Raise --memory-limit-mib to avoid this.",
            figures::count(outcome.early)
        );
    }
    if outcome.skipped > 0 {
        let _ =
            writeln!(text, "Parts that could not be read and were skipped: {}.", outcome.skipped);
    }
    for (name, totals) in ["kept", "kept by --against"].into_iter().zip(&outcome.totals) {
        let share = share(totals.kept.traces, outcome.input.traces);
        let _ = writeln!(text, "\n{name}: {}{share}", line(&totals.kept));
        text.push_str(&table(totals));
    }
    if outcome.totals.len() > 1 {
        text.push('\n');
        for (name, change) in
            [("newly kept", &outcome.newly_kept), ("newly dropped", &outcome.newly_dropped)]
        {
            let _ = writeln!(text, "{name}: {}", line(&change.sum));
            for id in &change.examples {
                let _ = writeln!(text, "    {id}");
            }
        }
    }
    text
}

/// An estimate rounded to a whole number, with separators.
fn grouped(estimate: f64) -> String {
    figures::count(estimate.round() as u64)
}

/// An estimate of bytes, with a unit.
fn in_units(estimate: f64) -> String {
    figures::bytes(estimate.round() as u64)
}

fn line(sum: &Sum) -> String {
    let Sum { traces, spans, bytes } = *sum;
    format!("{} traces, {} spans, {}", grouped(traces), grouped(spans), in_units(bytes))
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 {
        format!(" ({:.2} % of the traces)", part / whole * 100.0)
    } else {
        String::new()
    }
}

fn table(totals: &Totals) -> String {
    let header =
        ["policy", "matched traces", "kept traces", "kept spans", "kept", "dropped traces"];
    let row = |policy: &OfPolicy| {
        [
            policy.name.clone(),
            grouped(policy.matched_traces),
            grouped(policy.kept.traces),
            grouped(policy.kept.spans),
            in_units(policy.kept.bytes),
            grouped(policy.dropped_traces),
        ]
    };
    let rows: Vec<_> =
        std::iter::once(header.map(str::to_owned)).chain(totals.policies.iter().map(row)).collect();
    aligned(&rows)
}

//! Checks that sizes which one setting allows fit into the memory that another one gives.
//!
//! Nothing here is an error: the service starts, and refuses or forgets what does not fit. But this
//! is probably a mistake, so `check` warns. Defaults are only checked if the file sets the memory
//! limit: the memory of the machine that will run the service is not known here.

use super::{
    diagnostics::Problem,
    memory::MemoryLimit,
    reader::Span,
    section::{Read, Section},
};
use crate::budget::{DECISION_LOG_PART, LOGGED_TRACE_BYTES, REQUEST_PART};

const MIB: usize = 1 << 20;

/// A size that has to fit.
pub(super) struct Wanted {
    pub(super) key: &'static str,
    /// The place where the file sets it.
    pub(super) span: Option<Span>,
    pub(super) amount: usize,
}

impl Wanted {
    /// A size read from a key with this default; `None` if the value is wrong.
    pub(super) fn new(key: &'static str, read: &Read<usize>, default: usize) -> Option<Self> {
        match read {
            Read::Set(amount, span) => {
                Some(Wanted { key, span: Some(span.clone()), amount: *amount })
            }
            Read::Unset => Some(Wanted { key, span: None, amount: default }),
            Read::Bad => None,
        }
    }
}

/// Warns about sizes that do not fit into the memory limit, which the file sets at `memory_span`.
pub(super) fn review(
    root: &mut Section<'_, '_>,
    limit: &MemoryLimit,
    memory_span: Option<&Span>,
    messages: &[Wanted],
    log: Option<&Wanted>,
) {
    let mib = limit.bytes / MIB;
    let message_max = limit.bytes / REQUEST_PART / 2;
    // All defaults have the same place, so they share one warning.
    let mut defaults = Vec::new();
    for message in messages.iter().filter(|message| message.amount > message_max) {
        match (&message.span, memory_span) {
            (Some(span), _) => root.warn(span.clone(), too_large(message.amount, message_max, mib)),
            (None, Some(_)) => defaults.push(message),
            (None, None) => {}
        }
    }
    if let (Some(first), Some(span)) = (defaults.first(), memory_span) {
        let keys: Vec<_> = defaults.iter().map(|message| format!("`{}`", message.key)).collect();
        let hint = format!("set {} to {} or less", keys.join(" and "), message_max / MIB);
        root.warn(span.clone(), too_large(first.amount, message_max, mib).hint(hint));
    }
    let share = limit.bytes / DECISION_LOG_PART;
    // Most traces that are looked up match at least one policy.
    let traces_max = share / (LOGGED_TRACE_BYTES + 2);
    if let Some(log) = log.filter(|log| log.amount > traces_max)
        && let Some(span) = log.span.as_ref().or(memory_span)
    {
        let message = format!(
            "the decision log will hold at most {traces_max} traces, not `{}` = {}: it may take a \
             sixteenth of the memory limit of {mib} MiB",
            log.key, log.amount
        );
        let hint =
            format!("set `{}` to {traces_max} or less, or raise `memory_limit_mib`", log.key);
        root.warn(span.clone(), Problem::new(message).hint(hint));
    }
}

fn too_large(bytes: usize, most: usize, limit_mib: usize) -> Problem {
    Problem::new(format!(
        "a message of {} MiB may not fit into the memory limit of {limit_mib} MiB: it is held \
         twice while it is taken in, and is then refused as too large; up to {} MiB always fit",
        bytes / MIB,
        most / MIB
    ))
    .hint("lower it, or raise `memory_limit_mib` in [sampling]")
}

//! `tailwater explain TRACE_ID`: explains why a running instance kept or dropped a trace.

use clap::Args;
use tonic::Code;

use super::{
    complain,
    instance::{self, Instance, soon},
    print,
};
use crate::{clock, control::ExplainRequest};

/// Options of `explain`.
#[derive(Args, Debug)]
pub struct Options {
    /// The id of the trace, as any tool shows it
    trace_id: String,
    #[command(flatten)]
    instance: Instance,
}

/// Asks the instance and prints its answer. Returns whether the trace is known.
pub fn run(options: &Options) -> bool {
    instance::run(async {
        let mut asked = options.instance.client()?;
        let request = ExplainRequest { trace_id: options.trace_id.clone() };
        match asked.client.explain(soon(request)).await {
            Ok(answer) => {
                let decision = answer.into_inner().decision.unwrap_or_default();
                Ok(print(&decision.explained(clock::unix_millis())))
            }
            Err(status) if status.code() == Code::NotFound => {
                complain(&format!("error: {UNKNOWN}"));
                Ok(false)
            }
            Err(status) => Err(asked.failure(&status)),
        }
    })
}

/// The answer for a trace that the instance does not know.
pub(super) const UNKNOWN: &str = "\
the instance does not know this trace
Its spans went to another instance, have not arrived yet, or its decision is no longer remembered \
(sampling.decision_cache_ttl).
";

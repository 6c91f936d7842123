//! How many connections fit into the descriptors that the operating system allows.
//!
//! Service managers set a soft limit of 1024 for the sake of `select`, and a hard one that is far
//! higher for whoever does not use it. Go's runtime raises the one to the other; this does it for
//! Rust. What is left below `max_connections` lowers that: senders that take every descriptor would
//! take those of the exporter and of /metrics too.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// For everything but senders: the exporter, 64 connections of the admin listener, files.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one. Returns the connections that each of so many `listeners`
/// may have.
pub fn connections_max(listeners: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let descriptors = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    // No limit at all is none here, either.
    let connections = descriptors.map_or(u64::MAX, |all| all.saturating_sub(OTHERS) / listeners);
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

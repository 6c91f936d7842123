//! How many connections fit into the file descriptors that the operating system allows.
//!
//! Service managers set a soft limit of 1024, for programs that use `select`, and a far higher hard
//! limit for all others. Go's runtime raises its soft limit to the hard one; this module does the
//! same. If fewer descriptors remain than `max_connections`, the lower number is the limit: senders
//! that use up all descriptors would leave none for the exporter and /metrics.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Descriptors reserved for the exporter, 64 connections of the admin listener, and files.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one. Returns how many connections each of the `listeners` may
/// have.
pub fn connections_max(listeners: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let descriptors = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(
                %error,
                "cannot raise the soft limit of open files to the hard limit: listeners may accept \
                 fewer connections"
            );
            limit.current
        }
    };
    // If the system has no limit, there is none here either.
    let connections = descriptors.map_or(u64::MAX, |all| all.saturating_sub(OTHERS) / listeners);
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

//! The commands that a person runs, one file or folder each.

pub mod convert;
pub mod replay;
pub mod test;
mod traces;

use crate::policy::PolicySpec;

/// Whether a policy decides at this time, in Unix milliseconds: neither as a shadow nor once it has
/// expired.
fn in_force(now: u64) -> impl Fn(&PolicySpec) -> bool {
    move |policy| !policy.shadow && policy.expires.is_none_or(|at| at > now)
}

//! Policies: as they are written ([`PolicySpec`]), compiled ([`Plan`]), and the conditions for
//! which spans set bits ([`Leaves`]).
//!
//! A decision is a pure function of a trace's facts, its bits, its randomness and the plan. This
//! module does not use a clock, the network or the window. The algebra follows the OpenTelemetry
//! specification, "Probability Sampling".

mod builder;
mod compile;
mod expiry;
mod keys;
mod kinds;
mod leaves;
mod limit;
mod node;
mod number;
mod plan;
mod rare;
mod review;
mod spec;
mod texts;
mod tick;
mod trial;

pub(crate) use leaves::Leaves;
pub use limit::BudgetReading;
pub use number::{Number, NumberRange};
pub use plan::{
    Effect, Evidence, KindsReading, POLICY_NAMES_MAX, Plan, PolicyId, Shadowed, Verdict,
};
pub(crate) use plan::{Overflowed, TooManyNames};
pub(crate) use review::{Remark, review};
pub use spec::{
    BudgetSpec, KindsSpec, LimitSpec, PolicySpec, RareSpec, Rate, RuleKind, RuleSpec, Scope,
    StringMatch,
};
pub use tick::{Begins, Tick};
pub use trial::{Change, OfPolicy, Outcome, Report, Sum, Trial};

#[cfg(test)]
mod tests;

//! The Kafka receiver: partitions of a topic, each with a window of its own.
//!
//! - [`partition`](Partition): the state machine of one partition. It knows neither librdkafka nor
//!   tokio nor a clock: records, confirmations of the partition's end and times come in; decisions
//!   go to the outbox, and offsets to commit come out.
//! - [`member`](Member): the partitions of this instance: which of them pause while memory is
//!   short,
//!   and which offsets may be committed.
//! - `client` (with the feature `kafka`): drives a member with the records of real brokers, on a
//!   thread of its own. The simulation drives one with those of a log in memory.
//!
//! The promise: no trace is split and no span is lost by a change of owner, however it comes about.
//! An offset is committed once nothing before it is undecided or undelivered. A partition that is
//! given up takes its undecided traces with it ([`Member::revoke`]): the next owner reads them
//! again. It begins `replay_margin` before the commit, decides these traces again, and delivers
//! nothing that lies below the commit (`sampler/partition.rs`).
//!
//! Traces wait by the time of their records (`clock.rs`), so that an owner that has catching up
//! to do decides as one that was there all the time.

#[cfg(feature = "kafka")]
mod client;
mod clock;
mod commits;
mod member;
mod partition;
#[cfg(test)]
mod tests;

#[cfg(feature = "kafka")]
pub(crate) use self::client::Kafka;
#[cfg(feature = "kafka")]
pub use self::client::KafkaError;
pub(crate) use self::member::Settings;
pub use self::{
    member::Member,
    partition::{Commit, Partition, Record, Start, Taken, Why},
};

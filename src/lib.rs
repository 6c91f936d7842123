//! Tailwater: a tail sampler for OpenTelemetry traces.
//!
//! The modules in the order in which a span meets them, then what serves them all.
//! `ARCHITECTURE.md` follows one span through.
//!
//! A module or an item is public only if another crate of this repository names it: the binary
//! (`commands`, `config`, `logging`, `notify` and `service`), or the tests, benches and fuzz
//! targets, which drive single stages. It is no API for anybody else. Everything else is private
//! or `pub(crate)`, so that the compiler reports what is unused.

mod receiver;
pub mod otlp;
pub mod span_metrics;
pub mod sampler;
pub mod window;
pub mod policy;
pub mod decisions;
pub mod recording;
mod decider;
pub mod exporter;
pub mod durability;

pub mod service;
mod admin;
pub mod reload;
pub mod commands;
pub mod trace_files;

pub mod budget;
mod buffers;
mod changes;
pub mod clock;
pub mod config;
pub mod control;
pub mod credentials;
pub mod grpc;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod notify;
#[cfg(test)]
mod reference;
pub mod supervise;
pub mod testing;
mod throttle;
pub mod trace;

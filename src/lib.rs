//! Tailwater: a tail sampler for OpenTelemetry traces.
//!
//! The modules in the order in which a span meets them, then what serves them all.
//! `ARCHITECTURE.md` follows one span through.

pub mod receiver;
pub mod otlp;
pub mod span_metrics;
pub mod sampler;
pub mod window;
pub mod policy;
pub mod decisions;
pub mod recording;
pub mod decider;
pub mod exporter;
pub mod durability;

pub mod service;
pub mod admin;
pub mod reload;
pub mod commands;
pub mod trace_files;

pub mod budget;
pub mod buffers;
pub mod changes;
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
pub mod throttle;
pub mod trace;

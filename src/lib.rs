//! Tailwater: a tail sampler for OpenTelemetry traces.
//!
//! The modules in the order a span meets them; `ARCHITECTURE.md` follows one span through.

pub mod decider;
pub mod decisions;
pub mod exporter;
pub mod otlp;
pub mod policy;
pub mod receiver;
pub mod sampler;
pub mod window;

pub mod admin;
pub mod budget;
pub mod check;
pub mod clock;
pub mod config;
pub mod demo;
pub mod grpc;
pub mod metrics;
pub mod service;
pub mod supervise;
pub mod testing;
pub mod trace;

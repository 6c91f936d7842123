//! The one integration binary: real sockets, real bytes, and a sink that decodes what it receives.
//!
//! Every test that runs a service ends by checking the ledger ([`harness::Running::stop`] does so).

#![allow(
    unreachable_pub,
    reason = "helpers are public to the modules of this binary, and to no one else"
)]

mod abuse;
mod admin;
mod amplification;
mod answers;
mod answers_of_backends;
mod auth;
mod budgets;
mod builders;
mod certificates;
mod cli;
mod config_check;
mod conformance;
mod connections;
mod control;
mod convert;
mod demo;
mod differential;
mod documents;
mod draining;
mod durability;
mod export;
mod export_encoding;
mod export_hostile;
mod export_http;
mod export_outage;
mod export_parts;
mod export_refusals;
mod forms;
mod given_files;
mod harness;
mod hostile;
mod http;
mod installing;
mod json;
mod kinds;
mod late;
mod limited_counts;
mod limits;
mod mangled;
mod model;
#[cfg(debug_assertions)]
mod panics;
mod peers;
mod pipeline;
mod policies;
mod positions;
mod probability;
mod rates;
mod recordings;
mod reload;
mod scaling;
mod secrets;
mod shadow;
mod span_metrics;
mod stamps;
mod status;
mod stderr;
mod tidy;
mod telemetry_access;
mod timing;
mod tls;
mod trials;
mod tuning;
mod walker;
mod web;
mod window;
mod wire;

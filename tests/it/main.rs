//! The one integration binary: real sockets, real bytes, a sink that decodes what it gets.
//!
//! Every test that runs a service ends by asserting the ledger ([`harness::Running::stop`] does).

#![allow(
    unreachable_pub,
    reason = "helpers are public to the modules of this binary, and to no one else"
)]

mod admin;
mod answers;
mod auth;
mod builders;
mod certificates;
mod cli;
mod conformance;
mod connections;
mod demo;
mod differential;
mod draining;
mod export;
mod export_encoding;
mod harness;
mod http;
mod limits;
mod model;
mod pipeline;
mod policies;
mod probability;
mod rates;
mod reload;
mod secrets;
mod stamps;
mod tidy;
mod timing;
mod tls;
mod walker;
mod window;
mod wire;

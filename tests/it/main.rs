//! The one integration binary: real sockets, real bytes, a sink that decodes what it gets.
//!
//! Every test that runs a service ends by asserting the ledger ([`harness::Running::stop`] does).

#![allow(
    unreachable_pub,
    reason = "helpers are public to the modules of this binary, and to no one else"
)]

mod demo;
mod export;
mod harness;
mod limits;
mod pipeline;
mod stamps;
mod tidy;
mod timing;

//! The one integration binary: real sockets, real bytes, a sink that decodes what it gets.
//!
//! Every test that runs a service ends by asserting the ledger ([`harness::Running::stop`] does).

#![expect(unreachable_pub, reason = "nothing is reachable in a test binary")]

mod demo;
mod harness;
mod pipeline;

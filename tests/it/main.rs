//! The one integration binary: real sockets, real bytes, a sink that decodes what it gets.
//!
//! Every test that runs a service ends by asserting the ledger ([`harness::Running::stop`] does).

mod harness;
mod pipeline;

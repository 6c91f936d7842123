//! OTLP as bytes: walking requests, interning contexts, cleaning and stamping what leaves, encoding
//! it, and cutting what is encoded.
//!
//! Nothing here owns a span as a struct. A request stays the bytes that arrived ([`walk`]), or what
//! JSON is turned into at the door ([`json`]); a kept span leaves as the same bytes with a stamp
//! spliced in ([`encode`]). What is kept and why is not known here.

pub mod clean;
pub mod conditions;
mod context;
pub mod encode;
pub mod json;
mod message;
pub mod outsized;
pub mod outline;
pub mod rewalk;
mod schema;
pub mod split;
pub mod tracestate;
pub mod walk;
pub mod walked;
pub mod wire;

pub use context::{Context, Contexts};

//! OTLP in its encoded form: walks requests, interns contexts, cleans and stamps exported spans,
//! encodes them, and splits encoded requests.
//!
//! Spans are never decoded into structs. A request stays the bytes that arrived ([`walk`]), or the
//! protobuf that the receiver made from JSON ([`json`]); a kept span is exported as the same bytes
//! with a stamp spliced in ([`encode`]). This module does not know which spans are kept, or why.

pub mod clean;
pub mod conditions;
mod context;
pub mod encode;
pub mod json;
mod message;
pub(crate) mod outsized;
pub(crate) mod outline;
pub(crate) mod parts;
pub(crate) mod rewalk;
mod schema;
pub mod split;
pub mod tracestate;
pub mod walk;
pub mod walked;
pub(crate) mod whole;
pub mod wire;

pub use context::{Context, Contexts};

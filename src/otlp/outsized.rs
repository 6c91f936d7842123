//! Spans that are refused because their resource or scope is too large (`Contexts::bytes_max`).
//! Every outgoing request repeats the contexts of its spans, so a context that takes most of a
//! request would be sent with each of its spans.
//!
//! The walker finds these spans, and the receiver reports them to the sender and in the log. This
//! is not on the normal path.

use super::{
    conditions::{Attribute, AttributeValue},
    wire::{Malformed, Reader},
};

/// The most characters of a service name that are kept for the log.
const NAME_CHARS_MAX: usize = 100;

/// The spans of one request that were refused because of the size of their resource or scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outsized {
    /// The number of spans.
    pub(crate) spans: u64,
    /// The size of the largest such resource or scope.
    pub(crate) bytes: usize,
    /// The largest allowed size.
    pub(crate) bytes_max: usize,
    /// The `service.name` of the last of these resources; empty if it has none.
    pub(crate) service: String,
}

impl Outsized {
    /// Notes a resource or scope of too many bytes. The first argument has the fields of the
    /// resource's `ResourceSpans`; `bytes` are those of the resource or of the scope.
    #[cold]
    pub(super) fn note(&mut self, bytes: usize, bytes_max: usize, resource: &[u8]) {
        self.bytes = self.bytes.max(bytes);
        self.bytes_max = bytes_max;
        let name = service_name(resource).ok().flatten().unwrap_or_default();
        self.service = String::from_utf8_lossy(name).chars().take(NAME_CHARS_MAX).collect();
    }
}

/// The first `service.name` that is a string.
fn service_name(resource: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut reader = Reader::new(resource);
    while let Some(field) = reader.next_field()? {
        if field.number != 1 {
            continue;
        }
        let mut attributes = Reader::new(field.value.bytes()?);
        while let Some(field) = attributes.next_field()? {
            if field.number != 1 {
                continue;
            }
            let attribute = Attribute::read(field.value.bytes()?)?;
            if attribute.key == b"service.name"
                && let AttributeValue::String(name) = attribute.value()?
            {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

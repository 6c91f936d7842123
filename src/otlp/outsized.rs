//! Spans that are refused because their resource or scope is larger than one may be
//! (`Contexts::bytes_max`). Every outgoing request repeats the contexts of its spans, so one that
//! takes most of a request would leave with each of its spans.
//!
//! Found by the walker, told to the sender and the log by the receiver. Not on the normal path.

use super::{
    conditions::{Attribute, AttributeValue},
    wire::{Malformed, Reader},
};

/// The most characters of a service's name that are kept for the log.
const NAME_CHARS_MAX: usize = 100;

/// Spans of one request that were refused for the size of their resource or scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outsized {
    /// How many.
    pub spans: u64,
    /// The size of the largest such resource or scope.
    pub bytes: usize,
    /// The most that it may have.
    pub bytes_max: usize,
    /// The `service.name` of the last of them, empty where it has none.
    pub service: String,
}

impl Outsized {
    /// Notes a resource, of which these are the fields of its `ResourceSpans`; `bytes` are those of
    /// the resource or of the scope.
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

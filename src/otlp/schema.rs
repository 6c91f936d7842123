//! OTLP's trace messages as data: the number, JSON name and type of each field.
//!
//! [`super::clean`] checks exported spans against it, and [`super::json`] reads JSON by it. A test
//! compares it with the descriptors of opentelemetry-proto. Source: opentelemetry-proto 1.x, trace,
//! common and resource; for the former fields, version 0.15.

use super::wire;

/// A message type: field n is at index n - 1.
pub(super) struct Schema {
    pub(super) fields: &'static [Field],
    pub(super) role: Role,
    /// Fields that OTLP no longer has, with their numbers. Only JSON is read by them; the walker
    /// converts them to the current fields before the spans are cleaned.
    former: &'static [(u32, Field)],
}

/// The number of `ResourceSpans.instrumentation_library_spans`.
pub(super) const FORMER_SCOPES: u32 = 1000;

/// Special treatment of a message.
#[derive(PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// Usually valid, so a quick check comes first.
    KeyValue,
    /// Counts towards the nesting limit.
    AnyValue,
    /// Removed if its ids have the wrong length.
    Link,
}

/// One field.
pub(super) struct Field {
    /// The name in JSON, in lowerCamelCase.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) is_repeated: bool,
}

/// The type of a field, as far as types must be distinguished.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A number that is not in use.
    Unknown,
    Bool,
    Int32,
    /// An enum: the names of its values, in the order of their numbers, which start at 0.
    Enum(&'static [&'static str]),
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    /// Bytes that JSON writes in hexadecimal.
    Id,
    Bytes,
    Text,
    Message(&'static Schema),
}

impl Schema {
    /// The type of a field, by its number.
    #[inline]
    pub(super) fn kind(&self, number: u32) -> &Kind {
        let field = self.fields.get((number as usize).wrapping_sub(1));
        field.map_or(&Kind::Unknown, |field| &field.kind)
    }

    /// A field and its number, by its name in JSON or its name in the proto files, which protobuf's
    /// JSON mapping also allows.
    pub(super) fn named(&self, name: &[u8]) -> Option<(u32, &'static Field)> {
        let fields = || {
            let former = self.former.iter().map(|(number, field)| (*number, field));
            let known = (1..).zip(self.fields).chain(former);
            known.filter(|(_, field)| !matches!(field.kind, Unknown))
        };
        // Nearly all names are in lowerCamelCase, so they are compared alone at first.
        let exact = fields().find(|(_, field)| field.name.as_bytes() == name);
        exact.or_else(|| fields().find(|(_, field)| is_snake_case_of(name, field.name)))
    }
}

/// Whether `name` is the lower_snake_case form of a name in lowerCamelCase.
fn is_snake_case_of(name: &[u8], camel: &str) -> bool {
    let mut rest = name;
    for &byte in camel.as_bytes() {
        let expected: &[u8] =
            if byte.is_ascii_uppercase() { &[b'_', byte.to_ascii_lowercase()] } else { &[byte] };
        match rest.strip_prefix(expected) {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    rest.is_empty()
}

impl Kind {
    /// The wire type that a field must have; `None` if it is not known.
    #[inline]
    pub(super) fn wire_type(&self) -> Option<u32> {
        match self {
            Unknown => None,
            Kind::Bool | Int32 | Enum(_) | Kind::Int64 | Uint32 => Some(wire::VARINT),
            Fixed32 => Some(wire::FIXED32),
            Fixed64 | Kind::Double => Some(wire::FIXED64),
            Id | Kind::Bytes | Text | Message(_) => Some(wire::BYTES),
        }
    }
}

use Kind::{Enum, Fixed32, Fixed64, Id, Int32, Message, Text, Uint32, Unknown};

const fn plain(fields: &'static [Field]) -> Schema {
    with_former(fields, &[])
}

const fn with_former(fields: &'static [Field], former: &'static [(u32, Field)]) -> Schema {
    Schema { fields, role: Role::Plain, former }
}

const fn with_role(role: Role, fields: &'static [Field]) -> Schema {
    Schema { fields, role, former: &[] }
}

const fn one(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, is_repeated: false }
}

const fn many(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, is_repeated: true }
}

/// The whole request.
pub(super) static REQUEST: Schema = plain(&[many("resourceSpans", Message(&RESOURCE_SPANS))]);
pub(super) static RESOURCE_SPANS: Schema = with_former(
    &[
        one("resource", Message(&RESOURCE)),
        many("scopeSpans", Message(&SCOPE_SPANS)),
        one("schemaUrl", Text),
    ],
    // The messages in it have the numbers and types of the current ones.
    &[(FORMER_SCOPES, many("instrumentationLibrarySpans", Message(&SCOPE_SPANS)))],
);
static RESOURCE: Schema = plain(&[
    many("attributes", Message(&KEY_VALUE)),
    one("droppedAttributesCount", Uint32),
    many("entityRefs", Message(&ENTITY_REF)),
]);
static ENTITY_REF: Schema = plain(&[
    one("schemaUrl", Text),
    one("type", Text),
    many("idKeys", Text),
    many("descriptionKeys", Text),
]);
pub(super) static SCOPE_SPANS: Schema = with_former(
    &[one("scope", Message(&SCOPE)), many("spans", Message(&SPAN)), one("schemaUrl", Text)],
    &[(1, one("instrumentationLibrary", Message(&SCOPE)))],
);
static SCOPE: Schema = plain(&[
    one("name", Text),
    one("version", Text),
    many("attributes", Message(&KEY_VALUE)),
    one("droppedAttributesCount", Uint32),
]);
pub(super) static SPAN: Schema = plain(&[
    one("traceId", Id),
    one("spanId", Id),
    one("traceState", Text),
    one("parentSpanId", Id),
    one("name", Text),
    one("kind", Enum(SPAN_KINDS)),
    one("startTimeUnixNano", Fixed64),
    one("endTimeUnixNano", Fixed64),
    many("attributes", Message(&KEY_VALUE)),
    one("droppedAttributesCount", Uint32),
    many("events", Message(&EVENT)),
    one("droppedEventsCount", Uint32),
    many("links", Message(&LINK)),
    one("droppedLinksCount", Uint32),
    one("status", Message(&STATUS)),
    one("flags", Fixed32),
]);
const SPAN_KINDS: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
static EVENT: Schema = plain(&[
    one("timeUnixNano", Fixed64),
    one("name", Text),
    many("attributes", Message(&KEY_VALUE)),
    one("droppedAttributesCount", Uint32),
]);
static LINK: Schema = with_role(
    Role::Link,
    &[
        one("traceId", Id),
        one("spanId", Id),
        one("traceState", Text),
        many("attributes", Message(&KEY_VALUE)),
        one("droppedAttributesCount", Uint32),
        one("flags", Fixed32),
    ],
);
static STATUS: Schema =
    plain(&[one("", Unknown), one("message", Text), one("code", Enum(STATUS_CODES))]);
const STATUS_CODES: &[&str] = &["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
static KEY_VALUE: Schema = with_role(
    Role::KeyValue,
    &[one("key", Text), one("value", Message(&ANY_VALUE)), one("keyStrindex", Int32)],
);
static ANY_VALUE: Schema = with_role(
    Role::AnyValue,
    &[
        one("stringValue", Text),
        one("boolValue", Kind::Bool),
        one("intValue", Kind::Int64),
        one("doubleValue", Kind::Double),
        one("arrayValue", Message(&ARRAY_VALUE)),
        one("kvlistValue", Message(&KEY_VALUE_LIST)),
        one("bytesValue", Kind::Bytes),
        one("stringValueStrindex", Int32),
    ],
);
static ARRAY_VALUE: Schema = plain(&[many("values", Message(&ANY_VALUE))]);
static KEY_VALUE_LIST: Schema = plain(&[many("values", Message(&KEY_VALUE))]);

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
        field_descriptor_proto::{Label, Type},
    };

    use super::*;

    /// Types that each have a `Kind` of their own, by the name of their message.
    fn expected(field: &FieldDescriptorProto) -> &'static str {
        match field.r#type() {
            Type::Bool => "bool",
            Type::Int32 => "int32",
            Type::Enum => "enum",
            Type::Int64 => "int64",
            Type::Uint32 => "uint32",
            Type::Fixed32 => "fixed32",
            Type::Fixed64 => "fixed64",
            Type::Double => "double",
            Type::Bytes if field.json_name().ends_with("Id") => "id",
            Type::Bytes => "bytes",
            Type::String => "text",
            Type::Message => "message",
            other => panic!("{other:?} is new"),
        }
    }

    fn actual(kind: &Kind) -> &'static str {
        match kind {
            Unknown => "unknown",
            Kind::Bool => "bool",
            Int32 => "int32",
            Enum(_) => "enum",
            Kind::Int64 => "int64",
            Uint32 => "uint32",
            Fixed32 => "fixed32",
            Fixed64 => "fixed64",
            Kind::Double => "double",
            Id => "id",
            Kind::Bytes => "bytes",
            Text => "text",
            Message(_) => "message",
        }
    }

    fn find<'a>(set: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
        let mut all = Vec::new();
        for file in &set.file {
            for message in &file.message_type {
                let full = format!(".{}.{}", file.package(), message.name());
                let nested = message.nested_type.iter();
                all.extend(nested.map(|inner| (format!("{full}.{}", inner.name()), inner)));
                all.push((full, message));
            }
        }
        all.into_iter().find(|(full, _)| full == name).expect("described").1
    }

    /// The names of an enum's values, indexed by number.
    fn values_of(set: &FileDescriptorSet, name: &str) -> Vec<String> {
        let (message, own) = name.rsplit_once('.').expect("nested in a message");
        let mut enums = find(set, message).enum_type.iter();
        let values = &enums.find(|all| all.name() == own).expect("described").value;
        assert!((0..).zip(values).all(|(place, value)| place == value.number()), "{name}");
        values.iter().map(|value| value.name().to_owned()).collect()
    }

    fn compare(
        set: &FileDescriptorSet,
        name: &str,
        schema: &'static Schema,
        seen: &mut Vec<String>,
    ) {
        if seen.iter().any(|seen| seen == name) {
            return;
        }
        seen.push(name.to_owned());
        let described = find(set, name);
        for field in &described.field {
            let ours = &schema.fields[field.number() as usize - 1];
            let where_ = format!("{name}.{}", field.name());
            assert_eq!(ours.name, field.json_name(), "{where_}");
            assert_eq!(actual(&ours.kind), expected(field), "{where_}");
            assert_eq!(ours.is_repeated, field.label() == Label::Repeated, "{where_}");
            for name in [field.name(), field.json_name()] {
                let (number, named) = schema.named(name.as_bytes()).expect("found by its name");
                assert_eq!((number as i32, named.name), (field.number(), ours.name), "{where_}");
            }
            match ours.kind {
                Message(schema) => compare(set, field.type_name(), schema, seen),
                Enum(names) => assert_eq!(names, values_of(set, field.type_name()), "{where_}"),
                _ => {}
            }
        }
        let in_use = |field: &&Field| !matches!(field.kind, Unknown);
        assert_eq!(schema.fields.iter().filter(in_use).count(), described.field.len(), "{name}");
    }

    #[test]
    fn former_fields_have_both_of_their_names() {
        for (schema, name, number) in [
            (&RESOURCE_SPANS, "instrumentation_library_spans", 1000),
            (&RESOURCE_SPANS, "instrumentationLibrarySpans", 1000),
            (&SCOPE_SPANS, "instrumentation_library", 1),
            (&SCOPE_SPANS, "instrumentationLibrary", 1),
        ] {
            assert_eq!(schema.named(name.as_bytes()).map(|(number, _)| number), Some(number));
        }
        for name in ["trace_Id", "traceid", "trace__id", "trace_id_", "_trace_id", "trace_i", ""] {
            assert!(SPAN.named(name.as_bytes()).is_none(), "{name}");
        }
    }

    #[test]
    fn it_has_every_field_of_opentelemetry_proto() {
        let set = FileDescriptorSet::decode(opentelemetry_proto::DESCRIPTORS).expect("descriptors");
        let request = ".opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest";
        let mut seen = Vec::new();
        compare(&set, request, &REQUEST, &mut seen);
        assert_eq!(seen.len(), 14, "{seen:?}");
    }
}

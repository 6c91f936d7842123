//! Tailwater's own gRPC API, defined in `proto/tailwater/control/v1/control.proto`. `build.rs`
//! generates the messages, the client and the server; this module also formats them for people.
//!
//! `admin/` serves it; the commands that ask a running instance call it.

mod explained;
pub(crate) mod figures;

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

pub use self::generated::*;

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::large_enum_variant,
        clippy::too_many_lines,
        reason = "generated; the .proto file has the words"
    )]

    tonic::include_proto!("tailwater.control.v1");
}

/// The descriptors of the API and of its imports, as an encoded `FileDescriptorSet`.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/control.binpb"));

/// A message of this API as one line of JSON, in protobuf's JSON form. `name` is the name of its
/// type. Fields that are zero are included, so that a reader finds every field; messages and
/// optional fields without a value are not.
///
/// # Panics
/// If `name` is not the name of the message's type.
pub(crate) fn to_json(name: &str, message: &impl prost::Message) -> String {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(DESCRIPTORS).expect("the compiler of protobuf wrote it")
    });
    let name = format!("tailwater.control.v1.{name}");
    let descriptor = POOL.get_message_by_name(&name).expect("the API has the message");
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..])
        .expect("the message was generated from this descriptor");
    let mut json = serde_json::Serializer::new(Vec::new());
    message
        .serialize_with_options(&mut json, &SerializeOptions::new().skip_default_fields(false))
        .expect("times are within the years that protobuf allows, and keys are strings");
    let mut json = String::from_utf8(json.into_inner()).expect("JSON is text");
    json.push('\n');
    json
}

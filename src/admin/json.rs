//! The state of the service as JSON, in the form that protobuf defines for its messages.

use std::sync::LazyLock;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use crate::control::{DESCRIPTORS, GetStatusResponse};

/// The status as JSON. Fields that are zero are there too, so that a reader finds what it looks
/// for; messages and optional fields without a value are not.
pub(super) fn status(status: &GetStatusResponse) -> String {
    static DESCRIPTOR: LazyLock<MessageDescriptor> = LazyLock::new(|| {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("the compiler of protobuf wrote it");
        let name = "tailwater.control.v1.GetStatusResponse";
        pool.get_message_by_name(name).expect("the descriptors have it")
    });
    let encoded = status.encode_to_vec();
    let message = DynamicMessage::decode(DESCRIPTOR.clone(), &encoded[..])
        .expect("the message was generated from this descriptor");
    let mut json = serde_json::Serializer::new(Vec::new());
    message
        .serialize_with_options(&mut json, &SerializeOptions::new().skip_default_fields(false))
        .expect("times are within the years that protobuf allows, and keys are strings");
    let mut json = String::from_utf8(json.into_inner()).expect("JSON is text");
    json.push('\n');
    json
}

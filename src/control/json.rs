//! Messages in the form that protobuf defines for JSON.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::DESCRIPTORS;

/// A message of the API as a line of JSON. Fields that are zero are there too, so that a reader
/// finds what it looks for; messages and optional fields without a value are not.
///
/// # Panics
/// If the API has no message of this name.
pub fn json(name: &str, message: &impl Message) -> String {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(DESCRIPTORS).expect("the compiler of protobuf wrote it")
    });
    let name = format!("tailwater.control.v1.{name}");
    let descriptor = POOL.get_message_by_name(&name).expect("a message of the API");
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

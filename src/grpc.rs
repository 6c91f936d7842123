//! The parts that all sides of OTLP/gRPC share: the method's path, the names of codes, and a codec
//! that does not change the bytes.
//!
//! The receiver and the exporter frame, limit and compress messages themselves and use only the
//! paths and names. The codec is for the sink, the demo's traffic and tests, which use tonic's
//! server and client. There tonic frames and compresses, and the message stays bytes.

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// The only method that is served and called.
pub const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The service it belongs to, as health checks name it.
pub const TRACE_SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";

/// Bytes before each message: whether it is compressed, and its length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// The prefix of a message of this length.
pub(crate) fn prefix(is_compressed: bool, length: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [u8::from(is_compressed), a, b, c, d]
}

/// The contents of a prefix: the compression flag, which may be invalid, and the length of the
/// message.
pub(crate) fn read_prefix(prefix: [u8; PREFIX_BYTES]) -> (u8, u32) {
    let [flag, length @ ..] = prefix;
    (flag, u32::from_be_bytes(length))
}

/// A codec from bytes to bytes, for tonic's own server and client.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        RawCodec
    }

    fn decoder(&mut self) -> Self {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// The name of a gRPC code as the specification writes it; also the value of every `code` label.
pub fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Every gRPC code, in the order of its number.
pub fn codes() -> impl Iterator<Item = tonic::Code> {
    (0..=16).map(tonic::Code::from_i32)
}

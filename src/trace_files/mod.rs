//! Reads recorded traces in every common form, as OTLP requests in protobuf.
//!
//! The form is detected from the content, compressed or not: OTLP/JSON (one document, or one per
//! line as the Collector's file exporter writes), OTLP protobuf (one request, or the file
//! exporter's frames), Tempo's and Jaeger's JSON, and recordings of whole traces.
//!
//! A file is read piece by piece, so that a file of any size takes bounded memory: a piece is one
//! `ResourceSpans` or one trace, of at most [`PIECE_BYTES_MAX`]. A part that cannot be read is
//! reported with its place and skipped.
//!
//! Sources: fileexporter's README and `marshaller`/`writer` of opentelemetry-collector-contrib;
//! Tempo's HTTP API (`/api/traces`, `/api/v2/traces`); Jaeger's `model/json`.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

mod frames;
mod jaeger;
mod json;
mod protobuf;
mod record;
mod slot;
mod tempo;
#[cfg(test)]
mod tests;

pub use record::RecordFile;

/// The largest piece; a larger one is skipped.
pub const PIECE_BYTES_MAX: usize = 128 << 20;

/// How many times a file may be compressed.
const COMPRESSED_MAX: usize = 2;

/// The first line of a recording; a line of JSON and frames follow.
const RECORD_MAGIC: &[u8] = b"TAILWATER RECORD 1\n";

/// How a recording of any version begins.
const RECORD_BEGINNING: &[u8] = b"TAILWATER RECORD ";

/// One part of a file.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// An `ExportTraceServiceRequest`.
    Request(Vec<u8>),
    /// A part that cannot be read: its place in the file and why.
    Unreadable(String),
}

/// A file that is being read.
pub struct TraceFile<'i> {
    name: String,
    form: Form<'i>,
    share: f64,
    /// The place of the last piece.
    place: Place,
}

type Input<'i> = Box<dyn BufRead + 'i>;

enum Form<'i> {
    Json(json::Pieces<Input<'i>>),
    Protobuf(protobuf::Pieces<Input<'i>>),
    Frames(frames::Pieces<Input<'i>>),
    Unknown(String),
    End,
}

/// A place in a file.
#[derive(Clone, Copy, Debug)]
enum Place {
    Line(u64),
    Byte(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Byte(byte) => write!(f, "byte {byte}"),
        }
    }
}

/// A part that cannot be read.
#[derive(Debug)]
struct Unreadable {
    place: Place,
    reason: String,
}

impl<'i> TraceFile<'i> {
    /// Detects the form of `input` from its beginning. `name` is its name in messages.
    ///
    /// # Errors
    /// If the first bytes of `input` cannot be read. A damaged content is a part that cannot be
    /// read.
    pub fn open(name: &str, input: impl Read + 'i) -> io::Result<Self> {
        let (start, input) = peek(buffered(input))?;
        let (form, share) = inflated(start, input)
            .unwrap_or_else(|error| (Form::Unknown(format!("cannot be read: {error}")), 1.0));
        Ok(TraceFile { name: name.to_owned(), form, share, place: Place::Byte(0) })
    }

    /// The share of all traces that the file contains, above 0 and at most 1; 1 if it does not say.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// The place where the last part begins: `file:line`, or `file: byte N`.
    pub(crate) fn place(&self) -> String {
        match self.place {
            Place::Line(line) => format!("{}:{line}", self.name),
            byte @ Place::Byte(_) => format!("{}: {byte}", self.name),
        }
    }

    /// The next part, or `None` at the end. After a read error, there are no more parts.
    pub fn next_piece(&mut self) -> Option<Piece> {
        match self.next_part()? {
            Ok((place, request)) => {
                self.place = place;
                Some(Piece::Request(request))
            }
            Err(Unreadable { place, reason }) => {
                self.place = place;
                Some(Piece::Unreadable(format!("{}: {reason}", self.place())))
            }
        }
    }

    /// The same, with the place apart from the reason.
    fn next_part(&mut self) -> Option<Part> {
        let next = match &mut self.form {
            Form::Json(pieces) => pieces.next(),
            Form::Protobuf(pieces) => pieces.next(),
            Form::Frames(pieces) => pieces.next(),
            Form::Unknown(reason) => {
                let reason = std::mem::take(reason);
                self.form = Form::End;
                Ok(Some(Err(Unreadable { place: Place::Byte(0), reason })))
            }
            Form::End => Ok(None),
        };
        next.unwrap_or_else(|error| {
            let place = match &self.form {
                Form::Json(pieces) => pieces.place(),
                Form::Protobuf(pieces) => pieces.place(),
                Form::Frames(pieces) => pieces.place(),
                Form::Unknown(_) | Form::End => Place::Byte(0),
            };
            self.form = Form::End;
            Some(Err(Unreadable { place, reason: format!("cannot read further: {error}") }))
        })
    }
}

/// A piece and the place where it begins, or a part that cannot be read.
type Part = Result<(Place, Vec<u8>), Unreadable>;

/// The next part, or `None` at the end.
type Next = io::Result<Option<Part>>;

fn buffered<'i>(input: impl Read + 'i) -> Input<'i> {
    Box::new(BufReader::with_capacity(256 << 10, input))
}

/// Reads the first bytes, and returns them and the input, still with these bytes.
fn peek(mut input: Input<'_>) -> io::Result<(Vec<u8>, Input<'_>)> {
    let mut start = Vec::new();
    input.by_ref().take(RECORD_MAGIC.len() as u64).read_to_end(&mut start)?;
    let whole = Box::new(io::Cursor::new(start.clone()).chain(input));
    Ok((start, whole))
}

/// The form behind any compression, and the share of all traces in it.
fn inflated<'i>(mut start: Vec<u8>, mut input: Input<'i>) -> io::Result<(Form<'i>, f64)> {
    for layers in 0.. {
        let inner = match start.as_slice() {
            [0x1f, 0x8b, ..] => buffered(flate2::bufread::MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => buffered(zstd::Decoder::with_buffer(input)?),
            _ => break,
        };
        if layers == COMPRESSED_MAX {
            return Ok((Form::Unknown("it is compressed more than twice".to_owned()), 1.0));
        }
        (start, input) = peek(inner)?;
    }
    if start.starts_with(RECORD_MAGIC) {
        let (share, length) = frames::read_record_header(&mut input)?;
        return Ok((Form::Frames(frames::Pieces::of_recording(input, length)), share));
    }
    Ok((told_by(&start, input), 1.0))
}

fn told_by<'i>(start: &[u8], input: Input<'i>) -> Form<'i> {
    let text = without_space(start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start));
    match (start, text) {
        ([], _) => Form::End,
        (start, _) if start.starts_with(RECORD_BEGINNING) => {
            Form::Unknown("it is a recording of another version of Tailwater".to_owned())
        }
        // A request in protobuf begins with the byte of a line feed, and its length may look like a
        // bracket. No form of JSON is a list.
        ([0x0a, b'[', ..], _) => Form::Protobuf(protobuf::Pieces::new(input)),
        ([0x0a, ..], [b'{', inside @ ..]) if !may_be_object(without_space(inside)) => {
            Form::Protobuf(protobuf::Pieces::new(input))
        }
        (_, [b'{' | b'[', ..]) => Form::Json(json::Pieces::new(input)),
        // Only white space so far: only JSON begins like this.
        (_, []) => Form::Json(json::Pieces::new(input)),
        // Field 1 with a length: `resource_spans`.
        ([0x0a, ..], _) => Form::Protobuf(protobuf::Pieces::new(input)),
        // A length of four bytes, whose first byte is 0 below 16 MiB.
        ([0..=0x07, _, _, _, ..], _) => Form::Frames(frames::Pieces::new(input)),
        // Other text may be the end of a line: a rotated file can begin in the middle of one.
        (_, text) if text.iter().all(|&byte| byte >= b' ' || byte.is_ascii_whitespace()) => {
            Form::Json(json::Pieces::new(input))
        }
        _ => Form::Unknown("this is not a known form of traces".to_owned()),
    }
}

/// Skips the white space that JSON may begin with.
fn without_space(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    &text[start.unwrap_or(text.len())..]
}

/// Whether this can follow the opening bracket of an object: the end of the object or a key. A
/// string has no control characters, but the length of a resource may look like a quotation mark.
fn may_be_object(text: &[u8]) -> bool {
    match text {
        [] | [b'}', ..] => true,
        [b'"', key @ ..] => key.iter().take_while(|byte| **byte != b'"').all(|byte| *byte >= b' '),
        _ => false,
    }
}

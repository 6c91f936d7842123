//! Reads JSON of OTLP, Tempo and Jaeger, one element at a time.
//!
//! Each of these documents is an object that contains a list of elements, `resourceSpans`,
//! `batches` or `data`; in some, the list is one object deeper (in `trace` or `result`). The
//! scanner finds the elements of this list by looking only at strings and brackets, and leaves
//! parsing them to `otlp::json`, `tempo` and `jaeger`.
//!
//! Around the elements only white space, commas and `null` are expected, and around the members of
//! the document only scalars after their colons. Anything else is reported once, up to the next
//! comma.
//!
//! Where the first document ends on its first line, each line is a document, and a line that is
//! broken ends with it.
//!
//! A line that the Collector's file exporter writes is converted whole, without the scanner, which
//! takes more time than converting. If it cannot be converted, it is scanned, so that only its
//! unreadable elements are skipped.

use std::io::{self, BufRead, Read as _};

use super::{
    Next, PIECE_BYTES_MAX, Part, Place, Unreadable, jaeger, protobuf::fill, slot::Slot, tempo,
};
use crate::otlp::json;

/// The kind of the elements of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Elements {
    /// `ResourceSpans` of OTLP/JSON, or of Tempo, whose ids are in base64.
    ResourceSpans,
    /// Traces of Jaeger's user interface.
    Traces,
}

/// Objects that may contain the list.
const AROUND: [&[u8]; 2] = [b"trace", b"result"];

/// The bytes that are scanned at once.
const CHUNK_BYTES: usize = 16 << 10;

/// How a line begins that is converted whole.
const LINE_BEGINS: &[u8] = b"{\"resourceSpans\":[";

/// The longest line that is converted whole.
const LINE_BYTES_MAX: usize = 16 << 20;

/// The longest key that is of interest.
const KEY_BYTES_MAX: usize = 32;

pub(super) struct Pieces<I> {
    input: I,
    /// A line that was read and could not be converted whole, and how much of it is scanned.
    ahead: Vec<u8>,
    scanned: usize,
    /// Why the input ends behind `ahead`.
    failed: Option<io::Error>,
    line: u64,
    state: State,
    /// The element that is being collected, and where it begins.
    element: Vec<u8>,
    element_line: u64,
    is_too_large: bool,
    /// The number of documents so far, and whether each is on one line.
    documents: u64,
    is_by_line: bool,
    /// The line on which the document began.
    began: u64,
    found_any: bool,
    /// Whether input is skipped: up to the next line, or, if documents span lines, to the next line
    /// that begins a document.
    is_lost: bool,
    previous: u8,
    /// The last line with an unreadable part.
    unreadable_line: u64,
}

/// The state of the scanner within a document.
#[derive(Default)]
struct State {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The last string at a depth where keys matter, and whether it may be a key.
    key: Vec<u8>,
    is_key: bool,
    /// The depth of the object whose keys are looked at.
    keys_at: usize,
    /// The list that the last key before a colon announces.
    wanted: Option<Wanted>,
    /// The current list and its depth.
    list: Option<(Elements, usize)>,
    /// The place in the list, or in the object whose keys are looked at.
    slot: Slot,
    /// The last byte outside of strings, without white space.
    last: u8,
}

#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    List(Elements),
    Object,
}

/// The result of scanning a byte.
enum Step {
    Go,
    /// An element is complete.
    Element(Elements),
    /// A document is complete.
    Document,
    /// Something that is neither an element nor a member; what follows it can be read.
    Stray(&'static str),
    /// The rest of the line, or of the document, cannot be read.
    Broken(&'static str),
}

impl<I: BufRead> Pieces<I> {
    pub(super) fn new(input: I) -> Self {
        Pieces {
            input,
            ahead: Vec::new(),
            scanned: 0,
            failed: None,
            line: 1,
            state: State::default(),
            element: Vec::new(),
            element_line: 1,
            is_too_large: false,
            documents: 0,
            is_by_line: false,
            began: 1,
            found_any: false,
            is_lost: false,
            previous: b'\n',
            unreadable_line: 0,
        }
    }

    /// How far the input has been read.
    pub(super) fn place(&self) -> Place {
        Place::Line(self.line)
    }

    pub(super) fn next(&mut self) -> Next {
        loop {
            if let Some(request) = self.whole_line()? {
                return Ok(Some(Ok(request)));
            }
            let available = match &self.ahead[self.scanned..] {
                [] => match self.failed.take() {
                    Some(error) => return Err(error),
                    None => fill(&mut self.input)?,
                },
                ahead => ahead,
            };
            if available.is_empty() {
                let is_open = self.state.depth > 0;
                self.state = State::default();
                let reason = "the file ends within a document";
                return Ok(is_open.then(|| self.unreadable(self.line, reason)));
            }
            // Copied, so that the input is free; small, because an element may end anywhere in it.
            let chunk = available[..available.len().min(CHUNK_BYTES)].to_vec();
            for (index, &byte) in chunk.iter().enumerate() {
                let step = self.step(byte);
                if let Some(piece) = self.part_after(step, byte) {
                    self.consume(index + 1);
                    return Ok(Some(piece));
                }
            }
            self.consume(chunk.len());
        }
    }

    /// The part that a byte completes.
    fn part_after(&mut self, step: Step, byte: u8) -> Option<Part> {
        let line = self.line - u64::from(byte == b'\n');
        match step {
            Step::Go => None,
            Step::Element(elements) => Some(self.element(elements)),
            Step::Document => self.document(),
            Step::Stray(reason) => Some(self.unreadable(line, reason)),
            Step::Broken(reason) => {
                self.state = State::default();
                self.element.clear();
                self.found_any = false;
                self.is_lost = true;
                // After an error in an element, the end of its line may be missing.
                (self.unreadable_line != line).then(|| self.unreadable(line, reason))
            }
        }
    }

    /// Goes on behind bytes that were scanned.
    fn consume(&mut self, bytes: usize) {
        if self.ahead.is_empty() {
            return self.input.consume(bytes);
        }
        self.scanned += bytes;
        if self.scanned == self.ahead.len() {
            self.ahead.clear();
            self.scanned = 0;
        }
    }

    /// The next line as a request and its place, if it is one document as the Collector writes it.
    /// Any other line is left to be scanned.
    fn whole_line(&mut self) -> io::Result<Option<(Place, Vec<u8>)>> {
        while self.previous == b'\n'
            && self.state.depth == 0
            && self.ahead.is_empty()
            && fill(&mut self.input)?.starts_with(LINE_BEGINS)
        {
            let mut input = (&mut self.input).take(LINE_BYTES_MAX as u64);
            if let Err(error) = input.read_until(b'\n', &mut self.ahead) {
                // The elements before the damage are scanned first.
                self.failed = Some(error);
                break;
            }
            let has_end = self.ahead.ends_with(b"\n");
            let is_whole = has_end || self.ahead.len() < LINE_BYTES_MAX;
            if !is_whole || tempo::is_written_by_it(&self.ahead) {
                break;
            }
            let Ok(request) = json::to_protobuf(&self.ahead) else { break };
            self.ahead.clear();
            let place = Place::Line(self.line);
            self.line += u64::from(has_end);
            self.previous = if has_end { b'\n' } else { b'}' };
            self.is_by_line |= self.documents == 0;
            self.documents += 1;
            self.is_lost = false;
            // A document may have an empty list.
            if !request.is_empty() {
                return Ok(Some((place, request)));
            }
        }
        Ok(None)
    }

    fn unreadable(&mut self, line: u64, reason: &str) -> Part {
        self.unreadable_line = line;
        Err(Unreadable { place: Place::Line(line), reason: reason.to_owned() })
    }

    /// Finishes a document.
    fn document(&mut self) -> Option<Part> {
        self.documents += 1;
        if self.documents == 1 {
            self.is_by_line = self.began == self.line;
        }
        // Something that was reported may have stood in place of the list.
        let found_any = std::mem::take(&mut self.found_any) | (self.unreadable_line >= self.began);
        let reason = "it has neither `resourceSpans` nor `batches` nor `data`";
        (!found_any).then(|| self.unreadable(self.began, reason))
    }

    fn element(&mut self, elements: Elements) -> Part {
        let element = std::mem::take(&mut self.element);
        if std::mem::take(&mut self.is_too_large) {
            return self.unreadable(self.element_line, "an element is larger than 128 MiB");
        }
        let read = match elements {
            Elements::ResourceSpans if tempo::is_written_by_it(&element) => tempo::read(&element),
            Elements::ResourceSpans => {
                let request = [b"{\"resourceSpans\":[".as_slice(), &element, b"]}"].concat();
                json::to_protobuf(&request).map_err(|error| error.to_string())
            }
            Elements::Traces => jaeger::read(&element),
        };
        match read {
            Ok(request) => Ok((Place::Line(self.element_line), request)),
            Err(reason) => self.unreadable(self.element_line, &reason),
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        let begins_line = self.previous == b'\n';
        self.previous = byte;
        self.is_lost &= !begins_line || (byte != b'{' && !self.is_by_line);
        if byte == b'\n' {
            self.line += 1;
            if self.is_by_line && self.state.depth > 0 {
                return Step::Broken("the line ends before its document does");
            }
        }
        if self.is_lost {
            return Step::Go;
        }
        let in_list = self.state.list.is_some();
        let step = self.state.step(byte, &mut self.found_any);
        if self.state.depth == 1 && matches!(byte, b'{' | b'[') && !in_list && !self.state.in_string
        {
            self.began = self.line;
        }
        if in_list {
            self.collect(byte, &step);
        }
        step
    }

    /// Adds a byte to the element that is being collected.
    fn collect(&mut self, byte: u8, step: &Step) {
        let Some((_, depth)) = self.state.list else { return };
        let is_inside = self.state.depth > depth || matches!(step, Step::Element(_));
        if !is_inside {
            return;
        }
        if self.element.is_empty() {
            self.element_line = self.line;
        }
        if self.element.len() < PIECE_BYTES_MAX {
            self.element.push(byte);
        } else {
            self.is_too_large = true;
        }
    }
}

impl State {
    fn step(&mut self, byte: u8, found_any: &mut bool) -> Step {
        if self.in_string {
            return self.string_step(byte);
        }
        let stray = match self.list {
            _ if self.depth == 0 => return self.between_documents(byte),
            Some((_, depth)) if self.depth == depth => {
                self.slot.goes_on(byte, Slot::in_list).then_some("this is not an element")
            }
            None if self.depth == self.keys_at => self.in_members(byte, found_any),
            _ => None,
        };
        let step = self.nest(byte, found_any);
        stray.map_or(step, Step::Stray)
    }

    fn between_documents(&mut self, byte: u8) -> Step {
        match byte {
            b'{' => (self.depth, self.keys_at, self.slot) = (1, 1, Slot::Full),
            b'[' => self.depth = 1,
            b' ' | b'\t' | b'\r' | b'\n' => return Step::Go,
            // A byte order mark.
            0xef | 0xbb | 0xbf => {}
            b'}' | b']' => return Step::Broken("a bracket is closed that was never opened"),
            _ => return Step::Broken("this is not JSON"),
        }
        self.last = byte;
        Step::Go
    }

    /// Looks at the members of an object around the list. Returns the reason if this is none.
    fn in_members(&mut self, byte: u8, found_any: &mut bool) -> Option<&'static str> {
        let is_null = self.slot == Slot::NULL;
        let is_stray = self.slot.goes_on(byte, Slot::in_object);
        // protobuf's JSON may have `null` for an empty list, and nothing for an empty request.
        *found_any |= is_null
            && self.slot == Slot::Full
            && self.wanted == Some(Wanted::List(Elements::ResourceSpans));
        *found_any |= byte == b'}' && self.last == b'{';
        is_stray.then_some("this is not JSON")
    }

    /// Follows strings and brackets within a document.
    fn nest(&mut self, byte: u8, found_any: &mut bool) -> Step {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return Step::Go,
            _ => self.last = byte,
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.is_key = self.list.is_none() && self.depth == self.keys_at;
                self.key.clear();
                self.wanted = None;
            }
            b':' if self.list.is_none() && self.depth == self.keys_at => {
                self.wanted = wanted(&self.key);
            }
            b'{' => {
                self.depth += 1;
                if self.wanted.take() == Some(Wanted::Object) {
                    self.keys_at = self.depth;
                }
            }
            b'[' => {
                self.depth += 1;
                if let Some(Wanted::List(elements)) = self.wanted.take() {
                    self.list = Some((elements, self.depth));
                    self.slot = Slot::Empty;
                    *found_any = true;
                }
            }
            b'}' | b']' => return self.close(),
            b',' => self.wanted = None,
            _ => {}
        }
        Step::Go
    }

    fn string_step(&mut self, byte: u8) -> Step {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => self.in_string = false,
            b'\n' => return Step::Broken("a string does not end on its line"),
            _ if self.is_key && self.key.len() < KEY_BYTES_MAX => self.key.push(byte),
            _ => {}
        }
        Step::Go
    }

    fn close(&mut self) -> Step {
        self.depth -= 1;
        self.wanted = None;
        match self.list {
            Some((elements, depth)) if self.depth == depth => return Step::Element(elements),
            Some((_, depth)) if self.depth < depth => self.list = None,
            _ => {}
        }
        self.keys_at = self.keys_at.min(self.depth);
        if self.depth == 0 {
            *self = State::default();
            return Step::Document;
        }
        Step::Go
    }
}

fn wanted(key: &[u8]) -> Option<Wanted> {
    match key {
        b"resourceSpans" | b"resource_spans" | b"batches" => {
            Some(Wanted::List(Elements::ResourceSpans))
        }
        b"data" => Some(Wanted::List(Elements::Traces)),
        key if AROUND.contains(&key) => Some(Wanted::Object),
        _ => None,
    }
}

//! A YAML file as a tree that remembers where each value stands.
//!
//! An alias shares the node of its anchor and is never expanded, so that a file of nested aliases
//! takes no more memory than its text. Bounds: 128 levels; a mapping may be merged (`<<`) through 8
//! levels.

use std::{collections::HashMap, ops::Range, rc::Rc};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

const DEPTH_MAX: usize = 128;
const MERGE_DEPTH_MAX: usize = 8;

/// One value.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Bytes of the text; for a collection those of its beginning.
    pub(super) span: Range<usize>,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// A string, number, boolean or nothing.
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so that it may be something else than a string.
    pub(super) is_plain: bool,
    /// A literal block, whose lines stand in the file as they are.
    pub(super) is_literal: bool,
}

/// Why a text is no YAML that can be used, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) message: String,
}

/// All documents of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Rc<Node>>, Fault> {
    let mut builder = Builder { lines: Lines::new(text), ..Builder::default() };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let at = builder.lines.offset(error.marker());
                return Err(Fault { at, message: error.info().to_owned() });
            }
        }
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    lines: Lines,
    documents: Vec<Rc<Node>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
}

/// A collection that is not complete yet.
struct Open {
    is_map: bool,
    items: Vec<Rc<Node>>,
    anchor: usize,
    span: Range<usize>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let at = self.lines.offset(&span.start);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_plain = style == ScalarStyle::Plain;
                let is_literal = style == ScalarStyle::Literal;
                let scalar = Scalar { text: text.into_owned(), is_plain, is_literal };
                let span = at..self.lines.offset(&span.end).max(at + 1);
                self.put(Node { value: Value::Scalar(scalar), span }, anchor);
            }
            Event::SequenceStart(anchor, _) => self.begin(false, anchor, at)?,
            Event::MappingStart(anchor, _) => self.begin(true, anchor, at)?,
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = Rc::clone(node);
                    self.add(node);
                }
                None => {
                    let message = "an alias stands inside of its own anchor".to_owned();
                    return Err(Fault { at, message });
                }
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn begin(&mut self, is_map: bool, anchor: usize, at: usize) -> Result<(), Fault> {
        if self.open.len() == DEPTH_MAX {
            let message = format!("values are nested more than {DEPTH_MAX} levels deep");
            return Err(Fault { at, message });
        }
        self.open.push(Open { is_map, items: Vec::new(), anchor, span: at..at + 1 });
        Ok(())
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let value = if open.is_map {
            let mut items = open.items.into_iter();
            let pairs = std::iter::from_fn(|| Some((items.next()?, items.next()?)));
            Value::Map(pairs.collect())
        } else {
            Value::List(open.items)
        };
        self.put(Node { value, span: open.span }, open.anchor);
    }

    fn put(&mut self, node: Node, anchor: usize) {
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.add(node);
    }

    fn add(&mut self, node: Rc<Node>) {
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None => self.documents.push(node),
        }
    }
}

/// Where each line begins.
#[derive(Default)]
struct Lines {
    text: String,
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Lines { text: text.to_owned(), starts: std::iter::once(0).chain(ends).collect() }
    }

    /// The byte of a line and a column in characters.
    fn offset(&self, marker: &Marker) -> usize {
        let start = self.starts.get(marker.line().saturating_sub(1)).copied();
        let start = start.unwrap_or(self.text.len());
        let mut characters = self.text[start..].char_indices();
        characters.nth(marker.col()).map_or(self.text.len(), |(at, _)| start + at)
    }
}

impl Node {
    pub(super) fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.scalar().map(|scalar| scalar.text.as_str())
    }

    pub(super) fn list(&self) -> Option<&[Rc<Node>]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Whether nothing was written, or `null`.
    pub(super) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| {
            scalar.is_plain && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
        })
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// The value of a key, also where it is merged in.
    pub(super) fn get(&self, key: &str) -> Option<Rc<Node>> {
        self.entries()
            .into_iter()
            .find_map(|(name, value)| (name.text() == Some(key)).then_some(value))
    }

    /// Keys and values, those merged in last, and only where the mapping does not have the key.
    pub(super) fn entries(&self) -> Vec<(Rc<Node>, Rc<Node>)> {
        let mut entries: Vec<(Rc<Node>, Rc<Node>)> = Vec::new();
        self.collect(&mut entries, 0);
        entries
    }

    fn collect(&self, entries: &mut Vec<(Rc<Node>, Rc<Node>)>, depth: usize) {
        let Value::Map(own) = &self.value else { return };
        for (name, value) in own.iter().filter(|(name, _)| !is_merge(name)) {
            if !entries.iter().any(|(known, _)| known.text() == name.text()) {
                entries.push((Rc::clone(name), Rc::clone(value)));
            }
        }
        for (_, merged) in own.iter().filter(|(name, _)| is_merge(name)) {
            if depth == MERGE_DEPTH_MAX {
                return;
            }
            match merged.list() {
                Some(list) => list.iter().for_each(|node| node.collect(entries, depth + 1)),
                None => merged.collect(entries, depth + 1),
            }
        }
    }
}

fn is_merge(name: &Node) -> bool {
    name.scalar().is_some_and(|scalar| scalar.is_plain && scalar.text == "<<")
}

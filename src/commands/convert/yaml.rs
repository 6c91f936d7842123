//! Parses a YAML file into a tree that remembers the position of each value.
//!
//! An alias shares the node of its anchor and is never expanded, so a file of nested aliases takes
//! no more memory than its text. Limit: 128 levels, including those behind aliases, so that walking
//! and dropping the tree need little stack.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    rc::Rc,
};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

const DEPTH_MAX: usize = 128;

/// One value.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// The byte range of the value; for a collection, that of its beginning.
    pub(super) span: Range<usize>,
    /// The number of levels below this one, including those behind aliases.
    height: usize,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// A string, number, boolean or null.
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so it may be something other than a string.
    pub(super) is_plain: bool,
    /// A literal block: its lines are in the file without escapes.
    pub(super) is_literal: bool,
}

/// Why a text is not usable YAML, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) message: String,
}

/// Parses all documents of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Rc<Node>>, Fault> {
    let mut builder = Builder::new(text);
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let at = builder.cursor.offset(error.marker());
                return Err(Fault { at, message: error.info().to_owned() });
            }
        }
    }
    Ok(builder.documents)
}

struct Builder<'t> {
    cursor: Cursor<'t>,
    documents: Vec<Rc<Node>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
}

/// A collection that is still being read.
struct Open {
    is_map: bool,
    items: Vec<Rc<Node>>,
    anchor: usize,
    span: Range<usize>,
    /// The greatest height of its items.
    height: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        let cursor = Cursor { text, character: 0, byte: 0 };
        Builder { cursor, documents: Vec::new(), open: Vec::new(), anchors: HashMap::new() }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let at = self.cursor.offset(&span.start);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_plain = style == ScalarStyle::Plain;
                let is_literal = style == ScalarStyle::Literal;
                let scalar = Scalar { text: text.into_owned(), is_plain, is_literal };
                let span = at..self.cursor.offset(&span.end).max(at + 1);
                self.put(Node { value: Value::Scalar(scalar), span, height: 0 }, anchor)?;
            }
            Event::SequenceStart(anchor, _) => self.begin(false, anchor, at)?,
            Event::MappingStart(anchor, _) => self.begin(true, anchor, at)?,
            Event::SequenceEnd | Event::MappingEnd => self.end()?,
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = Rc::clone(node);
                    self.add(node, at)?;
                }
                None => {
                    let message = "an alias is inside its own anchor".to_owned();
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
            return Err(too_deep(at));
        }
        self.open.push(Open { is_map, items: Vec::new(), anchor, span: at..at + 1, height: 0 });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = if open.is_map {
            let mut items = open.items.into_iter();
            let pairs = std::iter::from_fn(|| Some((items.next()?, items.next()?)));
            Value::Map(pairs.collect())
        } else {
            Value::List(open.items)
        };
        self.put(Node { value, span: open.span, height: open.height + 1 }, open.anchor)
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        let at = node.span.start;
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.add(node, at)
    }

    fn add(&mut self, node: Rc<Node>, at: usize) -> Result<(), Fault> {
        if self.open.len() + node.height > DEPTH_MAX {
            return Err(too_deep(at));
        }
        match self.open.last_mut() {
            Some(open) => {
                open.height = open.height.max(node.height);
                open.items.push(node);
            }
            None => self.documents.push(node),
        }
        Ok(())
    }
}

fn too_deep(at: usize) -> Fault {
    Fault { at, message: format!("values are nested more than {DEPTH_MAX} levels deep") }
}

/// A position in the text. The parser counts characters and moves forwards, with short steps back.
/// Counting from the last position keeps this cheap even if the whole file is one line.
struct Cursor<'t> {
    text: &'t str,
    character: usize,
    byte: usize,
}

impl Cursor<'_> {
    /// The byte offset of a parser position.
    fn offset(&mut self, marker: &Marker) -> usize {
        while self.character > marker.index() {
            self.byte = self.text.floor_char_boundary(self.byte - 1);
            self.character -= 1;
        }
        while self.character < marker.index() && self.byte < self.text.len() {
            self.byte = self.text.ceil_char_boundary(self.byte + 1);
            self.character += 1;
        }
        self.byte
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

    /// Whether the value is missing or `null`.
    pub(super) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| {
            scalar.is_plain && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
        })
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// The value of a key, including keys merged in with `<<`.
    pub(super) fn get(&self, key: &str) -> Option<Rc<Node>> {
        self.entries()
            .into_iter()
            .find_map(|(name, value)| (name.text() == Some(key)).then_some(value))
    }

    /// Keys and values. Merged ones come last, and only if the mapping itself does not have the
    /// key.
    pub(super) fn entries(&self) -> Vec<(Rc<Node>, Rc<Node>)> {
        let mut entries = Entries::default();
        self.collect(&mut entries);
        entries.found
    }

    fn collect(&self, entries: &mut Entries) {
        let Value::Map(own) = &self.value else { return };
        // A mapping that was merged before adds nothing.
        if !entries.merged.insert(std::ptr::from_ref(self)) {
            return;
        }
        for (name, value) in own.iter().filter(|(name, _)| !is_merge(name)) {
            if entries.names.insert(name.text().map(str::to_owned)) {
                entries.found.push((Rc::clone(name), Rc::clone(value)));
            }
        }
        for (_, merged) in own.iter().filter(|(name, _)| is_merge(name)) {
            match merged.list() {
                Some(list) => list.iter().for_each(|node| node.collect(entries)),
                None => merged.collect(entries),
            }
        }
    }

    /// The first duplicate key in this node or below it. Results are cached in `known` for later
    /// calls, because aliases lead to the same nodes again.
    pub(super) fn duplicate(&self, known: &mut Duplicates) -> Option<Rc<Node>> {
        let address = std::ptr::from_ref(self);
        if let Some(found) = known.get(&address) {
            return found.clone();
        }
        let found = match &self.value {
            // Scalars are many and have no keys, so they are not cached.
            Value::Scalar(_) => return None,
            Value::List(items) => items.iter().find_map(|item| item.duplicate(known)),
            Value::Map(own) => self
                .own_duplicate()
                .or_else(|| own.iter().find_map(|(_, value)| value.duplicate(known))),
        };
        known.insert(address, found.clone());
        found
    }

    /// The first duplicate key of this mapping itself.
    pub(super) fn own_duplicate(&self) -> Option<Rc<Node>> {
        let Value::Map(own) = &self.value else { return None };
        let mut names = HashSet::new();
        let mut keys = own.iter().map(|(key, _)| key);
        keys.find(|key| key.text().is_some_and(|name| !names.insert(name))).cloned()
    }
}

/// The first duplicate key below each node, by the node's address. Valid while all nodes live.
pub(super) type Duplicates = HashMap<*const Node, Option<Rc<Node>>>;

/// The entries of a mapping while they are collected.
#[derive(Default)]
struct Entries {
    found: Vec<(Rc<Node>, Rc<Node>)>,
    names: HashSet<Option<String>>,
    merged: HashSet<*const Node>,
}

fn is_merge(name: &Node) -> bool {
    name.scalar().is_some_and(|scalar| scalar.is_plain && scalar.text == "<<")
}

//! The description of every configuration key: section, name, type, bounds, default, words.
//!
//! The loader takes bounds and defaults from here. `crate::reference` writes the JSON Schema,
//! `deploy/tailwater.toml` and the reference page from it, and tests compare the committed files.
//! To add a key, add one entry here, and the line of `config::sections` that reads it. A test fails
//! if either is missing.
//!
//! `words` is one paragraph of Markdown: what the key means, its unit, and when to change it.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "words and examples are for the documents, which tests write")
)]

use std::time::Duration;

mod durability;
mod exporter;
mod receiver;
mod sampling;
mod span_metrics;
mod telemetry;

/// The description of one table of the file.
#[derive(Debug)]
pub(crate) struct Described {
    /// The dotted name, as in its header; "" is the top of the file.
    pub(crate) path: &'static str,
    /// The description of the section.
    pub(crate) words: &'static str,
    /// Whether leaving the section out means something other than a section with the defaults.
    pub(crate) is_optional: bool,
    /// The keys, in the order in which they are shown.
    pub(crate) keys: &'static [Key],
}

/// The description of one key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) words: &'static str,
    /// For a key without a default, an example value in TOML.
    pub(crate) example: &'static str,
    pub(crate) need: Need,
}

/// Whether a key is required.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Need {
    Optional,
    /// Required if the section is given.
    Required,
    /// Required if this other key is given.
    With(&'static str),
}

/// The type of a key, with its bounds and default.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Boolean {
        default: bool,
    },
    /// An integer; both bounds are inclusive. Without a default, the words say what applies.
    Integer {
        min: u64,
        max: u64,
        default: Option<u64>,
    },
    /// A duration; both bounds are inclusive.
    Duration {
        min: Duration,
        max: Duration,
        default: Duration,
    },
    /// One of a few words.
    Word {
        words: &'static [&'static str],
        default: &'static str,
    },
    /// A host:port to listen on.
    Listener {
        default: &'static str,
    },
    /// The path of a URL.
    UrlPath {
        default: &'static str,
    },
    /// A URL to connect to.
    Url {
        default: &'static str,
    },
    /// The path of a file, relative to the file that names it.
    Path,
    /// Any text that the expression matches, if it is not empty. Without a default, the words say
    /// what applies.
    Text {
        pattern: &'static str,
    },
    /// A non-empty list of strings, each of which the expression matches.
    Strings {
        pattern: &'static str,
    },
    /// A non-empty list of a few words.
    Words(&'static [&'static str]),
    /// The same, with a default.
    WordsOr {
        words: &'static [&'static str],
        default: &'static [&'static str],
    },
    /// A required boolean.
    Truth,
    /// An integer or a float.
    Number,
    /// A number above 0.
    AboveZero,
    /// A number from 0 to 100; 100 by default.
    Percentage,
    /// A number from 0 to 1; 0 by default.
    Fraction,
    /// A date and time with an offset.
    DateTime,
    /// A nameless policy, or a list of them.
    Policy,
    Policies,
    /// `limit` of a policy.
    Limit,
    /// A list of strings, empty by default.
    Texts,
    /// A table of strings, empty by default.
    Headers,
}

impl Key {
    pub(super) const fn new(name: &'static str, kind: Kind, words: &'static str) -> Key {
        Key { name, kind, words, example: "", need: Need::Optional }
    }

    pub(super) const fn boolean(name: &'static str, default: bool, words: &'static str) -> Key {
        Key::new(name, Kind::Boolean { default }, words)
    }

    const fn integer(
        name: &'static str,
        [min, max]: [u64; 2],
        default: u64,
        words: &'static str,
    ) -> Key {
        Key::new(name, Kind::Integer { min, max, default: Some(default) }, words)
    }

    /// An integer whose default is not a number.
    const fn integer_or_unset(
        name: &'static str,
        [min, max]: [u64; 2],
        example: &'static str,
        words: &'static str,
    ) -> Key {
        let kind = Kind::Integer { min, max, default: None };
        Key { example, ..Key::new(name, kind, words) }
    }

    const fn duration(
        name: &'static str,
        [min, max]: [Duration; 2],
        default: Duration,
        words: &'static str,
    ) -> Key {
        Key::new(name, Kind::Duration { min, max, default }, words)
    }

    pub(super) const fn word(
        name: &'static str,
        values: &'static [&'static str],
        words: &'static str,
    ) -> Key {
        Key::new(name, Kind::Word { words: values, default: values[0] }, words)
    }

    const fn or(mut self, default: &'static str) -> Key {
        if let Kind::Word { words, .. } = self.kind {
            self.kind = Kind::Word { words, default };
        }
        self
    }

    const fn listener(name: &'static str, default: &'static str, words: &'static str) -> Key {
        Key::new(name, Kind::Listener { default }, words)
    }

    const fn path(name: &'static str, example: &'static str, words: &'static str) -> Key {
        Key { example, ..Key::new(name, Kind::Path, words) }
    }

    pub(super) const fn needed(self, need: Need) -> Key {
        Key { need, ..self }
    }
}

#[cfg(test)]
impl Key {
    /// The default in TOML, if it can be written in a file.
    pub(crate) fn default(&self) -> Option<String> {
        match self.kind {
            Kind::Boolean { default } => Some(default.to_string()),
            Kind::Integer { default, .. } => default.map(|default| default.to_string()),
            Kind::Duration { default, .. } => Some(format!("\"{}\"", seconds(default))),
            Kind::Word { default, .. }
            | Kind::Listener { default }
            | Kind::UrlPath { default }
            | Kind::Url { default } => Some(format!("\"{default}\"")),
            Kind::Fraction => Some("0".to_owned()),
            Kind::WordsOr { default, .. } => Some(format!("{default:?}")),
            Kind::Texts => Some("[]".to_owned()),
            Kind::Headers => Some("{}".to_owned()),
            _ => None,
        }
    }
}

/// A duration in whole seconds if possible, as the documents write it.
#[cfg(test)]
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The certificate of a listener, for each of the `tls` sections.
const SERVER_CERT: Key = Key::path(
    "cert_file",
    "\"server.crt\"",
    "The certificate of the service, followed by the intermediate ones.",
)
.needed(Need::Required);
/// The private key of [`SERVER_CERT`].
const SERVER_KEY: Key =
    Key::path("key_file", "\"server.key\"", "Its private key, without a passphrase.")
        .needed(Need::Required);

static TOP: Described = Described {
    path: "",
    words: "",
    is_optional: false,
    keys: &[Key::duration(
        "shutdown_timeout",
        [SECOND, HOUR],
        Duration::from_secs(30),
        "The time limit for a graceful shutdown: deciding the buffered traces and delivering the \
         kept spans. Give the container a little more time before it is killed.",
    )],
};

/// All sections, in the order in which they are shown.
pub(crate) fn sections() -> impl Iterator<Item = &'static Described> {
    let parts = [
        receiver::SECTIONS,
        sampling::SECTIONS,
        exporter::SECTIONS,
        durability::SECTIONS,
        telemetry::SECTIONS,
        span_metrics::SECTIONS,
    ];
    std::iter::once(&TOP).chain(parts.into_iter().flatten())
}

/// The keys of a section; empty if it only contains other sections.
pub(super) fn of(path: &str) -> &'static [Key] {
    sections().find(|section| section.path == path).map_or(&[], |section| section.keys)
}

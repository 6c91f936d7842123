//! The lines of a file that may hold secrets, which are never shown: not on the web page, and not
//! beside a diagnostic.
//!
//! A key holds secrets if it is `headers` or its name contains a word such as "password" or
//! "token". Names that end in `_file` name a file and hold no secret. In a file without syntax
//! errors, the TOML tree says which lines belong to such a key, however it is written. The text is
//! searched as well, line by line, because the tree lacks comments, and the broken parts of a file
//! with errors. The search hides too much rather than too little.

use std::{collections::BTreeSet, ops::Range};

use toml::de::{DeTable, DeValue};

use super::load::on_a_large_stack;

/// The section of the headers that are sent to the backend.
const HEADERS: &str = "headers";

/// A key whose name contains one of these holds a secret. Most are no keys of Tailwater, but people
/// write them by mistake.
const WORDS: [&str; 10] = [
    "api-key",
    "api_key",
    "apikey",
    "authorization",
    "credential",
    "passphrase",
    "passwd",
    "password",
    "secret",
    "token",
];

/// The quotes of strings of several lines.
const QUOTES: [&str; 2] = ["\"\"\"", "'''"];

/// The lines that may hold a secret, from 0. `line_of` returns the line of an offset.
pub(super) fn hidden_lines(text: &str, line_of: impl Fn(usize) -> usize + Sync) -> BTreeSet<usize> {
    let lower = text.to_ascii_lowercase();
    let names_one = lower.contains(HEADERS) || WORDS.iter().any(|word| lower.contains(word));
    // A quoted key may have escapes instead of letters.
    let has_escapes = ["\\u", "\\x"].iter().any(|escape| lower.contains(escape));
    if !names_one && !has_escapes {
        return BTreeSet::new();
    }
    let (mut hidden, is_broken) = on_a_large_stack(|| {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut hidden = BTreeSet::new();
        let mut hide = |span: Range<usize>| {
            hidden.extend(line_of(span.start)..=line_of(span.end.max(span.start + 1) - 1));
        };
        hide_table(table.get_ref(), false, &mut hide);
        (hidden, !errors.is_empty())
    });
    hide_suspects(&lower, is_broken, &mut hidden);
    hidden
}

/// Whether the value of a key may be a secret.
fn holds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key == HEADERS || (!key.ends_with("_file") && WORDS.iter().any(|word| key.contains(word)))
}

/// Hides the keys and values of secrets. `is_secret` says that the whole table is one.
fn hide_table(table: &DeTable<'_>, is_secret: bool, hide: &mut impl FnMut(Range<usize>)) {
    for (key, value) in table {
        let is_secret = is_secret || holds_secret(key.get_ref());
        if is_secret {
            hide(key.span());
        }
        hide_value(value.get_ref(), value.span(), is_secret, hide);
    }
}

fn hide_value(
    value: &DeValue<'_>,
    span: Range<usize>,
    is_secret: bool,
    hide: &mut impl FnMut(Range<usize>),
) {
    if is_secret {
        hide(span);
    }
    match value {
        DeValue::Table(table) => hide_table(table, is_secret, hide),
        DeValue::Array(array) => {
            for element in array {
                hide_value(element.get_ref(), element.span(), is_secret, hide);
            }
        }
        _ => {}
    }
}

/// Hides lines that look like a part of a secret: each line that names one, all lines of a section
/// that holds one, and, if the file has syntax errors, everything from a value whose end is not
/// certain to the next section.
fn hide_suspects(lower: &str, is_broken: bool, hidden: &mut BTreeSet<usize>) {
    let (mut in_section, mut in_value) = (false, false);
    // The quotes of the string of several lines in which the line begins.
    let mut string: Option<&str> = None;
    for (number, line) in lower.lines().enumerate() {
        let names = names_secret(line, is_broken);
        match section(line) {
            Some(_) if names => in_section = true,
            // `['a']` may also be a part of an array, and anything a part of a string.
            Some(is_bare) if is_bare && string.is_none() => (in_section, in_value) = (false, false),
            _ => {}
        }
        in_value |= is_broken && names && may_continue(line);
        if in_section || in_value || names {
            hidden.insert(number);
        }
        string = string_after(line, string);
    }
}

/// Whether the first name of a section is bare, if the line may be the header of a section.
fn section(line: &str) -> Option<bool> {
    let header = line.split('#').next().unwrap_or_default().trim();
    let is_header = header.starts_with('[') && header.ends_with(']');
    let name = header.trim_start_matches(['[', ' ', '\t']);
    let is_bare = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (is_header && !header.contains(['=', ','])).then_some(is_bare)
}

/// The quotes of the string of several lines that is open after a line.
fn string_after<'q>(mut line: &str, mut open: Option<&'q str>) -> Option<&'q str> {
    loop {
        let quotes = match open {
            Some(quotes) => line.find(quotes).map(|at| (at, quotes)),
            None => QUOTES.iter().filter_map(|quotes| Some((line.find(quotes)?, *quotes))).min(),
        };
        let Some((at, quotes)) = quotes else { return open };
        open = if open.is_some() { None } else { Some(quotes) };
        line = &line[at + quotes.len()..];
    }
}

/// Whether a line in lower case has a name that may be that of a secret, before `=`, `.` or `]`.
fn names_secret(line: &str, is_broken: bool) -> bool {
    let is_header = line.trim_start().starts_with('[');
    let Some(end_of_keys) = line.rfind('=').or(is_header.then_some(line.len())) else {
        return false;
    };
    if is_broken && line[..line.find('=').unwrap_or(end_of_keys)].contains('\\') {
        return true;
    }
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut at = 0;
    line.split(|c| !is_letter(c)).any(|name| {
        let end = at + name.len();
        at = end + line[end..].chars().next().map_or(0, char::len_utf8);
        let rest = line[end..].trim_start_matches(['"', '\'', ' ', '\t']);
        end <= end_of_keys && rest.starts_with(['=', '.', ']']) && holds_secret(name)
    })
}

/// Whether the value on this line may have its end on a later one.
fn may_continue(line: &str) -> bool {
    let is_odd = |quote: char| line.matches(quote).count() % 2 == 1;
    let value = line.split_once('=').map_or("", |(_, value)| value);
    let is_open = value.trim().is_empty() || value.trim_end().ends_with('\\');
    is_open
        || value.contains(['{', '['])
        || QUOTES.iter().any(|quotes| value.contains(quotes))
        || is_odd('"')
        || is_odd('\'')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{
        diagnostics::{Problem, Severity},
        shown::Shown,
        source::Source,
    };

    const SECRET: &str = "kanarienvogel";

    /// Everything that may be shown of a file: its text, and the line of each diagnostic.
    fn shown(text: &str) -> String {
        let source = Source::new(Path::new("a.toml"), text);
        let mut shown = Shown::default();
        shown.add(&source);
        let mut said = shown.files()[0].1.clone();
        for at in 0..text.len() {
            let problem = Problem::new("wrong");
            said += &source.diagnose(at..at + 1, Severity::Error, problem).to_string();
        }
        said
    }

    /// The ways of writing `exporter.otlp.headers`, with `%K` for the name of a header and `%V` for
    /// its value.
    const TABLES: [&str; 14] = [
        "exporter.otlp.headers.%K = %V",
        "exporter . otlp\t. headers . %K = %V",
        "exporter.\"otlp\".\"headers\".%K = %V",
        "exporter.otlp.'headers'.%K = %V",
        "exporter.otlp.\"head\\u0065rs\".%K = %V",
        "[exporter.otlp]\nheaders.%K = %V\n[telemetry]",
        "[exporter]\notlp.headers = { a = \"}\", %K = %V }",
        "[exporter.otlp]\nheaders = { a = \"{y}\",\n # more\n %K = %V,\n}\ntimeout = \"5s\"",
        "exporter = { otlp = { headers = { %K = %V } } }",
        "exporter = { otlp.headers = {\n%K = %V\n} }",
        "[exporter.otlp.headers]\na = \"b\"\n\n# comment\n%K = %V\n[telemetry]",
        "[ exporter . otlp . \"headers\" ]\n%K = %V",
        "[[exporter.otlp.headers]]\n%K = %V",
        "[exporter.otlp.headers.more]\n%K = %V",
    ];
    const NAMES: [&str; 4] = ["authorization", "\"X Team\"", "'x-team'", "a . b"];
    const VALUES: [&str; 11] = [
        "\"Bearer %S\"",
        "'Bearer %S'",
        "\"\"\"%S\"\"\"",
        "\"\"\"\\\n  Bearer %S\"\"\"",
        "\"\"\"\n[a]\nb = 1\n%S\n\"\"\"",
        "'''\nBearer\n%S'''",
        "'''\n\"\"\"\n[a]\n%S'''",
        "[\n  \"a\",\n  '%S',\n]",
        "{ b = \"a\",\n c = [ {\n d = '%S' } ] }",
        "\"${env:TOKEN:-%S}\"",
        "\"\\u0041%S\"",
    ];

    proptest! {
        #[test]
        fn no_spelling_of_a_header_is_shown(
            table in prop::sample::select(&TABLES[..]),
            name in prop::sample::select(&NAMES[..]),
            value in prop::sample::select(&VALUES[..]),
            before in prop::sample::select(&["", "c = 1", "# headers\n", "a = '''\n[b]\n'''"][..]),
            after in prop::sample::select(&["", "broken = ", "b = [", "c = \"\"\"", "= 1"][..]),
            has_crlf: bool,
        ) {
            let text = table.replace("%K", name).replace("%V", value).replace("%S", SECRET);
            let text = format!("{before}\n{text}\n{after}\n");
            let text = if has_crlf { text.replace('\n', "\r\n") } else { text };
            let said = shown(&text);
            prop_assert!(!said.contains(SECRET), "{text}\n{said}");
        }

        #[test]
        fn no_password_is_shown(
            key in prop::sample::select(&[
                "receiver.kafka.sasl.password",
                "receiver.kafka.sasl.\"Password\"",
                "exporter.otlp.bearer_token",
                "exporter.otlp.authorization",
                "api-key",
                "# token",
                "a = { client_secret",
            ][..]),
            value in prop::sample::select(&VALUES[..]),
        ) {
            let is_comment = key.starts_with('#');
            prop_assume!(!is_comment || !value.contains('\n'));
            let end = if key.contains('{') { " }" } else { "" };
            let text = format!("{key} = {}{end}\nb = 1\n", value.replace("%S", SECRET));
            let said = shown(&text);
            prop_assert!(!said.contains(SECRET), "{text}\n{said}");
        }
    }

    #[test]
    fn other_lines_are_shown() {
        let text = "# The file has a [policy] and headers.\n[exporter.otlp]\ntimeout = \"5s\"\n\
                    headers = { a = \"hidden\" }\nbearer_token_file = \"token\"\n[telemetry.auth]\n\
                    bearer_token_file = \"tokens\"\n[receiver.http.cors]\n\
                    allowed_headers = [\"x\"]\n";
        let said = shown(text);
        for line in text.lines().filter(|line| !line.starts_with("headers")) {
            assert!(said.lines().any(|shown| shown == line), "{line}\n{said}");
        }
        assert!(!said.contains("hidden\""), "{said}");
    }

    #[test]
    fn broken_files_are_shown_up_to_a_secret_and_from_the_next_section() {
        let text = "first = 1\n[exporter.otlp]\nheaders = { a = \"x,\nsecond = 'b'\n[telemetry]\n\
                    third = 1\n";
        let said = shown(text);
        assert!(said.contains("first = 1") && said.contains("third = 1"), "{said}");
        assert!(!said.contains("second") && !said.contains("a = "), "{said}");
    }
}

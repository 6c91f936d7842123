//! Translates Go's regular expressions to those of the `regex` crate.
//!
//! Both use RE2's syntax, with a few differences, which are rewritten so that the meaning stays the
//! same: `\d`, `\w`, `\s` and `\b` are ASCII in Go; in a character class, Go takes `[`, `&&` and
//! `~~` literally; `\<` and `\>` are characters in Go and word boundaries here. An expression that
//! does not compile is refused.

use regex::bytes::RegexSetBuilder;

/// The most bytes that the compiled expressions of one condition may take, as in a configuration.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// An expression that matches here what `pattern` matches in Go, or why there is none.
pub(super) fn translated(pattern: &str) -> Result<String, String> {
    let written = rewritten(pattern)?;
    compile(std::slice::from_ref(&written))?;
    Ok(written)
}

/// Checks that the expressions compile together.
pub(super) fn compile(patterns: &[String]) -> Result<(), String> {
    match RegexSetBuilder::new(patterns).size_limit(COMPILED_BYTES_MAX).build() {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("the regular expression cannot be used: {reason}"))
        }
    }
}

/// Rewrites `pattern` to mean here what it means in Go. The result may be invalid in both.
pub(super) fn rewritten(pattern: &str) -> Result<String, String> {
    let mut written = String::with_capacity(pattern.len());
    let mut rest = pattern;
    let mut is_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let next = after.chars().next();
        let mut length = c.len_utf8();
        match (c, next) {
            ('\\', Some(escape)) => {
                length += escape.len_utf8();
                match ascii(escape, is_class) {
                    Some(meant) => written.push_str(meant),
                    None => written.push_str(&rest[..length]),
                }
            }
            ('[', _) if !is_class => {
                is_class = true;
                // A bracket at the start of a class is an ordinary character.
                let first = ["[^]", "[]", "[^", "["].into_iter().find(|s| rest.starts_with(s));
                let first = first.unwrap_or("[");
                length = first.len();
                written.push_str(&first.replace(']', "\\]"));
            }
            ('[', Some(':')) if after.contains(":]") => {
                length += after.find(":]").map_or(0, |end| end + 2);
                written.push_str(&rest[..length]);
            }
            ('[', _) => written.push_str("\\["),
            (']', _) => {
                is_class = false;
                written.push(c);
            }
            ('&' | '~', Some(same)) if is_class && same == c => {
                written.push('\\');
                written.push(c);
            }
            ('-', Some('-')) if is_class => {
                return Err("`--` in a class of a regular expression is not converted".to_owned());
            }
            _ => written.push(c),
        }
        rest = &rest[length..];
    }
    Ok(written)
}

/// The replacement for an escape that has another meaning here.
fn ascii(escape: char, is_class: bool) -> Option<&'static str> {
    Some(match (escape, is_class) {
        ('d', false) => "[0-9]",
        ('d', true) => "0-9",
        ('w', false) => "[0-9A-Za-z_]",
        ('w', true) => "0-9A-Za-z_",
        ('s', false) => "[\\t\\n\\f\\r ]",
        ('s', true) => "\\t\\n\\f\\r\\x20",
        // The regex crate allows a class inside a class.
        ('D', _) => "[^0-9]",
        ('W', _) => "[^0-9A-Za-z_]",
        ('S', _) => "[^\\t\\n\\f\\r ]",
        ('b', false) => "(?-u:\\b)",
        ('<', _) => "<",
        ('>', _) => ">",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use regex::bytes::Regex;

    use super::{rewritten, translated};

    #[test]
    fn classes_are_ascii_as_in_go() {
        for (pattern, wanted) in [
            (r"^\d+$", "^[0-9]+$"),
            (r"[\w.-]+\S", r"[0-9A-Za-z_.-]+[^\t\n\f\r ]"),
            (r"[^\D]", "[^[^0-9]]"),
            (r"\bpay\b", r"(?-u:\b)pay(?-u:\b)"),
            (r"\\d", r"\\d"),
            (r"^/api/(v1|v2)", r"^/api/(v1|v2)"),
        ] {
            assert_eq!(rewritten(pattern).as_deref(), Ok(wanted));
        }
        let digits = Regex::new(&translated(r"^\d$").expect("compiles")).expect("compiles");
        assert!(digits.is_match(b"7"));
        assert!(!digits.is_match("٧".as_bytes()), "an Arabic seven is no digit in Go");
    }

    #[test]
    fn brackets_and_signs_in_a_class_are_characters() {
        for (pattern, matching, other) in [
            ("^[[]$", "[", "]"),
            ("^[]a]$", "]", "b"),
            ("^[^]a]$", "b", "]"),
            ("^[a-c&&b]$", "&", "d"),
            ("^[a~~]$", "~", "b"),
            ("^[[:digit:]x]$", "x", ":"),
            (r"^\<a\>$", "<a>", "a"),
        ] {
            let written = translated(pattern).expect(pattern);
            let regex = Regex::new(&written).expect("compiles");
            assert!(regex.is_match(matching.as_bytes()), "{pattern} as {written}");
            assert!(!regex.is_match(other.as_bytes()), "{pattern} as {written}");
        }
    }

    #[test]
    fn what_cannot_be_compiled_is_refused() {
        for pattern in ["a(", "*", "[a--b]", r"\Qa\E", "a{99999999}", "(?:x{1000}){1000}"] {
            assert!(translated(pattern).is_err(), "{pattern}");
        }
    }
}

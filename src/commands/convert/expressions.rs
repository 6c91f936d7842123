//! Translates Go's regular expressions to those of the `regex` crate.
//!
//! Both follow RE2's syntax, with these differences: in Go, `\d`, `\w`, `\s` and `\b` are ASCII;
//! `[`, `&&` and `~~` are characters inside a class; `\<` and `\>` are characters, while here they
//! match the ends of words; a `{` that begins no repetition is a character, and so is everything
//! between `\Q` and `\E`. These constructs are rewritten, so that the meaning stays. An expression
//! is refused if it cannot be compiled, or if Go refuses it: a repetition of a repetition, and one
//! of more than 1000 times.

use regex::bytes::{RegexSet, RegexSetBuilder};

/// The most bytes that the compiled expressions of one condition may take, as in a configuration.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Translates `pattern` to an expression with the same matches, or returns the reason why there is
/// none.
pub(super) fn translated(pattern: &str) -> Result<String, String> {
    let written = rewritten(pattern)?;
    compile(std::slice::from_ref(&written))?;
    Ok(written)
}

/// The expressions together, or why they cannot be used.
pub(super) fn compile(patterns: &[String]) -> Result<RegexSet, String> {
    RegexSetBuilder::new(patterns).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("the regular expression cannot be used: {reason}")
    })
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
            ('\\', Some('Q')) if !is_class => {
                let quoted = after[1..].split("\\E").next().unwrap_or_default();
                length = rest.len().min(c.len_utf8() + quoted.len() + "Q\\E".len());
                written.push_str(&regex::escape(quoted));
            }
            ('\\', Some('p' | 'P' | 'x')) if after[1..].starts_with('{') => {
                length = rest.find('}').map_or(rest.len(), |end| end + 1);
                written.push_str(&rest[..length]);
            }
            ('\\', Some(escape)) => {
                length += escape.len_utf8();
                match ascii(escape, is_class) {
                    Some(meant) => written.push_str(meant),
                    None => written.push_str(&rest[..length]),
                }
            }
            ('*' | '+' | '?' | '{', _) if !is_class => match repetition(rest)? {
                Some(repeated) => {
                    length = repeated;
                    written.push_str(&rest[..length]);
                }
                None => written.push_str("\\{"),
            },
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

/// The length of a repetition, with the `?` of a lazy one; `None` if the `{` is a character.
fn repetition(rest: &str) -> Result<Option<usize>, String> {
    let bounded = |rest: &str| {
        let (numbers, _) = rest.strip_prefix('{')?.split_once('}')?;
        let (least, most) = numbers.split_once(',').unwrap_or((numbers, numbers));
        let is_number = |text: &str| {
            let is_short = text == "0" || !text.starts_with('0');
            is_short && !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
        };
        let is_repetition = is_number(least) && (most.is_empty() || is_number(most));
        let is_small =
            |text: &str| text.is_empty() || text.parse().is_ok_and(|count: u32| count <= 1000);
        is_repetition.then(|| (numbers.len() + 2, is_small(least) && is_small(most)))
    };
    let length = match (rest.starts_with('{'), bounded(rest)) {
        (true, None) => return Ok(None),
        (true, Some((_, false))) => return Err("Go allows at most 1000 repetitions".to_owned()),
        (_, Some((length, true))) => length,
        _ => 1,
    };
    let length = length + usize::from(rest[length..].starts_with('?'));
    let behind = &rest[length..];
    if behind.starts_with(['*', '+', '?']) || bounded(behind).is_some() {
        return Err("Go does not allow a repetition of a repetition".to_owned());
    }
    Ok(Some(length))
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
            (r"^/users/{id}$", r"^/users/\{id}$"),
            (r"a{2}{x}{,5}b{1,}?{", r"a{2}\{x}\{,5}b{1,}?\{"),
            (r"\Qa.b\E.\Q*", r"a\.b.\*"),
            (r"\p{Greek}\x{41}{2}", r"\p{Greek}\x{41}{2}"),
            (r"^/api/(v1|v2)", r"^/api/(v1|v2)"),
        ] {
            assert_eq!(rewritten(pattern).as_deref(), Ok(wanted));
        }
        let digits = Regex::new(&translated(r"^\d$").expect("compiles")).expect("compiles");
        assert!(digits.is_match(b"7"));
        assert!(!digits.is_match("٧".as_bytes()), "an Arabic seven is not a digit in Go");
    }

    #[test]
    fn repetitions_that_go_refuses_are_refused() {
        for pattern in ["a**", "a+?*", "a{2}{3}", "a{1001}", "a{2,1001}", "a*{2}"] {
            assert!(rewritten(pattern).is_err(), "{pattern}");
        }
        for pattern in ["a*?b", "a{1000}", r"\**", "[*+]*", "(a*)*"] {
            assert_eq!(rewritten(pattern).as_deref(), Ok(pattern));
        }
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
    fn invalid_expressions_are_refused() {
        for pattern in ["a(", "*", "[a--b]", r"\C", "a{99999999}", "(?:x{1000}){1000}"] {
            assert!(translated(pattern).is_err(), "{pattern}");
        }
    }
}

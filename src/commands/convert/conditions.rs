//! Converts an OTTL condition to a rule about one span.
//!
//! Constructs whose meaning could differ in Tailwater are refused: converters, comparisons of two
//! attributes, the order of strings. `!=` is true for a span that lacks the attribute, so it
//! becomes a `not` inside `same_span`, never `invert_match`.

use std::ops::Range;

use super::{
    durations::duration,
    expressions::translated,
    ottl::{Expression, Kind, Operator, Path},
    rule::{Rule, float, text, texts},
};

/// Why a condition cannot be converted, and the part of it that is the reason.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) span: Range<usize>,
    pub(super) reason: String,
}

/// Notes about constructs whose meaning differs slightly.
pub(super) type Notes = Vec<String>;

const NOT_EQUAL: &str = "`!=` is true for every span that lacks the attribute or has another \
    value: written as \
     `same_span` with a `not`, not as `invert_match`";
pub(super) const IS_MATCH: &str = "in the Collector `IsMatch` also tests the text of values that \
                                   are not strings; here only strings match";

pub(super) fn refuse<T>(span: &Range<usize>, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { span: span.clone(), reason: reason.into() })
}

/// A condition of the list `span`.
pub(super) fn of_span(expression: &Expression, notes: &mut Notes) -> Result<Rule, Refusal> {
    match expression.kind {
        Kind::Boolean(true) => Ok(Rule::new("always_sample")),
        _ => span_rule(expression, notes).map(by_some_span),
    }
}

/// Wraps in `same_span` the parts that must be met by one and the same span. `or` is split first:
/// some span meets `a or b` if some span meets `a` or some span meets `b`.
fn by_some_span(rule: Rule) -> Rule {
    match rule.kind {
        "or" => Rule::of("or", rule.parts.into_iter().map(by_some_span).collect()),
        "and" => Rule::of("same_span", rule.parts),
        "not" => Rule::of("same_span", vec![rule]),
        _ => rule,
    }
}

fn span_rule(expression: &Expression, notes: &mut Notes) -> Result<Rule, Refusal> {
    let span = &expression.span;
    let all = |parts: &[Expression], notes: &mut Notes| {
        parts.iter().map(|part| span_rule(part, notes)).collect::<Result<Vec<_>, _>>()
    };
    match &expression.kind {
        Kind::Or(parts) => Ok(Rule::all("or", all(parts, notes)?)),
        Kind::And(parts) => Ok(Rule::all("and", all(parts, notes)?)),
        Kind::Not(part) => Ok(negated(span_rule(part, notes)?)),
        Kind::Compare(left, operator, right) => compare(left, *operator, right, span, notes),
        Kind::Call(name, arguments) => match (name.as_str(), arguments.as_slice()) {
            ("IsRootSpan", []) => Ok(Rule::new("root_span")),
            ("IsMatch", [value, pattern]) => is_match(value, pattern, notes),
            _ => unknown_function(name, span),
        },
        _ => refuse(span, "a condition must be a comparison, `IsMatch` or `IsRootSpan`"),
    }
}

pub(super) fn negated(mut rule: Rule) -> Rule {
    if rule.kind == "not" { rule.parts.remove(0) } else { Rule::not(rule) }
}

pub(super) fn unknown_function<T>(name: &str, span: &Range<usize>) -> Result<T, Refusal> {
    refuse(span, format!("the function `{name}` has no counterpart in Tailwater"))
}

fn compare(
    left: &Expression,
    operator: Operator,
    right: &Expression,
    span: &Range<usize>,
    notes: &mut Notes,
) -> Result<Rule, Refusal> {
    if is_literal(&left.kind) && !is_literal(&right.kind) {
        return compare(right, operator.flipped(), left, span, notes);
    }
    if let Kind::Call(name, arguments) = &left.kind {
        return match (name.as_str(), &right.kind, operator) {
            (
                "IsRootSpan" | "IsMatch",
                Kind::Boolean(right),
                Operator::Equal | Operator::NotEqual,
            ) => {
                let wanted = *right == (operator == Operator::Equal);
                let kind = Kind::Call(name.clone(), arguments.clone());
                let rule = span_rule(&Expression { kind, span: left.span.clone() }, notes)?;
                Ok(if wanted { rule } else { negated(rule) })
            }
            ("IsRootSpan" | "IsMatch", ..) => {
                refuse(span, "compare it with `== true` or `== false`")
            }
            _ => unknown_function(name, &left.span),
        };
    }
    if let Kind::Arithmetic(..) = &left.kind {
        return duration(left, operator, right);
    }
    let Kind::Path(path) = &left.kind else {
        return refuse(&left.span, "this side is not a field of the span");
    };
    let rule = match field(path, &left.span)? {
        Field::Attribute { key, scope } => attribute(key, scope, operator, right, span, notes)?,
        Field::Name => named("span_name", "values", operator, right, span)?,
        Field::Status => {
            one_of("status_code", "status_codes", number_word(&STATUS, right)?, operator, right)?
        }
        Field::Kind => one_of("span_kind", "kinds", number_word(&KINDS, right)?, operator, right)?,
        Field::KindText => one_of("span_kind", "kinds", kind_text(right)?, operator, right)?,
    };
    Ok(rule)
}

fn is_literal(kind: &Kind) -> bool {
    match kind {
        Kind::Call(name, _) => name == "Duration",
        Kind::Text(_)
        | Kind::Integer(_)
        | Kind::Double(_)
        | Kind::Boolean(_)
        | Kind::Nil
        | Kind::Enum(_) => true,
        _ => false,
    }
}

/// A field that a Tailwater condition can test.
enum Field<'p> {
    Attribute { key: &'p str, scope: &'static str },
    Name,
    Status,
    Kind,
    KindText,
}

fn field<'p>(path: &'p Path, span: &Range<usize>) -> Result<Field<'p>, Refusal> {
    let names: Vec<&str> = path.names.iter().map(String::as_str).collect();
    let names = match names.as_slice() {
        // The Collector has no path `span.resource`.
        ["span", rest @ ..] if !rest.is_empty() && rest[0] != "resource" => rest,
        all => all,
    };
    if path.is_deeper {
        return refuse(span, "a value inside an attribute cannot be compared");
    }
    if path.key.as_deref() == Some("") {
        return refuse(span, "the name of the attribute is missing");
    }
    match (names, &path.key) {
        (["attributes"], Some(key)) => Ok(Field::Attribute { key, scope: "span" }),
        (["resource", "attributes"], Some(key)) => Ok(Field::Attribute { key, scope: "resource" }),
        (["name"], None) => Ok(Field::Name),
        (["status", "code"], None) => Ok(Field::Status),
        (["kind"], None) => Ok(Field::Kind),
        (["kind", "string"], None) => Ok(Field::KindText),
        _ => refuse(span, format!("no condition of Tailwater reads `{}`", path.names.join("."))),
    }
}

/// Wraps the rule in `not` if the operator is `!=`.
fn unless_equal(rule: Rule, operator: Operator) -> Option<Rule> {
    match operator {
        Operator::Equal => Some(rule),
        Operator::NotEqual => Some(negated(rule)),
        _ => None,
    }
}

fn attribute(
    key: &str,
    scope: &str,
    operator: Operator,
    value: &Expression,
    span: &Range<usize>,
    notes: &mut Notes,
) -> Result<Rule, Refusal> {
    let rule = |kind| Rule::new(kind).with("key", text(key));
    let scope = text(scope);
    if operator == Operator::NotEqual && value.kind != Kind::Nil {
        notes.push(NOT_EQUAL.to_owned());
    }
    let equal = match &value.kind {
        // `!= nil` is the positive test: the attribute is present.
        Kind::Nil => {
            let exists = rule("attribute_exists").with("scope", scope);
            return match operator {
                Operator::NotEqual => Ok(exists),
                Operator::Equal => Ok(negated(exists)),
                _ => refuse(span, "`nil` can only be compared with `==` and `!=`"),
            };
        }
        Kind::Text(wanted) => {
            rule("string_attribute").with("values", texts([wanted.as_str()])).with("scope", scope)
        }
        Kind::Boolean(wanted) => {
            rule("boolean_attribute").with("value", wanted.to_string()).with("scope", scope)
        }
        Kind::Integer(_) | Kind::Double(_) => {
            let number = match value.kind {
                Kind::Integer(number) => number.to_string(),
                Kind::Double(number) => float(number),
                _ => String::new(),
            };
            let bounds: &[&'static str] = match operator {
                Operator::Equal | Operator::NotEqual => &["min_value", "max_value"],
                Operator::Less => &["below"],
                Operator::LessOrEqual => &["max_value"],
                Operator::Greater => &["above"],
                Operator::GreaterOrEqual => &["min_value"],
            };
            let with = |rule: Rule, bound: &&'static str| rule.with(bound, number.clone());
            let rule = bounds.iter().fold(rule("numeric_attribute"), with).with("scope", scope);
            return Ok(if operator == Operator::NotEqual { negated(rule) } else { rule });
        }
        Kind::Call(name, _) => return unknown_function(name, &value.span),
        _ => return refuse(&value.span, "an attribute can only be compared with a literal"),
    };
    match unless_equal(equal, operator) {
        Some(rule) => Ok(rule),
        None => refuse(span, "strings and booleans can only be compared with `==` and `!=`"),
    }
}

/// A name compared with a string.
fn named(
    kind: &'static str,
    key: &'static str,
    operator: Operator,
    value: &Expression,
    span: &Range<usize>,
) -> Result<Rule, Refusal> {
    let Kind::Text(wanted) = &value.kind else {
        return refuse(&value.span, "a name can only be compared with a string");
    };
    match unless_equal(Rule::new(kind).with(key, texts([wanted.as_str()])), operator) {
        Some(rule) => Ok(rule),
        None => refuse(span, "names can only be compared with `==` and `!=`"),
    }
}

/// The OTTL names of values, their numbers, and Tailwater's names for them.
type Words = [(&'static str, i64, &'static str)];

const STATUS: [(&str, i64, &str); 3] = [
    ("STATUS_CODE_UNSET", 0, "UNSET"),
    ("STATUS_CODE_OK", 1, "OK"),
    ("STATUS_CODE_ERROR", 2, "ERROR"),
];
const KINDS: [(&str, i64, &str); 6] = [
    ("SPAN_KIND_UNSPECIFIED", 0, "UNSPECIFIED"),
    ("SPAN_KIND_INTERNAL", 1, "INTERNAL"),
    ("SPAN_KIND_SERVER", 2, "SERVER"),
    ("SPAN_KIND_CLIENT", 3, "CLIENT"),
    ("SPAN_KIND_PRODUCER", 4, "PRODUCER"),
    ("SPAN_KIND_CONSUMER", 5, "CONSUMER"),
];
/// The values of `kind.string`.
const KIND_TEXTS: [(&str, &str); 6] = [
    ("Unspecified", "UNSPECIFIED"),
    ("Internal", "INTERNAL"),
    ("Server", "SERVER"),
    ("Client", "CLIENT"),
    ("Producer", "PRODUCER"),
    ("Consumer", "CONSUMER"),
];

/// Tailwater's name for a number or an OTTL name. A string never equals a number in OTTL.
fn number_word(words: &Words, value: &Expression) -> Result<&'static str, Refusal> {
    let known = match &value.kind {
        Kind::Enum(name) => words.iter().find(|(known, ..)| known == name),
        Kind::Integer(number) => words.iter().find(|(_, known, _)| known == number),
        Kind::Text(_) => {
            return refuse(&value.span, "the field is a number and never equals a string");
        }
        _ => None,
    };
    known.map_or_else(|| refuse(&value.span, NO_SUCH_VALUE), |(.., word)| Ok(*word))
}

fn kind_text(value: &Expression) -> Result<&'static str, Refusal> {
    let known = match &value.kind {
        Kind::Text(name) => KIND_TEXTS.iter().find(|(known, _)| known == name),
        _ => None,
    };
    known.map_or_else(|| refuse(&value.span, NO_SUCH_VALUE), |(_, word)| Ok(*word))
}

const NO_SUCH_VALUE: &str = "the field cannot have this value";

fn one_of(
    kind: &'static str,
    key: &'static str,
    word: &'static str,
    operator: Operator,
    value: &Expression,
) -> Result<Rule, Refusal> {
    match unless_equal(Rule::new(kind).with(key, texts([word])), operator) {
        Some(rule) => Ok(rule),
        None => refuse(&value.span, "these values can only be compared with `==` and `!=`"),
    }
}

fn is_match(value: &Expression, pattern: &Expression, notes: &mut Notes) -> Result<Rule, Refusal> {
    let pattern = expression(pattern)?;
    let Kind::Path(path) = &value.kind else {
        return refuse(&value.span, "`IsMatch` can only look at a field of the span");
    };
    let rule = match field(path, &value.span)? {
        Field::Name => Rule::new("span_name").with("values", texts([pattern.as_str()])),
        Field::Attribute { key, scope } => {
            notes.push(IS_MATCH.to_owned());
            let rule = Rule::new("string_attribute").with("key", text(key));
            rule.with("values", texts([pattern.as_str()])).with("scope", text(scope))
        }
        _ => return refuse(&value.span, "`IsMatch` can only look at names and attributes"),
    };
    Ok(rule.with("enabled_regex_matching", "true"))
}

/// Reads a regular expression and checks that Tailwater can compile it.
pub(super) fn expression(pattern: &Expression) -> Result<String, Refusal> {
    let Kind::Text(pattern_text) = &pattern.kind else {
        return refuse(&pattern.span, "the expression must be a string");
    };
    translated(pattern_text).or_else(|reason| refuse(&pattern.span, reason))
}

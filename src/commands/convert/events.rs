//! Converts an OTTL condition to a rule about one event of one span.

use std::ops::Range;

use super::{
    conditions::{IS_MATCH, Notes, Refusal, expression, refuse, unknown_function},
    ottl::{Expression, Kind, Operator, Path},
    rule::{Rule, text, texts},
};

/// A condition of the list `spanevent`: conditions on one event, joined by `and`.
pub(super) fn of_event(condition: &Expression, notes: &mut Notes) -> Result<Rule, Refusal> {
    if let Kind::Or(parts) = &condition.kind {
        let parts = parts.iter().map(|part| of_event(part, notes)).collect::<Result<Vec<_>, _>>();
        return Ok(Rule::all("or", parts?));
    }
    let mut names: Option<(String, bool)> = None;
    let mut attribute: Option<(&str, Option<String>, bool)> = None;
    for part in conjuncts(condition) {
        let span = part.span.clone();
        match event_part(part, notes)? {
            EventPart::Name { value, is_regex } if names.is_none() => {
                names = Some((value, is_regex));
            }
            EventPart::Attribute { key, value, is_regex } if attribute.is_none() => {
                attribute = Some((key, value, is_regex));
            }
            _ => return refuse(&span, "`span_event` has one name and one attribute"),
        }
    }
    let regexes = [
        names.as_ref().map(|(_, regex)| *regex),
        attribute.as_ref().and_then(|(_, value, regex)| value.as_ref().map(|_| *regex)),
    ];
    let mut name_value = names.map(|(value, _)| value);
    let key = attribute.as_ref().map(|(key, ..)| *key);
    let mut attribute_value = attribute.and_then(|(_, value, _)| value);
    let is_regex = regexes.contains(&Some(true));
    if is_regex {
        // One switch applies to both, so a plain value becomes an expression that matches only this
        // value.
        let anchored = |value: &str| format!("^(?:{})$", regex::escape(value));
        if regexes[0] == Some(false) {
            name_value = name_value.as_deref().map(anchored);
        }
        if regexes[1] == Some(false) {
            attribute_value = attribute_value.as_deref().map(anchored);
        }
    }
    let mut rule = Rule::new("span_event");
    if let Some(name) = &name_value {
        rule = rule.with("names", texts([name.as_str()]));
    }
    if let Some(key) = key {
        rule = rule.with("key", text(key));
    }
    if let Some(value) = &attribute_value {
        rule = rule.with("values", texts([value.as_str()]));
    }
    if is_regex {
        rule = rule.with("enabled_regex_matching", "true");
    }
    Ok(rule)
}

/// The operands of `and`, including those of nested ones.
fn conjuncts(condition: &Expression) -> Vec<&Expression> {
    match &condition.kind {
        Kind::And(parts) => parts.iter().flat_map(conjuncts).collect(),
        _ => vec![condition],
    }
}

enum EventPart<'e> {
    Name { value: String, is_regex: bool },
    Attribute { key: &'e str, value: Option<String>, is_regex: bool },
}

fn event_part<'e>(part: &'e Expression, notes: &mut Notes) -> Result<EventPart<'e>, Refusal> {
    match &part.kind {
        Kind::Compare(left, operator, right) => {
            let Kind::Path(path) = &left.kind else {
                return refuse(&left.span, "this side is not a field of the event");
            };
            match (event_field(path, &left.span)?, operator, &right.kind) {
                (None, Operator::Equal, Kind::Text(value)) => {
                    Ok(EventPart::Name { value: value.clone(), is_regex: false })
                }
                (Some(key), Operator::Equal, Kind::Text(value)) => {
                    Ok(EventPart::Attribute { key, value: Some(value.clone()), is_regex: false })
                }
                (Some(key), Operator::NotEqual, Kind::Nil) => {
                    Ok(EventPart::Attribute { key, value: None, is_regex: false })
                }
                (_, Operator::NotEqual, _) => {
                    refuse(&part.span, "a test for an event without this value cannot be expressed")
                }
                _ => refuse(
                    &part.span,
                    "`span_event` compares names and attributes only with strings",
                ),
            }
        }
        Kind::Call(name, arguments) if name == "IsMatch" => {
            let [value, pattern] = arguments.as_slice() else {
                return refuse(&part.span, "`IsMatch` takes a field and an expression");
            };
            let pattern = expression(pattern)?;
            let Kind::Path(path) = &value.kind else {
                return refuse(&value.span, "`IsMatch` can only look at a field of the event");
            };
            match event_field(path, &value.span)? {
                None => Ok(EventPart::Name { value: pattern, is_regex: true }),
                Some(key) => {
                    notes.push(IS_MATCH.to_owned());
                    Ok(EventPart::Attribute { key, value: Some(pattern), is_regex: true })
                }
            }
        }
        Kind::Call(name, _) => unknown_function(name, &part.span),
        _ => refuse(
            &part.span,
            "only `==`, `!= nil` and `IsMatch`, joined by `and`, can be expressed",
        ),
    }
}

/// The key of an event attribute, or `None` for the event's name.
fn event_field<'p>(path: &'p Path, span: &Range<usize>) -> Result<Option<&'p str>, Refusal> {
    let names: Vec<&str> = path.names.iter().map(String::as_str).collect();
    let names = match names.as_slice() {
        ["spanevent", rest @ ..] => rest,
        all => all,
    };
    match (names, &path.key) {
        (["name"], None) => Ok(None),
        (["attributes"], Some(key)) if !path.is_deeper && !key.is_empty() => Ok(Some(key)),
        _ => refuse(
            span,
            format!("no condition of Tailwater on events reads `{}`", path.names.join(".")),
        ),
    }
}

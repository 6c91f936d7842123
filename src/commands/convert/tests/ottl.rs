//! Conditions in OTTL: the grammar, the converted rules, and the places of refusals.

use super::{Converted, convert_policy};
use crate::commands::convert::ottl::{Fault, Kind, Operator, parse};

fn fault(text: &str) -> Fault {
    parse(text).expect_err(text)
}

fn condition(list: &str, text: &str) -> Converted {
    let text = text.replace('\'', "''");
    convert_policy(&format!(
        "- name: p\n  type: ottl_condition\n  ottl_condition:\n    {list}:\n    - '{text}'"
    ))
}

/// The type and keys of the only policy that a condition becomes.
fn rule(list: &str, text: &str) -> String {
    let converted = condition(list, text);
    assert_eq!(converted.errors(), Vec::<&str>::new(), "{text}");
    let policies = converted.policies();
    let lines = policies.lines().skip(2).map(|line| line.trim().trim_end_matches(','));
    lines.collect::<Vec<_>>().join(" ")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn and_binds_more_than_or_and_not_most_of_all() {
    let Kind::Or(parts) = parse("not name == \"a\" and true or false").expect("parses").kind else {
        panic!("no `or`");
    };
    let Kind::And(both) = &parts[0].kind else { panic!("no `and`") };
    assert!(matches!(&both[0].kind, Kind::Not(inner) if matches!(inner.kind, Kind::Compare(..))));
    assert_eq!(both[1].kind, Kind::Boolean(true));
    assert_eq!(parts[1].kind, Kind::Boolean(false));
}

#[test]
fn parentheses_come_first() {
    let Kind::And(parts) = parse("true and (false or true)").expect("parses").kind else {
        panic!("no `and`");
    };
    assert!(matches!(&parts[1].kind, Kind::Or(parts) if parts.len() == 2));
    assert_eq!(parts[1].span, 9..24);
}

#[test]
fn literals_are_those_of_ottl() {
    for (text, kind) in [
        ("5", Kind::Integer(5)),
        ("-5", Kind::Integer(-5)),
        ("+5", Kind::Integer(5)),
        ("-9223372036854775808", Kind::Integer(i64::MIN)),
        ("1.5", Kind::Double(1.5)),
        (".5", Kind::Double(0.5)),
        ("-.5", Kind::Double(-0.5)),
        ("1.5e-3", Kind::Double(0.0015)),
        ("nil", Kind::Nil),
        ("SPAN_KIND_SERVER", Kind::Enum("SPAN_KIND_SERVER".to_owned())),
        (r#""a\"b\\d\n\u00e9\x41""#, Kind::Text("a\"b\\d\né\u{41}".to_owned())),
        (r#""^a$$""#, Kind::Text("^a$".to_owned())),
    ] {
        assert_eq!(parse(text).expect(text).kind, kind);
    }
    for (text, message) in [
        ("0x1F", "a bytes literal cannot be compared"),
        ("010", "a number that begins with 0 is octal in OTTL; write it without the 0"),
        ("1e5", "this is not a number in OTTL"),
        ("5.", "this is not a number in OTTL"),
        ("1.2.3", "this is not a number in OTTL"),
        ("1_000", "this is not a number in OTTL"),
        ("9223372036854775808", "the number is too large"),
        ("99999999999999999999", "the number is too large"),
    ] {
        assert_eq!(fault(text), Fault { span: 0..text.len(), message: message.to_owned() });
    }
}

#[test]
fn faults_have_their_place() {
    for (text, span, message) in [
        ("name == \"a", 8..10, "the string has no closing quote"),
        (
            r#"name == "\d""#,
            9..11,
            r"`\d` is not an escape in an OTTL string; write a backslash as `\\`",
        ),
        ("name = \"a\"", 5..6, "`=` has no meaning in OTTL"),
        ("name == ", 8..8, "the condition ends where a value should be"),
        ("(name == \"a\"", 12..12, "the condition ends where `)` should be"),
        ("name == \"a\" \"b\"", 12..15, "there is a string where the end should be"),
        ("not not true", 4..7, "there is `true` where the end should be"),
        ("attributes[\"a\" == 1", 15..17, "there is `==` where `]` should be"),
        ("ä == 1", 0..2, "`ä` has no meaning in OTTL"),
    ] {
        let found = fault(text);
        if text.starts_with("not not") {
            // A second `not` is a name, which cannot be followed by another value.
            assert_eq!(found.span, 8..12);
            continue;
        }
        assert_eq!(found, Fault { span, message: message.to_owned() }, "{text}");
    }
}

#[test]
fn nesting_has_a_bound() {
    let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    assert!(parse(&nested(60)).is_ok());
    let message = "the condition is nested more than 64 levels deep";
    for text in [nested(100_000), "1 + ".repeat(100_000) + "1", "F(".repeat(100_000)] {
        assert_eq!(fault(&text).message, message);
    }
}

#[test]
fn a_comparison_can_be_flipped() {
    assert_eq!(Operator::Less.flipped(), Operator::Greater);
    assert_eq!(rule("span", "500 <= attributes[\"n\"]"), rule("span", "attributes[\"n\"] >= 500"));
}

#[test]
fn conditions_on_spans_become_rules() {
    for (text, wanted) in [
        (
            r#"attributes["a"] == "x""#,
            r#"type = "string_attribute" key = "a" values = ["x"] scope = "span""#,
        ),
        (
            r#"resource.attributes["service.name"] == "shop""#,
            r#"type = "string_attribute" key = "service.name" values = ["shop"] scope =
              "resource""#,
        ),
        (
            r#"attributes["a"] != "x""#,
            r#"type = "same_span" policies = [ { type = "not", policy = { type =
              "string_attribute", key = "a", values = ["x"], scope = "span" } } ]"#,
        ),
        (r#"attributes["a"] != nil"#, r#"type = "attribute_exists" key = "a" scope = "span""#),
        (
            r#"attributes["a"] == nil"#,
            r#"type = "same_span" policies = [ { type = "not", policy = { type =
              "attribute_exists", key = "a", scope = "span" } } ]"#,
        ),
        (
            r#"attributes["n"] > 5"#,
            r#"type = "numeric_attribute" key = "n" above = 5 scope = "span""#,
        ),
        (
            r#"attributes["n"] == 0.5"#,
            r#"type = "numeric_attribute" key = "n" min_value = 0.5 max_value = 0.5 scope =
              "span""#,
        ),
        (
            r#"attributes["b"] == true"#,
            r#"type = "boolean_attribute" key = "b" value = true scope = "span""#,
        ),
        (r#"span.name == "GET /""#, r#"type = "span_name" values = ["GET /"]"#),
        (
            r#"IsMatch(name, "^\\d+$$")"#,
            r#"type = "span_name" values = ["^[0-9]+$"] enabled_regex_matching = true"#,
        ),
        ("IsRootSpan()", r#"type = "root_span""#),
        ("IsRootSpan() != false", r#"type = "root_span""#),
        (
            "IsRootSpan() == false",
            r#"type = "same_span" policies = [ { type = "not", policy = { type = "root_span" } }
              ]"#,
        ),
        ("status.code == STATUS_CODE_ERROR", r#"type = "status_code" status_codes = ["ERROR"]"#),
        ("span.status.code == 2", r#"type = "status_code" status_codes = ["ERROR"]"#),
        ("kind == SPAN_KIND_SERVER", r#"type = "span_kind" kinds = ["SERVER"]"#),
        (r#"kind.string == "Client""#, r#"type = "span_kind" kinds = ["CLIENT"]"#),
        (
            "(end_time_unix_nano - start_time_unix_nano) > 1000000000",
            r#"type = "span_duration" threshold_ms = 1000"#,
        ),
        (
            r#"end_time - start_time > Duration("1m30s")"#,
            r#"type = "span_duration" threshold_ms = 90000"#,
        ),
        ("true", r#"type = "always_sample""#),
    ] {
        assert_eq!(rule("span", text), one_line(wanted), "{text}");
    }
}

#[test]
fn a_side_may_be_exchanged_computed_or_hold_braces() {
    for (text, wanted) in [
        (
            r#"end_time - start_time > Duration("1.001s")"#,
            r#"type = "span_duration" threshold_ms = 1001"#,
        ),
        (
            r#"Duration("5s") < end_time - start_time"#,
            r#"type = "span_duration" threshold_ms = 5000"#,
        ),
        (
            "end_time_unix_nano - start_time_unix_nano > (2 + 3) * 100 * 1000000",
            r#"type = "span_duration" threshold_ms = 500"#,
        ),
        (
            r#"IsMatch(name, "^/users/{id}$")"#,
            r#"type = "span_name" values = ['^/users/\{id}$'] enabled_regex_matching = true"#,
        ),
    ] {
        assert_eq!(rule("span", text), one_line(wanted), "{text}");
    }
}

#[test]
fn a_name_may_begin_or_end_with_a_string() {
    for (text, wanted) in [
        (
            r#"HasPrefix(name, "GET /a.b")"#,
            r#"type = "span_name" values = ['^GET /a\.b'] enabled_regex_matching = true"#,
        ),
        (
            r#"not HasSuffix(span.name, "$$1")"#,
            r#"type = "same_span" policies = [ { type = "not", policy = { type = "span_name",
              values = ['\$1$'], enabled_regex_matching = true } } ]"#,
        ),
        (
            r#"HasPrefix(name, "a") == true"#,
            r#"type = "span_name" values = ["^a"] enabled_regex_matching = true"#,
        ),
    ] {
        assert_eq!(rule("span", text), one_line(wanted), "{text}");
    }
}

#[test]
fn conditions_joined_by_and_are_about_one_span() {
    assert_eq!(
        rule("span", r#"attributes["n"] >= 500 and attributes["n"] <= 599"#),
        one_line(
            r#"type = "same_span" policies = [ { type = "numeric_attribute", key = "n", min_value =
          500, scope = "span" } { type = "numeric_attribute", key = "n", max_value = 599, scope =
          "span" } ]"#
        )
    );
    // Some span meets `a or b` if some span meets `a` or some span meets `b`.
    assert_eq!(
        rule("span", r#"IsRootSpan() or name == "x" and IsRootSpan()"#),
        one_line(
            r#"type = "or" policies = [ { type = "root_span" } { type = "same_span", policies = [{
          type = "span_name", values = ["x"] }, { type = "root_span" }] } ]"#
        )
    );
}

#[test]
fn conditions_on_events_become_rules() {
    for (text, wanted) in [
        (r#"name == "exception""#, r#"type = "span_event" names = ["exception"]"#),
        (
            r#"spanevent.attributes["k"] == "v" and (name == "e")"#,
            r#"type = "span_event" names = ["e"] key = "k" values = ["v"]"#,
        ),
        (r#"attributes["k"] != nil"#, r#"type = "span_event" key = "k""#),
        (
            r#"HasSuffix(name, "_error")"#,
            r#"type = "span_event" names = ["_error$"] enabled_regex_matching = true"#,
        ),
        (
            r#"name == "a.b" and IsMatch(attributes["m"], "^time")"#,
            r#"type = "span_event" names = ['^(?:a\.b)$'] key = "m" values = ["^time"]
              enabled_regex_matching = true"#,
        ),
    ] {
        assert_eq!(rule("spanevent", text), one_line(wanted), "{text}");
    }
}

/// The list, the condition, the place in it, and the reason.
const REFUSED: [(&str, &str, i32, &str); 27] = [
    (
        "span",
        r#"Double(attributes["c"]) > 0.1"#,
        0,
        "the function `Double` has no counterpart in Tailwater",
    ),
    (
        "span",
        r#"name == "a" and Len(name) > 3"#,
        16,
        "the function `Len` has no counterpart in Tailwater",
    ),
    (
        "span",
        r#"status.code == "STATUS_CODE_ERROR""#,
        15,
        "the field is a number and never equals a string",
    ),
    ("span", r#"kind == "SPAN_KIND_SERVER""#, 8, "the field is a number and never equals a string"),
    ("span", "kind.string == SPAN_KIND_SERVER", 15, "the field cannot have this value"),
    (
        "span",
        "status.code > STATUS_CODE_OK",
        14,
        "these values can only be compared with `==` and `!=`",
    ),
    (
        "span",
        r#"attributes["a"] > "x""#,
        0,
        "strings and booleans can only be compared with `==` and `!=`",
    ),
    ("span", r#"attributes["a"] >= nil"#, 0, "`nil` can only be compared with `==` and `!=`"),
    ("span", r#"attributes["a"]["b"] == "x""#, 0, "a value inside an attribute cannot be compared"),
    (
        "span",
        r#"attributes["a"] == attributes["b"]"#,
        19,
        "an attribute can only be compared with a literal",
    ),
    ("span", r#"trace_state["a"] == "b""#, 0, "no condition of Tailwater reads `trace_state`"),
    (
        "span",
        r#"span.resource.attributes["a"] == "b""#,
        0,
        "no condition of Tailwater reads `span.resource.attributes`",
    ),
    ("span", r#"attributes[""] == "b""#, 0, "the name of the attribute is missing"),
    (
        "spanevent",
        r#"attributes[""] == "b""#,
        0,
        "no condition of Tailwater on events reads `attributes`",
    ),
    ("span", r#"spanevent.name == "b""#, 0, "no condition of Tailwater reads `spanevent.name`"),
    (
        "span",
        r#"attributes["a"]"#,
        0,
        "a condition must be a comparison, `IsMatch` or `IsRootSpan`",
    ),
    ("span", r#"IsMatch(name, "a(")"#, 14, "the regular expression cannot be used: unclosed group"),
    (
        "span",
        "end_time_unix_nano - start_time_unix_nano > 1500000",
        44,
        "`span_duration` compares with whole milliseconds, and excludes the limit itself",
    ),
    (
        "spanevent",
        r#"name != "x""#,
        0,
        "a test for an event without this value cannot be expressed",
    ),
    // With a missing attribute `HasPrefix` is an error, and so is `not HasPrefix`.
    (
        "span",
        r#"not HasPrefix(attributes["a"], "x")"#,
        14,
        "`HasPrefix` can only look at names; use `IsMatch`",
    ),
    ("span", "HasSuffix(name, name)", 16, "`HasSuffix` takes a field and a string"),
    (
        "spanevent",
        r#"HasPrefix(attributes["a"], "x")"#,
        10,
        "`HasPrefix` can only look at names; use `IsMatch`",
    ),
    (
        "spanevent",
        r#"name == "x" and name == "y""#,
        16,
        "`span_event` has one name and one attribute",
    ),
    (
        "spanevent",
        r#"attributes["n"] == 5"#,
        0,
        "`span_event` compares names and attributes only with strings",
    ),
    (
        "spanevent",
        r#"span.name == "x""#,
        0,
        "no condition of Tailwater on events reads `span.name`",
    ),
    ("span", r#"attributes["a"] == "x"#, 19, "the string has no closing quote"),
    (
        "span",
        r#"attributes["a"] == "${env:X}""#,
        -1,
        "the condition contains a variable, whose value is not known here",
    ),
];

/// Conditions begin in column 12.
#[test]
fn refusals_are_reported_at_their_place() {
    for (list, text, column, reason) in REFUSED {
        let converted = condition(list, text);
        let place = format!("8:{}: error: {reason}", 12 + column);
        assert_eq!(converted.errors(), [place], "{text}");
        assert!(converted.policies().starts_with("# Not converted: the policy `p`."), "{text}");
    }
}

#[test]
fn differences_are_noted_at_their_place() {
    let converted = condition("span", r#"attributes["a"] != "x""#);
    assert!(converted.says("8:11: note: `!=` is true for every span that lacks the attribute"));
    let converted = condition("span", r#"IsMatch(attributes["a"], "x")"#);
    assert!(converted.says("8:11: note: in the Collector `IsMatch` also tests the text of values"));
}

#[test]
fn a_list_of_conditions_is_an_or() {
    let converted = convert_policy(
        "- name: p\n  type: ottl_condition\n  ottl_condition:\n    error_mode: ignore\n    \
        span:\n    \
         - 'name == \"a\"'\n    - 'IsRootSpan()'\n    spanevent:\n    - 'name == \"e\"'",
    );
    assert_eq!(converted.errors(), Vec::<&str>::new());
    assert!(converted.policies().contains(
        "type = \"or\"\npolicies = [\n  { type = \"span_name\", values = [\"a\"] },\n  \
         { type = \"root_span\" },\n  { type = \"span_event\", names = [\"e\"] },\n]\n"
    ));
    let nested = format!("{}IsRootSpan(){}", "not (not (".repeat(25), "))".repeat(25));
    assert_eq!(rule("span", &nested), r#"type = "root_span""#);
    let deep = format!("{}IsRootSpan(){}", "not (IsRootSpan() and ".repeat(40), ")".repeat(40));
    assert_eq!(condition("span", &deep).errors(), ["4:7: error: the policy is nested too deeply"]);
}

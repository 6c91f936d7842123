//! Warnings about policies that are valid, but probably do not say what was meant.

use super::problems;

/// A condition on `http.route`.
const CHECKOUT: &str = "type = 'string_attribute', key = 'http.route', values = ['/checkout']";
const SHOP: &str =
    "type = 'string_attribute', key = 'http.route', values = ['/payment', '/checkout']";
const ERRORS: &str = "type = 'status_code', status_codes = ['ERROR']";
const SLOW: &str = "type = 'latency', threshold_ms = 500";
const SLOWER: &str = "type = 'latency', threshold_ms = 800";
const BASELINE: &str = "type = 'probabilistic', sampling_percentage = 10";
const ALL: &str = "type = 'always_sample'";

/// One inline table per line, with these names.
fn policies(rules: &[(&str, &str)]) -> String {
    let line = |(name, rule): &(&str, &str)| format!("  {{ name = '{name}', {rule} }},\n");
    format!("policy = [\n{}]\n", rules.iter().map(line).collect::<String>())
}

/// The warnings for two policies named `a` and `b`, with these rules.
fn two(a: &str, b: &str) -> Vec<String> {
    problems(&policies(&[("a", a), ("b", b)]))
}

/// The warning in this line that `by` makes `covered` redundant.
fn covered(line: usize, covered: &str, by: &str) -> String {
    format!(
        "{line}:12: warning: the policy `{covered}` never decides: `{by}` matches whenever it \
         does, and keeps as much or more | remove it, or narrow `{by}`"
    )
}

fn part(rule: &str) -> String {
    format!("{{ {rule} }}")
}

fn of(kind: &str, parts: &[&str]) -> String {
    let parts: Vec<_> = parts.iter().map(|rule| part(rule)).collect();
    format!("type = '{kind}', policies = [{}]", parts.join(", "))
}

fn not(rule: &str) -> String {
    format!("type = 'not', policy = {{ {rule} }}")
}

fn exists(key: &str, scope: &str) -> String {
    format!("type = 'attribute_exists', key = '{key}', scope = '{scope}'")
}

fn at(percentage: f64, rule: &str) -> String {
    format!("{rule}, sampling_percentage = {percentage}")
}

#[test]
fn the_narrower_of_two_never_decides() {
    let number = |bounds: &str| format!("type = 'numeric_attribute', key = 'n', {bounds}");
    for (wide, narrow) in [
        (ALL, ERRORS),
        (ERRORS, ERRORS),
        (ERRORS, &at(50.0, ERRORS)),
        ("type = 'status_code', status_codes = ['OK', 'ERROR']", ERRORS),
        (SLOW, SLOWER),
        (SLOW, "type = 'latency', threshold_ms = 500, upper_threshold_ms = 900"),
        (SHOP, CHECKOUT),
        (&not(CHECKOUT), &not(SHOP)),
        (&number("min_value = 5"), &number("min_value = 5.5, max_value = 7")),
        ("type = 'span_count', min_spans = 3", "type = 'span_count', min_spans = 4"),
        ("type = 'span_count', min_spans = 1", BASELINE),
        (BASELINE, &at(9.0, ERRORS)),
        (BASELINE, &of("and", &[ERRORS, "type = 'probabilistic', sampling_percentage = 1"])),
        (ERRORS, &of("and", &[SLOW, ERRORS])),
        (ERRORS, &of("same_span", &[CHECKOUT, ERRORS])),
        (&of("same_span", &[SHOP, ERRORS]), &of("same_span", &[ERRORS, CHECKOUT])),
        (&of("or", &[SLOW, ERRORS]), SLOWER),
        (&of("or", &[SLOW, ERRORS]), &of("or", &[ERRORS, SLOWER])),
        (&of("and", &[SHOP, SLOW]), &of("and", &[SLOWER, ERRORS, CHECKOUT])),
        (&at(20.0, &of("or", &[ERRORS, SLOW])), &at(20.0, ERRORS)),
        (ERRORS, &format!("{ERRORS}, limit = {{ spans_per_second = 5 }}")),
        (&of("drop", &[SHOP]), &of("drop", &[CHECKOUT, ERRORS])),
    ] {
        assert_eq!(two(wide, narrow), [covered(3, "b", "a")], "{wide}\n{narrow}");
    }
}

#[test]
fn the_narrower_of_two_conditions_on_single_spans_never_decides() {
    let number = |bounds: &str| format!("type = 'numeric_attribute', key = 'k', {bounds}");
    let scoped = |scope: &str| format!("{CHECKOUT}, scope = '{scope}'");
    let lasting = |bounds: &str| format!("type = 'span_duration', {bounds}");
    let kinds = |kinds: &str| format!("type = 'span_kind', kinds = [{kinds}]");
    let event = |rest: &str| format!("type = 'span_event', {rest}");
    for (wide, narrow) in [
        (number("min_value = 5"), number("above = 5")),
        (number("above = 4"), number("min_value = 4.5, below = 9")),
        (CHECKOUT.to_owned(), scoped("resource")),
        (SHOP.to_owned(), scoped("span")),
        (exists("k", "any"), number("above = 5")),
        (exists("k", "any"), exists("k", "span")),
        (exists("http.route", "any"), scoped("resource")),
        (exists("http.route", "span"), scoped("span")),
        (exists("b", "any"), "type = 'boolean_attribute', key = 'b', value = true".to_owned()),
        (
            "type = 'boolean_attribute', key = 'b', value = true".to_owned(),
            "type = 'boolean_attribute', key = 'b', value = true, scope = 'span'".to_owned(),
        ),
        (exists("service.name", "resource"), "type = 'service_name', values = ['a']".to_owned()),
        (
            "type = 'string_attribute', key = 'service.name', values = ['a']".to_owned(),
            "type = 'service_name', values = ['a']".to_owned(),
        ),
        (kinds("'SERVER', 'CLIENT'"), kinds("'CLIENT'")),
        (lasting("threshold_ms = 5"), lasting("threshold_ms = 5, upper_threshold_ms = 9")),
        (SLOW.to_owned(), lasting("threshold_ms = 500")),
        (SLOW.to_owned(), of("same_span", &[ERRORS, &lasting("threshold_ms = 501")])),
        (event("names = ['a', 'b']"), event("names = ['a']")),
        (event("names = ['a']"), event("names = ['a'], key = 'k'")),
        (event("key = 'k'"), event("names = ['a'], key = 'k', values = ['x']")),
        (event("names = ['a']"), of("same_span", &[ERRORS, &event("names = ['a'], key = 'k'")])),
        ("type = 'root_span'".to_owned(), of("same_span", &["type = 'root_span'", ERRORS])),
        (not(&event("names = ['a']")), not(&event("names = ['b', 'a']"))),
    ] {
        assert_eq!(two(&wide, &narrow), [covered(3, "b", "a")], "{wide}\n{narrow}");
    }
    for (a, b) in [
        (number("above = 5"), at(50.0, &number("min_value = 5"))),
        (scoped("span"), scoped("resource")),
        (scoped("span"), at(50.0, CHECKOUT)),
        (exists("k", "span"), number("above = 5, scope = 'any'")),
        (exists("other", "any"), number("above = 5")),
        (lasting("threshold_ms = 500"), at(50.0, SLOW)),
        (SLOW.to_owned(), lasting("threshold_ms = 499")),
        (exists("k", "any"), event("key = 'k'")),
        (event("names = ['a']"), event("key = 'k'")),
        ("type = 'span_name', values = ['a']".to_owned(), event("names = ['a']")),
        (event("names = ['a'], key = 'k'"), at(50.0, &event("names = ['a']"))),
    ] {
        assert_eq!(two(&a, &b), [""; 0], "{a}\n{b}");
    }
}

#[test]
fn one_that_stands_first_is_covered_only_by_more() {
    for (first, second) in
        [(BASELINE, ALL), (&at(10.0, ERRORS), ERRORS), (&at(50.0, SLOWER), &at(60.0, SLOW))]
    {
        assert_eq!(two(first, second), [covered(2, "a", "b")], "{first}\n{second}");
    }
    // Both propose the same, and the first is credited; so both decide.
    for (first, second) in [(SLOWER, SLOW), (ERRORS, ALL), (CHECKOUT, SHOP)] {
        assert_eq!(two(first, second), [""; 0], "{first}\n{second}");
    }
}

#[test]
fn policies_that_both_decide() {
    for (a, b) in [
        (ERRORS, BASELINE),
        (BASELINE, ERRORS),
        (&at(50.0, SLOW), SLOWER),
        (SLOW, ERRORS),
        (SHOP, "type = 'string_attribute', key = 'url.path', values = ['/checkout']"),
        (SHOP, "type = 'span_name', values = ['/checkout']"),
        (&not(SHOP), &not(CHECKOUT)),
        (&of("same_span", &[SHOP, ERRORS]), &of("and", &[CHECKOUT, ERRORS])),
        (&not(ERRORS), &of("same_span", &[SHOP, &not(ERRORS)])),
        (&at(10.0, SHOP), &of("or", &[&at(5.0, CHECKOUT), &at(20.0, ERRORS)])),
        // The second policy keeps traces that the limit of the first leaves.
        (&format!("{SHOP}, limit = {{ spans_per_second = 5 }}"), CHECKOUT),
        // A veto does not make a policy that keeps redundant.
        (&of("drop", &[SHOP]), CHECKOUT),
        (ALL, &of("drop", &[CHECKOUT])),
        (&of("drop", &[CHECKOUT]), &of("drop", &[SHOP])),
    ] {
        assert_eq!(two(a, b), [""; 0], "{a}\n{b}");
    }
}

#[test]
fn policies_that_never_match() {
    let never = "2:12: warning: the policy `a` can never match \
                 | its conditions contradict each other";
    for rule in [
        of("and", &[ERRORS, &not(ERRORS)]),
        of("and", &[SLOWER, BASELINE, &not(SLOW)]),
        of("and", &[SLOWER, "type = 'latency', threshold_ms = 1, upper_threshold_ms = 700"]),
        of("and", &[&of("or", &[SLOW, ERRORS]), &not(&of("or", &[ERRORS, SLOW]))]),
        of("and", &[&of("same_span", &[CHECKOUT, ERRORS]), &not(SHOP)]),
        of("same_span", &[CHECKOUT, &not(SHOP)]),
        of("and", &[CHECKOUT, &not(&exists("http.route", "any"))]),
        of("and", &["type = 'span_duration', threshold_ms = 800", &not(SLOW)]),
        of("drop", &[CHECKOUT, &not(CHECKOUT)]),
        of("or", &[&not(ALL), &of("and", &[CHECKOUT, &format!("{SHOP}, invert_match = true")])]),
        not("type = 'span_count', min_spans = 1"),
    ] {
        assert_eq!(problems(&policies(&[("a", &rule)])), [never], "{rule}");
    }
    for rule in [
        of("and", &[ERRORS, &not(SLOW)]),
        // One span may meet the condition and another one may not.
        of("and", &[ERRORS, &of("same_span", &[CHECKOUT, &not(ERRORS)])]),
        of("and", &[SHOP, &not(CHECKOUT)]),
        of("and", &["type = 'status_code', status_codes = ['OK']", ERRORS]),
    ] {
        assert_eq!(problems(&policies(&[("a", &rule)])), [""; 0], "{rule}");
    }
}

#[test]
fn a_drop_of_everything() {
    let warning = "2:12: warning: the policy `a` drops every trace \
                   | give it a condition that not every trace meets";
    let drop = of("drop", &[ALL, "type = 'span_count', min_spans = 0"]);
    assert_eq!(problems(&policies(&[("a", &drop), ("b", BASELINE)])), [warning]);
}

#[test]
fn a_percentage_of_0_is_told_once() {
    let never = at(0.0, ERRORS);
    let told = problems(&policies(&[("a", ALL), ("b", &never)]));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("with 0 % the policy never matches"), "{told:?}");
}

#[test]
fn the_one_that_covers_may_stand_in_another_file() {
    let file = |name: &str, text: &str| {
        let path = std::env::temp_dir().join(format!("tailwater-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("written");
        path
    };
    let first = file("1.toml", &policies(&[("wide", SHOP)]));
    let second = file("2.toml", &policies(&[("errors", ERRORS), ("narrow", CHECKOUT)]));
    let both = format!("policy_files = ['{}', '{}']", second.display(), first.display());
    let told = problems(&format!("[sampling]\n{both}\n"));
    assert_eq!(told, [covered(3, "narrow", "wide")]);
    for path in [first, second] {
        std::fs::remove_file(path).expect("removed");
    }
}

/// Combinations with more possible matches than there is time to try.
#[test]
fn hostile_policies_take_no_longer_than_others() {
    let nested = |ends: &str| {
        let levels = (0..30).fold(part(ends), |inner, level| {
            let kind = if level % 2 == 0 { "and" } else { "or" };
            let other = format!("type = 'span_count', min_spans = {}", level + 2);
            part(&format!("type = '{kind}', policies = [{inner}, {}]", part(&other)))
        });
        levels[1..levels.len() - 1].to_owned()
    };
    let (a, b) = (nested(ERRORS), nested(SLOW));
    // There is no warning, and the review ends.
    assert_eq!(two(&a, &b), [""; 0]);
}

//! The tree of a YAML file.

use crate::commands::convert::yaml::{Duplicates, Fault, parse};

#[test]
fn nodes_know_where_they_stand() {
    let text = "a: é\nb:\n- 'x'\n- \"y\"\n- |\n  z\n";
    let documents = parse(text).expect("parses");
    let list = documents[0].get("b").expect("a list");
    let list = list.list().expect("a list");
    let spans: Vec<_> = list.iter().map(|node| &text[node.span.clone()]).collect();
    assert_eq!(spans[..2], ["'x'", "\"y\""]);
    assert_eq!(list[2].text(), Some("z\n"));
    let a = documents[0].get("a").expect("a value");
    assert_eq!(&text[a.span.clone()], "é");
}

#[test]
fn faults_have_their_place() {
    let fault = |text: &str| parse(text).expect_err(text).at;
    assert_eq!(fault("a: [1\nb: 2"), 7);
    assert_eq!(fault("a:\n\tb: 1"), 4);
    assert_eq!(fault("a: *x"), 3);
}

#[test]
fn its_own_keys_come_before_merged_ones() {
    let text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\n";
    let documents = parse(text).expect("parses");
    let c = documents[0].get("c").expect("a mapping");
    let entries = c.entries().into_iter();
    let found = entries.map(|(key, value)| {
        format!("{}{}", key.text().unwrap_or_default(), value.text().unwrap_or_default())
    });
    assert_eq!(found.collect::<Vec<_>>(), ["x3", "y1", "z2"]);
}

#[test]
fn a_key_that_stands_twice_is_found_below() {
    let key = |text: &str| {
        let node = parse(text).expect("parses").remove(0).duplicate(&mut Duplicates::new());
        node.map(|key| key.span.start)
    };
    assert_eq!(key("a: {b: [{c: 1, d: 2, c: 3}]}"), Some(21));
    assert_eq!(key("a: {b: 1}\nc: {b: 1}\nd: {<<: {b: 1}, b: 2}"), None);
}

#[test]
fn depth_is_bounded_with_aliases() {
    let message = "values are nested more than 128 levels deep";
    let deep = "[".repeat(200) + &"]".repeat(200);
    let Fault { at, message: said } = parse(&deep).expect_err("too deep");
    assert_eq!((at, said.as_str()), (128, message));
    // Each anchor is one level above the last, so dropping the tree would recurse as deep.
    let chain: String = (1..60_000).map(|n| format!("- &a{n} [*a{}]\n", n - 1)).collect();
    let Fault { message: said, .. } = parse(&format!("- &a0 [x]\n{chain}")).expect_err("too deep");
    assert_eq!(said, message);
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse("a: &a [*a]").is_err(), "an anchor holds itself");
}

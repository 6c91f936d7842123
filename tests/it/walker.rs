//! Compares the parsers with prost, on requests that are valid in unusual ways and on broken ones.

pub(crate) mod mutate;

use proptest::prelude::*;
use prost::Message as _;
use tailwater::otlp::{Contexts, walk::Walked};

use crate::{answers_of_backends, builders, config_check, differential, given_files};

proptest! {
    /// Scenario: requests whose fields are reordered, repeated, split, given overlong lengths, and
    /// mixed with unknown fields and groups at every level.
    /// Guarantees: the walker reads the same from each as prost, and accepts whatever prost
    /// accepts.
    #[test]
    fn the_walker_reads_what_prost_reads(seed in any::<u64>()) {
        differential::walk(&mutate::request(seed));
    }

    /// Scenario: such requests with bytes flipped, removed and inserted, or cut off.
    /// Guarantees: the same, and nothing panics.
    #[test]
    fn the_walker_agrees_with_prost_on_damaged_requests(seed in any::<u64>()) {
        differential::walk(&mutate::damaged(seed));
    }

    /// Scenario: bytes that were never a request.
    /// Guarantees: no parser panics, and none accepts what prost would not.
    #[test]
    fn no_parser_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        differential::walk(&bytes);
        differential::clean(&bytes);
        differential::tracestate(&bytes);
        answers_of_backends::split(&bytes);
        answers_of_backends::status(&bytes);
        answers_of_backends::answer(&bytes);
        differential::json(&bytes);
    }

    /// Scenario: spans of those requests, whole and damaged, are cleaned.
    /// Guarantees: the content that prost reads stays unchanged, except for bad links; cleaned
    /// spans are always readable.
    #[test]
    fn cleaned_spans_are_what_prost_reads(seed in any::<u64>(), damage in any::<bool>()) {
        differential::clean(&mutate::span(seed, damage));
    }

    /// Scenario: those requests, whole and damaged, cut in two again and again.
    /// Guarantees: the parts have the spans of the whole, in their order and contexts.
    #[test]
    fn halves_are_what_prost_reads(seed in any::<u64>(), damage in any::<bool>()) {
        let request = if damage { mutate::damaged(seed) } else { mutate::request(seed) };
        answers_of_backends::split(&request);
    }

    /// Scenario: lists with members of other vendors, and valid and invalid `ot` members, are
    /// stamped.
    /// Guarantees: the stamp is the one that a plain reading of the specifications gives.
    #[test]
    fn stamps_are_those_of_a_plain_reading(
        seed in any::<[u8; 16]>(),
        members in prop::collection::vec(mutate::member(), 0..5),
        separator in prop::sample::select(vec![",", " ,", ",\t", ",,"]),
    ) {
        let list = members.join(separator);
        differential::tracestate(&[&seed[..], list.as_bytes()].concat());
    }
}

/// Scenario: three hundred fixed requests of the generator.
/// Guarantees: the tests above use requests that prost mostly accepts, with thousands of spans.
#[test]
fn generated_requests_are_mostly_valid() {
    let requests: Vec<_> = (0..300).map(mutate::request).collect();
    let accepted = requests.iter().filter(|request| differential::walk(request)).count();
    assert!(accepted > 250, "{accepted} of 300");
    let damaged =
        (0..300).map(mutate::damaged).filter(|request| differential::walk(request)).count();
    assert!((10..290).contains(&damaged), "{damaged} of 300");
}

/// Scenario: the corpus of each fuzz target.
/// Guarantees: every input that was once of interest still passes.
#[test]
fn the_fuzz_corpus_passes() {
    let folder = std::env::temp_dir().join(format!("tailwater-corpus-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("created");
    let of_backends = ["split", "status", "answer", "http_answer"];
    let of_files = ["config", "convert", "trace_files"];
    let of_senders = ["walk", "tracestate", "clean", "json"];
    for target in of_senders.into_iter().chain(of_backends).chain(of_files) {
        let path = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = std::fs::read_dir(&path).expect("a corpus").collect();
        assert!(!files.is_empty(), "{path} has inputs");
        for file in files {
            let bytes = std::fs::read(file.expect("an entry").path()).expect("a file");
            match target {
                "walk" => drop(differential::walk(&bytes)),
                "tracestate" => differential::tracestate(&bytes),
                "clean" => differential::clean(&bytes),
                "split" => answers_of_backends::split(&bytes),
                "status" => answers_of_backends::status(&bytes),
                "answer" => answers_of_backends::answer(&bytes),
                "http_answer" => answers_of_backends::http_answer(&bytes),
                "json" => drop(differential::json(&bytes)),
                "convert" => drop(given_files::convert(&bytes, &folder)),
                "trace_files" => {
                    for request in given_files::trace_file(&bytes) {
                        differential::walk(&request);
                    }
                }
                _ => drop(config_check::config(&bytes, &folder)),
            }
        }
    }
    std::fs::remove_dir_all(folder).expect("removed");
}

/// Scenario: an attribute whose value is set to a string and then, in the same message, to a
/// reference to a table of strings, which only profiles have.
/// Guarantees: the last member of a oneof wins, so the value is not a string.
#[test]
fn a_string_that_is_replaced_by_a_reference_is_no_string() {
    let mut value = vec![0x0a, 4];
    value.extend(b"shop");
    value.extend([0x40, 1]);
    let mut pair = vec![0x0a, 1, b'k', 0x12, value.len() as u8];
    pair.extend(&value);
    let mut span = builders::root(0, 0).encode_to_vec();
    span.extend([0x4a, pair.len() as u8]);
    span.extend(&pair);
    let of_scope = [&[0x12, span.len() as u8][..], &span].concat();
    let of_resource = [&[0x12, of_scope.len() as u8][..], &of_scope].concat();
    let request = [&[0x0a, of_resource.len() as u8][..], &of_resource].concat();
    assert!(differential::walk(&request));
}

/// Scenario: lists with an unreadable element: as the value of an attribute, within another list,
/// of an event, and as a value that a later one replaces.
/// Guarantees: a list that counts makes the request invalid; a replaced one is not read.
#[test]
fn a_list_must_be_readable_where_it_counts() {
    let field = |number: u8, content: &[u8]| {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    };
    let accepts = |field_of_span: Vec<u8>| {
        let span = [builders::root(0, 0).encode_to_vec(), field_of_span].concat();
        let request = field(1, &field(2, &field(2, &span)));
        let contexts = Contexts::new(tailwater::budget::Budget::new(1 << 20));
        let mut walked = Walked::default();
        differential::walk(&request);
        tailwater::otlp::walk::walk(&request, &contexts, &differential::Everything, &mut walked)
            .is_ok()
    };
    let attribute = |value: &[u8]| field(9, &[field(1, b"k"), field(2, value)].concat());
    // The element is an integer with the wire type of a string.
    let bad = field(5, &field(1, &field(3, b"x")));
    let good = field(5, &field(1, &field(1, b"x")));
    assert!(accepts(attribute(&good)));
    assert!(!accepts(attribute(&bad)));
    assert!(!accepts(attribute(&field(5, &field(1, &bad)))));
    assert!(!accepts(attribute(&[&good[..], &bad].concat())));
    let event = field(3, &[field(1, b"k"), field(2, &bad)].concat());
    assert!(!accepts(field(11, &event)));
    assert!(accepts(attribute(&[bad, field(1, b"x")].concat())));
}

/// Scenario: a request that only has a thousand scopes without spans.
/// Guarantees: nothing is stored for a scope without spans.
#[test]
fn scopes_without_spans_cost_nothing() {
    let contexts = Contexts::new(tailwater::budget::Budget::new(1 << 20));
    let mut walked = Walked::default();
    let request = [0x0a, 2, 0x12, 0].repeat(1_000);
    assert_eq!(tailwater::otlp::walk::walk(&request, &contexts, &(), &mut walked), Ok(()));
    assert!(walked.contexts.is_empty() && contexts.is_empty());
}

/// Scenario: the former field for scopes before the resource, without scopes in today's field,
/// beside some without spans, and beside some with spans.
/// Guarantees: its spans are read in the resource and the scope that they would have today; if
/// today's field has spans, only those count; the field is not part of the resource.
#[test]
fn former_scopes_are_scopes_where_there_are_no_others() {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
    let today = |trace| builders::resource_spans("shop", vec![builders::root(trace, 0)]);
    let request = |beside: Vec<ScopeSpans>| {
        let mut whole = today(0);
        let of_scope = std::mem::replace(&mut whole.scope_spans, beside).remove(0).encode_to_vec();
        let mut of_resource = Vec::new();
        tailwater::otlp::wire::put_length_delimited(&mut of_resource, 1000, of_scope.len());
        of_resource.extend(of_scope);
        of_resource.extend(whole.encode_to_vec());
        let mut request = Vec::new();
        tailwater::otlp::wire::put_length_delimited(&mut request, 1, of_resource.len());
        [request, of_resource].concat()
    };
    let scopes = [Vec::new(), vec![ScopeSpans::default()], today(1).scope_spans];
    for (beside, trace) in scopes.into_iter().zip([0, 0, 1]) {
        let bytes = request(beside);
        assert!(differential::walk(&bytes));
        let contexts = Contexts::new(tailwater::budget::Budget::new(1 << 20));
        let mut walked = Walked::default();
        let walk = tailwater::otlp::walk::walk(&bytes, &contexts, &(), &mut walked);
        assert_eq!((walk, walked.spans.len(), walked.rejected), (Ok(()), 1, 0));
        assert_eq!(walked.spans[0].trace_id.0, builders::trace_id(trace));
        let resource = ResourceSpans { scope_spans: Vec::new(), ..today(0) }.encode_to_vec();
        assert_eq!(walked.contexts[0].resource().arrived(), resource);
        let scope = ScopeSpans { spans: Vec::new(), ..today(0).scope_spans.remove(0) };
        assert_eq!(walked.contexts[0].scope(), scope.encode_to_vec());
    }
}

/// Scenario: two scopes with the same content, and the same bytes split differently between
/// resource and scope.
/// Guarantees: contexts are shared if their content is equal, and only then.
#[test]
fn contexts_are_shared_by_content() {
    let contexts = Contexts::new(tailwater::budget::Budget::new(1 << 20));
    let twice = vec![
        builders::resource_spans("shop", vec![builders::root(0, 0)]),
        builders::resource_spans("shop", vec![builders::root(1, 1)]),
        builders::resource_spans("cart", vec![builders::root(2, 2)]),
    ];
    let mut walked = Walked::default();
    let request = builders::request(twice);
    let walk = tailwater::otlp::walk::walk(&request, &contexts, &(), &mut walked);
    assert_eq!((walk, walked.spans.len(), contexts.len()), (Ok(()), 3, 2));
}

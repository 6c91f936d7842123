use super::*;
use crate::commands::demo::{routes::Service, shop::Shop, spans::resource_spans};

/// The next trace of a kind, registered at 0.
fn expected(verifier: &Verifier, shop: &mut Shop, kind: Kind) -> Trace {
    let trace = std::iter::repeat_with(|| shop.visit(1 << 60)).find(|t| t.kind == kind);
    let trace = trace.expect("an endless iterator");
    verifier.expect(Duration::ZERO, &trace);
    trace
}

fn request<'a>(spans: impl IntoIterator<Item = &'a (Service, Span)>) -> ExportTraceServiceRequest {
    let resource_spans =
        spans.into_iter().map(|(by, span)| resource_spans(*by, vec![span.clone()])).collect();
    ExportTraceServiceRequest { resource_spans }
}

#[test]
fn whole_traces_are_fine_in_whatever_pieces_they_arrive() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let error = expected(&verifier, &mut shop, Kind::Error);
    let slow = expected(&verifier, &mut shop, Kind::Slow);
    let _dropped = expected(&verifier, &mut shop, Kind::Plain);
    let (first, second) = error.spans.split_at(2);
    verifier.receive(&request(second));
    assert_eq!(verifier.so_far().checked, 0);
    verifier.receive(&request(first.iter().chain(&slow.spans)));
    assert_eq!(verifier.so_far().checked, 2);
    let report = verifier.finish();
    assert!(report.is_fine());
    let counted = Report { checked: 2, errors: 1, slow: 1, ..Report::default() };
    assert_eq!(report, Report { example: Some(error.id), ..counted });
}

#[test]
fn a_missing_span_is_noticed() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let trace = expected(&verifier, &mut shop, Kind::Plain);
    verifier.receive(&request(&trace.spans[1..]));
    let report = verifier.finish();
    assert_eq!((report.checked, report.broken), (1, 1));
    assert_eq!(report.culprit, Some(trace.id));
    assert!(!report.is_fine());
}

#[test]
fn a_span_that_comes_twice_is_noticed() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let trace = expected(&verifier, &mut shop, Kind::Plain);
    verifier.receive(&request(trace.spans.iter().chain(&trace.spans[..1])));
    assert_eq!(verifier.finish().broken, 1);
}

#[test]
fn an_error_that_never_arrives_is_lost() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let trace = expected(&verifier, &mut shop, Kind::Error);
    let report = verifier.finish();
    assert_eq!(report, Report { lost: 1, culprit: Some(trace.id), ..Report::default() });
}

#[test]
fn nothing_is_expected_of_what_was_not_taken() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let trace = expected(&verifier, &mut shop, Kind::Error);
    verifier.excuse([trace.id]);
    verifier.receive(&request(&trace.spans[1..]));
    assert_eq!(verifier.finish(), Report { excused: 1, ..Report::default() });
}

#[test]
fn traces_are_forgotten_after_a_while_and_strangers_are_only_counted() {
    let (verifier, mut shop) = (Verifier::default(), Shop::open());
    let trace = expected(&verifier, &mut shop, Kind::Plain);
    let next = shop.visit(1 << 60);
    verifier.expect(SETTLED_AFTER, &next);
    assert_eq!(verifier.lock().open.len(), 1);
    assert_eq!(verifier.lock().by_age.len(), 1);
    verifier.receive(&request(&trace.spans[..2]));
    assert_eq!(verifier.so_far().foreign_spans, 2);
    assert!(verifier.finish().is_fine());
}

use super::*;

const PLAIN: Paint = Paint { is_on: false };

fn policy(name: &str, traces: (u64, u64), spans: (u64, u64)) -> PolicyFigures {
    PolicyFigures {
        name: name.to_owned(),
        traces_kept: traces.0,
        traces_dropped: traces.1,
        spans_kept: spans.0,
        spans_dropped: spans.1,
    }
}

fn figures() -> Figures {
    Figures {
        policies: vec![
            policy("errors", (402, 0), (3_316, 0)),
            policy("slow", (612, 0), (4_890, 0)),
            policy("baseline", (1_900, 17_120), (15_210, 136_880)),
            policy("none", (0, 0), (0, 0)),
        ],
        accepted_spans: 165_296,
        buffered_traces: 612,
        buffered_spans: 5_000,
        sent_spans: 23_400,
        failed_spans: 0,
        queued_spans: 16,
        memory_used_bytes: (12 << 20) + 1,
        memory_limit_bytes: 1 << 30,
        budget_keys: 14,
    }
}

fn report() -> Report {
    Report { checked: 2_914, errors: 402, slow: 630, ..Report::default() }
}

fn assert_narrow(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn the_live_table_is_80_columns_wide() {
    let (figures, report) = (figures(), report());
    let frame = Frame {
        elapsed: Duration::from_millis(82_900),
        figures: &figures,
        spans_per_second: 2_004,
        report: &report,
        admin: "127.0.0.1:9464",
        example: TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736"),
    };
    let text = live(&frame, PLAIN);
    assert_eq!(
        text,
        "  policy    traces kept    dropped   spans kept    dropped  of kept
  errors            402          0        3,316          0   14.2 %  █
  slow              612          0        4,890          0   20.9 %  ██
  baseline        1,900     17,120       15,210    136,880   65.0 %  ██████
  no policy           0          0            0          0    0.0 %
  -----------------------------------------------------------------
  total           2,914     17,120       23,416    136,880

  in         2,004 spans/s, 165,296 in 82 s
  waiting    612 traces, 5,000 spans
  memory     13 of 1,024 MiB
  budget     100 spans/s, shared fairly by 14 kinds of requests
  storage    85.4 % of the spans saved
  sink       2,914 kept traces checked, all whole
  try        curl 127.0.0.1:9464/-/decisions/4bf92f3577b34da6a3ce929d0e0e4736
"
    );
    assert_narrow(&text);
    assert_eq!(
        progress(&frame),
        "   82 s  2,004 spans/s, 612 traces waiting, 2,914 kept (errors 402, slow 612, \
             baseline 1,900), 17,120 dropped, 85.4 % saved\n"
    );
}

#[test]
fn before_anything_is_decided_nothing_is_divided_by_zero() {
    let figures = Figures { policies: figures().policies[3..].to_vec(), ..Default::default() };
    let figures = Figures { memory_limit_bytes: 1, ..figures };
    let text = by_policy(&figures, PLAIN);
    assert!(text.contains("\n  no policy           0          0            0          0\n"));
    assert!(summary(&figures, &Report::default(), PLAIN).contains("0.0 % of the spans saved"));
}

#[test]
fn the_summary_says_that_all_is_well() {
    let text = summary(&figures(), &report(), PLAIN);
    assert_eq!(
        text,
        "  storage    85.4 % of the spans saved: 23,416 of 165,296 stored
  sink       2,914 kept traces checked, all whole
             every error (402) and slow trace (630) arrived
  ledger     accepted = kept + dropped + buffered  OK
             165,296 = 23,416 + 136,880 + 5,000
             kept = sent + failed + queued         OK
             23,416 = 23,400 + 0 + 16
"
    );
    assert_narrow(&text);
}

#[test]
fn the_summary_says_what_is_wrong() {
    let culprit = TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736");
    let report = Report { broken: 1, lost: 2, culprit, excused: 3, foreign_spans: 4, ..report() };
    let figures = Figures { accepted_spans: 165_297, queued_spans: 0, ..figures() };
    let text = summary(&figures, &report, PLAIN);
    assert_eq!(
        text,
        "  storage    85.4 % of the spans saved: 23,416 of 165,297 stored
  sink       2,914 kept traces checked, 1 NOT WHOLE, 2 errors or slow ones LOST
             one of them: 4bf92f3577b34da6a3ce929d0e0e4736
             3 traces of the shop were refused and could not be checked
             4 spans arrived that the shop did not make
  ledger     accepted = kept + dropped + buffered  NOT OK
             165,297 = 23,416 + 136,880 + 5,000
             kept = sent + failed + queued         NOT OK
             23,416 = 23,400 + 0 + 0
"
    );
}

#[test]
fn colour_changes_no_character() {
    let painted = by_policy(&figures(), Paint { is_on: true });
    assert!(painted.contains("\x1b[32m"));
    let mut bare = String::new();
    let mut is_escape = false;
    for character in painted.chars() {
        is_escape |= character == '\x1b';
        if !is_escape {
            bare.push(character);
        }
        is_escape &= character != 'm';
    }
    assert_eq!(bare, by_policy(&figures(), PLAIN));
}

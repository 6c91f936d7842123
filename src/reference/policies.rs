//! Writes `docs/src/reference/policies.md`: every policy type with its parameters.

use std::fmt::Write as _;

use super::{configuration::kind, hold};
use crate::config::{
    keys::{Key, Need},
    types::{COMMON, LIMIT, Parts, PolicyType, Standing, TYPES, Turns},
};

const HEADER: &str = "\
# Policy reference

A `[[policy]]` table has a `name`, a `type`, and the parameters of that type. Policies are in the
main file and in the files that `policy_files` names. Their order does not matter: the most
generous policy that matches decides, and `drop` vetoes. See
[how decisions work](../how-decisions-work.md) and the [cookbook](../cookbook.md).

There can be at most 1,000 policies with 10,000 conditions, nested at most 64 levels deep. Keys and
values are compared byte by byte. A value whose type is not the one that the condition asks for does
not match. If a key occurs more than once, each occurrence counts; if a value is a list, each
element counts. Regular expressions match anywhere in a value, in linear time.
";

const LIMIT_WORDS: &str = "\
`limit = { spans_per_second = 500 }` limits the rate of the spans that a policy keeps, by raising
its sampling threshold. The bucket holds at least two ticks (200 ms) of its rate, even if
`burst_capacity` is smaller. At low rates a policy can exceed its limit once, by the burst and a few
traces; in the long run it meets the rate.
";

#[test]
fn the_page_of_the_policies_is_what_the_code_says() {
    let mut page = HEADER.to_owned();
    page.push_str("\n## Keys of every policy\n");
    table(&mut page, COMMON);
    let _ = write!(page, "\n## Limits\n\n{LIMIT_WORDS}");
    table(&mut page, LIMIT);
    page.push_str("\n## Types\n");
    for kind in TYPES {
        let _ = writeln!(page, "\n### `{}`\n\n{}", kind.name, kind.words);
        if !kind.parameters.is_empty() {
            table(&mut page, kind.parameters);
        }
        remarks(&mut page, kind);
    }
    hold("docs/src/reference/policies.md", &page);
}

fn table(page: &mut String, keys: &[Key]) {
    page.push_str("\n| key | type | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = match (key.default(), key.need) {
            (Some(default), _) => format!("`{default}`"),
            (None, Need::Required) => "required".to_owned(),
            (None, Need::With(other)) => format!("only with `{other}`"),
            (None, Need::Optional) => "unset".to_owned(),
        };
        let words = key.words.replace('|', "\\|");
        let _ = writeln!(page, "| `{}` | {} | {default} | {words} |", key.name, kind(key));
    }
}

fn remarks(page: &mut String, kind: &PolicyType) {
    let quoted = |names: &[&str]| {
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let mut lines = Vec::new();
    if !kind.any_of.is_empty() {
        lines.push(format!("At least one of {} must be given.", quoted(kind.any_of)));
    }
    for pair in kind.exclusive {
        lines.push(format!("At most one of {} may be given.", quoted(pair)));
    }
    lines.extend(match kind.place {
        Standing::OfOneSpan => None,
        Standing::OfTrace => Some("Not allowed inside `same_span`.".to_owned()),
        Standing::Top => Some("Allowed only at the top level.".to_owned()),
    });
    lines.extend(match kind.parts {
        Parts::None | Parts::Any => None,
        Parts::Certain => Some(
            "No part, at any depth, may have a `sampling_percentage` or be `probabilistic`."
                .to_owned(),
        ),
        Parts::OfOneSpan => Some(
            "Its parts are conditions that one span can meet, without `sampling_percentage`."
                .to_owned(),
        ),
    });
    lines.push(
        match kind.turns {
            Turns::Never => "Once it matches, later spans do not change that.",
            Turns::Inverted => "With `invert_match`, later spans can end the match.",
            Turns::Bounded => "With an upper bound, later spans can end the match.",
            Turns::AsParts => "Later spans can end the match if they can end that of its parts.",
            Turns::Opposite => "Later spans can end the match.",
        }
        .to_owned(),
    );
    for line in lines {
        let _ = write!(page, "\n- {line}");
    }
    page.push('\n');
}

//! `[span_metrics]`.

use super::{
    conditions::SPAN_KINDS,
    diagnostics::{Problem, quote},
    section::{Read, Section},
    values,
};
use crate::span_metrics::{
    DIMENSIONS_MAX, Dimension, OVERFLOW_LABEL, Settings, Style, label_of, series_fitting,
};

/// Reads the settings; `None` while the metrics are off, though the section is checked even then.
/// `memory` is the memory limit, if it is known.
pub(super) fn read(mut section: Section<'_, '_>, memory: Option<usize>) -> Option<Settings> {
    let is_on = section.boolean_or_default("enabled");
    let style = section.word("style", [Style::Tempo, Style::Connector]);
    let exemplars = section.boolean_or_default("exemplars");
    let settings = Settings {
        style,
        kinds: kinds(&mut section),
        dimensions: dimensions(&mut section, style),
        max_series: max_series(&mut section, memory.filter(|_| is_on), exemplars),
        stale_after: section.duration_or_default("stale_after"),
        exemplars,
    };
    section.finish();
    is_on.then_some(settings)
}

/// Warns if fewer series fit into memory. The default is reduced without a warning.
fn max_series(section: &mut Section<'_, '_>, memory: Option<usize>, exemplars: bool) -> usize {
    let read = section.integer::<usize>("max_series");
    let fitting = memory.map_or(usize::MAX, |bytes| series_fitting(bytes, exemplars));
    if let Read::Set(wanted, span) = &read
        && *wanted > fitting
    {
        let message = format!(
            "about {fitting} series will fit, not `max_series` = {wanted}: they may take a \
             sixteenth of the memory limit"
        );
        let hint = format!("set it to {fitting} or less, or raise `memory_limit_mib`");
        section.warn(span.clone(), Problem::new(message).hint(hint));
    }
    read.or(section.default_integer("max_series"))
}

/// Reads the chosen kinds as a mask.
fn kinds(section: &mut Section<'_, '_>) -> u8 {
    let default = section.default_words("kinds");
    let written = match section.texts("kinds") {
        Read::Set(written, span) => {
            if written.is_empty() {
                let problem = Problem::new("`kinds` is empty, so no span would be counted");
                section.error(span, problem.hint("`enabled = false` turns the metrics off"));
            }
            written
        }
        Read::Unset => default.iter().map(|word| ((*word).to_owned(), 0..0)).collect(),
        Read::Bad => Vec::new(),
    };
    let mut mask = 0;
    for (text, span) in written {
        match values::choice("kinds", &text, SPAN_KINDS) {
            Ok(kind) => mask |= kind.mask(),
            Err(problem) => section.error(span, problem),
        }
    }
    mask
}

fn dimensions(section: &mut Section<'_, '_>, style: Style) -> Vec<Dimension> {
    let mut dimensions: Vec<Dimension> = Vec::new();
    for (attribute, span) in section.texts("dimensions").or(Vec::new()) {
        let label = label_of(&attribute);
        match check(&attribute, &label, style, &dimensions) {
            Ok(()) => dimensions.push(Dimension { attribute, label }),
            Err(problem) => section.error(span, problem),
        }
    }
    dimensions
}

/// Checks that an attribute can become another label.
fn check(attribute: &str, label: &str, style: Style, before: &[Dimension]) -> Result<(), Problem> {
    if attribute.is_empty() {
        return Err(Problem::new("a dimension is empty").hint("name an attribute"));
    }
    if before.len() == DIMENSIONS_MAX {
        return Err(Problem::new(format!("there are more than {DIMENSIONS_MAX} dimensions")));
    }
    let quoted = quote(attribute);
    if style.labels().contains(&label) || ["le", OVERFLOW_LABEL].contains(&label) {
        let message = format!("{quoted} becomes the label `{label}`, which is taken");
        return Err(Problem::new(message).hint("leave it out, or choose another attribute"));
    }
    if label.starts_with("__") {
        let message = format!("{quoted} becomes the label `{label}`: Prometheus reserves `__`");
        return Err(Problem::new(message).hint("choose another attribute"));
    }
    if let Some(other) = before.iter().find(|other| other.label == label) {
        let message = match other.attribute == attribute {
            true => format!("the dimension {quoted} is given twice"),
            false => format!("{quoted} and `{}` become the same label, `{label}`", other.attribute),
        };
        return Err(Problem::new(message).hint("leave one of them out"));
    }
    Ok(())
}

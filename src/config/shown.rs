//! The files of a configuration for display: without secrets, and limited in size.

use super::source::Source;

/// The most text that is kept of all files together, in bytes. A single file may have 1 MiB.
const SHOWN_BYTES_MAX: usize = 256 << 10;

/// The files in force: names, and texts without secrets.
#[derive(Clone, Debug, Default)]
pub struct Shown(Vec<(String, String)>);

impl Shown {
    /// Each file's name and text, in the order in which they were read.
    pub(crate) fn files(&self) -> &[(String, String)] {
        &self.0
    }

    /// These files after a reload that could not apply all of the main file. The main file is the
    /// first one. It is shown as it was read at the start, where all but its policies is in force,
    /// and as it is now, where only its policies are.
    pub(crate) fn reloaded(self, at_start: &Shown) -> Shown {
        let mut shown = Shown::default();
        if let Some((name, text)) = at_start.0.first() {
            shown.push(
                format!("{name}, read at the start: in force except for policies"),
                text.clone(),
            );
        }
        for (index, (name, text)) in self.0.into_iter().enumerate() {
            let of_policies = ", read at the last reload: only its policies are in force";
            shown.push(if index == 0 { name + of_policies } else { name }, text);
        }
        shown
    }

    pub(super) fn add(&mut self, source: &Source) {
        let (name, text) = source.shown();
        self.push(name, text);
    }

    fn push(&mut self, name: String, text: String) {
        let used: usize = self.0.iter().map(|(name, text)| name.len() + text.len()).sum();
        if used + name.len() + text.len() <= SHOWN_BYTES_MAX {
            self.0.push((name, text));
        } else if used + name.len() + 100 <= SHOWN_BYTES_MAX {
            let text = "not shown: the files have more than 256 KiB together".to_owned();
            self.0.push((name, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        let text = "[exporter.otlp]\ntimeout = \"5s\"\nheaders = { a = \"secret\" }\n\
                    [exporter.otlp.headers]\nb = \"secret\"\n[telemetry]\nlog_level = \"info\"\n";
        let mut shown = Shown::default();
        shown.add(&Source::new(Path::new("a.toml"), text));
        let (name, shown) = &shown.files()[0];
        assert_eq!(name, "a.toml");
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("timeout = \"5s\"") && shown.contains("log_level"), "{shown}");
        assert_eq!(shown.lines().count(), text.lines().count());
    }

    #[test]
    fn a_main_file_with_changes_that_wait_is_shown_as_it_was_and_as_it_is() {
        let shown = |texts: [&str; 2]| {
            let mut shown = Shown::default();
            for (name, text) in ["main.toml", "more.toml"].iter().zip(texts) {
                shown.add(&Source::new(Path::new(name), text));
            }
            shown
        };
        let reloaded = shown(["b = 2", "d = 4"]).reloaded(&shown(["a = 1", "c = 3"]));
        let told = [
            ("main.toml, read at the start: in force except for policies", "a = 1\n"),
            ("main.toml, read at the last reload: only its policies are in force", "b = 2\n"),
            ("more.toml", "d = 4\n"),
        ];
        let told = told.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(reloaded.files(), told);
    }

    #[test]
    fn no_more_is_kept_than_somebody_reads() {
        let mut shown = Shown::default();
        let large = "#".repeat(100 << 10);
        for _ in 0..10_000 {
            shown.add(&Source::new(Path::new("large.toml"), &large));
        }
        let bytes: usize = shown.files().iter().map(|(name, text)| name.len() + text.len()).sum();
        assert!(bytes <= SHOWN_BYTES_MAX && shown.files().len() > 3, "{bytes}");
        assert!(shown.files()[2].1.starts_with("not shown"));
    }
}

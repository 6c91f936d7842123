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

    pub(super) fn add(&mut self, source: &Source) {
        let used: usize = self.0.iter().map(|(name, text)| name.len() + text.len()).sum();
        let (name, text) = source.shown();
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

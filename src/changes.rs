//! Notices when files have changed and are complete.
//!
//! Files are compared by the digests of their contents, once every [`PERIOD`], and not by times or
//! events: Kubernetes swaps symbolic links, editors rename a new file over the old one, and network
//! file systems report neither. Two equal checks are needed, because a file may be half written, or
//! only one of two files that belong together. So a change takes effect after two to three seconds.
//!
//! Used for certificates, keys and tokens (`credentials`) and for policies (`reload`), on blocking
//! threads. Only digests are kept, 32 bytes for a file.

use std::{fmt::Display, path::Path, time::Duration};

use ring::digest::{Context, SHA256};

/// The time between two checks.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// Identifies a file and its contents.
pub(crate) type Digest = [u8; 32];

/// The digest of a file, or of the reason why it cannot be read.
pub(crate) fn digest(file: &Path, contents: Result<&[u8], &dyn Display>) -> Digest {
    let name = file.as_os_str().as_encoded_bytes();
    let mut context = Context::new(&SHA256);
    // A path has no zero byte, so the next byte separates it from the contents or from the reason,
    // and tells which of the two follows.
    context.update(name);
    match contents {
        Ok(contents) => {
            context.update(&[0, 0]);
            context.update(contents);
        }
        Err(reason) => {
            context.update(&[0, 1]);
            context.update(reason.to_string().as_bytes());
        }
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Files that are read together, and whether it is time to read them again.
#[derive(Debug)]
pub(crate) struct Files {
    /// The digests when the files were last read.
    read: Vec<Digest>,
    /// The digests at the last check.
    seen: Vec<Digest>,
}

impl Files {
    /// Files that have just been read.
    pub(crate) fn new(read: Vec<Digest>) -> Self {
        Files { seen: read.clone(), read }
    }

    /// Notes the digests `now`. Returns whether the files have to be read again: they differ from
    /// the last read, and have not changed since the last check.
    pub(crate) fn look(&mut self, now: Vec<Digest>) -> bool {
        let is_at_rest = now == self.seen;
        self.seen = now;
        is_at_rest && self.seen != self.read
    }

    /// Notes that the files have been read, with their digests of the last check.
    pub(crate) fn note_read(&mut self) {
        self.read = self.seen.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(contents: &str) -> Vec<Digest> {
        vec![digest(Path::new("a.toml"), Ok(contents.as_bytes()))]
    }

    #[test]
    fn a_change_is_due_once_at_the_second_equal_look() {
        let mut files = Files::new(of("old"));
        assert!(!files.look(of("old")) && !files.look(of("old")), "nothing has changed");
        assert!(!files.look(of("ne")) && !files.look(of("new")), "still being written");
        assert!(files.look(of("new")));
        files.note_read();
        assert!(!files.look(of("new")) && !files.look(of("new")));
        assert!(!files.look(of("old")) && !files.look(of("new")), "back before it came to rest");
        assert!(!files.look(of("new")));
    }

    #[test]
    fn names_contents_and_reasons_are_told_apart() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let all = [
            digest(a, Ok(b"x")),
            digest(b, Ok(b"x")),
            digest(a, Ok(b"y")),
            digest(a, Err(&"x")),
            digest(a, Ok(b"")),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "{i}");
        }
    }
}

//! The files that a configuration was read from, and their digests, to notice changes.

use std::{collections::BTreeSet, path::Path};

use super::files;
use crate::changes::{self, Digest};

/// The most policy files that can be watched. All of them are read once a second.
pub(super) const WATCHED_FILES_MAX: usize = 1_000;

/// The most digests that are compared; further files are ignored. A load whose files will be
/// watched is refused if it has more.
const DIGESTS_MAX: usize = 1 + WATCHED_FILES_MAX;

/// The digests of the files that a load has read: the main file, then the entries of `policy_files`
/// whose files cannot be listed, then the policy files by path.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The entries of `policy_files`.
    pub(super) patterns: Vec<String>,
    digests: Vec<Digest>,
}

impl Inputs {
    /// The digests at the time of the load.
    pub(crate) fn read(&self) -> Vec<Digest> {
        self.digests.clone()
    }

    /// The digests now, if a load of the main file `file` would read the same files; a change of
    /// `policy_files` is a change of the main file. Blocks.
    pub(crate) fn now(&self, file: &Path) -> Vec<Digest> {
        let mut now = Inputs::default();
        now.add(files::digest(file));
        let mut policies = BTreeSet::new();
        for pattern in &self.patterns {
            match files::named(pattern, file) {
                Ok(found) => policies.extend(found),
                Err(problem) => now.add_unlisted(pattern, &problem.message),
            }
        }
        for file in policies.iter().take(WATCHED_FILES_MAX) {
            now.add(files::digest(file));
        }
        now.digests
    }

    pub(super) fn add(&mut self, digest: Digest) {
        if self.digests.len() < DIGESTS_MAX {
            self.digests.push(digest);
        }
    }

    /// Records why the files of a pattern cannot be listed.
    pub(super) fn add_unlisted(&mut self, pattern: &str, message: &str) {
        self.add(changes::digest(Path::new(pattern), Err(&message)));
    }
}

//! Reading files again when they change.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tracing::{error, info};

use super::pem::{Faults, digests};
use crate::changes;

/// The contents of files, from the last time that they could be used.
#[derive(Debug)]
pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    /// The value in force now.
    pub(crate) fn get(&self) -> Arc<T> {
        // A poisoned lock is harmless: the guarded value is one pointer.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, next: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// Files that are read together.
struct Files {
    paths: Vec<PathBuf>,
    changes: changes::Files,
    is_in_force: bool,
    /// Reads the files and puts their contents in force.
    apply: Box<dyn Fn() -> Result<(), Faults> + Send>,
}

/// All watched files.
pub(crate) struct Watch {
    files: Mutex<Vec<Files>>,
    /// Called after each check: tells whether the contents that were read last are all in force.
    tell: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// A watch without files. It calls `tell` after each check: true if all files are in force as
    /// they were last read.
    pub(crate) fn new(tell: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Watch { files: Mutex::default(), tell: Box::new(tell) }
    }

    /// Reads files now, and again when they change. Blocks.
    ///
    /// # Errors
    /// The faults that the files have now. Later faults are logged, and the old contents stay in
    /// force.
    pub(crate) fn add<T: Send + Sync + 'static>(
        &self,
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Faults> + Send + 'static,
    ) -> Result<Arc<Live<T>>, Faults> {
        // The digests are taken before the files are read: a write in between counts as a change.
        let changes = changes::Files::new(digests(&paths));
        let live = Arc::new(Live(RwLock::new(Arc::new(read()?))));
        let target = Arc::clone(&live);
        let apply = Box::new(move || read().map(|next| target.set(next)));
        let files = Files { paths, changes, is_in_force: true, apply };
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(files);
        Ok(live)
    }

    /// Whether there is any file to watch.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Reads files again if they have changed and have not changed since the previous check. Called
    /// once every [`changes::PERIOD`]. Blocks.
    pub(crate) fn look(&self) {
        let mut all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for files in all.iter_mut() {
            if files.changes.look(digests(&files.paths)) {
                files.changes.note_read();
                files.apply();
            }
        }
        (self.tell)(all.iter().all(|files| files.is_in_force));
    }
}

impl Files {
    fn apply(&mut self) {
        let paths: Vec<_> = self.paths.iter().map(|path| path.display().to_string()).collect();
        let files = paths.join(", ");
        let applied = (self.apply)();
        self.is_in_force = applied.is_ok();
        match applied {
            Ok(()) => info!(files, "credentials changed: new connections and requests use them"),
            Err(faults) => error!(
                "credentials changed but cannot be used: {faults}; the old ones stay in force"
            ),
        }
    }
}

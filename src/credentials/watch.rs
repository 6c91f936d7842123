//! Reading files again when they change.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tracing::{error, info};

use super::pem::{Faults, fingerprint};

/// What changes is in force after two looks, well within the ten seconds that are promised.
const PERIOD: Duration = Duration::from_secs(1);

/// What files say, as of the last time that it could be used.
#[derive(Debug)]
pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    /// What counts now.
    pub fn get(&self) -> Arc<T> {
        // Nobody who holds it can panic half way: it is one pointer.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, next: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// Files that are read together.
struct Files {
    paths: Vec<PathBuf>,
    /// What they held when they were last read.
    read: Vec<[u8; 32]>,
    /// What they held at the last look.
    seen: Vec<[u8; 32]>,
    is_in_force: bool,
    /// Reads them, and puts what they say in force.
    apply: Box<dyn Fn() -> Result<(), Faults> + Send>,
}

/// All files that are watched.
pub struct Watch {
    files: Mutex<Vec<Files>>,
    /// Is told after each look whether all that was read last is in force.
    tell: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches nothing yet. After each look, `tell` hears whether all files are in force as they
    /// were last read.
    pub fn new(tell: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Watch { files: Mutex::default(), tell: Box::new(tell) }
    }

    /// Reads files for the first time, and from then on when they change. Blocks.
    ///
    /// # Errors
    /// What is wrong with them, now. Later that is logged, and the old stays in force.
    pub fn add<T: Send + Sync + 'static>(
        &self,
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Faults> + Send + 'static,
    ) -> Result<Arc<Live<T>>, Faults> {
        // Before they are read: what is written meanwhile counts as a change.
        let seen = fingerprint(&paths);
        let live = Arc::new(Live(RwLock::new(Arc::new(read()?))));
        let target = Arc::clone(&live);
        let apply = Box::new(move || read().map(|next| target.set(next)));
        let files = Files { paths, read: seen.clone(), seen, is_in_force: true, apply };
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(files);
        Ok(live)
    }

    /// Whether there is anything to watch.
    pub fn is_empty(&self) -> bool {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// How often [`Watch::look`] is to be called.
    pub fn period(&self) -> Duration {
        PERIOD
    }

    /// Reads again what has changed and has come to rest: files that are still being written, or of
    /// which only one half is there, look the same only at the next look. Blocks.
    pub fn look(&self) {
        let mut all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for files in all.iter_mut() {
            let now = fingerprint(&files.paths);
            let is_at_rest = now == files.seen;
            files.seen = now;
            if is_at_rest && files.seen != files.read {
                files.read = files.seen.clone();
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
            Ok(()) => info!(files, "changed, and in force for new connections and requests"),
            Err(faults) => error!("changed, but cannot be used, the old stays in force: {faults}"),
        }
    }
}

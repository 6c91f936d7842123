//! Records writes and syncs, and lets syncs fail, for the tests of power losses.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::durability::record::{FileHeader, LogKind, VERSION};

#[derive(Clone, Debug)]
pub(in crate::durability) enum Event {
    /// `from` is the name that the file had, if it is used again.
    Created {
        path: PathBuf,
        len: u64,
        from: Option<PathBuf>,
    },
    Wrote {
        path: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Everything before `began` that was written to the file is on disk.
    Synced {
        path: PathBuf,
        began: usize,
    },
    /// The sync failed: writes to the file that are not on disk yet never get there.
    Lost {
        path: PathBuf,
    },
    /// The names of all files are.
    Named,
}

#[derive(Default)]
struct Watched {
    events: Vec<Event>,
    /// By the first letter of the file's name.
    syncs: HashMap<u8, usize>,
    /// Each sync of a log whose number this divides fails.
    failing: Option<usize>,
}

/// By directory. Only directories that are watched are in it.
static WATCHED: Mutex<Option<HashMap<PathBuf, Watched>>> = Mutex::new(None);

fn with<T>(directory: &Path, act: impl FnOnce(&mut Watched) -> T) -> Option<T> {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.as_mut()?.get_mut(directory).map(act)
}

pub(in crate::durability) fn watch(directory: &Path, failing: Option<usize>) {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let new = Watched { failing, ..Watched::default() };
    watched.get_or_insert_default().insert(directory.to_owned(), new);
}

pub(in crate::durability) fn events(directory: &Path) -> Vec<Event> {
    with(directory, |watched| watched.events.clone()).unwrap_or_default()
}

pub(in crate::durability) fn now_in(directory: &Path) -> usize {
    with(directory, |watched| watched.events.len()).unwrap_or(0)
}

fn add(path: &Path, event: Event) {
    with(path.parent().unwrap_or(path), |watched| watched.events.push(event));
}

pub(in crate::durability) fn now(path: &Path) -> usize {
    now_in(path.parent().unwrap_or(path))
}

pub(in crate::durability) fn created(
    path: &Path,
    kind: LogKind,
    (base, capacity): (u64, u64),
    from: Option<&PathBuf>,
) {
    let header =
        FileHeader { version: VERSION, kind: kind as u32, base, capacity: capacity as u32 };
    let (path_buf, from) = (path.to_owned(), from.cloned());
    add(path, Event::Created { path: path_buf, len: capacity, from });
    wrote(path, 0, &[&header.encode()]);
}

pub(in crate::durability) fn wrote(path: &Path, offset: u64, parts: &[&[u8]]) {
    add(path, Event::Wrote { path: path.to_owned(), offset, bytes: parts.concat() });
}

/// Notes the outcome of a sync that began then, and lets some fail.
pub(in crate::durability) fn synced(
    path: &Path,
    began: usize,
    outcome: io::Result<()>,
) -> io::Result<()> {
    let fails = with(path.parent().unwrap_or(path), |watched| {
        let name = path.file_name().expect("a name").as_encoded_bytes();
        let syncs = watched.syncs.entry(name[0]).or_default();
        *syncs += 1;
        watched.failing.is_some_and(|number| *syncs % number == 0)
    });
    let path = path.to_owned();
    if fails == Some(true) {
        add(&path.clone(), Event::Lost { path });
        return Err(io::Error::other("injected"));
    }
    add(&path.clone(), Event::Synced { path, began });
    outcome
}

pub(in crate::durability) fn named(directory: &Path) {
    with(directory, |watched| watched.events.push(Event::Named));
}

//! Records writes and syncs, for the test of power losses.

use std::{
    collections::HashMap,
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
    /// The names of all files are on disk.
    Named,
}

/// The events by directory, for watched directories only.
static EVENTS: Mutex<Option<HashMap<PathBuf, Vec<Event>>>> = Mutex::new(None);

fn with<T>(directory: &Path, act: impl FnOnce(&mut Vec<Event>) -> T) -> Option<T> {
    let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    events.as_mut()?.get_mut(directory).map(act)
}

pub(in crate::durability) fn watch(directory: &Path) {
    let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    events.get_or_insert_default().insert(directory.to_owned(), Vec::new());
}

pub(in crate::durability) fn events(directory: &Path) -> Vec<Event> {
    with(directory, |events| events.clone()).unwrap_or_default()
}

pub(in crate::durability) fn now_in(directory: &Path) -> usize {
    with(directory, |events| events.len()).unwrap_or(0)
}

fn add(path: &Path, event: Event) {
    with(path.parent().unwrap_or(path), |events| events.push(event));
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

pub(in crate::durability) fn synced(path: &Path, began: usize) {
    add(path, Event::Synced { path: path.to_owned(), began });
}

pub(in crate::durability) fn named(directory: &Path) {
    with(directory, |events| events.push(Event::Named));
}

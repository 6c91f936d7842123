//! The default of `memory_limit_mib`: 60 % of the limit of the control group, or 1 GiB.
//!
//! It is 60 % and not 100 %, because the allocator, the stacks and the page cache of the same group
//! are not in the memory budget, and a process that is killed loses every trace in the window.
//! Without a limit of a group, the size of the machine does not say how much the service may use,
//! so the default is a fixed gigabyte.

use std::path::Path;

use super::cgroup;

/// The default if there is no limit.
pub(super) const FALLBACK_BYTES: usize = 1024 << 20;

/// The smallest memory limit that can be configured, and the smallest default.
pub(super) const BYTES_MIN: usize = 32 << 20;

/// A memory limit, and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// The limit in bytes.
    pub(super) bytes: usize,
    /// The origin, for the log.
    pub(super) from: String,
}

impl MemoryLimit {
    /// A limit that the file sets.
    pub(super) fn configured(bytes: usize) -> Self {
        MemoryLimit { bytes, from: "memory_limit_mib".to_owned() }
    }

    /// The default on this machine.
    pub(super) fn detect() -> Self {
        Self::of(cgroup::limit(Path::new("/")))
    }

    /// The default for the limit of a group.
    fn of(limit: Option<cgroup::Limit>) -> Self {
        match limit {
            Some(cgroup::Limit { bytes, file }) => {
                let part = usize::try_from(bytes / 100 * 60).unwrap_or(usize::MAX);
                let from = format!("60 % of {} bytes in {}", bytes, file.display());
                MemoryLimit { bytes: part.max(BYTES_MIN), from }
            }
            None => MemoryLimit {
                bytes: FALLBACK_BYTES,
                from: "the default where no cgroup limits memory".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_per_cent_of_a_limit_else_a_gigabyte() {
        let of =
            |bytes| MemoryLimit::of(Some(cgroup::Limit { bytes, file: "/a/memory.max".into() }));
        assert_eq!((of(1_000_000_000).bytes, of(1000).bytes), (600_000_000, BYTES_MIN));
        assert_eq!(of(1_000_000_000).from, "60 % of 1000000000 bytes in /a/memory.max");
        assert_eq!(MemoryLimit::of(None).bytes, FALLBACK_BYTES);
    }
}

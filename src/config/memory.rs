//! The default of `memory_limit_mib`: 60 % of what the container may use, else 1 GiB.
//!
//! 60 and not 100, because the allocator, the stacks and the page cache of the same cgroup are not
//! in the budget, and being killed loses every trace in the window. Without a cgroup limit the size
//! of the machine says nothing about what it was bought for, hence a fixed gigabyte.
//!
//! Sources: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max") and cgroup-v1/memory.rst.

use std::fs;

const V2: &str = "/sys/fs/cgroup/memory.max";
const V1: &str = "/sys/fs/cgroup/memory/memory.limit_in_bytes";

/// Used where there is no limit.
pub(super) const FALLBACK_BYTES: usize = 1024 << 20;

/// The smallest limit that can be configured, and therefore the smallest default.
pub(super) const BYTES_MIN: usize = 32 << 20;

/// Limits from here on mean "none": version 1 writes the largest page-aligned `i64` for it.
const ABSURD_BYTES: u64 = 1 << 50;

/// A memory limit, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// In bytes.
    pub(super) bytes: usize,
    /// For the log.
    pub(super) from: &'static str,
}

impl MemoryLimit {
    /// As the file says.
    pub(super) fn configured(bytes: usize) -> Self {
        MemoryLimit { bytes, from: "memory_limit_mib" }
    }

    /// The default on this machine.
    pub(super) fn detect() -> Self {
        let read = |file| fs::read_to_string(file).ok();
        Self::of(read(V2).as_deref(), read(V1).as_deref())
    }

    /// The default for what the files of version 2 and 1 say.
    fn of(v2: Option<&str>, v1: Option<&str>) -> Self {
        let limit = v2.or(v1).and_then(|text| text.trim().parse::<u64>().ok());
        let limit = limit.filter(|limit| *limit < ABSURD_BYTES);
        match limit.and_then(|limit| usize::try_from(limit / 100 * 60).ok()) {
            Some(bytes) => {
                MemoryLimit { bytes: bytes.max(BYTES_MIN), from: "60 % of the cgroup's limit" }
            }
            None => MemoryLimit { bytes: FALLBACK_BYTES, from: "the default without a cgroup" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_per_cent_of_a_limit_else_a_gigabyte() {
        for (v2, v1, expected) in [
            (None, None, FALLBACK_BYTES),
            (Some("max\n"), None, FALLBACK_BYTES),
            (None, Some("9223372036854771712\n"), FALLBACK_BYTES),
            (Some("garbage"), None, FALLBACK_BYTES),
            (Some("1000000000\n"), None, 600_000_000),
            (None, Some("1000000000\n"), 600_000_000),
            (Some("1000000000\n"), Some("5"), 600_000_000),
            (Some("1000\n"), None, BYTES_MIN),
        ] {
            let limit = MemoryLimit::of(v2, v1);
            assert_eq!(limit.bytes, expected, "{v2:?} {v1:?}");
            assert_eq!(limit.from.contains("60 %"), expected != FALLBACK_BYTES, "{limit:?}");
        }
    }
}

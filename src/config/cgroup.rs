//! The memory limit of the control groups that this process is in.
//!
//! `/proc/self/cgroup` names the group of the process in each hierarchy, and `/proc/self/mountinfo`
//! says where a hierarchy is mounted and which of its groups is at the top of the mount. Together
//! they give the directory of the group. Only in a container with its own cgroup namespace is this
//! the top of the mount; with systemd's `MemoryMax=`, `--cgroupns=host` and nested groups it is
//! further down. The limits of all groups up to the top of the mount apply to the process, so the
//! lowest one counts. Version 1, version 2 and a mix of both are handled alike.
//!
//! `memory.high` counts like `memory.max`: above it, the kernel slows the process down and reclaims
//! its pages, and a service that stays above it is as good as stopped. The soft limit of version 1
//! does not count, because it only matters while the whole machine is short of memory.
//!
//! The lookup depends only on a directory tree, so that tests can build the layouts.
//! Sources: cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5); Linux,
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

/// Limits from here on mean "no limit": version 1 writes the largest page-aligned `i64` for it.
const ABSURD_BYTES: u64 = 1 << 50;

/// The files of a group that contain a limit in bytes, by version.
const V2_FILES: &[&str] = &["memory.max", "memory.high"];
const V1_FILES: &[&str] = &["memory.limit_in_bytes"];

/// A limit, and the file that contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) bytes: u64,
    /// The path as the process sees it.
    pub(super) file: PathBuf,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    is_v2: bool,
    /// The group at the top of the mount.
    top: PathBuf,
    point: PathBuf,
}

/// The lowest memory limit between the group of the process and the top of each hierarchy; `None`
/// if there is no limit. `root` is the root of the file system.
pub(super) fn limit(root: &Path) -> Option<Limit> {
    let read = |file: &str| fs::read(root.join(file)).unwrap_or_default();
    let groups = read("proc/self/cgroup");
    let mounts = mounts(&read("proc/self/mountinfo"));
    let limits = mounts.iter().flat_map(|mount| limits_of(root, mount, &groups));
    limits.min_by_key(|limit| limit.bytes)
}

fn limits_of(root: &Path, mount: &Mount, groups: &[u8]) -> Vec<Limit> {
    let group = group(groups, mount.is_v2).unwrap_or_else(|| mount.top.clone());
    // A group outside the mount is named by a path with `..`, or by a path of another namespace.
    // The nearest group that can be read is then the top of the mount.
    let below = group.strip_prefix(&mount.top).unwrap_or(Path::new(""));
    let is_shown = below.components().all(|part| matches!(part, Component::Normal(_)));
    let below = if is_shown { below } else { Path::new("") };
    let files = if mount.is_v2 { V2_FILES } else { V1_FILES };
    let mut found = Vec::new();
    for directory in below.ancestors().map(|group| mount.point.join(group)) {
        for file in files {
            let file = directory.join(file);
            found.extend(read_limit(root, file, whole));
        }
        if !mount.is_v2 {
            found.extend(read_limit(root, directory.join("memory.stat"), hierarchical));
        }
    }
    found
}

fn whole(text: &str) -> Option<&str> {
    Some(text)
}

/// The line of `memory.stat` that includes the limits of groups above the top of the mount.
fn hierarchical(stat: &str) -> Option<&str> {
    stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))
}

/// The number in a file, unless it means "no limit".
fn read_limit(root: &Path, file: PathBuf, number: impl Fn(&str) -> Option<&str>) -> Option<Limit> {
    let text = fs::read_to_string(root.join(file.strip_prefix("/").unwrap_or(&file))).ok()?;
    let bytes = number(&text)?.trim().parse().ok()?;
    (bytes < ABSURD_BYTES).then_some(Limit { bytes, file })
}

/// The group of the process, from lines of the form `number:controllers:group`. For version 2, it
/// is the line without controllers.
fn group(groups: &[u8], is_v2: bool) -> Option<PathBuf> {
    groups.split(|&byte| byte == b'\n').find_map(|line| {
        let mut parts = line.splitn(3, |&byte| byte == b':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        let is_it = if is_v2 { controllers.is_empty() } else { has_memory(controllers) };
        is_it.then(|| PathBuf::from(OsStr::from_bytes(group)))
    })
}

/// The mounted hierarchies that may limit memory, from lines such as `31 23 0:28 /top
/// /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw`.
fn mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines.filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    // Optional fields end with a single hyphen.
    let end = fields.iter().position(|&field| field == b"-")?;
    let kind = *fields.get(end + 1)?;
    let is_v2 = kind == b"cgroup2";
    let is_v1 = kind == b"cgroup" && has_memory(fields.get(end + 3)?);
    if !is_v1 && !is_v2 {
        return None;
    }
    Some(Mount { is_v2, top: unescaped(fields.get(3)?), point: unescaped(fields.get(4)?) })
}

fn has_memory(controllers: &[u8]) -> bool {
    controllers.split(|&byte| byte == b',').any(|controller| controller == b"memory")
}

/// Decodes a path in which space, tab, newline and backslash are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, later)) = rest.split_first() {
        let digits = later.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| byte == b'\\') {
            Some(meant) => {
                path.push(meant);
                rest = &later[3..];
            }
            None => {
                path.push(byte);
                rest = later;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const NONE: &str = "9223372036854771712\n";
    const G: u64 = 1_000_000_000;

    /// The limit that is found with these two files of /proc and these files below /sys/fs/cgroup.
    fn found(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> Option<(u64, String)> {
        let name = format!("tailwater-cgroup-{}-{:x}", std::process::id(), fastrand::u64(..));
        let root = std::env::temp_dir().join(name);
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().expect("has one")).expect("created");
            fs::write(file, text).expect("written");
        };
        write("proc/self/cgroup", cgroup);
        write("proc/self/mountinfo", mountinfo);
        for (file, text) in files {
            write(&format!("sys/fs/cgroup/{file}"), text);
        }
        let found = limit(&root);
        fs::remove_dir_all(&root).expect("removed");
        let below = |file: PathBuf| {
            file.strip_prefix("/sys/fs/cgroup")
                .expect("as the process sees it")
                .display()
                .to_string()
        };
        found.map(|limit| (limit.bytes, below(limit.file)))
    }

    fn at(bytes: u64, file: &str) -> Option<(u64, String)> {
        Some((bytes, file.to_owned()))
    }

    #[test]
    fn a_container_with_its_own_namespace_has_its_limit_at_the_top() {
        let files = [("memory.max", "1000000000\n"), ("memory.high", "max\n")];
        assert_eq!(found("0::/\n", V2, &files), at(G, "memory.max"));
        let files = [("memory/memory.limit_in_bytes", "1000000000\n")];
        assert_eq!(found("4:memory:/\n0::/\n", V1, &files), at(G, "memory/memory.limit_in_bytes"));
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let service = "0::/system.slice/tailwater.service\n";
        for (own, slice, expected) in [
            ("1000000000", "max", at(G, "system.slice/tailwater.service/memory.max")),
            ("1000000000", "2000000000", at(G, "system.slice/tailwater.service/memory.max")),
            ("max", "2000000000", at(2 * G, "system.slice/memory.max")),
            ("3000000000", "2000000000", at(2 * G, "system.slice/memory.max")),
            ("max", "max", None),
            ("garbage", "", None),
        ] {
            let files = [
                ("system.slice/tailwater.service/memory.max", own),
                ("system.slice/memory.max", slice),
                ("system.slice/other.service/memory.max", "5"),
            ];
            assert_eq!(found(service, V2, &files), expected, "{own} {slice}");
        }
    }

    #[test]
    fn a_limit_that_throttles_counts_as_well() {
        let files = [("a/memory.max", "2000000000\n"), ("a/memory.high", "1000000000\n")];
        assert_eq!(found("0::/a\n", V2, &files), at(G, "a/memory.high"));
    }

    #[test]
    fn version_1_has_groups_too_and_knows_the_limits_above_the_mount() {
        let group = "9:pids:/x\n4:cpu,memory:/docker/a b\n1:name=systemd:/y\n0::/\n";
        let files = [
            ("memory/docker/a b/memory.limit_in_bytes", "1000000000"),
            ("memory/docker/memory.limit_in_bytes", NONE),
            ("memory/x/memory.limit_in_bytes", "5"),
        ];
        let expected = at(G, "memory/docker/a b/memory.limit_in_bytes");
        assert_eq!(found(group, V1, &files), expected);
        // Bind-mounted into the container with its own group at the top, as without a namespace.
        let bound = "32 31 0:29 /docker/a\\040b /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let files = [
            ("memory/memory.limit_in_bytes", "2000000000"),
            ("memory/memory.stat", "cache 5\nhierarchical_memory_limit 1000000000\nrss 7\n"),
        ];
        assert_eq!(found(group, bound, &files), at(G, "memory/memory.stat"));
        assert_eq!(found(group, bound, &files[..1]), at(2 * G, "memory/memory.limit_in_bytes"));
    }

    #[test]
    fn a_hybrid_has_its_memory_in_version_1() {
        let mounts =
            format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n");
        let groups = "4:memory:/a\n0::/system.slice/a.service\n";
        let files = [
            ("memory/a/memory.limit_in_bytes", "1000000000"),
            ("unified/system.slice/a.service/cgroup.procs", "1"),
        ];
        assert_eq!(found(groups, &mounts, &files), at(G, "memory/a/memory.limit_in_bytes"));
    }

    #[test]
    fn a_group_that_is_not_shown_leaves_the_top_of_the_mount() {
        let files = [("memory.max", "1000000000"), ("a/memory.max", "5")];
        for group in ["0::/../../a\n", "0::/a/../b\n", "0::/gone\n", "", "garbage"] {
            assert_eq!(found(group, V2, &files), at(G, "memory.max"), "{group}");
        }
        let elsewhere = V2.replace(" / ", " /top ");
        assert_eq!(found("0::/a\n", &elsewhere, &files), at(G, "memory.max"));
        assert_eq!(found("0::/top/a\n", &elsewhere, &files), at(5, "a/memory.max"));
        assert_eq!(found("0::/\n", "", &files), None);
        assert_eq!(found("0::/\n", "no mount\n1 2 3 - cgroup2\n", &files), None);
    }
}

//! Compiles Tailwater's own gRPC API, without protoc, and assembles the text of `--version`.

use std::{
    env,
    error::Error,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message as _;

const CONTROL: &str = "tailwater/control/v1/control.proto";
/// Git abbreviates commits to this many digits in large repositories.
const COMMIT_DIGITS: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([CONTROL], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection and the JSON form of messages read it.
    fs::write(out.join("control.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // A recorded request is passed on without a copy.
        .bytes(".tailwater.control.v1.RecordResponse.Part.request")
        .compile_fds(descriptors)?;
    version()
}

/// Sets `TAILWATER_VERSION`, for example `0.1.0 (6a13623c0ffe 2026-11-28)`. The same sources,
/// commit and `SOURCE_DATE_EPOCH` give the same binary.
fn version() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=TAILWATER_COMMIT");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = match env::var("SOURCE_DATE_EPOCH").ok().filter(|epoch| !epoch.is_empty()) {
        Some(seconds) => UNIX_EPOCH + Duration::from_secs(seconds.parse()?),
        None => SystemTime::now(),
    };
    let now = humantime::format_rfc3339_seconds(now).to_string();
    let date = now.split('T').next().unwrap_or_default();
    let commit = commit().unwrap_or_else(|| "unknown commit".to_owned());
    let version = env::var("CARGO_PKG_VERSION")?;
    println!("cargo:rustc-env=TAILWATER_VERSION={version} ({commit} {date})");
    Ok(())
}

/// The commit: from the environment of the build, from the file of `cargo package`, or from git.
fn commit() -> Option<String> {
    let named = env::var("TAILWATER_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = named.or_else(packaged_commit).or_else(git_commit)?;
    Some(commit.chars().take(COMMIT_DIGITS).collect())
}

/// From the file that `cargo package` adds to a crate.
fn packaged_commit() -> Option<String> {
    let info = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = info.split_once("\"sha1\"")?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// From git, if there is one and this directory is the top of a checkout: a tarball may have been
/// unpacked inside another repository.
fn git_commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // A debug build does not track commits, because each commit would recompile the whole crate.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    }
    git(&["rev-parse", "HEAD"])
}

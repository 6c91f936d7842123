//! The demo as a user runs it: the built binary, its output and its exit code.

use std::process::{Command, Output};

/// Scenario: `tailwater demo --seconds 5` with standard output in a pipe.
/// Guarantees: it ends by itself with exit code 0; every kept trace arrived whole; the ledger
/// balances; a pipe gets no control sequences; nothing is logged as a problem.
#[test]
fn the_demo_ends_with_whole_traces_and_a_balanced_ledger() {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["demo", "--seconds", "5"])
        .output()
        .expect("the binary is built before its tests");
    let stdout = String::from_utf8(stdout).expect("UTF-8");
    assert!(status.success(), "{status}\n{stdout}\n{}", String::from_utf8_lossy(&stderr));
    assert_eq!(String::from_utf8_lossy(&stderr), "");
    assert!(!stdout.contains('\x1b'), "{stdout}");
    assert!(stdout.contains(" kept traces checked, all whole\n"), "{stdout}");
    assert!(!stdout.contains("\n  sink       0 kept"), "{stdout}");
    assert_eq!(stdout.matches("  OK\n").count(), 2, "{stdout}");
    assert!(stdout.contains("accepted = kept + dropped + buffered  OK\n"), "{stdout}");
    assert!(stdout.contains("kept = sent + failed + queued         OK\n"), "{stdout}");
    assert!(stdout.ends_with(" + 0 + 0\n"), "nothing failed, nothing queued: {stdout}");
    for policy in ["errors", "slow", "baseline", "budget", "no policy", "total"] {
        assert!(stdout.contains(&format!("\n  {policy:<10}")), "{stdout}");
    }
}

//! The quickstart does what it says, on small input.

use std::process::Command;

#[test]
fn the_quickstart_ends_with_results_that_an_independent_computation_confirms() {
    let output = Command::new(env!("CARGO_BIN_EXE_quickstart"))
        .args(["--once", "--rows", "20000"])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("Checked: "), "{stdout}");
}

//! The quickstart does what it says, ends when it is told to, and leaves nothing behind.
#![expect(
    clippy::unwrap_used,
    reason = "what the tests share unwraps as they do"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A quickstart whose cluster lives in a directory of its own.
fn quickstart(arguments: &[&str]) -> (Command, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command
        .args(arguments)
        .env("TMPDIR", directory.path())
        // A user's mistake is told in a line.
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    (command, directory)
}

fn is_empty(directory: &TempDir) -> bool {
    std::fs::read_dir(directory.path())
        .unwrap()
        .next()
        .is_none()
}

/// Reads what it says up to a line that has this in it; fails if it ends before.
fn until(child: &mut Child, words: &str) -> (String, impl BufRead + use<>) {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains(words) {
        let read = lines.read_line(&mut said).unwrap();
        assert!(read > 0, "it ended before \"{words}\":\n{said}");
    }
    (said, lines)
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let name = format!("-{signal}");
    let sent = Command::new("kill").args([&name, &pid]).status().unwrap();
    assert!(sent.success());
}

fn file(lines: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    file
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(arguments: &[&str]) -> (Output, String) {
    let (mut command, directory) = quickstart(arguments);
    let output = command.output().unwrap();
    assert!(is_empty(&directory), "{arguments:?} left something behind");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

#[test]
fn the_quickstart_ends_with_results_that_an_independent_computation_confirms() {
    let (output, stderr) = run(&["--once", "--rows", "20000"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("Checked: "), "{stdout}");
}

#[test]
fn one_click_that_sells_nothing_is_a_result() {
    let (output, stderr) = run(&["--once", "--rows", "1"]);
    assert!(output.status.success(), "{stderr}");
}

/// Once it asked after a job that did not exist, and ended at once.
#[test]
fn it_runs_until_it_is_told_to_end() {
    for name in ["INT", "TERM"] {
        let (mut command, directory) = quickstart(&["--rate", "20000"]);
        let mut child = command.spawn().unwrap();
        let (said, mut rest) = until(&mut child, "Ctrl-C ends it.");
        assert!(said.contains("products sold, best of them"), "{said}");
        assert!(said.contains("records/s"), "{said}");
        assert!(said.contains("its state over HTTP at epoch"), "{said}");
        signal(&child, name);
        rest.read_to_string(&mut String::new()).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        assert!(is_empty(&directory), "{name} left something behind");
    }
}

#[test]
fn a_signal_before_it_is_up_ends_it_too() {
    let (mut command, directory) = quickstart(&["--once", "--rows", "100000000"]);
    let mut child = command.spawn().unwrap();
    let (_, mut rest) = until(&mut child, "A cluster is up");
    signal(&child, "INT");
    rest.read_to_string(&mut String::new()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("before the results were checked"));
    assert!(is_empty(&directory));
}

#[test]
fn it_ends_quietly_when_nobody_reads_any_more() {
    let (mut command, directory) = quickstart(&["--rate", "20000"]);
    let mut child = command.spawn().unwrap();
    let (_, rest) = until(&mut child, "A cluster is up");
    drop(rest);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(is_empty(&directory));
}

#[test]
fn it_runs_on_clicks_of_ones_own() {
    // Spaces for Ts, zones, an empty line, late ones, and no newline at the end.
    let clicks = file(
        br#"{"session":1,"action":"purchase","product":7,"price":2.5,"quantity":2,"ts":"2024-01-01T00:00:01.5"}
{"session":1,"action":"view","product":null,"ts":"2024-01-01 00:00:11"}

{"session":2,"action":"add_to_cart","product":7,"price":2,"quantity":1,"ts":"2024-01-01T01:00:05+01:00"}
{"session":3,"action":"view","ts":1704067800000}
{"session":3,"action":"view","ts":"2023-12-31T00:00:00Z"}
{"session":3,"action":"view","ts":"2023-12-30T00:00:00Z"}"#,
    );
    let input = text(clicks.path());
    let (output, stderr) = run(&["--once", "--input", input]);
    assert!(output.status.success(), "{stderr}");

    let (mut command, directory) = quickstart(&["--input", input]);
    let mut child = command.spawn().unwrap();
    let (said, mut rest) = until(&mut child, "Ctrl-C ends it.");
    assert!(said.contains("Checked: "), "{said}");
    assert!(said.contains("2024-01-01T00:11:00"), "{said}");
    signal(&child, "INT");
    rest.read_to_string(&mut String::new()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(is_empty(&directory));
}

#[test]
fn what_is_wrong_with_a_file_is_said_before_anything_starts() {
    let good = r#"{"session":1,"action":"view","ts":"2024-01-01T00:00:01"}"#;
    let cases: &[(Vec<u8>, &str)] = &[
        (Vec::new(), "there are no clicks in"),
        (b"\n \n".to_vec(), "there are no clicks in"),
        (b"\x1f\x8b\x08\x00".to_vec(), "gunzip"),
        (format!("{good}\n{{oops\n").into(), "line 2 is not JSON"),
        (b"\xff\n".to_vec(), "line 1 is not JSON"),
        (b"[1]\n".to_vec(), "it is no object"),
        (
            br#"{"user": 1, "event": "x"}"#.to_vec(),
            "\"session\" is missing; a click is an object such as",
        ),
        (
            br#"{"session":"1","action":"view","ts":"2024-01-01T00:00:01"}"#.to_vec(),
            "\"session\" is not an integer",
        ),
        (
            br#"{"session":1,"action":"view","ts":"yesterday"}"#.to_vec(),
            "\"ts\" is not a time",
        ),
        (
            br#"{"session":1,"action":"purchase","ts":"2024-01-01T00:00:01"}"#.to_vec(),
            "\"product\" is missing",
        ),
    ];
    for (lines, words) in cases {
        let input = file(lines);
        let (output, stderr) = run(&["--input", text(input.path())]);
        assert!(!output.status.success(), "{words}");
        assert!(output.stdout.is_empty(), "{words}");
        assert!(stderr.contains(words), "{words}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let (output, stderr) = run(&["--input", "/nowhere/clicks.ndjson"]);
    assert!(!output.status.success());
    assert!(
        stderr.contains("there is no file /nowhere/clicks.ndjson"),
        "{stderr}"
    );
}

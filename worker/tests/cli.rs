//! The worker's process, as its operator meets it.
#![expect(
    clippy::unwrap_used,
    reason = "what the tests share unwraps as they do"
)]

use std::process::{Command, Output, Stdio};

fn worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.env_clear();
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = worker().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn every_mistake_in_its_configuration_is_told_at_once() {
    let (code, stdout, stderr) = run(&["--listen", "here", "--memory", "1KiB", "--slots", "x"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    for part in ["3 mistakes", "--listen: ", "--memory: ", "--slots: "] {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("--memory") && stdout.contains("512MiB"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "worker 0.1.0\n"));
}

#[test]
fn it_takes_its_directory_for_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let held = common::data_dir::DataDir::open(path).unwrap();
    let (code, _, stderr) = run(&["--listen", "127.0.0.1:0", "--data-dir", path]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("used by another process"), "{stderr}");
    drop(held);
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let path = directory.path().to_str().unwrap();
    let (code, _, stderr) = run(&["--listen", &address, "--data-dir", path]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains(&address), "{stderr}");
}

#[test]
fn without_a_coordinator_it_waits_and_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut child = worker()
        .args([
            "--listen",
            "127.0.0.1:0",
            "--coordinator",
            &format!("http://{nobody}"),
        ])
        .arg("--data-dir")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("cannot register yet") {
        assert!(
            std::io::BufRead::read_line(&mut stderr, &mut said).unwrap() > 0,
            "{said}"
        );
    }
    assert!(child.try_wait().unwrap().is_none());
    // Waiting does not make it deaf.
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

//! The coordinator's process, as its operator meets it.
#![expect(
    clippy::unwrap_used,
    reason = "what the tests share unwraps as they do"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// A stop takes this long at most, also on a slow machine.
const BOUND: Duration = Duration::from_secs(20);

/// A running coordinator, killed if the test gives up on it.
struct Running {
    child: Child,
    ready: String,
}

impl Running {
    fn start(data_dir: &Path) -> Running {
        Running::start_logging(data_dir, Stdio::null())
    }

    fn start_logging(data_dir: &Path, log: Stdio) -> Running {
        let mut child = coordinator()
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        Running { child, ready }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// The exit code, and what came on standard output after the ready line.
    fn end(mut self) -> (Option<i32>, String) {
        let (ended, end) = sync_channel(1);
        let mut stdout = self.child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            ended.send(()).unwrap();
            rest
        });
        // Standard output closes when the process has ended.
        end.recv_timeout(BOUND).expect("it did not end in time");
        let status = self.child.wait().unwrap();
        (status.code(), reader.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn coordinator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.env_clear();
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = coordinator().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn it_says_once_where_it_is_and_ends_in_order_when_told_to() {
    for signal in ["-TERM", "-INT"] {
        let directory = tempfile::tempdir().unwrap();
        let running = Running::start(directory.path());
        let port = running
            .ready
            .strip_prefix("coordinator ready at http://127.0.0.1:")
            .unwrap();
        assert!(port.trim_end().parse::<u16>().unwrap() > 0);
        running.signal(signal);
        assert_eq!(running.end(), (Some(0), String::new()));
    }
}

/// It used to panic wherever it had something to say.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let log = File::options().write(true).open(full).unwrap();
    let running = Running::start_logging(directory.path(), log.into());
    assert!(running.ready.starts_with("coordinator ready"));
    running.signal("-TERM");
    assert_eq!(running.end(), (Some(0), String::new()));
}

#[test]
fn it_comes_back_after_a_kill_and_takes_its_directory_for_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Running::start(directory.path());
    let path = directory.path().to_str().unwrap();
    let (code, stdout, stderr) = run(&["--listen", "127.0.0.1:0", "--data-dir", path]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("used by another process"), "{stderr}");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let second = Running::start(directory.path());
    assert!(
        second.ready.starts_with("coordinator ready"),
        "{:?}",
        second.ready
    );
}

#[test]
fn every_mistake_in_its_configuration_is_told_at_once() {
    let (code, stdout, stderr) = run(&["--listen", "here", "--session-timeout", "1s"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("2 mistakes"), "{stderr}");
    assert!(
        stderr.contains("--listen: ") && stderr.contains("--session-timeout: "),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["--liste", "127.0.0.1:0"]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("--listen"),
        "it suggests the right flag: {stderr}"
    );
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
fn help_and_version_go_to_standard_output() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("--session-timeout") && stdout.contains("3s"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "coordinator 0.1.0\n"));
}

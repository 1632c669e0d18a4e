//! The real binaries as child processes: started, read, killed, started again.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

/// Lines of output a process may be ahead of its reader; beyond that they are dropped, never waited for.
const OUTPUT_LINES: usize = 10_000;
/// A node is ready, or has stopped, within this; a loaded machine needs much of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    pub fn start(name: &str, program: &Path, args: &[String]) -> Result<Process> {
        Process::start_logging(name, program, args, &[], None)
    }

    /// `environment`: what is added to the test's own. `log`: the file that what it says about itself is added to; else it goes where the test's own goes.
    pub fn start_logging(
        name: &str,
        program: &Path,
        args: &[String],
        environment: &[(String, String)],
        log: Option<&Path>,
    ) -> Result<Process> {
        let errors = match log {
            Some(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                Stdio::from(file.with_context(|| format!("cannot open {}", path.display()))?)
            }
            None => Stdio::inherit(),
        };
        let mut child = Command::new(program)
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("the output was just piped")?;
        let (sender, lines) = sync_channel(OUTPUT_LINES);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody may be reading any more; the process must be able to write on all the same.
                sender.try_send(line).unwrap_or_default();
            }
        });
        Ok(Process {
            name: name.to_owned(),
            child,
            lines,
        })
    }

    /// Waits for the line `… ready at URL`; answers the URL.
    pub fn ready(&mut self) -> Result<String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some((_, address)) = line.split_once(" ready at ") {
                        return Ok(address.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} is not ready after {PATIENCE:?}", self.name)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended with {status} before it was ready", self.name);
                }
            }
        }
    }

    /// SIGKILL: no chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        // A thread of the process that does not end is what this would find: the test's own time limit
        // is not needed for that, the patience is.
        let pid = self.child.id();
        let (done, waited) = sync_channel::<()>(1);
        let watchdog = std::thread::spawn(move || {
            if waited.recv_timeout(PATIENCE).is_err() {
                // The outcome shows in the exit status.
                drop(
                    Command::new("kill")
                        .args(["-KILL", &pid.to_string()])
                        .status(),
                );
            }
        });
        let status = self.child.wait()?;
        done.send(()).unwrap_or_default();
        watchdog
            .join()
            .map_err(|_| anyhow::anyhow!("the watchdog panicked"))?;
        Ok(status)
    }

    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()?;
        ensure!(status.success(), "cannot send {signal} to {}", self.name);
        Ok(())
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

/// A binary of this workspace, beside the running test. Fails if it is missing or older than its sources.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .or_else(|| test.parent())
        .context("a test runs from a target directory")?;
    let build = match profile.ends_with("release") {
        true => "cargo build --release --workspace --bins",
        false => "cargo build --workspace --bins",
    };
    let path = profile.join(name);
    let built = std::fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("{} is missing; run: {build}", path.display()))?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("a crate has a workspace")?;
    for member in ["common", name] {
        let newest = newest_source(&workspace.join(member).join("src"))?;
        ensure!(
            newest <= built,
            "{} is older than its sources; run: {build}",
            path.display()
        );
    }
    Ok(path)
}

/// What tests have in common.
const FOR_TESTS: [&str; 3] = ["fake_worker.rs", "harness.rs", "test_log.rs"];

fn newest_source(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        // A binary has no tests in it, and is not built again when they change.
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with("_tests.rs") || FOR_TESTS.contains(&&*name) {
            continue;
        }
        let changed = match entry.file_type()?.is_dir() {
            true => newest_source(&entry.path())?,
            false => entry.metadata()?.modified()?,
        };
        newest = newest.max(changed);
    }
    Ok(newest)
}

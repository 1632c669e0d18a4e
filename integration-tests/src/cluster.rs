//! A cluster of real processes on loopback: one coordinator, some workers, each with its own directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::client::Client;
use tempfile::TempDir;

use crate::process::{Process, binary};

#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// Removes the directory at the end, if it is nobody's.
    _temporary: Option<TempDir>,
    coordinator: Node,
    workers: Vec<Node>,
    worker_options: Vec<String>,
    /// Where each process writes what it says about itself, instead of where the test does.
    logs: Option<PathBuf>,
}

/// A process and what it needs to come back as itself.
#[derive(Debug)]
struct Node {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    /// Chosen at the first start and kept, so that a node comes back where others look for it.
    address: String,
    log: Option<PathBuf>,
    /// No file of it may grow beyond this, from its next start on.
    file_bytes_max: Option<u64>,
    process: Option<Process>,
    /// It was begun and has not said yet that it is ready.
    beginning: bool,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub fn start(workers: usize) -> Result<Cluster> {
        Cluster::start_with(workers, &[])
    }

    /// `worker_options`: further flags for every worker.
    pub fn start_with(workers: usize, worker_options: &[&str]) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        Cluster::assemble(directory, Some(temporary), None, workers, worker_options)
    }

    /// In a directory that stays, with a log file per process in `logs/`.
    pub fn start_in(directory: &Path, workers: usize, worker_options: &[&str]) -> Result<Cluster> {
        let logs = directory.join("logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        Cluster::assemble(
            directory.to_owned(),
            None,
            Some(logs),
            workers,
            worker_options,
        )
    }

    fn assemble(
        directory: PathBuf,
        temporary: Option<TempDir>,
        logs: Option<PathBuf>,
        workers: usize,
        worker_options: &[&str],
    ) -> Result<Cluster> {
        let data = directory.join("coordinator").display().to_string();
        let args = vec!["--data-dir".into(), data];
        let coordinator = Node::start("coordinator", args, logs.as_deref())?;
        let mut cluster = Cluster {
            directory,
            _temporary: temporary,
            coordinator,
            workers: Vec::new(),
            worker_options: worker_options.iter().map(|o| (*o).to_owned()).collect(),
            logs,
        };
        for _ in 0..workers {
            cluster.add_worker()?;
        }
        Ok(cluster)
    }

    pub fn add_worker(&mut self) -> Result<()> {
        let name = format!("worker{}", self.workers.len() + 1);
        let data = self.directory.join(&name).display().to_string();
        let mut args = vec![
            "--coordinator".into(),
            self.coordinator.address.clone(),
            "--data-dir".into(),
            data,
        ];
        args.extend(self.worker_options.iter().cloned());
        self.workers
            .push(Node::start(&name, args, self.logs.as_deref())?);
        Ok(())
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.coordinator.address)?)
    }

    pub fn coordinator(&self) -> &str {
        &self.coordinator.address
    }

    pub fn worker(&self, index: usize) -> &str {
        &self.workers[index].address
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn worker_directory(&self, index: usize) -> PathBuf {
        self.directory.join(&self.workers[index].name)
    }

    pub fn kill_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].kill()
    }

    pub fn restart_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].restart()
    }

    /// From its next start on no file of a worker may grow beyond this, as if its disk were full.
    pub fn limit_files_of_worker(&mut self, index: usize, bytes: Option<u64>) {
        self.workers[index].file_bytes_max = bytes;
    }

    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator.kill()
    }

    pub fn restart_coordinator(&mut self) -> Result<()> {
        self.coordinator.restart()
    }

    pub fn coordinator_process(&mut self) -> Result<&mut Process> {
        self.coordinator
            .process
            .as_mut()
            .context("the coordinator is not running")
    }

    /// What a killed worker, or the coordinator, is begun with again; it is ready a moment later.
    pub fn begin_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].begin()
    }

    pub fn begin_coordinator(&mut self) -> Result<()> {
        self.coordinator.begin()
    }

    /// Waits until every process that was begun is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.coordinator.wait_until_ready()?;
        self.workers.iter_mut().try_for_each(Node::wait_until_ready)
    }

    pub fn worker_process(&mut self, index: usize) -> Result<&mut Process> {
        self.workers[index]
            .process
            .as_mut()
            .context("the worker is not running")
    }
}

impl Node {
    fn start(program: &str, mut args: Vec<String>, logs: Option<&Path>) -> Result<Node> {
        let name = program.to_owned();
        // Workers are told apart by a number.
        let program = binary(program.trim_end_matches(|c: char| c.is_ascii_digit()))?;
        args.push("--listen".to_owned());
        let mut node = Node {
            log: logs.map(|logs| logs.join(format!("{name}.log"))),
            name,
            program,
            args,
            address: "http://127.0.0.1:0".to_owned(),
            file_bytes_max: None,
            process: None,
            beginning: false,
        };
        node.restart()?;
        Ok(node)
    }

    fn restart(&mut self) -> Result<()> {
        self.begin()?;
        self.wait_until_ready()
    }

    fn begin(&mut self) -> Result<()> {
        let listen = self.address.trim_start_matches("http://").to_owned();
        let mut program = self.program.clone();
        let mut args = [&self.args[..], &[listen]].concat();
        if let Some(bytes) = self.file_bytes_max {
            // The signal is ignored, so that what goes beyond is an error of the write.
            let limited = format!(
                "trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"",
                bytes / 512
            );
            let program = std::mem::replace(&mut program, "/bin/sh".into());
            args.splice(0..0, ["-c".into(), limited, program.display().to_string()]);
        }
        let log = self.log.as_deref();
        let process = Process::start_logging(&self.name, &program, &args, log)?;
        self.process = Some(process);
        self.beginning = true;
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        if let Some(process) = self.process.as_mut().filter(|_| self.beginning) {
            self.address = process.ready()?;
            self.beginning = false;
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the node is not running")?
            .kill()
    }
}

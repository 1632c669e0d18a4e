//! A cluster of real processes on loopback: coordinators and workers, each with its own directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use tempfile::TempDir;

use crate::process::{Process, binary};

#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// Removes the directory at the end, if it is nobody's.
    _temporary: Option<TempDir>,
    coordinators: Vec<Node>,
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
        Cluster::assemble(directory, Some(temporary), None, 1, workers, worker_options)
    }

    /// With a group of so many coordinators, which their options alone make one.
    pub fn start_group(coordinators: usize, workers: usize) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        Cluster::assemble(directory, Some(temporary), None, coordinators, workers, &[])
    }

    /// Coordinators only, each started with a list of its own of who its peers are.
    pub fn start_group_with(peers: &[&[usize]]) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        let mut cluster = Cluster::empty(directory, Some(temporary), None, &[]);
        cluster.start_coordinators(peers)?;
        Ok(cluster)
    }

    /// In a directory that stays, with a log file per process in `logs/`.
    pub fn start_in(directory: &Path, coordinators: usize, workers: usize) -> Result<Cluster> {
        let logs = directory.join("logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        Cluster::assemble(
            directory.to_owned(),
            None,
            Some(logs),
            coordinators,
            workers,
            &[],
        )
    }

    fn empty(
        directory: PathBuf,
        temporary: Option<TempDir>,
        logs: Option<PathBuf>,
        worker_options: &[&str],
    ) -> Cluster {
        Cluster {
            directory,
            _temporary: temporary,
            coordinators: Vec::new(),
            workers: Vec::new(),
            worker_options: worker_options.iter().map(|o| (*o).to_owned()).collect(),
            logs,
        }
    }

    fn assemble(
        directory: PathBuf,
        temporary: Option<TempDir>,
        logs: Option<PathBuf>,
        coordinators: usize,
        workers: usize,
        worker_options: &[&str],
    ) -> Result<Cluster> {
        let mut cluster = Cluster::empty(directory, temporary, logs, worker_options);
        if coordinators == 1 {
            cluster.start_coordinator(None, &[])?;
        } else {
            let all: Vec<usize> = (0..coordinators).collect();
            cluster.start_coordinators(&vec![&all[..]; coordinators])?;
        }
        for _ in 0..workers {
            cluster.add_worker()?;
        }
        Ok(cluster)
    }

    /// One coordinator for each list of those that it takes for its peers.
    fn start_coordinators(&mut self, peers: &[&[usize]]) -> Result<()> {
        let addresses = free_addresses(peers.len())?;
        for (address, peers) in addresses.iter().zip(peers) {
            let peers: Vec<String> = peers.iter().map(|peer| addresses[*peer].clone()).collect();
            self.start_coordinator(Some(address), &peers)?;
        }
        Ok(())
    }

    fn start_coordinator(&mut self, address: Option<&str>, peers: &[String]) -> Result<()> {
        let name = match self.coordinators.len() {
            0 => "coordinator".to_owned(),
            others => format!("coordinator{}", others + 1),
        };
        let data = self.directory.join(&name).display().to_string();
        let mut args = vec!["--data-dir".into(), data];
        if !peers.is_empty() {
            args.extend(["--peers".into(), peers.join(",")]);
        }
        let node = Node::start(&name, args, address, self.logs.as_deref())?;
        self.coordinators.push(node);
        Ok(())
    }

    /// Another coordinator, which waits to be added to the group.
    pub fn add_coordinator(&mut self) -> Result<()> {
        let peer = self.coordinator().to_owned();
        self.add_coordinator_with(&peer)
    }

    /// The same, by way of this member of the group.
    pub fn add_coordinator_with(&mut self, peer: &str) -> Result<()> {
        self.start_coordinator(None, &[peer.to_owned()])
    }

    pub fn add_worker(&mut self) -> Result<()> {
        let name = format!("worker{}", self.workers.len() + 1);
        let data = self.directory.join(&name).display().to_string();
        let mut args = vec![
            "--coordinator".into(),
            self.coordinator_addresses().join(","),
            "--data-dir".into(),
            data,
        ];
        args.extend(self.worker_options.iter().cloned());
        self.workers
            .push(Node::start(&name, args, None, self.logs.as_deref())?);
        Ok(())
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(self.coordinator())?)
    }

    /// The first one.
    pub fn coordinator(&self) -> &str {
        &self.coordinators[0].address
    }

    /// All that were ever started.
    pub fn coordinator_addresses(&self) -> Vec<String> {
        let coordinators = self.coordinators.iter();
        coordinators.map(|node| node.address.clone()).collect()
    }

    pub fn coordinator_directory(&self, index: usize) -> PathBuf {
        self.directory.join(&self.coordinators[index].name)
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

    /// Takes such a limit off a worker while it runs: its disk has room again.
    pub fn make_room_for_worker(&mut self, index: usize) -> Result<()> {
        self.limit_files_of_worker(index, None);
        let pid = self.worker_process(index)?.id().to_string();
        let status = Command::new("prlimit")
            .args(["--pid", &pid, "--fsize=unlimited"])
            .status()
            .context("cannot start prlimit")?;
        ensure!(status.success(), "prlimit ended with {status}");
        Ok(())
    }

    /// As for a worker.
    pub fn limit_files_of_coordinator(&mut self, bytes: Option<u64>) {
        self.coordinators[0].file_bytes_max = bytes;
    }

    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.kill_coordinator_at(0)
    }

    pub fn kill_coordinator_at(&mut self, index: usize) -> Result<()> {
        self.coordinators[index].kill()
    }

    pub fn restart_coordinator(&mut self) -> Result<()> {
        self.restart_coordinator_at(0)
    }

    pub fn restart_coordinator_at(&mut self, index: usize) -> Result<()> {
        self.coordinators[index].restart()
    }

    pub fn coordinator_process(&mut self) -> Result<&mut Process> {
        self.coordinators[0]
            .process
            .as_mut()
            .context("the coordinator is not running")
    }

    /// What a killed worker, or a coordinator, is begun with again; it is ready a moment later.
    pub fn begin_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].begin()
    }

    pub fn begin_coordinator(&mut self, index: usize) -> Result<()> {
        self.coordinators[index].begin()
    }

    /// Waits until every process that was begun is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let coordinators = &mut self.coordinators;
        coordinators
            .iter_mut()
            .try_for_each(Node::wait_until_ready)?;
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
    /// `address`: `None` takes any free one.
    fn start(
        program: &str,
        mut args: Vec<String>,
        address: Option<&str>,
        logs: Option<&Path>,
    ) -> Result<Node> {
        let name = program.to_owned();
        // Nodes are told apart by a number.
        let program = binary(program.trim_end_matches(|c: char| c.is_ascii_digit()))?;
        args.push("--listen".to_owned());
        let mut node = Node {
            log: logs.map(|logs| logs.join(format!("{name}.log"))),
            name,
            program,
            args,
            address: address.unwrap_or("http://127.0.0.1:0").to_owned(),
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
                "trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"",
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

/// Addresses nobody listens at. They have to be known before the processes that listen there are started.
fn free_addresses(count: usize) -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()?;
    let addresses = listeners.iter().map(|listener| {
        let address = listener.local_addr()?;
        Ok(format!("http://{address}"))
    });
    addresses.collect()
}

//! A cluster of real processes on loopback: one coordinator, some workers, each with its own directory.

use std::path::PathBuf;

use anyhow::{Context, Result};
use common::client::Client;
use tempfile::TempDir;

use crate::process::{Process, binary};

#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    coordinator: Node,
    workers: Vec<Node>,
    worker_options: Vec<String>,
}

/// A process and what it needs to come back as itself.
#[derive(Debug)]
struct Node {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    /// Chosen at the first start and kept, so that a node comes back where others look for it.
    address: String,
    process: Option<Process>,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub fn start(workers: usize) -> Result<Cluster> {
        Cluster::start_with(workers, &[])
    }

    /// `worker_options`: further flags for every worker.
    pub fn start_with(workers: usize, worker_options: &[&str]) -> Result<Cluster> {
        let directory = TempDir::new()?;
        let data = directory.path().join("coordinator").display().to_string();
        let coordinator = Node::start(
            "coordinator",
            binary("coordinator")?,
            vec!["--data-dir".into(), data],
        )?;
        let mut cluster = Cluster {
            directory,
            coordinator,
            workers: Vec::new(),
            worker_options: worker_options.iter().map(|o| (*o).to_owned()).collect(),
        };
        for _ in 0..workers {
            cluster.add_worker()?;
        }
        Ok(cluster)
    }

    pub fn add_worker(&mut self) -> Result<()> {
        let name = format!("worker{}", self.workers.len() + 1);
        let data = self.directory.path().join(&name).display().to_string();
        let mut args = vec![
            "--coordinator".into(),
            self.coordinator.address.clone(),
            "--data-dir".into(),
            data,
        ];
        args.extend(self.worker_options.iter().cloned());
        self.workers
            .push(Node::start(&name, binary("worker")?, args)?);
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
        self.directory.path().join(&self.workers[index].name)
    }

    pub fn kill_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].kill()
    }

    pub fn restart_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].restart()
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

    pub fn worker_process(&mut self, index: usize) -> Result<&mut Process> {
        self.workers[index]
            .process
            .as_mut()
            .context("the worker is not running")
    }
}

impl Node {
    fn start(name: &str, program: PathBuf, args: Vec<String>) -> Result<Node> {
        let mut node = Node {
            name: name.to_owned(),
            program,
            args,
            address: "http://127.0.0.1:0".to_owned(),
            process: None,
        };
        node.restart()?;
        Ok(node)
    }

    fn restart(&mut self) -> Result<()> {
        let listen = self.address.trim_start_matches("http://").to_owned();
        let mut args = self.args.clone();
        args.extend(["--listen".to_owned(), listen]);
        let mut process = Process::start(&self.name, &self.program, &args)?;
        self.address = process.ready()?;
        self.process = Some(process);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the node is not running")?
            .kill()
    }
}

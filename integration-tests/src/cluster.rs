//! A cluster of real processes on loopback: coordinators and workers, each with its own directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use tempfile::TempDir;

use crate::network::{Network, NodeIndex};
use crate::port::ReservedPort;
use crate::process::{Process, binary};

#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// Removes the directory at the end, if it is nobody's.
    _temporary: Option<TempDir>,
    coordinators: Vec<Node>,
    workers: Vec<Node>,
    worker_options: Vec<String>,
    coordinator_options: Vec<String>,
    /// What is added to the environment of every process.
    environment: Vec<(String, String)>,
    /// Where each process writes what it says about itself, instead of where the test does.
    logs: Option<PathBuf>,
    /// What is between the processes, if not loopback alone.
    network: Option<Arc<Network>>,
}

/// A process and what it needs to come back as itself.
#[derive(Debug)]
struct Node {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    /// Where others look for it. It stays its own while it is down.
    address: String,
    port: ReservedPort,
    /// If others find it elsewhere than where it listens: behind this network.
    behind: Option<Behind>,
    log: Option<PathBuf>,
    /// No file of it may grow beyond this, from its next start on.
    file_bytes_max: Option<u64>,
    process: Option<Process>,
    /// It was begun and has not said yet that it is ready.
    beginning: bool,
}

#[derive(Clone, Debug)]
struct Behind {
    network: Arc<Network>,
    index: NodeIndex,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub fn start(workers: usize) -> Result<Cluster> {
        Cluster::start_with(workers, &[])
    }

    /// `worker_options`: further flags for every worker.
    pub fn start_with(workers: usize, worker_options: &[&str]) -> Result<Cluster> {
        Cluster::start_told(workers, worker_options, &[])
    }

    /// `coordinator_options`: further flags for the coordinator.
    pub fn start_told(
        workers: usize,
        worker_options: &[&str],
        coordinator_options: &[&str],
    ) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        let mut cluster = Cluster::empty(directory, Some(temporary), worker_options);
        let options = coordinator_options.iter();
        cluster.coordinator_options = options.map(|option| (*option).to_owned()).collect();
        cluster.start_all(1, workers)?;
        Ok(cluster)
    }

    /// With this added to the environment of every process.
    pub fn start_in_environment(workers: usize, environment: &[(&str, &str)]) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        let mut cluster = Cluster::empty(directory, Some(temporary), &[]);
        let added = environment.iter();
        let added = added.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        cluster.environment = added.collect();
        cluster.start_all(1, workers)?;
        Ok(cluster)
    }

    /// With a group of so many coordinators, which their options alone make one.
    pub fn start_group(coordinators: usize, workers: usize) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        let mut cluster = Cluster::empty(directory, Some(temporary), &[]);
        cluster.start_all(coordinators, workers)?;
        Ok(cluster)
    }

    /// Coordinators only, each started with a list of its own of who its peers are.
    pub fn start_group_with(peers: &[&[usize]]) -> Result<Cluster> {
        let temporary = TempDir::new()?;
        let directory = temporary.path().to_owned();
        let mut cluster = Cluster::empty(directory, Some(temporary), &[]);
        cluster.start_coordinators(peers)?;
        Ok(cluster)
    }

    /// In a directory that stays, with a log file per process in `logs/`, behind a network: coordinators are its
    /// first nodes, workers the ones after.
    pub fn start_in(
        directory: &Path,
        coordinators: usize,
        workers: usize,
        network: &Arc<Network>,
    ) -> Result<Cluster> {
        let logs = directory.join("logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        let mut cluster = Cluster::empty(directory.to_owned(), None, &[]);
        cluster.logs = Some(logs);
        cluster.network = Some(Arc::clone(network));
        cluster.start_all(coordinators, workers)?;
        Ok(cluster)
    }

    fn empty(directory: PathBuf, temporary: Option<TempDir>, worker_options: &[&str]) -> Cluster {
        Cluster {
            directory,
            _temporary: temporary,
            coordinators: Vec::new(),
            workers: Vec::new(),
            worker_options: worker_options.iter().map(|o| (*o).to_owned()).collect(),
            coordinator_options: Vec::new(),
            environment: Vec::new(),
            logs: None,
            network: None,
        }
    }

    fn start_all(&mut self, coordinators: usize, workers: usize) -> Result<()> {
        if coordinators == 1 {
            let place = self.place()?;
            self.start_coordinator(place, &[])?;
        } else {
            let all: Vec<usize> = (0..coordinators).collect();
            self.start_coordinators(&vec![&all[..]; coordinators])?;
        }
        for _ in 0..workers {
            self.add_worker()?;
        }
        Ok(())
    }

    /// Where a node is to be.
    fn place(&self) -> Result<Place> {
        let port = ReservedPort::any()?;
        let Some(network) = &self.network else {
            return Ok(Place {
                address: format!("http://{}", port.address()),
                port,
                behind: None,
            });
        };
        let (index, address) = network.add(port.address())?;
        let network = Arc::clone(network);
        Ok(Place {
            address,
            port,
            behind: Some(Behind { network, index }),
        })
    }

    /// One coordinator for each list of those that it takes for its peers.
    fn start_coordinators(&mut self, peers: &[&[usize]]) -> Result<()> {
        // They are known to each other before they start.
        let places = peers.iter().map(|_| self.place());
        let places: Vec<Place> = places.collect::<Result<_>>()?;
        let addresses: Vec<String> = places.iter().map(|place| place.address.clone()).collect();
        for (place, peers) in places.into_iter().zip(peers) {
            let peers: Vec<String> = peers.iter().map(|peer| addresses[*peer].clone()).collect();
            self.start_coordinator(place, &peers)?;
        }
        Ok(())
    }

    fn start_coordinator(&mut self, place: Place, peers: &[String]) -> Result<()> {
        let name = match self.coordinators.len() {
            0 => "coordinator".to_owned(),
            others => format!("coordinator{}", others + 1),
        };
        let data = self.directory.join(&name).display().to_string();
        let mut args = vec!["--data-dir".into(), data];
        if !peers.is_empty() {
            args.extend(["--peers".into(), peers.join(",")]);
        }
        args.extend(self.coordinator_options.iter().cloned());
        let environment = self.environment.clone();
        let node = Node::start(&name, args, environment, place, self.logs.as_deref())?;
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
        let place = self.place()?;
        self.start_coordinator(place, &[peer.to_owned()])
    }

    pub fn add_worker(&mut self) -> Result<()> {
        self.add_worker_with(&[])
    }

    /// `options`: further flags for this one.
    pub fn add_worker_with(&mut self, options: &[&str]) -> Result<()> {
        let name = format!("worker{}", self.workers.len() + 1);
        let data = self.directory.join(&name).display().to_string();
        let mut args = vec![
            "--coordinator".into(),
            self.coordinator_addresses().join(","),
            "--data-dir".into(),
            data,
        ];
        args.extend(self.worker_options.iter().cloned());
        args.extend(options.iter().map(|option| (*option).to_owned()));
        let place = self.place()?;
        let environment = self.environment.clone();
        let node = Node::start(&name, args, environment, place, self.logs.as_deref())?;
        self.workers.push(node);
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
        self.workers[index].limit_files_now("unlimited")
    }

    /// From now on a worker that was started behind a network can write nothing, until room is made for it.
    pub fn fill_disk_of_worker(&mut self, index: usize) -> Result<()> {
        self.workers[index].limit_files_now("0")
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

    pub fn coordinator_process(&mut self, index: usize) -> Result<&mut Process> {
        self.coordinators[index]
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
    fn start(
        program: &str,
        mut args: Vec<String>,
        environment: Vec<(String, String)>,
        place: Place,
        logs: Option<&Path>,
    ) -> Result<Node> {
        let name = program.to_owned();
        // Nodes are told apart by a number.
        let program = binary(program.trim_end_matches(|c: char| c.is_ascii_digit()))?;
        if place.behind.is_some() {
            args.extend(["--advertise".to_owned(), place.address.clone()]);
        }
        args.push("--listen".to_owned());
        let mut node = Node {
            log: logs.map(|logs| logs.join(format!("{name}.log"))),
            name,
            program,
            args,
            environment,
            address: place.address,
            port: place.port,
            behind: place.behind,
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
        let listen = self.port.address().to_string();
        let mut program = self.program.clone();
        let mut args = [&self.args[..], &[listen]].concat();
        if self.file_bytes_max.is_some() || self.behind.is_some() {
            let blocks = self.file_bytes_max.map(|bytes| (bytes / 512).to_string());
            // The signal is ignored, so that what goes beyond is an error of the write.
            let limited = format!(
                "trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"",
                blocks.as_deref().unwrap_or("unlimited")
            );
            let program = std::mem::replace(&mut program, "/bin/sh".into());
            args.splice(0..0, ["-c".into(), limited, program.display().to_string()]);
        }
        let log = self.log.as_deref();
        let process = Process::start_logging(&self.name, &program, &args, &self.environment, log)?;
        if let Some(Behind { network, index, .. }) = &self.behind {
            network.up(*index)?;
        }
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

    fn limit_files_now(&self, limit: &str) -> Result<()> {
        let process = self.process.as_ref().context("the node is not running")?;
        let status = Command::new("prlimit")
            .args(["--pid", &process.id().to_string()])
            .arg(format!("--fsize={limit}:"))
            .status()
            .context("cannot start prlimit")?;
        ensure!(status.success(), "prlimit ended with {status}");
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the node is not running")?;
        process.kill()?;
        match &self.behind {
            Some(Behind { network, index, .. }) => network.down(*index),
            None => Ok(()),
        }
    }
}

/// Where a node is.
#[derive(Debug)]
struct Place {
    /// Where others find it.
    address: String,
    port: ReservedPort,
    behind: Option<Behind>,
}

//! What befalls processes short of death: they are stopped for a while, cut off, slowed, or their disk is full.
//!
//! Each kind comes from a shuffled deck, so that each has its share, and is over before the next strike.

use std::time::Duration;

use anyhow::Result;
use common::random::{Random, below, shuffle};

use super::killer::Victim;
use crate::cluster::Cluster;
use crate::network::{Fault, Faults, Network, links_of};

/// A slow link delays each piece at most so long.
const SLOWEST_MS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Long enough to be given up, as if nothing had happened afterwards.
    WorkerStops,
    CoordinatorStops,
    /// A node and all others hear nothing of each other.
    NodeIsCutOff,
    /// A node does not hear another one, which hears it.
    LinkIsCutOneWay,
    /// Whatever a node sends or is sent takes longer.
    NodeIsSlow,
    /// A worker can write nothing.
    DiskIsFull,
}

impl Trouble {
    pub const ALL: [Trouble; 6] = [
        Trouble::WorkerStops,
        Trouble::CoordinatorStops,
        Trouble::NodeIsCutOff,
        Trouble::LinkIsCutOneWay,
        Trouble::NodeIsSlow,
        Trouble::DiskIsFull,
    ];

    /// What a summary calls it.
    pub fn name(self) -> &'static str {
        match self {
            Trouble::WorkerStops => "workers were stopped for a while",
            Trouble::CoordinatorStops => "coordinators were stopped for a while",
            Trouble::NodeIsCutOff => "nodes were cut off",
            Trouble::LinkIsCutOneWay => "links were cut in one direction",
            Trouble::NodeIsSlow => "nodes were slowed",
            Trouble::DiskIsFull => "disks were full",
        }
    }
}

/// A trouble and whom it befalls.
#[derive(Debug)]
pub(super) enum Occurrence {
    Stops(Victim),
    Links(Faults),
    DiskIsFull(usize),
}

/// What befalls whom next. Coordinators are the first nodes of the network.
#[derive(Debug)]
pub(super) struct Troubles {
    deck: Vec<Trouble>,
    coordinators: usize,
    workers: usize,
}

impl Troubles {
    pub(super) fn new(coordinators: usize, workers: usize) -> Troubles {
        Troubles {
            deck: Vec::new(),
            coordinators,
            workers,
        }
    }

    pub(super) fn next(&mut self, random: &mut Random) -> (Trouble, Occurrence) {
        if self.deck.is_empty() {
            self.deck = Trouble::ALL.to_vec();
            shuffle(random, &mut self.deck);
        }
        let trouble = self.deck.pop().expect("it has just been filled");
        let nodes = self.coordinators + self.workers;
        let mut one_of = |count: usize| {
            let chosen = below(random, count as u64);
            usize::try_from(chosen).expect("there are few nodes")
        };
        let occurrence = match trouble {
            Trouble::WorkerStops => Occurrence::Stops(Victim::Worker(one_of(self.workers))),
            Trouble::CoordinatorStops => {
                Occurrence::Stops(Victim::Coordinator(one_of(self.coordinators)))
            }
            Trouble::NodeIsCutOff => Occurrence::Links(links_of(one_of(nodes), nodes, Fault::Cut)),
            Trouble::LinkIsCutOneWay => {
                let from = one_of(nodes);
                let to = (from + 1 + one_of(nodes - 1)) % nodes;
                Occurrence::Links([((from, to), Fault::Cut)].into())
            }
            Trouble::NodeIsSlow => {
                let node = one_of(nodes);
                let delay = Duration::from_millis(1 + below(random, SLOWEST_MS));
                Occurrence::Links(links_of(node, nodes, Fault::Slow(delay)))
            }
            Trouble::DiskIsFull => Occurrence::DiskIsFull(one_of(self.workers)),
        };
        (trouble, occurrence)
    }
}

impl Occurrence {
    pub(super) fn begin(&self, cluster: &mut Cluster, network: &Network) -> Result<()> {
        match self {
            Occurrence::Stops(victim) => signal(cluster, *victim, "STOP"),
            Occurrence::Links(faults) => {
                network.set(faults.clone());
                Ok(())
            }
            Occurrence::DiskIsFull(worker) => cluster.fill_disk_of_worker(*worker),
        }
    }

    pub(super) fn end(&self, cluster: &mut Cluster, network: &Network) -> Result<()> {
        match self {
            Occurrence::Stops(victim) => signal(cluster, *victim, "CONT"),
            Occurrence::Links(_) => {
                network.set(Faults::new());
                Ok(())
            }
            Occurrence::DiskIsFull(worker) => cluster.make_room_for_worker(*worker),
        }
    }
}

fn signal(cluster: &mut Cluster, victim: Victim, signal: &str) -> Result<()> {
    let process = match victim {
        Victim::Coordinator(index) => cluster.coordinator_process(index)?,
        Victim::Worker(index) => cluster.worker_process(index)?,
    };
    process.signal(signal)
}

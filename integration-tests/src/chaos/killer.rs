//! Kills processes with SIGKILL at random moments and starts them again with the same directories.
//!
//! Now and then something else befalls the cluster instead (`troubles.rs`); and now and then a worker loses its disk with its life. Whose turn it is comes from a shuffled deck, so that
//! each has its share. Mostly the next kill waits until the cluster has got on since the last one; sometimes it
//! does not, and hits a recovery.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use common::random::{Random, below, seeded, shuffle};
use common::time::{Clock, Span, SystemClock, Tick};

use super::losses;
use super::nodes::Nodes;
use super::progress::Progress;
use super::troubles::{Trouble, Troubles};
use crate::cluster::Cluster;
use crate::network::Network;

const LOOK: Duration = Duration::from_millis(10);
/// A cluster that does not get on within this after a kill, with everything running, is broken.
const STUCK_AFTER: Span = Span::from_secs(90);
/// How long a killed process stays away at most.
const LONGEST_ABSENCE_MS: u64 = 1_500;
/// How long a trouble lasts at most: longer than a worker's session.
const LONGEST_TROUBLE_MS: u64 = 6_000;
/// One strike in so many is a trouble.
const TROUBLE_EVERY: u64 = 3;
/// A moment with events under way is waited for this long: there is nearly always one.
const IN_FLIGHT_WITHIN: Span = Span::from_secs(1);
/// Each process is killed at least so often while events are in flight.
pub const KILLS_OF_EACH: usize = 2;
/// Every so many times a worker loses its disk.
const DISK_LOST_EVERY: usize = 5;

/// A process, by its number from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Coordinator(usize),
    Worker(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Kill {
    pub victim: Victim,
    /// Since the last kill events had been acknowledged and records had come out, and at the moment of
    /// this one events were under way.
    pub in_flight: bool,
}

#[derive(Debug)]
pub struct Killer {
    random: Random,
    clock: Arc<dyn Clock>,
    progress: Arc<Progress>,
    nodes: Nodes,
    network: Arc<Network>,
    interval: Span,
    troubles: Troubles,
    deck: Vec<Victim>,
    coordinators: usize,
    workers: usize,
    /// What had been acknowledged and had come out at the last kill.
    last: (u64, u64),
    pub kills: Vec<Kill>,
    /// How often each trouble came while events were under way.
    pub troubled: BTreeMap<Trouble, usize>,
    /// Workers that lost their disks.
    pub losses: usize,
    strikes: usize,
}

impl Killer {
    /// `processes`: so many coordinators, and so many workers.
    pub fn new(
        seed: u64,
        processes: (usize, usize),
        interval: Span,
        progress: Arc<Progress>,
        nodes: Nodes,
        network: Arc<Network>,
    ) -> Killer {
        Killer {
            random: seeded(seed, 4_000),
            clock: SystemClock::shared(),
            progress,
            nodes,
            network,
            interval,
            troubles: Troubles::new(processes.0, processes.1),
            deck: Vec::new(),
            coordinators: processes.0,
            workers: processes.1,
            last: (0, 0),
            kills: Vec::new(),
            troubled: BTreeMap::new(),
            losses: 0,
            strikes: 0,
        }
    }

    /// Each process was killed often enough with events in flight, each trouble came, and a disk was lost.
    pub fn has_struck_everyone(&self) -> bool {
        self.has_killed_everyone() && self.has_troubled() && self.losses > 0
    }

    fn has_troubled(&self) -> bool {
        self.troubled.len() == Trouble::ALL.len()
    }

    fn has_killed_everyone(&self) -> bool {
        let struck = |victim: Victim| {
            let kills = self.kills.iter();
            let kills = kills.filter(|kill| kill.victim == victim && kill.in_flight);
            kills.count() >= KILLS_OF_EACH
        };
        everyone(self.coordinators, self.workers).all(struck)
    }

    pub fn now(&self) -> Tick {
        self.clock.tick()
    }

    /// Waits for the moment, kills one process or several, and starts them again. `watch` fails when the
    /// run has failed elsewhere.
    pub async fn strike(
        &mut self,
        cluster: &mut Cluster,
        watch: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let pause = self.interval.0 / 2 + below(&mut self.random, self.interval.0);
        self.wait(Span(pause), watch).await?;
        if below(&mut self.random, 4) > 0 {
            self.wait_until_it_got_on(watch).await?;
        }
        self.strikes += 1;
        if self.strikes.is_multiple_of(DISK_LOST_EVERY)
            && losses::wait_until_whole(&self.nodes, &mut self.random).await
        {
            return self.lose_disk(cluster, watch).await;
        }
        let lacks_trouble = self.has_killed_everyone() && !self.has_troubled();
        if below(&mut self.random, TROUBLE_EVERY) == 0 || lacks_trouble {
            return self.trouble(cluster, watch).await;
        }
        self.kill_some(cluster, watch).await
    }

    async fn kill_some(
        &mut self,
        cluster: &mut Cluster,
        watch: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut victims = self.victims();
        let got_on = self.got_on();
        let under_way = got_on && self.wait_for_events_under_way().await;
        let (_, acknowledged, came_out) = self.progress.read();
        for victim in &victims {
            match victim {
                Victim::Coordinator(index) => cluster.kill_coordinator_at(*index)?,
                Victim::Worker(index) => cluster.kill_worker(*index)?,
            }
            self.kills.push(Kill {
                victim: *victim,
                in_flight: under_way,
            });
        }
        self.last = (acknowledged, came_out);
        let absence = below(&mut self.random, LONGEST_ABSENCE_MS);
        self.wait(Span(absence), watch).await?;
        shuffle(&mut self.random, &mut victims);
        for victim in victims {
            match victim {
                Victim::Coordinator(index) => cluster.begin_coordinator(index)?,
                Victim::Worker(index) => cluster.begin_worker(index)?,
            }
        }
        cluster.wait_until_ready()
    }

    /// A worker that never comes back; another one takes its place, with an empty disk.
    async fn lose_disk(
        &mut self,
        cluster: &mut Cluster,
        watch: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let chosen = below(&mut self.random, self.workers as u64);
        let index = usize::try_from(chosen)?;
        let under_way = self.got_on() && self.wait_for_events_under_way().await;
        let (_, acknowledged, came_out) = self.progress.read();
        cluster.kill_worker(index)?;
        std::fs::remove_dir_all(cluster.worker_directory(index))?;
        self.kills.push(Kill {
            victim: Victim::Worker(index),
            in_flight: under_way,
        });
        self.losses += 1;
        self.last = (acknowledged, came_out);
        let absence = below(&mut self.random, LONGEST_ABSENCE_MS);
        self.wait(Span(absence), watch).await?;
        cluster.begin_worker(index)?;
        cluster.wait_until_ready()?;
        losses::replace_replicas(&self.nodes, &mut self.random).await
    }

    async fn trouble(
        &mut self,
        cluster: &mut Cluster,
        watch: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        self.wait_until_it_got_on(watch).await?;
        let (trouble, occurrence) = self.troubles.next(&mut self.random);
        if self.got_on() && self.wait_for_events_under_way().await {
            *self.troubled.entry(trouble).or_default() += 1;
        }
        occurrence.begin(cluster, &self.network)?;
        let lasts = below(&mut self.random, LONGEST_TROUBLE_MS);
        let watched = self.wait(Span(lasts), watch).await;
        occurrence.end(cluster, &self.network)?;
        let (_, acknowledged, came_out) = self.progress.read();
        self.last = (acknowledged, came_out);
        watched
    }

    /// Mostly one, sometimes two, rarely everyone.
    fn victims(&mut self) -> Vec<Victim> {
        let count = match below(&mut self.random, 12) {
            0 => self.workers + self.coordinators,
            1 | 2 => 2,
            _ => 1,
        };
        let mut victims = Vec::new();
        while victims.len() < count {
            if self.deck.is_empty() {
                self.deck = everyone(self.coordinators, self.workers).collect();
                shuffle(&mut self.random, &mut self.deck);
            }
            let next = self.deck.pop().filter(|next| !victims.contains(next));
            victims.extend(next);
        }
        victims
    }

    fn got_on(&self) -> bool {
        let (_, acknowledged, came_out) = self.progress.read();
        acknowledged > self.last.0 && came_out > self.last.1
    }

    async fn wait_until_it_got_on(&self, watch: &mut impl FnMut() -> Result<()>) -> Result<()> {
        let since = self.now();
        while !self.got_on() {
            if self.now().since(since) > STUCK_AFTER {
                let (under_way, acknowledged, came_out) = self.progress.read();
                bail!(
                    "nothing goes on although everything runs: {under_way} events are under way, \
                     {acknowledged} were acknowledged and {came_out} records came out; \
                     at the last kill it was {:?}",
                    self.last
                );
            }
            watch()?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn wait_for_events_under_way(&self) -> bool {
        let since = self.now();
        while self.progress.read().0 == 0 {
            if self.now().since(since) > IN_FLIGHT_WITHIN {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    async fn wait(&self, span: Span, watch: &mut impl FnMut() -> Result<()>) -> Result<()> {
        let since = self.now();
        while self.now().since(since) < span {
            watch()?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

pub fn everyone(coordinators: usize, workers: usize) -> impl Iterator<Item = Victim> {
    let workers = (0..workers).map(Victim::Worker);
    workers.chain((0..coordinators).map(Victim::Coordinator))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_its_share_of_the_kills() {
        for seed in 0..20 {
            let mut killer = Killer::new(
                seed,
                (3, 3),
                Span(1),
                Arc::default(),
                Nodes::new(&[]).unwrap(),
                Network::start().unwrap(),
            );
            let mut counts = [0; 6];
            for _ in 0..24 {
                for victim in killer.victims() {
                    let index = match victim {
                        Victim::Coordinator(index) => 3 + index,
                        Victim::Worker(index) => index,
                    };
                    counts[index] += 1;
                }
            }
            assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
        }
    }
}

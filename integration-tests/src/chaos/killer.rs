//! Kills processes with SIGKILL at random moments and starts them again with the same directories.
//!
//! Now and then a worker is stopped for a while instead, long enough to be given up, and goes on as if
//! nothing had happened; and now and then one loses its disk with its life. Whose turn it is comes from a shuffled deck, so that each has its share. Mostly the next kill waits
//! until the cluster has got on since the last one; sometimes it does not, and hits a recovery.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use common::random::{Random, below, seeded};
use common::time::{Clock, Span, SystemClock, Tick};

use super::losses;
use super::nodes::Nodes;
use super::progress::Progress;
use crate::cluster::Cluster;

const LOOK: Duration = Duration::from_millis(10);
/// A cluster that does not get on within this after a kill, with everything running, is broken.
const STUCK_AFTER: Span = Span::from_secs(90);
/// How long a killed process stays away at most.
const LONGEST_ABSENCE_MS: u64 = 1_500;
/// How long a worker is stopped at most: longer than its session lasts.
const LONGEST_PAUSE_MS: u64 = 6_000;
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
    interval: Span,
    deck: Vec<Victim>,
    coordinators: usize,
    workers: usize,
    /// What had been acknowledged and had come out at the last kill.
    last: (u64, u64),
    pub kills: Vec<Kill>,
    pub pauses: usize,
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
    ) -> Killer {
        Killer {
            random: seeded(seed, 4_000),
            clock: SystemClock::shared(),
            progress,
            nodes,
            interval,
            deck: Vec::new(),
            coordinators: processes.0,
            workers: processes.1,
            last: (0, 0),
            kills: Vec::new(),
            pauses: 0,
            losses: 0,
            strikes: 0,
        }
    }

    /// Each process was killed often enough with events in flight, and a disk was lost.
    pub fn has_struck_everyone(&self) -> bool {
        let struck = |victim: Victim| {
            let kills = self.kills.iter();
            let kills = kills.filter(|kill| kill.victim == victim && kill.in_flight);
            kills.count() >= KILLS_OF_EACH
        };
        self.losses > 0 && everyone(self.coordinators, self.workers).all(struck)
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
        if below(&mut self.random, 6) == 0 {
            return self.pause(cluster, watch).await;
        }
        let victims = self.victims();
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
        for victim in self.shuffled(victims) {
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

    /// A worker that others give up while it believes that it is still who it was.
    async fn pause(
        &mut self,
        cluster: &mut Cluster,
        watch: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let chosen = below(&mut self.random, self.workers as u64);
        let process = cluster.worker_process(usize::try_from(chosen)?)?;
        process.signal("STOP")?;
        let pause = below(&mut self.random, LONGEST_PAUSE_MS);
        let watched = self.wait(Span(pause), watch).await;
        process.signal("CONT")?;
        let (_, acknowledged, came_out) = self.progress.read();
        self.last = (acknowledged, came_out);
        self.pauses += 1;
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
                let all = everyone(self.coordinators, self.workers);
                self.deck = self.shuffled(all.collect());
            }
            let next = self.deck.pop().filter(|next| !victims.contains(next));
            victims.extend(next);
        }
        victims
    }

    fn shuffled(&mut self, mut victims: Vec<Victim>) -> Vec<Victim> {
        for last in (1..victims.len()).rev() {
            let other = below(&mut self.random, last as u64 + 1);
            victims.swap(
                last,
                usize::try_from(other).expect("there are few processes"),
            );
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

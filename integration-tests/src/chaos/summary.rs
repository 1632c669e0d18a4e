//! What a run did, and whether that was enough to mean anything.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

use super::killer::{KILLS_OF_EACH, Kill, Victim, everyone};
use super::producers::Sent;
use super::state_check::Checked;
use super::troubles::Trouble;
use super::verify::Verified;

/// Epochs that are completed, over both jobs those of the one that has fewer.
const EPOCHS: usize = 20;
/// Changes of a job's parallelism.
pub const RESCALED: u64 = 2;
/// Readings of each operator's state that are compared.
const READINGS: u64 = 5;

#[derive(Debug)]
pub struct Summary {
    pub seed: u64,
    pub coordinators: usize,
    pub workers: usize,
    pub kills: Vec<Kill>,
    pub troubled: BTreeMap<Trouble, usize>,
    pub losses: usize,
    /// Changes of a job's parallelism that came about, and that did not in time.
    pub rescaled: u64,
    pub overtaken: u64,
    pub checked: Checked,
    pub sent: Sent,
    pub verified: Verified,
    /// Replicas of partitions that were compared with each other.
    pub replicas: usize,
}

impl Summary {
    /// A run that was too quiet has shown nothing.
    pub fn require(&self, least_records: u64) -> Result<()> {
        for (victim, (_, in_flight)) in self.kills_of_each() {
            ensure!(
                in_flight >= KILLS_OF_EACH,
                "too quiet: {victim} was killed {in_flight} times while events were in flight, not {KILLS_OF_EACH}"
            );
        }
        ensure!(self.losses > 0, "too quiet: no worker lost its disk");
        for trouble in Trouble::ALL {
            ensure!(
                self.troubled.contains_key(&trouble),
                "too quiet: it never was that {} with events in flight",
                trouble.name()
            );
        }
        ensure!(
            self.rescaled >= RESCALED,
            "too quiet: jobs were rescaled {} times, not {RESCALED}",
            self.rescaled
        );
        for (job, epochs) in &self.checked.epochs {
            let completed = epochs.completed.len();
            ensure!(
                completed >= EPOCHS,
                "too quiet: {completed} epochs of job {job} were completed, not {EPOCHS}"
            );
            ensure!(
                epochs.restores() > 0,
                "too quiet: no generation of job {job} began from a completed epoch"
            );
        }
        ensure!(
            self.checked.epochs.len() == super::jobs::JOBS.len(),
            "too quiet: no epoch of a job was seen"
        );
        let Checked {
            totals, windows, ..
        } = self.checked;
        ensure!(
            totals.min(windows) >= READINGS,
            "too quiet: state was compared {totals} and {windows} times, not {READINGS}"
        );
        ensure!(
            self.verified.records_out >= least_records,
            "too quiet: {} records came out, not {least_records}",
            self.verified.records_out
        );
        Ok(())
    }

    /// How often each process was killed, and how often while events were in flight.
    fn kills_of_each(&self) -> BTreeMap<String, (usize, usize)> {
        let everyone = everyone(self.coordinators, self.workers);
        let count = |victim: Victim| {
            let kills = self.kills.iter().filter(move |kill| kill.victim == victim);
            let in_flight = kills.clone().filter(|kill| kill.in_flight).count();
            (victim.to_string(), (kills.count(), in_flight))
        };
        everyone.map(count).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for (victim, (kills, in_flight)) in self.kills_of_each() {
            writeln!(
                f,
                "  {victim}: killed {kills} times, {in_flight} with events in flight"
            )?;
        }
        for (trouble, times) in &self.troubled {
            writeln!(
                f,
                "  {} {times} times, with events in flight",
                trouble.name()
            )?;
        }
        writeln!(f, "  workers lost their disks {} times", self.losses)?;
        writeln!(
            f,
            "  jobs were rescaled {} times, and {} times that took too long",
            self.rescaled, self.overtaken
        )?;
        for (job, epochs) in &self.checked.epochs {
            writeln!(
                f,
                "  job {job}: {} epochs completed were seen, {} restores from one",
                epochs.completed.len(),
                epochs.restores()
            )?;
        }
        let Checked {
            totals,
            windows,
            missed,
            ..
        } = self.checked;
        writeln!(
            f,
            "  state compared: {totals} times totals, {windows} times windows; {missed} readings had no answer"
        )?;
        writeln!(
            f,
            "  {} replicas have the same bytes as their leaders",
            self.replicas
        )?;
        write!(
            f,
            "  {} events in ({} requests of {} sent again), {} records out, all as they had to be",
            self.verified.events_in,
            self.sent.repeated,
            self.sent.acknowledged.len(),
            self.verified.records_out
        )
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Coordinator(index) => write!(f, "coordinator{}", index + 1),
            Victim::Worker(index) => write!(f, "worker{}", index + 1),
        }
    }
}

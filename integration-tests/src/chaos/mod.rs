//! Real processes under SIGKILL and other troubles: what comes out is what an oracle says, or the run fails.
//!
//! Three coordinators, or one, and some workers run two jobs on a stream that producers send all the while. Processes
//! are killed and started again, some of them without their disks; others are stopped for a while, cut off, slowed,
//! or can write nothing. The jobs are rescaled meanwhile. State is read at completed epochs; committed output is followed. At the end the stream
//! stops, the jobs drain, input, output and state are compared with a computation of their own, and replicas with each
//! other. A run in which too little happened fails as well.

pub mod stream;
pub mod jobs;
pub mod progress;
pub mod nodes;
pub mod producers;
pub mod killer;
mod losses;
pub mod troubles;
pub mod reader;
pub mod follower;
pub mod oracle;
pub mod state_check;
pub mod rescaler;
pub mod verify;
mod replicas;
pub mod summary;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use common::time::{Span, SystemClock};

use self::killer::Killer;
use self::nodes::Nodes;
use self::progress::Progress;
use self::summary::Summary;
use crate::cluster::Cluster;
use crate::network::Network;

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// One, or a group of three.
    pub coordinators: usize,
    /// At least three: topics have as many copies.
    pub workers: usize,
    /// For so long processes are killed.
    pub duration: Span,
    /// Between two kills, on average.
    pub interval: Span,
    pub events_per_second: u64,
    /// Where data and logs go. They stay.
    pub directory: PathBuf,
}

/// `MILLSTREAM_SEED`, to repeat a run; else a new one.
pub fn seed() -> Result<u64> {
    match std::env::var("MILLSTREAM_SEED") {
        Ok(seed) => seed.parse().context("MILLSTREAM_SEED is a number"),
        Err(_) => Ok(SystemClock::shared().wall().0.cast_unsigned()),
    }
}

/// Runs to the end. What it answers has been verified, but may still have been too quiet.
pub fn run(options: &Options) -> Result<Summary> {
    let network = Network::start()?;
    let mut cluster = Cluster::start_in(
        &options.directory,
        options.coordinators,
        options.workers,
        &network,
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run_on(options, &mut cluster, &network));
    outcome.with_context(|| {
        format!(
            "seed {}; logs and data are in {}",
            options.seed,
            options.directory.display()
        )
    })
}

async fn run_on(
    options: &Options,
    cluster: &mut Cluster,
    network: &Arc<Network>,
) -> Result<Summary> {
    let seed = options.seed;
    let mut addresses = cluster.coordinator_addresses();
    addresses.extend((0..options.workers).map(|worker| cluster.worker(worker).to_owned()));
    jobs::deploy(seed, &addresses).await?;

    let progress = Arc::new(Progress::default());
    let producers = Part::start("producers", {
        let (addresses, progress) = (addresses.clone(), Arc::clone(&progress));
        let rate = options.events_per_second;
        move || producers::produce(seed, rate, &addresses, &progress)
    });
    let follower = Part::start("follower", {
        let (addresses, progress) = (addresses.clone(), Arc::clone(&progress));
        move || follower::follow(seed, &addresses, &progress)
    });
    let checker = Part::start("state check", {
        let (addresses, progress) = (addresses.clone(), Arc::clone(&progress));
        move || state_check::check(seed, &addresses, &progress)
    });

    let rescaler = Part::start("rescaler", {
        let (addresses, progress) = (addresses.clone(), Arc::clone(&progress));
        move || rescaler::rescale(seed, &addresses, &progress)
    });

    let mut killer = Killer::new(
        seed,
        (options.coordinators, options.workers),
        options.interval,
        Arc::clone(&progress),
        Nodes::new(&addresses)?,
        Arc::clone(network),
    );
    let outcome = async {
        let begin = killer.now();
        // Whoever ends before it should has failed.
        let mut watch = || {
            let parts = producers.check().and(follower.check());
            parts.and(checker.check()).and(rescaler.check())
        };
        // On a machine that is busy with something else it takes longer until each has had its share.
        let longest = Span(options.duration.0 * 3);
        let goes_on = |killer: &Killer, ran: Span| {
            let enough = killer.has_struck_everyone() && progress.rescaled() >= summary::RESCALED;
            ran < options.duration || (ran < longest && !enough)
        };
        while goes_on(&killer, killer.now().since(begin)) {
            killer.strike(cluster, &mut watch).await?;
        }
        progress.end_input();
        while !producers.has_ended() || !rescaler.has_ended() {
            follower.check().and(checker.check())?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        verify::drain(seed, &addresses).await
    }
    .await;
    progress.end();
    // What a part says of its end explains more than what was seen of it from here.
    let (sent, followed, checked) = (producers.join(), follower.join(), checker.join());
    let overtaken = rescaler.join();
    let (sent, followed, checked, overtaken) = (sent?, followed?, checked?, overtaken?);
    outcome?;
    let verified = verify::verify(seed, &addresses, &sent, &followed).await?;
    let replicas = replicas::compare(seed, &addresses, cluster).await?;
    Ok(Summary {
        seed,
        coordinators: options.coordinators,
        workers: options.workers,
        kills: killer.kills,
        troubled: killer.troubled,
        losses: killer.losses,
        rescaled: progress.rescaled(),
        overtaken,
        checked,
        sent,
        verified,
        replicas,
    })
}

/// A part of a run with a thread of its own.
struct Part<T> {
    name: &'static str,
    thread: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Part<T> {
    fn start(name: &'static str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Part<T> {
        Part {
            name,
            thread: std::thread::spawn(work),
        }
    }

    fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    fn check(&self) -> Result<()> {
        match self.has_ended() {
            true => Err(anyhow!("the {} ended before the run", self.name)),
            false => Ok(()),
        }
    }

    fn join(self) -> Result<T> {
        let name = self.name;
        let ended = self.thread.join();
        ended
            .map_err(|_| anyhow!("the {name} panicked"))?
            .with_context(|| name.to_owned())
    }
}

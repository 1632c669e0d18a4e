//! What becomes of a worker that is offered five times what it can do.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench spike`
//!
//! First the rate that it keeps up with: records that are produced as fast as they are acknowledged, compared and
//! counted in windows by an exactly-once job, over the time until the last is in a completed checkpoint. Then many
//! producers offer five times that for a minute, whatever they are answered. Measured are what is acknowledged and
//! counted meanwhile, the worker's memory, and the time until the job has caught up, over what the records it was
//! behind would take at the sustainable rate. In the end every acknowledged record must be in the topic once and in
//! order, and counted once, and nobody may have been taken for lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, mebibytes, resident_bytes, runtime};
use integration_tests::overload::producer::{Offer, RECORD_BYTES, produce};
use integration_tests::overload::{Work, check, deploy, finish, lag, standing, until_drained};

/// So many that what is acknowledged waits for nobody.
const STEADY: u64 = 4;

#[derive(Debug, Parser)]
struct Options {
    /// Of the spike.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Of measuring what is sustainable.
    #[arg(long, default_value_t = 10)]
    steady_seconds: u64,
    /// What is offered, in times of what is sustainable.
    #[arg(long, default_value_t = 5)]
    times: u32,
    /// Producers that offer it.
    #[arg(long, default_value_t = 128)]
    producers: u64,
    /// Of one request.
    #[arg(long, default_value_t = 10_000)]
    records: usize,
    /// Of the job.
    #[arg(long, default_value_t = 1)]
    parallelism: u32,
    /// How much the job does with a record beside counting it, in comparisons of texts. With none it keeps up with
    /// more than producers on the same machine can offer five times.
    #[arg(long, default_value_t = 4)]
    comparisons: u32,
    /// Of the worker.
    #[arg(long, default_value = "512MiB")]
    memory: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    let mut cluster = Cluster::start_with(1, &["--memory", &options.memory])?;
    runtime.block_on(measure(&options, &mut cluster))
}

async fn measure(options: &Options, cluster: &mut Cluster) -> Result<()> {
    let client = cluster.client()?;
    let worker = cluster.worker(0).to_owned();
    let process = cluster.worker_process(0)?.id();
    let resident = || resident_bytes(process).context("Linux says nothing of the worker");
    let work = Work {
        parallelism: options.parallelism,
        comparisons: options.comparisons,
    };
    deploy(&client, work).await?;
    let before = standing(&client).await?;
    let event_time = Stopwatch::start();

    let steady = Offer {
        records_per_request: options.records,
        every: Duration::from_micros(1),
        lasts: Duration::from_secs(options.steady_seconds),
    };
    let clock = Stopwatch::start();
    let taken = produce(&worker, event_time, 0..STEADY, None, steady).await?;
    until_drained(&client).await?;
    let sustainable = taken.records() as f64 / clock.elapsed().as_secs_f64();
    let (steady_peak, _) = resident()?;
    println!(
        "sustainable: {:.2} M records/s of {RECORD_BYTES} bytes, produced and counted exactly once; {:.0} MiB resident at most",
        sustainable / 1e6,
        mebibytes(steady_peak)
    );

    let offered = sustainable * f64::from(options.times);
    let spike = Offer {
        records_per_request: options.records,
        every: Duration::from_secs_f64(
            (options.producers as f64 * options.records as f64) / offered,
        ),
        lasts: Duration::from_secs(options.seconds),
    };
    let clock = Stopwatch::start();
    let numbers = STEADY..STEADY + options.producers;
    let answers = produce(&worker, event_time, numbers, None, spike).await?;
    let took = clock.elapsed();
    let behind = lag(&client).await?;
    let clock = Stopwatch::start();
    until_drained(&client).await?;
    let drained = clock.elapsed();
    let (peak, _) = resident()?;
    let accepted = answers.records() as f64 / took.as_secs_f64();
    let counted = answers.records().saturating_sub(behind) as f64 / took.as_secs_f64();
    let tried = answers.requests as f64 * options.records as f64 / took.as_secs_f64();
    println!(
        "spike of {:.0} s: {:.1} × the sustainable rate was sent, {:.2} × was acknowledged; {:.0} % of {} requests were refused",
        took.as_secs_f64(),
        tried / sustainable,
        accepted / sustainable,
        100.0 * (answers.overloaded + answers.over_quota) as f64 / answers.requests as f64,
        answers.requests
    );
    println!(
        "  meanwhile {:.2} × was counted; {:.0} MiB resident at most, --memory {}; {} requests without an answer",
        counted / sustainable,
        mebibytes(peak),
        options.memory,
        answers.troubles
    );
    println!(
        "  {:.2} M records behind at its end; lag zero after {:.1} s, {:.2} × what they take at the sustainable rate",
        behind as f64 / 1e6,
        drained.as_secs_f64(),
        drained.as_secs_f64() * sustainable / behind.max(1) as f64
    );
    // Its end is a change, too.
    let after = standing(&client).await?;
    ensure!(after == before, "{before:?} has become {after:?}");
    let acknowledged = [taken.acknowledged, answers.acknowledged].concat();
    check::records(&client, &worker, &acknowledged).await?;
    finish(&client, &acknowledged).await?;
    println!(
        "  every acknowledged record is there once, in order, and counted once; nobody was fenced, nothing restarted"
    );
    Ok(())
}

//! Kills the processes of a running cluster at random, and checks that nobody could tell.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use common::time::Span;
use integration_tests::chaos::{self, Options};

/// Starts coordinators and workers, runs two jobs on a stream, kills processes with SIGKILL, takes disks away, and
/// compares input, output and state with an oracle. Ends with an error if anything differs, or if too
/// little happened to mean anything.
#[derive(Debug, Parser)]
struct Flags {
    /// For how long processes are killed.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Between two kills, on average.
    #[arg(long, default_value_t = 4.0)]
    interval_seconds: f64,
    /// What is random repeats with its seed, as far as the machine lets it; by default that in
    /// MILLSTREAM_SEED, or a new one.
    #[arg(long)]
    seed: Option<u64>,
    /// One coordinator, or a group of three.
    #[arg(long, default_value_t = 3)]
    coordinators: usize,
    /// At least three.
    #[arg(long, default_value_t = 5)]
    workers: usize,
    /// Events sent per second, while nothing is down.
    #[arg(long, default_value_t = 12_000)]
    rate: u64,
    /// Records that have to come out for the run to count.
    #[arg(long, default_value_t = 1_000_000)]
    least_records: u64,
    /// Where data and logs are kept; by default in a new directory, which is removed if all went well.
    #[arg(long)]
    directory: Option<PathBuf>,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let temporary = tempfile::Builder::new().prefix("chaos-").tempdir()?;
    let options = Options {
        seed: flags.seed.map_or_else(chaos::seed, Ok)?,
        coordinators: flags.coordinators,
        workers: flags.workers.max(3),
        duration: Span(milliseconds(flags.minutes * 60.0)),
        interval: Span(milliseconds(flags.interval_seconds)),
        events_per_second: flags.rate.max(1),
        directory: flags.directory.unwrap_or(temporary.path().to_owned()),
    };
    println!("seed {}, in {}", options.seed, options.directory.display());
    let outcome = chaos::run(&options).and_then(|summary| {
        println!("{summary}");
        summary.require(flags.least_records)
    });
    if outcome.is_err() {
        // Whoever looks for the cause needs what the processes wrote.
        println!("kept: {}", temporary.keep().display());
    }
    outcome
}

fn milliseconds(seconds: f64) -> u64 {
    std::time::Duration::from_secs_f64(seconds.max(0.001))
        .as_millis()
        .try_into()
        .unwrap_or(u64::MAX)
}

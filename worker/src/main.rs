//! The worker's process: reads its options, runs the node, and stops it when told to.

use std::process::ExitCode;

use anyhow::Context;
use common::config::worker::WorkerConfig;
use common::shutdown::{Signals, Stopped, stop_within};
use common::telemetry;
use mimalloc::MiMalloc;
use tracing::{info, warn};
use worker::node::Node;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

mod allocator;

fn main() -> ExitCode {
    allocator::give_back_soon();
    let environment = |name: &str| std::env::var(name).ok();
    let config = match WorkerConfig::load(std::env::args_os(), environment) {
        Ok(config) => config,
        Err(error) => return ExitCode::from(error.report()),
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: WorkerConfig) -> anyhow::Result<()> {
    telemetry::start(&config.log, config.log_format).context("cannot log")?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let patience = config.shutdown_timeout;
    // Without a coordinator it waits for one, and must not become deaf meanwhile.
    let node = match signals
        .unless_told(move || Node::start(config))
        .context("cannot start")?
    {
        Ok(started) => started?,
        Err(signal) => {
            info!(signal, "stopping before it was ready");
            return Ok(());
        }
    };
    telemetry::print_line(&format!("worker ready at {}", node.address()));

    let signal = signals.wait();
    info!(signal, "stopping");
    match stop_within(patience, || node.stop())? {
        Stopped::InTime => Ok(()),
        Stopped::TooLate => {
            warn!("not everything ended in time");
            Ok(())
        }
        Stopped::Panicked => anyhow::bail!("the stop failed"),
    }
}

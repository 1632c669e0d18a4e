//! The coordinator's process: reads its options, runs the node, and stops it when told to.

use std::process::ExitCode;

use anyhow::Context;
use mimalloc::MiMalloc;
use tracing::{info, warn};

use common::config::coordinator::CoordinatorConfig;
use common::shutdown::{Signals, Stopped, stop_within};
use common::telemetry;
use common::time::SystemClock;
use coordinator::node::{Node, StartError};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let config = match CoordinatorConfig::load(std::env::args_os(), environment) {
        Ok(config) => config,
        Err(error) => return ExitCode::from(error.report()),
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coordinator: {error:#}");
            if let Some(hint) = error
                .downcast_ref::<StartError>()
                .and_then(StartError::hint)
            {
                eprintln!("{hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(config: CoordinatorConfig) -> anyhow::Result<()> {
    // A member that is down is worth a line of ours, not five a second; who asks for more of it gets it.
    let filter = format!("openraft=error,{}", config.log);
    telemetry::start(&filter, config.log_format).context("cannot log")?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let patience = config.shutdown_timeout;
    // Without a disk to store decisions on, a coordinator that stays up only hides that it is down.
    let on_failure = || std::process::exit(1);
    let node = Node::start_with(config, SystemClock::shared(), on_failure)?;
    telemetry::print_line(&format!("coordinator ready at {}", node.address()));

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

//! What the process says about itself while it runs: tracing events to standard error.
//!
//! Set up once, by `main`; nodes only emit. Standard output belongs to what a program prints for its user.
//! Neither is worth a node: what cannot be written, because the disk with the log file is full or nobody reads
//! any more, is lost.

use std::io::Write;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// Sends events that pass `filter`, one that `check_filter` has accepted, to standard error.
pub fn start(filter: &str, format: LogFormat) -> Result<(), TryInitError> {
    let builder = SubscriberBuilder::default()
        .with_env_filter(EnvFilter::new(filter))
        // They would go to standard error too, and a failure to write there is a panic of whoever emits.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            let colours = std::io::stderr().is_terminal();
            builder.with_ansi(colours).finish().try_init()
        }
        LogFormat::Json => builder.json().finish().try_init(),
    }
}

/// Prints a line for the user.
pub fn print_line(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Says what is wrong with a filter such as `info` or `info,worker=debug`.
pub fn check_filter(filter: &str) -> Result<(), String> {
    let levels = "write a level (error, warn, info, debug, trace), or module=level, with commas";
    if filter.is_empty() {
        return Err(levels.to_owned());
    }
    EnvFilter::builder()
        .parse(filter)
        .map(|_| ())
        .map_err(|error| format!("\"{filter}\": {error}; {levels}"))
}

//! What the process says about itself while it runs: tracing events to standard error.
//!
//! Set up once, by `main`; nodes only emit. Standard output belongs to what a program prints for its user.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// Sends events that pass `filter`, one that `check_filter` has accepted, to standard error.
pub fn start(filter: &str, format: LogFormat) -> Result<(), TryInitError> {
    let builder = SubscriberBuilder::default()
        .with_env_filter(EnvFilter::new(filter))
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

//! The coordinator's options.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{
    ConfigError, LogFormat, Options, address, cores, count, directory, list, log_filter,
    log_format, optional, span, url,
};
use crate::limits::{HEARTBEAT_INTERVAL, MAX_HTTP_THREADS};
use crate::objects::location::{Location, LocationError};
use crate::time::Span;

/// Whether what workers hold is made even without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rebalance {
    Auto,
    Manual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorConfig {
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    pub peers: Vec<String>,
    pub data_dir: PathBuf,
    pub session_timeout: Span,
    /// Where savepoints go that do not say where.
    pub savepoints: Option<Location>,
    pub rebalance: Rebalance,
    pub http_threads: u32,
    pub shutdown_timeout: Span,
    pub log: String,
    pub log_format: LogFormat,
}

impl CoordinatorConfig {
    /// From the program's arguments, the first of which is its own name, and its environment.
    pub fn load(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<CoordinatorConfig, ConfigError> {
        let about =
            "Holds the cluster's metadata, places partitions and jobs, and completes checkpoints.";
        let options = Options::load("coordinator", about, arguments, environment)?;
        CoordinatorConfig::check(options)
    }

    /// Every option at its default.
    pub fn defaults() -> CoordinatorConfig {
        CoordinatorConfig::load([OsString::from("coordinator")], |_| None)
            .expect("the defaults are valid, as a test shows")
    }

    fn check(mut options: Options) -> Result<CoordinatorConfig, ConfigError> {
        let listen = options.get("listen", address);
        let advertise = options.get("advertise", optional(url));
        let peers = options.get("peers", list(url));
        let data_dir = options.get("data-dir", directory);
        let session_timeout = options.get(
            "session-timeout",
            span(Span(HEARTBEAT_INTERVAL.0 * 3), Span::from_secs(600)),
        );
        let savepoints = options.get("savepoints", optional(location));
        let rebalance = options.get("rebalance", rebalance);
        let http_threads = options.get("http-threads", count(MAX_HTTP_THREADS, || cores().min(4)));
        let shutdown_timeout = options.get(
            "shutdown-timeout",
            span(Span::from_secs(1), Span::from_secs(600)),
        );
        let log = options.get("log", log_filter);
        let log_format = options.get("log-format", log_format);
        let config = (|| {
            Some(CoordinatorConfig {
                listen: listen?,
                advertise: advertise?,
                peers: peers?,
                data_dir: data_dir?,
                session_timeout: session_timeout?,
                savepoints: savepoints?,
                rebalance: rebalance?,
                http_threads: http_threads?,
                shutdown_timeout: shutdown_timeout?,
                log: log?,
                log_format: log_format?,
            })
        })();
        options.finish(config)
    }
}

fn location(text: &str) -> Result<Location, String> {
    text.parse()
        .map_err(|error: LocationError| error.to_string())
}

fn rebalance(text: &str) -> Result<Rebalance, String> {
    match text {
        "auto" => Ok(Rebalance::Auto),
        "manual" => Ok(Rebalance::Manual),
        other => Err(format!("\"{other}\" is neither auto nor manual")),
    }
}

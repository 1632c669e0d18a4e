//! The worker's options.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{
    ConfigError, LogFormat, Options, address, bytes, cores, count, directory, log_filter,
    log_format, optional, some, span, url,
};
use crate::limits::{
    LEAST_BYTE_RATE, MAX_DATA_THREADS, MAX_HTTP_THREADS, MAX_SLOTS, SLOTS_PER_CORE,
};
use crate::time::Span;

/// A worker's buffers and segments need this much before it has any state.
const LEAST_MEMORY_BYTES: u64 = 64 << 20;
const MAX_RACK_BYTES: usize = 255;
const MOST_MEMORY_BYTES: u64 = 16 << 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// At least one.
    pub coordinators: Vec<String>,
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    pub data_dir: PathBuf,
    pub rack: Option<String>,
    pub slots: u32,
    pub memory_bytes: u64,
    /// Bytes per second that one client may send; `None`: any number.
    pub producer_byte_rate: Option<u64>,
    /// The same of what it reads.
    pub consumer_byte_rate: Option<u64>,
    pub data_threads: u32,
    pub http_threads: u32,
    pub shutdown_timeout: Span,
    pub log: String,
    pub log_format: LogFormat,
}

impl WorkerConfig {
    /// From the program's arguments, the first of which is its own name, and its environment.
    pub fn load(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<WorkerConfig, ConfigError> {
        let about = "Holds partitions, and runs the tasks of jobs with their state.";
        let options = Options::load("worker", about, arguments, environment)?;
        WorkerConfig::check(options)
    }

    /// Every option at its default.
    pub fn defaults() -> WorkerConfig {
        WorkerConfig::load([OsString::from("worker")], |_| None)
            .expect("the defaults are valid, as a test shows")
    }

    fn check(mut options: Options) -> Result<WorkerConfig, ConfigError> {
        let coordinators = options.get("coordinator", some(url));
        let listen = options.get("listen", address);
        let advertise = options.get("advertise", optional(url));
        let kafka_listen = options.get("kafka-listen", no_kafka_yet);
        let data_dir = options.get("data-dir", directory);
        let rack = options.get("rack", optional(label));
        let slots = options.get("slots", count(MAX_SLOTS, || cores() * SLOTS_PER_CORE));
        let memory_bytes = options.get("memory", bytes(LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES));
        let byte_rate = || optional(bytes(LEAST_BYTE_RATE, MOST_MEMORY_BYTES));
        let producer_byte_rate = options.get("producer-byte-rate", byte_rate());
        let consumer_byte_rate = options.get("consumer-byte-rate", byte_rate());
        let data_threads = options.get("data-threads", count(MAX_DATA_THREADS, cores));
        let http_threads = options.get("http-threads", count(MAX_HTTP_THREADS, || cores().min(4)));
        let shutdown_timeout = options.get(
            "shutdown-timeout",
            span(Span::from_secs(1), Span::from_secs(600)),
        );
        let log = options.get("log", log_filter);
        let log_format = options.get("log-format", log_format);
        let config = (|| {
            kafka_listen?;
            Some(WorkerConfig {
                coordinators: coordinators?,
                listen: listen?,
                advertise: advertise?,
                data_dir: data_dir?,
                rack: rack?,
                slots: slots?,
                memory_bytes: memory_bytes?,
                producer_byte_rate: producer_byte_rate?,
                consumer_byte_rate: consumer_byte_rate?,
                data_threads: data_threads?,
                http_threads: http_threads?,
                shutdown_timeout: shutdown_timeout?,
                log: log?,
                log_format: log_format?,
            })
        })();
        options.finish(config)
    }
}

fn label(text: &str) -> Result<String, String> {
    let fits = text.len() <= MAX_RACK_BYTES && !text.contains(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| {
        format!("it has more than {MAX_RACK_BYTES} bytes, or characters that are no text")
    })
}

/// Refused rather than ignored: who asks for it has clients that would find nobody.
fn no_kafka_yet(text: &str) -> Result<(), String> {
    match text {
        "" => Ok(()),
        _ => Err(
            "Kafka clients are not served in this version; leave it out, and use the REST interface"
                .to_owned(),
        ),
    }
}

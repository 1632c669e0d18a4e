//! What benchmarks share: how a number is said, and on what machine it was measured.

use std::io;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Started when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark measures with the machine's clock"
    )]
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// What a benchmark runs on, beside what it measures: as many threads as the smallest machine has cores.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// The machine, in a line.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |line| {
            line.trim_start_matches([' ', '\t', ':'])
        });
    let memory = read("/proc/meminfo");
    let kilobytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "{cores} cores ({model}), {} GiB, load before the run {load}",
        kilobytes >> 20
    )
}

/// The value that so many hundredths of all are not above. The slice is sorted by this.
pub fn percentile(values: &mut [Duration], hundredths: usize) -> Duration {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_unstable();
    values[(values.len() * hundredths / 100).min(values.len() - 1)]
}

/// Peak and present resident memory of a process, in bytes, by what Linux says of it.
pub fn resident_bytes(process: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kilobytes << 10)
    };
    Some((of("VmHWM:")?, of("VmRSS:")?))
}

/// What a process has had written to disks so far, in bytes, by what Linux says of it.
pub fn bytes_written(process: u32) -> Option<u64> {
    let io = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

/// What has gone over loopback so far, in bytes with all headers, of the whole machine.
pub fn bytes_over_loopback() -> Option<u64> {
    let devices = std::fs::read_to_string("/proc/net/dev").ok()?;
    let line = devices
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn millions_per_second(count: u64, span: Duration) -> f64 {
    count as f64 / span.as_secs_f64() / 1e6
}

pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

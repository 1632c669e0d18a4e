//! What this node uses of its machine, measured now and then: for people, and for where work is placed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use common::protocol::node::NodeLoad;
use common::time::Span;

use crate::link::reports::TaskReports;
use crate::partition::registry::Partitions;

/// Walking the data directory costs a little, and nobody looks more often.
const EVERY: Span = Span::from_secs(5);

/// Where a load is kept between measurements.
pub type SharedLoad = Arc<Mutex<NodeLoad>>;

/// Measures until it is dropped.
pub async fn keep_measuring(
    load: SharedLoad,
    directory: PathBuf,
    partitions: Partitions,
    reports: Arc<TaskReports>,
) {
    loop {
        let directory = directory.clone();
        let measured = tokio::task::spawn_blocking(move || of_machine(&directory)).await;
        let tasks = reports.all();
        let measured = NodeLoad {
            state_bytes: tasks.iter().map(|task| task.metrics.state_bytes).sum(),
            partitions_led: u32::try_from(partitions.all().len()).unwrap_or(u32::MAX),
            tasks: u32::try_from(tasks.len()).unwrap_or(u32::MAX),
            ..measured.unwrap_or_default()
        };
        *load.lock().unwrap_or_else(PoisonError::into_inner) = measured;
        tokio::time::sleep(EVERY.as_duration()).await;
    }
}

/// Memory and disk; zero where the system does not say.
fn of_machine(directory: &Path) -> NodeLoad {
    let free = rustix::fs::statvfs(directory).map(|disk| disk.f_bavail * disk.f_frsize);
    NodeLoad {
        resident_bytes: resident_bytes().unwrap_or(0),
        disk_used_bytes: bytes_below(directory),
        disk_free_bytes: free.unwrap_or(0),
        ..NodeLoad::default()
    }
}

/// As Linux tells it.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes << 10)
}

/// Files may go while they are counted; then they do not count.
fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_all_folders_count_and_the_process_has_memory() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("inner")).unwrap();
        fs::write(directory.path().join("one"), [0; 1_000]).unwrap();
        fs::write(directory.path().join("inner/two"), [0; 234]).unwrap();
        let load = of_machine(directory.path());
        assert_eq!(load.disk_used_bytes, 1_234);
        assert!(load.disk_free_bytes > 0);
        assert!(load.resident_bytes > 1 << 20, "{}", load.resident_bytes);
    }
}

//! The logs of partitions as they lie on the disks of workers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A worker's log of a partition, one segment after the other: replicas that agree have the same bytes, wherever
/// their segments begin.
pub fn log_of(worker_directory: &Path, topic_id: &str, partition: u64) -> Result<Vec<u8>> {
    let directory = worker_directory
        .join("partitions")
        .join(format!("{topic_id}-{partition}"));
    let unreadable = || format!("cannot read {}", directory.display());
    let mut segments: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(unreadable)? {
        segments.push(entry.with_context(unreadable)?.path());
    }
    segments.retain(|path| path.extension().is_some_and(|end| end == "log"));
    segments.sort();
    let mut log = Vec::new();
    for segment in segments {
        log.extend(std::fs::read(segment).with_context(unreadable)?);
    }
    Ok(log)
}

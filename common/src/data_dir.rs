//! A node's data directory: one process at a time, whose it is, and whether its last life ended in order.
//!
//! ```text
//! LOCK            held by the process that uses the directory
//! identity.json   which cluster and node it belongs to; its storage id never changes
//! CLEAN           there if the last life ended in order; gone before the next one writes anything
//! ```
//!
//! Files are replaced as a whole: written beside, made durable, renamed, and the directory made durable.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, CoordinatorId, NodeId, StorageId};
use crate::seglog::fs::DirectoryLock;
use crate::time::Span;

const CLEAN: &str = "CLEAN";

/// Held for as long as the process uses the directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: DirectoryLock,
}

/// Whose a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub storage: StorageId,
    /// `None`: it has yet to join a cluster.
    pub cluster: Option<ClusterId>,
    /// A worker's number; `None` for a coordinator, and before the first registration.
    pub worker: Option<NodeId>,
    /// A coordinator's number in its group; `None` for a worker, and before it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorId>,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("\"{}\" is used by another process", .path.display())]
    Locked { path: PathBuf },
    #[error("could not {operation} \"{}\"", .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("\"{}\" is damaged", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// One that is just ending has its directory for a moment longer.
const LOCK_WAIT: Span = Span::from_secs(1);

impl DataDir {
    /// Makes the directory if there is none, and takes it for this process.
    pub fn open(path: impl Into<PathBuf>) -> Result<DataDir, DataDirError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| failed("create", &path, e))?;
        let lock =
            DirectoryLock::acquire(&path, LOCK_WAIT).map_err(|e| failed("lock", &path, e))?;
        match lock {
            Some(lock) => Ok(DataDir { path, _lock: lock }),
            None => Err(DataDirError::Locked { path }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose the directory is; a new one is given its storage id here.
    pub fn identity(&self) -> Result<Identity, DataDirError> {
        let path = self.path.join("identity.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity {
                    storage: StorageId(uuid::Uuid::new_v4()),
                    cluster: None,
                    worker: None,
                    coordinator: None,
                };
                self.keep_identity(&identity)?;
                return Ok(identity);
            }
            Err(error) => return Err(failed("read", &path, error)),
        };
        serde_json::from_slice(&bytes).map_err(|source| DataDirError::Damaged { path, source })
    }

    pub fn keep_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        let json = serde_json::to_vec_pretty(identity).expect("an identity is plain data");
        self.replace("identity.json", &json)
    }

    /// Whether the last life ended in order.
    pub fn ended_in_order(&self) -> Result<bool, DataDirError> {
        Ok(self.read(CLEAN)?.is_some())
    }

    /// From here on this life has not ended in order, until it says so. Before anything else is written.
    pub fn begin_life(&self) -> Result<(), DataDirError> {
        let path = self.path.join(CLEAN);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path, error)),
        }
    }

    /// Says that this life ends in order: everything else is on the disk.
    pub fn end_life(&self) -> Result<(), DataDirError> {
        self.replace(CLEAN, b"")
    }

    /// Replaces a file as a whole: afterwards, and after any crash, it is the old one or the new one.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.new"));
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        written.map_err(|e| failed("write", &beside, e))?;
        fs::rename(&beside, &path).map_err(|e| failed("replace", &path, e))?;
        self.sync()
    }

    /// The content of a file, `None` if there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    fn sync(&self) -> Result<(), DataDirError> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| failed("sync", &self.path, e))
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let second = DataDir::open(&path).unwrap_err();
        assert!(matches!(second, DataDirError::Locked { .. }), "{second}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn the_storage_id_is_given_once_and_the_rest_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        let new = directory.identity().unwrap();
        assert_eq!((new.cluster, new.worker), (None, None));
        let joined = Identity {
            cluster: Some(ClusterId(uuid::Uuid::new_v4())),
            worker: Some(NodeId(3)),
            ..new
        };
        directory.keep_identity(&joined).unwrap();
        drop(directory);
        let again = DataDir::open(parent.path()).unwrap();
        assert_eq!(again.identity().unwrap(), joined);
        fs::write(parent.path().join("identity.json"), "{").unwrap();
        let damaged = again.identity().unwrap_err();
        assert!(matches!(damaged, DataDirError::Damaged { .. }));
    }

    #[test]
    fn only_a_life_that_ended_in_order_is_followed_by_a_clean_one() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::open(parent.path()).unwrap();
        assert!(!directory.ended_in_order().unwrap());
        directory.begin_life().unwrap();
        directory.end_life().unwrap();
        assert!(directory.ended_in_order().unwrap());
        directory.begin_life().unwrap();
        assert!(!directory.ended_in_order().unwrap());
    }
}

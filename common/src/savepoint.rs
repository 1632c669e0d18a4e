//! What a savepoint says of itself: the manifest, which is written last (pure).
//!
//! ```text
//! <location>/<job>/g<generation>-e<checkpoint>-<id>/
//!     <task>/base-<checkpoint>-<offset>     pieces of the task's base file, as it lies on its worker's disk
//!     <task>/deltas-<number>                records of its delta log that follow the base file, likewise
//!     manifest.json                         {"crc32c":"…","manifest":{…}}
//! ```
//!
//! Without its manifest a savepoint is none. The manifest names every object with its length and checksum,
//! and its own checksum is before it; nobody takes anything of a savepoint that is not exactly as it was
//! written.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{ErrorCode, Problem};
use crate::ids::{CheckpointId, ClusterId, Generation, JobId, JobName, TaskId};
use crate::limits::MAX_SAVED_OBJECT_BYTES;
use crate::plan::task_graph::TaskGraph;
use crate::protocol::checkpoint::TaskCounts;
use crate::protocol::job::CreateJob;
use crate::time::Timestamp;

pub const MANIFEST: &str = "manifest.json";
/// Written by this version, and the newest that it reads.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub cluster: ClusterId,
    pub job: JobId,
    pub name: JobName,
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    /// Milliseconds since 1970.
    pub created_at: Timestamp,
    /// What was deployed, and what it was planned to be: the stages with their parallelism, their operators, the
    /// number of key groups.
    pub spec: CreateJob,
    pub graph: TaskGraph,
    /// Every task, in the order of the graph.
    pub tasks: Vec<SavedTask>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedTask {
    pub task: TaskId,
    /// Of sources: split → the position after the last row before the barrier.
    pub positions: BTreeMap<String, i64>,
    /// What it had done since the job began.
    pub counts: TaskCounts,
    /// In the order in which they belong; none of a task without state.
    pub objects: Vec<SavedObject>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedObject {
    /// Below the savepoint's own place.
    pub name: String,
    pub bytes: u64,
    pub crc32c: u32,
    pub of: ObjectOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectOf {
    /// From an offset of the base file, which is so long.
    Base {
        checkpoint: CheckpointId,
        offset: u64,
        length: u64,
    },
    /// Whole records of the delta log, one after the other.
    Deltas,
}

/// As it lies in the store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'a> {
    crc32c: String,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// Read first: a later version may say anything else in another way.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why bytes are no manifest that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a manifest, or it is cut short")]
    NotAManifest,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it is of format version {0}, this node reads versions up to {VERSION}")]
    Version(u32),
    #[error("what it says does not fit together: {0}")]
    Inconsistent(String),
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        let text = serde_json::to_string(self).expect("a manifest is made of plain data");
        let manifest = RawValue::from_string(text).expect("it was just written as JSON");
        seal(&manifest)
    }

    /// Only bytes that `encode` has written.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let sealed: Sealed<'_> =
            serde_json::from_slice(bytes).map_err(|_| ManifestError::NotAManifest)?;
        // What is around the manifest has no checksum, and is as it has to be or is damaged.
        if seal(sealed.manifest) != bytes {
            return Err(ManifestError::Checksum);
        }
        let text = sealed.manifest.get();
        let Versioned { version } =
            serde_json::from_str(text).map_err(|_| ManifestError::NotAManifest)?;
        if version == 0 || version > VERSION {
            return Err(ManifestError::Version(version));
        }
        let manifest: Manifest = serde_json::from_str(text)
            .map_err(|error| ManifestError::Inconsistent(error.to_string()))?;
        manifest.check().map_err(ManifestError::Inconsistent)?;
        Ok(manifest)
    }

    pub fn task(&self, task: TaskId) -> Option<&SavedTask> {
        self.tasks.iter().find(|saved| saved.task == task)
    }

    /// The bytes of all objects.
    pub fn bytes(&self) -> u64 {
        let objects = self.tasks.iter().flat_map(|task| &task.objects);
        objects.map(|object| object.bytes).sum()
    }

    fn check(&self) -> Result<(), String> {
        if !self
            .graph
            .tasks()
            .eq(self.tasks.iter().map(|saved| saved.task))
        {
            return Err("it does not name every task of its job once".to_owned());
        }
        let mut names = BTreeSet::new();
        for saved in &self.tasks {
            let task = saved.task;
            let has_state = self.graph.stage(task.stage).has_state();
            if has_state == saved.objects.is_empty() {
                return Err(format!("task {task} has too few objects, or too many"));
            }
            for object in &saved.objects {
                let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
                let own = object.name.strip_prefix(&format!("{task}/"));
                if !own.is_some_and(|own| own.chars().all(known) && !own.contains("..")) {
                    return Err(format!("\"{}\" is no name of an object", object.name));
                }
                if !names.insert(&object.name) {
                    return Err(format!("\"{}\" is named twice", object.name));
                }
                if object.bytes == 0 || object.bytes > MAX_SAVED_OBJECT_BYTES {
                    return Err(format!("\"{}\" has no length of an object", object.name));
                }
            }
            let whole = saved.has_whole_base();
            if !whole {
                return Err(format!("the base file of task {task} has gaps"));
            }
        }
        Ok(())
    }
}

impl SavedTask {
    /// One base file at most, all of it, before everything else.
    fn has_whole_base(&self) -> bool {
        let (mut of, mut next) = (None, 0);
        for (index, object) in self.objects.iter().enumerate() {
            let ObjectOf::Base {
                checkpoint,
                offset,
                length,
            } = object.of
            else {
                continue;
            };
            let first = of.get_or_insert((checkpoint, length));
            let follows = *first == (checkpoint, length) && offset == next;
            let only_base = self.objects[..index].iter().all(SavedObject::is_base);
            if !follows || !only_base {
                return false;
            }
            next = offset.saturating_add(object.bytes);
        }
        of.is_none_or(|(_, length)| length == next)
    }
}

impl SavedObject {
    fn is_base(&self) -> bool {
        matches!(self.of, ObjectOf::Base { .. })
    }

    /// Whether these are its bytes.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes.len() as u64 && self.crc32c == crc32c::crc32c(bytes)
    }
}

impl ManifestError {
    /// What to tell who named the place.
    pub fn into_problem(self, place: &impl std::fmt::Display) -> Problem {
        match self {
            ManifestError::Version(version) => Problem::new(
                ErrorCode::UnsupportedFeature,
                format!(
                    "the savepoint \"{place}\" is of format version {version}, this node reads \
                     versions up to {VERSION}"
                ),
            )
            .hint("Restore it with the version of Millstream that made it, or a later one."),
            error @ (ManifestError::NotAManifest
            | ManifestError::Checksum
            | ManifestError::Inconsistent(_)) => Problem::new(
                ErrorCode::CorruptSavepoint,
                format!("the manifest \"{place}/{MANIFEST}\" is damaged: {error}"),
            ),
        }
    }
}

fn seal(manifest: &RawValue) -> Vec<u8> {
    let sealed = Sealed {
        crc32c: format!("{:08x}", crc32c::crc32c(manifest.get().as_bytes())),
        manifest,
    };
    serde_json::to_vec(&sealed).expect("a manifest is made of plain data")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::ids::StageId;
    use crate::plan::connector::{BlackholeSink, SinkSpec};
    use crate::plan::edge::ChangelogMode;
    use crate::plan::task_graph::{PlannedSink, Stage};

    fn task(index: u32) -> TaskId {
        TaskId {
            stage: StageId(0),
            index,
        }
    }

    fn base(task: TaskId, checkpoint: u64, offset: u64, bytes: u64, length: u64) -> SavedObject {
        SavedObject {
            name: format!("{task}/base-{checkpoint}-{offset}"),
            bytes,
            crc32c: 7,
            of: ObjectOf::Base {
                checkpoint: CheckpointId(checkpoint),
                offset,
                length,
            },
        }
    }

    fn deltas(task: TaskId, number: u32) -> SavedObject {
        SavedObject {
            name: format!("{task}/deltas-{number}"),
            bytes: 5,
            crc32c: 8,
            of: ObjectOf::Deltas,
        }
    }

    fn manifest(objects: Vec<Vec<SavedObject>>) -> Manifest {
        let sink = PlannedSink {
            name: "out".to_owned(),
            spec: SinkSpec::Blackhole(BlackholeSink {
                input: "in".to_owned(),
            }),
            columns: Vec::new(),
            mode: ChangelogMode::Append,
        };
        let saved = |(index, objects): (usize, Vec<SavedObject>)| SavedTask {
            task: task(u32::try_from(index).unwrap()),
            positions: [("0".to_owned(), 42)].into(),
            counts: TaskCounts::default(),
            objects,
        };
        let stage = Stage {
            id: StageId(0),
            parallelism: u32::try_from(objects.len()).unwrap(),
            source: None,
            operators: Vec::new(),
            sink: Some(sink),
        };
        Manifest {
            version: VERSION,
            cluster: ClusterId(Uuid::from_u128(1)),
            job: JobId(3),
            name: JobName::new("totals").unwrap(),
            generation: Generation(4),
            checkpoint: CheckpointId(9),
            created_at: Timestamp(1_700_000_000_000),
            spec: serde_json::from_str(r#"{"name": "totals", "sql": "SELECT 1"}"#).unwrap(),
            graph: TaskGraph {
                stages: vec![stage],
                edges: Vec::new(),
                key_groups: 256,
            },
            tasks: objects.into_iter().enumerate().map(saved).collect(),
        }
    }

    fn sound() -> Manifest {
        manifest(vec![
            vec![
                base(task(0), 7, 0, 10, 15),
                base(task(0), 7, 10, 5, 15),
                deltas(task(0), 0),
            ],
            vec![deltas(task(1), 0), deltas(task(1), 1)],
        ])
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = sound();
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
        assert_eq!(manifest.bytes(), 30);
    }

    #[test]
    fn every_damage_of_a_manifest_is_noticed() {
        let bytes = sound().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Manifest::decode(&damaged).is_err(), "bit {bit} at {at}");
            }
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let longer = [&bytes[..], b" "].concat();
        assert!(Manifest::decode(&longer).is_err());
    }

    #[test]
    fn a_newer_manifest_is_told_from_a_damaged_one() {
        // It need not have anything else that is known here.
        let newer = RawValue::from_string(r#"{"version":2,"all":"new"}"#.to_owned()).unwrap();
        let error = Manifest::decode(&seal(&newer)).unwrap_err();
        assert_eq!(error, ManifestError::Version(2));
        let problem = error.into_problem(&"file:///there");
        assert_eq!(problem.code, ErrorCode::UnsupportedFeature);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (a, b) = (task(0), task(1));
        let whole = || vec![deltas(b, 0)];
        for objects in [
            // A task without its state.
            vec![vec![], whole()],
            // Gaps, overlaps, two base files, one after deltas.
            vec![vec![base(a, 7, 0, 10, 15)], whole()],
            vec![vec![base(a, 7, 5, 10, 15)], whole()],
            vec![vec![base(a, 7, 0, 10, 15), base(a, 8, 10, 5, 15)], whole()],
            vec![vec![deltas(a, 0), base(a, 7, 0, 15, 15)], whole()],
            // Names that are not its own, or twice.
            vec![vec![deltas(b, 1)], whole()],
            vec![vec![deltas(a, 0), deltas(a, 0)], whole()],
        ] {
            let bytes = manifest(objects.clone()).encode();
            let error = Manifest::decode(&bytes).unwrap_err();
            assert!(
                matches!(error, ManifestError::Inconsistent(_)),
                "{objects:?}"
            );
        }
        let mut outside = deltas(a, 0);
        outside.name = "0.0/../../secret".to_owned();
        let bytes = manifest(vec![vec![outside], whole()]).encode();
        assert!(Manifest::decode(&bytes).is_err());
        let mut fewer = sound();
        fewer.tasks.pop();
        assert!(Manifest::decode(&fewer.encode()).is_err());
    }

    proptest! {
        #[test]
        fn several_damaged_bytes_are_noticed_too(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        ) {
            let bytes = sound().encode();
            let mut damaged = bytes.clone();
            for (at, with) in damage {
                let at = at.index(damaged.len());
                damaged[at] ^= with;
            }
            prop_assert!(damaged == bytes || Manifest::decode(&damaged).is_err());
        }

        #[test]
        fn any_division_of_a_base_file_is_read_as_it_was_written(
            pieces in proptest::collection::vec(1u64..1_000, 0..8),
            records in 1u32..5,
        ) {
            let length = pieces.iter().sum();
            let mut offset = 0;
            let mut objects: Vec<SavedObject> = pieces
                .iter()
                .map(|bytes| {
                    let piece = base(task(0), 7, offset, *bytes, length);
                    offset += bytes;
                    piece
                })
                .collect();
            objects.extend((0..records).map(|number| deltas(task(0), number)));
            let manifest = manifest(vec![objects]);
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }
}

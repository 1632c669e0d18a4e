//! What a task's store gives to savepoints and takes from them: its base file and the chunks that follow, cut
//! into objects.
//!
//! The state of exactly one completed checkpoint, in the formats of the disk: pieces of the base file, then
//! whole records of the delta log. While it is being taken, all of this stays, as when a standby fetches it.
//! What comes back is merged into one base file, under the number the job has given to it: with no chunk before it, there
//! is nothing of the savepoint's past that its new past could be confused with.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::ids::{CheckpointId, TaskId};
use common::protocol::savepoint::SavePosition;
use common::savepoint::ObjectOf;
use common::seglog::frame::{FrameCheck, scan_frame};
use common::seglog::fs::FsStorage;
use common::time::Tick;

use super::changes::Changes;
use super::delta_log::{DeltaLog, chain};
use super::folding::since;
use super::lending::Loan;
use super::state_error::StateError;
use super::state_store::{History, JobStateStore, failed, lock};
use crate::keyed_state::base_copy::{self, Original};
use crate::keyed_state::base_file::{self, BaseFile};
use crate::keyed_state::section::TableId;

/// Below a task's directory: what has come of a savepoint so far. Removed before the next attempt.
const RESTORING: &str = "restoring";
const DELTAS: &str = "deltas";

/// The next object of a task's state.
#[derive(Debug)]
pub struct SavedPiece {
    /// Below the task's place.
    pub name: String,
    pub of: ObjectOf,
    pub bytes: Bytes,
    /// `None`: that is all.
    pub next: Option<SavePosition>,
}

impl JobStateStore {
    /// What comes at a position of a task's state at a completed checkpoint, about so many bytes of it; one record may
    /// come beyond. Blocks.
    ///
    /// `Lost`: it is not here, or no longer, since something newer has taken its place.
    pub fn save(
        &self,
        now: Tick,
        task: TaskId,
        at: CheckpointId,
        position: SavePosition,
        history: History<'_>,
        room: usize,
    ) -> Result<SavedPiece, StateError> {
        let lost = || StateError::Lost { task, at };
        let base = match position {
            SavePosition::Start => {
                self.keep(now, task, at);
                self.leads_to(task, at, history).ok_or_else(lost)?
            }
            SavePosition::Base { checkpoint, .. } => Some(
                self.borrowed(now, task, Some(checkpoint))
                    .flatten()
                    .ok_or_else(lost)?,
            ),
            SavePosition::Deltas { base, .. } => self.borrowed(now, task, base).ok_or_else(lost)?,
        };
        let base_at = base.as_ref().map(|base| base.checkpoint());
        let counted = self.counted(task, at, history);
        let chunks = chain(&counted, base_at, at).ok_or_else(lost)?;
        let deltas = |records, object| SavePosition::Deltas {
            base: base_at,
            records,
            object,
        };
        if let Some(base) = &base
            && let Some(offset) = match position {
                SavePosition::Start => Some(0),
                SavePosition::Base { offset, .. } => Some(offset),
                SavePosition::Deltas { .. } => None,
            }
        {
            let checkpoint = base.checkpoint();
            let bytes = base.read_raw(offset, room)?;
            let end = offset + bytes.len() as u64;
            let next = match end < base.bytes() {
                true => Some(SavePosition::Base {
                    checkpoint,
                    offset: end,
                }),
                false => (!chunks.is_empty()).then(|| deltas(0, 0)),
            };
            return Ok(SavedPiece {
                name: format!("base-{checkpoint}-{offset}"),
                of: ObjectOf::Base {
                    checkpoint,
                    offset,
                    length: base.bytes(),
                },
                bytes: bytes.into(),
                next,
            });
        }
        let (skip, object) = match position {
            SavePosition::Deltas {
                records, object, ..
            } => (records, object),
            SavePosition::Start | SavePosition::Base { .. } => (0, 0),
        };
        let records = chunks.iter().flat_map(|chunk| chunk.records());
        let mut records = records.skip(skip as usize).peekable();
        let (mut bytes, mut taken) = (BytesMut::new(), 0);
        while bytes.len() < room
            && let Some(record) = records.next()
        {
            bytes.extend_from_slice(&self.log.record(*record)?.bytes);
            taken += 1;
        }
        if taken == 0 {
            return Err(lost());
        }
        Ok(SavedPiece {
            name: format!("deltas-{object}"),
            of: ObjectOf::Deltas,
            bytes: bytes.freeze(),
            next: records.peek().map(|_| deltas(skip + taken, object + 1)),
        })
    }

    /// Whether all of a task's state at a restored checkpoint has come.
    pub fn is_restored(&self, task: TaskId, at: CheckpointId) -> bool {
        self.base_at(task) >= Some(at)
    }

    /// Begins to take a task's state from a savepoint of this checkpoint. Blocks.
    pub fn begin_restore(
        &self,
        task: TaskId,
        checkpoint: CheckpointId,
    ) -> Result<Restoring, StateError> {
        let directory = self.directory.join(task.to_string()).join(RESTORING);
        base_file::remove_job(&directory)?;
        let deltas = directory.join(DELTAS);
        let storage = FsStorage::create(&deltas).map_err(failed(&deltas))?;
        let options = self.options();
        Ok(Restoring {
            task,
            checkpoint,
            deltas: DeltaLog::open(storage, options.key_groups, options.log_bytes / 8)?,
            directory,
            key_groups: options.key_groups,
            base: None,
        })
    }

    /// All of it is here: it becomes the task's base file, of the checkpoint `at` of this job. Blocks.
    pub fn finish_restore(&self, restoring: Restoring, at: CheckpointId) -> Result<(), StateError> {
        let Restoring {
            task,
            checkpoint,
            directory,
            key_groups,
            base,
            deltas,
        } = restoring;
        let counted = deltas.counted(task, &|_, _| true);
        let base_at = base.as_ref().map(BaseFile::checkpoint);
        let lost = StateError::Lost {
            task,
            at: checkpoint,
        };
        let chunks = chain(&counted, base_at, checkpoint).ok_or(lost)?;
        let changes = Changes::of(&deltas, chunks)?;
        let read = |table: &TableId, groups: &_| Ok::<_, StateError>(changes.read(table, groups)?);
        let since = since(&changes, &read);
        let place = self.directory.join(task.to_string());
        let whole = base_file::write(&place, at, key_groups, base.as_ref(), &since, &|| Ok(()))?;
        // The view is of what was before.
        self.folding.take().tasks.entry(task).or_default().view = None;
        {
            let _turn = self.writing_bases.take(task);
            self.put_base(task, whole)?;
        }
        Ok(base_file::remove_job(&directory)?)
    }

    /// What leads to a checkpoint of a task stays for a while, as if it were being fetched.
    pub fn keep(&self, now: Tick, task: TaskId, at: CheckpointId) {
        let base = self.base_of(task);
        let of = base.as_ref().map(|base| base.checkpoint());
        let mut lent = lock(&self.lent);
        let mut kept = false;
        for (_, loan) in lent.range_mut((task, CheckpointId(0))..=(task, at)) {
            loan.at = now;
            kept = true;
        }
        if !kept && of <= Some(at) {
            let loan = Loan { base, at: now };
            lent.insert((task, of.unwrap_or_default()), loan);
        }
    }

    /// The newest base file, or none, from which chunks lead to a checkpoint.
    fn leads_to(
        &self,
        task: TaskId,
        at: CheckpointId,
        history: History<'_>,
    ) -> Option<Option<Arc<BaseFile>>> {
        let counted = self.counted(task, at, history);
        let lent = lock(&self.lent);
        let of_task = lent.range((task, CheckpointId(0))..=(task, at));
        let mut newest_first = of_task.rev().map(|(_, loan)| loan.base.clone());
        newest_first.find(|base| {
            let from = base.as_ref().map(|base| base.checkpoint());
            chain(&counted, from, at).is_some()
        })
    }

    /// What is still kept for who began to take it; `None`: not any more.
    fn borrowed(
        &self,
        now: Tick,
        task: TaskId,
        of: Option<CheckpointId>,
    ) -> Option<Option<Arc<BaseFile>>> {
        let mut lent = lock(&self.lent);
        let loan = lent.get_mut(&(task, of.unwrap_or_default()))?;
        loan.at = now;
        (loan.base.as_ref().map(|base| base.checkpoint()) == of).then(|| loan.base.clone())
    }
}

/// What has come of a task's state so far.
#[derive(Debug)]
pub struct Restoring {
    task: TaskId,
    checkpoint: CheckpointId,
    directory: PathBuf,
    key_groups: u16,
    base: Option<BaseFile>,
    deltas: DeltaLog,
}

impl Restoring {
    /// The next object, in their order. Blocks.
    pub fn add(&mut self, of: ObjectOf, bytes: &Bytes) -> Result<(), StateError> {
        match of {
            ObjectOf::Base {
                checkpoint,
                offset,
                length,
            } => {
                let original = Original {
                    checkpoint,
                    key_groups: self.key_groups,
                    length,
                };
                let whole = base_copy::add(&self.directory, original, offset, bytes)?;
                self.base = whole.or(self.base.take());
                Ok(())
            }
            ObjectOf::Deltas => Ok(self.deltas.append_verbatim(&records(bytes))?),
        }
    }
}

/// The framed records that an object is made of. What is none is left as one, for whoever checks them.
fn records(bytes: &Bytes) -> Vec<Bytes> {
    let (mut records, mut rest) = (Vec::new(), bytes.clone());
    while !rest.is_empty() {
        let length = match scan_frame(&rest) {
            FrameCheck::Complete(length) => length,
            FrameCheck::Incomplete(_) | FrameCheck::Corrupt => rest.len(),
        };
        records.push(rest.split_to(length));
    }
    records
}

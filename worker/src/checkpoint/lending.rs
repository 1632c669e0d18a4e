//! What a worker gives of its tasks' state to those who stand by for them.
//!
//! The chunks that follow what a standby has, as they lie in the log; or, where these are gone, the base
//! file that has taken their place, piece by piece. While a base file is being fetched it stays, and so do
//! the chunks after it: a standby that is far behind would otherwise never arrive.

use std::sync::Arc;

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, TaskId};
use common::protocol::standby::{BasePosition, PieceOf, StandbyPosition};
use common::time::{Span, Tick};

use super::delta_log::ChunkRef;
use super::state_error::StateError;
use super::state_store::{History, JobStateStore, lock};
use crate::keyed_state::base_file::BaseFile;

/// A piece of a base file.
const PIECE_BYTES: usize = 4 << 20;
/// A base file of which nothing has been fetched for so long is not being fetched.
const LENT_FOR: Span = Span::from_secs(30);

/// A base file that is being fetched, and when a piece of it or of what follows it last was.
#[derive(Clone, Debug)]
pub(super) struct Loan {
    /// `None`: what follows nothing is being fetched.
    pub(super) base: Option<Arc<BaseFile>>,
    pub(super) at: Tick,
}

impl JobStateStore {
    /// What comes next for a standby, about so many bytes of it; one piece may come beyond. Nothing, if it has
    /// all there is. Blocks.
    pub fn lend(
        &self,
        now: Tick,
        generation: Generation,
        position: StandbyPosition,
        history: History<'_>,
        room: usize,
    ) -> Result<Vec<(PieceOf, Bytes)>, StateError> {
        let task = position.task;
        if let Some(at) = position.base
            && let Some(base) = self.lent(task, at.checkpoint, now)
        {
            return Ok(vec![piece(&base, at.offset, room)?]);
        }
        let chunks = self.following(task, position.after, generation, history);
        let base = self.base_of(task);
        let follows = chunks
            .first()
            .is_some_and(|chunk| chunk.previous == position.after);
        if follows {
            return self.read_chunks(&chunks, position.records as usize, room);
        }
        // One that is older is for a standby that has come to where it is in other steps.
        let newer = |base: &Arc<BaseFile>| Some(base.checkpoint()) > position.after;
        let other = |base: &Arc<BaseFile>| Some(base.checkpoint()) != position.after;
        let leads_on = base.filter(|base| newer(base) || (!chunks.is_empty() && other(base)));
        match leads_on {
            Some(base) => {
                let loan = Loan {
                    base: Some(Arc::clone(&base)),
                    at: now,
                };
                lock(&self.lent).insert((task, base.checkpoint()), loan);
                Ok(vec![piece(&base, 0, room)?])
            }
            None if chunks.is_empty() => Ok(Vec::new()),
            None => Err(StateError::Lost {
                task,
                at: chunks[0].checkpoint,
            }),
        }
    }

    /// The framed records of the chunks that follow a checkpoint, also those of one that has not come whole. Blocks.
    pub fn records_after(
        &self,
        task: TaskId,
        after: Option<CheckpointId>,
        generation: Generation,
        history: History<'_>,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut chunks = self.following(task, after, generation, history);
        let last = chunks.last().map(|chunk| chunk.checkpoint).or(after);
        chunks.extend(self.log.begun(task, generation, last));
        let pieces = self.read_chunks(&chunks, 0, usize::MAX)?;
        Ok(pieces.into_iter().map(|(_, record)| record).collect())
    }

    pub(super) fn base_of(&self, task: TaskId) -> Option<Arc<BaseFile>> {
        lock(&self.bases).get(&task).cloned()
    }

    /// The checkpoint of a task's newest base file.
    pub fn base_at(&self, task: TaskId) -> Option<CheckpointId> {
        lock(&self.bases).get(&task).map(|base| base.checkpoint())
    }

    /// Base files that nobody fetches any more hold up nothing.
    pub fn end_loans(&self, now: Tick) {
        lock(&self.lent).retain(|_, loan| now.since(loan.at) < LENT_FOR);
    }

    /// Whether a chunk follows a base file that is being fetched.
    pub(super) fn follows_a_loan(&self, task: TaskId, chunk: &ChunkRef) -> bool {
        let lent = lock(&self.lent);
        let mut of_task = lent.range((task, CheckpointId(0))..=(task, CheckpointId(u64::MAX)));
        of_task.any(|((_, base), _)| chunk.checkpoint > *base)
    }

    /// The chunks after a checkpoint that count, or may come to.
    pub(super) fn following(
        &self,
        task: TaskId,
        after: Option<CheckpointId>,
        generation: Generation,
        history: History<'_>,
    ) -> Vec<ChunkRef> {
        self.log.counted(task, &|of, checkpoint| {
            Some(checkpoint) > after && (of == generation || history(of, checkpoint) == Some(true))
        })
    }

    fn lent(&self, task: TaskId, checkpoint: CheckpointId, now: Tick) -> Option<Arc<BaseFile>> {
        let mut lent = lock(&self.lent);
        let loan = lent.get_mut(&(task, checkpoint))?;
        loan.at = now;
        loan.base.clone()
    }

    /// The records of chunks that follow each other, without the first few.
    fn read_chunks(
        &self,
        chunks: &[ChunkRef],
        mut skip: usize,
        room: usize,
    ) -> Result<Vec<(PieceOf, Bytes)>, StateError> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let mut before = chunks.first().and_then(|chunk| chunk.previous);
        for chunk in chunks {
            if chunk.previous != before {
                break;
            }
            before = Some(chunk.checkpoint);
            let count = chunk.records().len();
            for (index, position) in chunk.records().iter().enumerate().skip(skip) {
                if bytes >= room {
                    return Ok(pieces);
                }
                let record = self.log.record(*position)?.bytes;
                bytes += record.len();
                let of = PieceOf::Chunk {
                    previous: chunk.previous,
                    checkpoint: chunk.checkpoint,
                    last: index + 1 == count,
                };
                pieces.push((of, record));
            }
            skip = 0;
        }
        Ok(pieces)
    }
}

fn piece(base: &BaseFile, offset: u64, room: usize) -> Result<(PieceOf, Bytes), StateError> {
    let of = PieceOf::Base {
        at: BasePosition {
            checkpoint: base.checkpoint(),
            offset,
        },
        length: base.bytes(),
    };
    Ok((of, base.read_raw(offset, room.min(PIECE_BYTES))?.into()))
}

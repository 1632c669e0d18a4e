//! The Source trait: where rows come from, and the rule that makes reading exactly-once.
//!
//! A source reads splits. Each split has a position that only grows: the number of the next record. The
//! task keeps every split's position in its state; it is sealed with everything else at a barrier, so
//! after a restore each record is read again exactly if its effects were rolled back. A source itself
//! remembers nothing: it is opened at the positions of the checkpoint.

pub mod watermark;
mod decoded;
mod topic;
mod files;
mod generator;

#[cfg(test)]
mod files_tests;
#[cfg(test)]
mod topic_tests;

use std::sync::Arc;

use common::error::Problem;
use common::key_group::hash_key;
use common::plan::connector::SourceSpec;
use common::plan::task_graph::PlannedSource;
use common::time::{Clock, Span, Tick};
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::log_client::LogClient;
use crate::task::dead_letter::DeadLetter;
use crate::task::message::Rows;

/// One task's reader of its share of the splits.
pub trait Source: std::fmt::Debug {
    /// What comes next, of any split. Waits while there is nothing; may be dropped while it waits
    /// without losing anything.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<SourceEvent, SourceError>>;

    /// The splits it reads now, with their positions, also those it found itself at its first start.
    fn splits(&self) -> Vec<SplitState>;
}

/// A split and how far it has been read. Kept in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitState {
    /// Unique in its source and the same in every generation: a partition's number, a file's path.
    pub split: Arc<str>,
    /// The number of the next record; in a file the byte where it begins.
    pub position: i64,
    /// Where a bounded source stops reading, taken once, at the job's first start; of any split that has
    /// ended, where that was.
    pub end: Option<i64>,
    /// Which one it is of those that have borne its name: a topic may be deleted and created again.
    /// `None`: the name says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Arc<str>>,
}

/// What a source gives.
#[derive(Debug)]
pub enum SourceEvent {
    Rows(SourceRows),
    /// At this time the split had nothing more: everything that may be read was read. Said again every
    /// `CAUGHT_UP_EVERY` for as long as it holds, because only that tells a quiet split from one that is
    /// not being read.
    CaughtUp {
        split: Arc<str>,
        at: Tick,
    },
    /// There is no split, and one may be found later. Until then nothing waits for this source.
    Waiting,
    /// A new split was found (a file in a watched directory, a partition).
    Discovered {
        split: SplitState,
    },
    /// This split will never give anything more.
    Ended {
        split: Arc<str>,
    },
    /// All splits have ended, and no new one will be found.
    Exhausted,
}

/// Records of one split, decoded.
#[derive(Debug)]
pub struct SourceRows {
    pub split: Arc<str>,
    pub rows: Rows,
    /// The split's position after these records, and after those that were given up or left out.
    pub next_position: i64,
    pub dead_letters: Vec<DeadLetter>,
    /// Size of what was read, for rates.
    pub bytes: u64,
    /// Records that could still be read behind these, as far as is known.
    pub lag: u64,
}

/// Why a source cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Reading on would skip or repeat records: a person must decide.
    #[error("{0}")]
    Fatal(String),
    /// The job starts again from its last checkpoint.
    #[error("{0}")]
    Broken(String),
}

/// How long a batch may grow when records come slowly.
pub const LINGER: Span = Span::from_millis(5);

/// How often a split that has nothing to read says so.
pub const CAUGHT_UP_EVERY: Span = Span::from_millis(200);

/// What a source is opened with.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// Which task of its stage this is, of how many.
    pub task_index: u32,
    pub parallelism: u32,
    /// The source's splits in the checkpoint to start from, those of all its tasks: after a change of
    /// parallelism they are dealt anew. `None`: the job starts for the first time.
    pub restored: Option<Vec<SplitState>>,
    pub log: LogClient,
    pub clock: Arc<dyn Clock>,
}

/// Opens a task's share of a source.
pub async fn open(
    planned: &PlannedSource,
    context: SourceContext,
) -> Result<Box<dyn Source>, Problem> {
    let PlannedSource {
        name,
        spec,
        columns,
    } = planned;
    Ok(match spec {
        SourceSpec::Topic(spec) => {
            Box::new(topic::TopicSource::open(name, spec, columns, &context).await?)
        }
        SourceSpec::Files(spec) => {
            Box::new(files::FileSource::open(name, spec, columns, &context)?)
        }
        SourceSpec::Generator(spec) => Box::new(generator::GeneratorSource::open(
            name, spec, columns, &context,
        )?),
    })
}

/// Whether a split is dealt to this task of so many.
pub fn is_dealt(spec: &SourceSpec, split: &str, task_index: u32, parallelism: u32) -> bool {
    let number = match spec {
        SourceSpec::Topic(_) | SourceSpec::Generator(_) => split.parse().ok(),
        SourceSpec::Files(_) => Some(hash_key(split.as_bytes())),
    };
    number.is_some_and(|number: u64| number % u64::from(parallelism) == u64::from(task_index))
}

impl SourceContext {
    /// Where to go on reading a split; `None`: it is new.
    fn restored_split(&self, split: &str) -> Option<&SplitState> {
        let restored = self.restored.as_ref()?;
        restored.iter().find(|state| &*state.split == split)
    }

    fn restored_position(&self, split: &str) -> Option<i64> {
        Some(self.restored_split(split)?.position)
    }
}

impl From<Problem> for SourceError {
    fn from(problem: Problem) -> SourceError {
        match problem.code.is_retriable() {
            true => SourceError::Broken(problem.to_string()),
            false => SourceError::Fatal(problem.to_string()),
        }
    }
}

//! How one question about an operator's state becomes questions to its tasks, and their answers one.
//!
//! Entries are in the order of tasks and, within a task, of keys. A page ends inside a task; the cursor
//! says in which, and where the task goes on. All pages can be read at one checkpoint.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, MetadataVersion, NodeId, StageId, TaskId};
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::state::{Consistency, StateEntries, StateEntry, StatePlace};
use common::protocol::task::{Deployment, Standbys, TaskAssignment};
use common::time::Timestamp;

use super::describe::operators_of;
use crate::metadata::jobs::JobRow;

/// Where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of the division into tasks that the page before was read in.
    pub task: TaskId,
    /// `None`: at the first entry of the task.
    pub place: Option<StatePlace>,
}

/// What a user asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Question {
    pub operator: String,
    pub key: Option<serde_json::Value>,
    pub prefix: Option<String>,
    pub consistency: Consistency,
    pub epoch: Option<CheckpointId>,
    pub after: Option<Cursor>,
    pub limit: u32,
}

/// One consistent reading of one operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub generation: Generation,
    /// `None`: live.
    pub checkpoint: Option<CheckpointId>,
    pub stage: StageId,
    pub parallelism: u32,
    question: Question,
    entries: Vec<StateEntry>,
    watermark: Option<Timestamp>,
    /// Whether every answer so far had a watermark.
    watermarks: bool,
    at: Cursor,
    done: bool,
}

/// The next question to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub task: TaskId,
    pub after: Option<StatePlace>,
    pub limit: u32,
}

/// A page of entries.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub entries: Vec<StateEntry>,
    pub next: Option<Cursor>,
    pub watermark: Option<Timestamp>,
}

impl Reading {
    /// Begins to read, at the job's last completed checkpoint unless the question names one.
    pub fn begin(row: &JobRow, question: Question) -> Result<Reading, Problem> {
        let stage = find_stage(row, &question.operator)?;
        let parallelism = row.graph.stage(stage).parallelism;
        let checkpoint = match (question.consistency, question.epoch, row.completed) {
            (Consistency::Live, None, _) if row.deployment.is_some() => None,
            (Consistency::Live, None, _) => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!("nothing of job \"{}\" runs: it is {}", row.name, row.state),
                )
                .hint("Read its last completed epoch: leave `consistency` out."));
            }
            (Consistency::Live, Some(_), _) => {
                return Err(Problem::new(
                    ErrorCode::InvalidRequest,
                    "\"epoch\" goes with consistency=completed",
                ));
            }
            (Consistency::Completed, asked, Some(completed)) => {
                let epoch = asked.unwrap_or(completed);
                if Some(epoch) < row.divided_at {
                    return Err(Problem::new(
                        ErrorCode::EpochGone,
                        format!("the job was divided into other tasks after epoch {epoch}"),
                    )
                    .hint("Leave `epoch` out to read the newest one."));
                }
                if epoch > completed {
                    return Err(Problem::new(
                        ErrorCode::UnknownCheckpoint,
                        format!("epoch {epoch} is not complete; the last one is {completed}"),
                    ));
                }
                // On disk there is the last one only.
                if row.deployment.is_none() && epoch < completed {
                    return Err(Problem::new(
                        ErrorCode::EpochGone,
                        format!("the state at epoch {epoch} is no longer kept"),
                    )
                    .hint("Leave `epoch` out to read the newest one."));
                }
                Some(epoch)
            }
            (Consistency::Completed, _, None) => {
                return Err(Problem::new(
                    ErrorCode::UnknownCheckpoint,
                    format!("job \"{}\" has not completed a checkpoint yet", row.name),
                )
                .hint("Ask again in a moment, or read with consistency=live."));
            }
        };
        let at = question.after.clone().unwrap_or(Cursor {
            task: TaskId { stage, index: 0 },
            place: None,
        });
        if at.task.stage != stage {
            return Err(Problem::new(
                ErrorCode::EpochGone,
                "the job has been divided into other tasks since the page before",
            )
            .hint("Begin again, without `after` and `epoch`."));
        }
        Ok(Reading {
            generation: row.generation,
            checkpoint,
            stage,
            parallelism,
            done: at.task.index >= parallelism,
            at,
            question,
            entries: Vec::new(),
            watermark: None,
            watermarks: true,
        })
    }

    /// Whom to ask next; `None` once the page is full or everything has been read.
    pub fn next(&self) -> Option<Ask> {
        let limit = self.question.limit - self.count();
        (!self.done && limit > 0).then_some(Ask {
            task: self.at.task,
            after: self.at.place.clone(),
            limit,
        })
    }

    pub fn question(&self) -> &Question {
        &self.question
    }

    /// Takes the answer to the last `next`.
    pub fn answered(&mut self, answer: StateEntries) {
        let received = !answer.entries.is_empty();
        self.entries.extend(answer.entries);
        self.watermarks &= answer.watermark.is_some();
        self.watermark = match self.watermark {
            Some(watermark) => answer.watermark.map(|other| watermark.min(other)),
            None => answer.watermark,
        };
        // A task that says there is more and gives nothing would be asked for ever.
        match answer.next.filter(|_| received) {
            Some(place) => self.at.place = Some(place),
            None => {
                self.at.task.index += 1;
                self.at.place = None;
                self.done = self.at.task.index >= self.parallelism;
            }
        }
    }

    pub fn into_page(self) -> Page {
        Page {
            entries: self.entries,
            next: (!self.done).then_some(self.at),
            watermark: self.watermark.filter(|_| self.watermarks),
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.entries.len())
            .unwrap_or(u32::MAX)
            .min(self.question.limit)
    }
}

/// The tasks of a job of which nothing runs, where their state is: as if they had been restored there.
pub fn at_rest(row: &JobRow, is_active: impl Fn(NodeId) -> bool) -> Deployment {
    let holder = |task| {
        let holders: &[NodeId] = row.holders.get(&task).map_or(&[], Vec::as_slice);
        let active = holders.iter().find(|worker| is_active(**worker));
        active.or(holders.first()).copied()
    };
    let tasks = row.graph.tasks().map(|task| TaskAssignment {
        task,
        // A task without state is asked nothing.
        worker: holder(task).unwrap_or(NodeId(0)),
    });
    Deployment {
        job: row.id,
        name: row.name.clone(),
        generation: row.generation,
        version: MetadataVersion(0),
        restore: row.completed,
        savepoint: None,
        graph: TaskGraph::clone(&row.graph),
        tasks: tasks.collect(),
        standbys: Standbys::new(),
        next: None,
        still: false,
        checkpoint_interval: row.checkpoint_interval,
    }
}

/// The stage of an operator that keeps state which can be asked for.
fn find_stage(row: &JobRow, operator: &str) -> Result<StageId, Problem> {
    let planned = |stage: &Stage| {
        let operators = stage.operators.clone().into_iter();
        operators.map(|operator| operator.spec)
    };
    let stages = row.graph.stages.iter();
    let found = stages
        .clone()
        .find(|stage| planned(stage).any(|spec| spec.id() == operator && keeps_state(&spec)));
    if let Some(stage) = found {
        return Ok(stage.id);
    }
    let is_there = stages
        .clone()
        .flat_map(operators_of)
        .any(|name| name == operator);
    let detail = match is_there {
        true => format!(
            "\"{operator}\" of job \"{}\" keeps no state to read",
            row.name
        ),
        false => format!("job \"{}\" has no operator \"{operator}\"", row.name),
    };
    let known: Vec<String> = stages
        .flat_map(planned)
        .filter(keeps_state)
        .map(|spec| spec.id().to_owned())
        .collect();
    let hint = match known.is_empty() {
        true => "No operator of this job keeps state.".to_owned(),
        false => format!("State is kept by: {}.", known.join(", ")),
    };
    Err(Problem::new(ErrorCode::UnknownOperator, detail).hint(hint))
}

fn keeps_state(spec: &OperatorSpec) -> bool {
    match spec {
        OperatorSpec::WindowAggregate(_) | OperatorSpec::Aggregate(_) | OperatorSpec::Custom(_) => {
            true
        }
        OperatorSpec::Filter(_) | OperatorSpec::Project(_) | OperatorSpec::Union(_) => false,
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.as_ref().map(|StatePlace(place)| place);
        let place = URL_SAFE_NO_PAD.encode(place.map_or(&[][..], Vec::as_slice));
        write!(f, "{}.{place}", self.task)
    }
}

impl FromStr for Cursor {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Cursor, Problem> {
        let parts = text.rsplit_once('.');
        let cursor = parts.and_then(|(task, place)| {
            let (stage, index) = task.split_once('.')?;
            let place = URL_SAFE_NO_PAD.decode(place).ok()?;
            Some(Cursor {
                task: TaskId {
                    stage: StageId(stage.parse().ok()?),
                    index: index.parse().ok()?,
                },
                place: (!place.is_empty()).then_some(StatePlace(place)),
            })
        });
        cursor.ok_or_else(|| {
            Problem::new(
                ErrorCode::InvalidRequest,
                format!("\"{text}\" is not a place to go on after"),
            )
            .hint("Give what \"next\" said in the page before.")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    fn beginning() -> Cursor {
        Cursor {
            task: TaskId {
                stage: StageId(1),
                index: 0,
            },
            place: None,
        }
    }

    fn reading(parallelism: u32, limit: u32, after: Cursor) -> Reading {
        Reading {
            generation: Generation(1),
            checkpoint: Some(CheckpointId(7)),
            stage: StageId(1),
            parallelism,
            question: Question {
                limit,
                ..Question::default()
            },
            entries: Vec::new(),
            watermark: None,
            watermarks: true,
            done: after.task.index >= parallelism,
            at: after,
        }
    }

    fn entry(task: u32, number: u64) -> StateEntry {
        StateEntry {
            key: Map::from_iter([("k".to_owned(), Value::from(format!("{task}.{number}")))]),
            window: None,
            value: Map::new(),
        }
    }

    /// Tasks with so many entries each.
    fn answer(sizes: &[u64], ask: &Ask) -> StateEntries {
        let size = sizes[ask.task.index as usize];
        let after = ask.after.as_ref();
        let first = after.map_or(0, |StatePlace(place)| u64::from(place[0]));
        let end = size.min(first + u64::from(ask.limit));
        StateEntries {
            entries: (first..end).map(|n| entry(ask.task.index, n)).collect(),
            next: (end < size).then(|| StatePlace(vec![u8::try_from(end).unwrap()])),
            watermark: Some(Timestamp(i64::from(100 - ask.task.index))),
        }
    }

    fn page(sizes: &[u64], limit: u32, after: Cursor) -> Page {
        let parallelism = u32::try_from(sizes.len()).unwrap();
        let mut reading = reading(parallelism, limit, after);
        while let Some(ask) = reading.next() {
            reading.answered(answer(sizes, &ask));
        }
        reading.into_page()
    }

    #[test]
    fn pages_of_any_size_give_every_entry_once_and_in_order() {
        let sizes = [3, 0, 5, 1];
        let all: Vec<StateEntry> = (0_u32..)
            .zip(sizes)
            .flat_map(|(task, size)| (0..size).map(move |number| entry(task, number)))
            .collect();
        for limit in 1..=10 {
            let mut read = Vec::new();
            let mut after = Some(beginning());
            while let Some(cursor) = after {
                let page = page(&sizes, limit, cursor);
                assert!(page.entries.len() <= limit as usize);
                read.extend(page.entries);
                after = page.next;
            }
            assert_eq!(read, all, "with pages of {limit}");
        }
    }

    #[test]
    fn the_watermark_of_a_page_is_the_slowest_tasks_and_none_if_one_has_none() {
        assert_eq!(
            page(&[1, 1], 10, beginning()).watermark,
            Some(Timestamp(99))
        );
        let mut reading = reading(2, 10, beginning());
        for watermark in [Some(Timestamp(5)), None] {
            reading.answered(StateEntries {
                entries: Vec::new(),
                next: None,
                watermark,
            });
        }
        assert_eq!(reading.into_page().watermark, None);
    }

    #[test]
    fn a_task_that_promises_more_and_gives_nothing_is_asked_once() {
        let mut reading = reading(1, 10, beginning());
        assert!(reading.next().is_some());
        reading.answered(StateEntries {
            entries: Vec::new(),
            next: Some(StatePlace(vec![1])),
            watermark: None,
        });
        assert_eq!(reading.next(), None);
    }

    #[test]
    fn cursors_read_back_as_they_were_written() {
        for place in [None, Some(StatePlace(vec![0, 250, 255, 7]))] {
            let task = TaskId {
                stage: StageId(6),
                index: 3,
            };
            let cursor = Cursor { task, place };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for bad in ["", "3", "a.b", "3.AA", "1.-2.AA", "1.1.*"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad:?} was accepted");
        }
    }
}

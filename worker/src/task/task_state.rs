//! What a task itself keeps in checkpoints, besides its operators' tables: how far its source was read,
//! what it has said about time, what its sink still has to commit.

use std::sync::Arc;

use common::ids::CheckpointId;
use common::plan::redistribution::Share;
use common::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::OperatorState;
use super::messages::TableDelta;
use crate::checkpoint::succession::OwnTables;
use crate::keyed_state::section::TableId;
use crate::keyed_state::table::{At, Table};
use crate::sink::Committable;
use crate::source::SplitState;

/// The id the task's own tables are kept under. No operator has it: names have no `$`.
pub const TASK: &str = "$task";
/// Sealed when the sink is prepared, later than the other tables; so it is kept apart.
pub const SINK: &str = "$sink";

const TIME: &str = "time";
const WATERMARK: &[u8] = b"watermark";
const SPLITS: &str = "splits";
/// Split → the latest event time read of it.
const CLOCKS: &str = "clocks";
const COMMITTABLES: &str = "committables";

/// Whether a table belongs to its task and not to an operator.
pub fn is_own(table: &TableId) -> bool {
    table.operator == TASK || table.operator == SINK
}

/// What a task has of its own that takes the place of others, from what they have. `is_dealt`: whether a split is
/// dealt to it.
pub fn inherit(of: Vec<(&Share, OwnTables)>, is_dealt: &dyn Fn(&str) -> bool) -> OwnTables {
    let id = |operator: &str, table: &str| TableId {
        operator: operator.to_owned(),
        table: table.to_owned(),
    };
    let mut inherited = OwnTables::new();
    // It says nothing of event time that one of them had not said.
    let mut watermark = i64::MAX;
    let goes_on = of.iter().all(|(share, _)| share.time);
    for (share, tables) in of {
        let entries = |table: &TableId| tables.get(table).map(|table| table.sorted(1));
        let of_time = entries(&id(TASK, TIME)).unwrap_or_default();
        let said = of_time.iter().filter_map(|entry| entry.value);
        watermark = watermark.min(said.map(decode::<i64>).min().unwrap_or(i64::MIN));
        for table in [id(TASK, SPLITS), id(TASK, CLOCKS)] {
            for entry in entries(&table).unwrap_or_default() {
                let split = String::from_utf8_lossy(entry.key);
                if let (true, Some(value)) = (share.splits && is_dealt(&split), entry.value) {
                    let kept = inherited.entry(table.clone()).or_default();
                    kept.put(0, entry.key, value);
                }
            }
        }
        let committables = id(SINK, COMMITTABLES);
        for entry in entries(&committables).unwrap_or_default() {
            if let (true, Some(value)) = (share.committables, entry.value) {
                // Several tasks have prepared the same checkpoint.
                let key = [entry.key, share.of.to_string().as_bytes()].concat();
                let kept = inherited.entry(committables.clone()).or_default();
                kept.put(0, &key, value);
            }
        }
    }
    if goes_on {
        let time = inherited.entry(id(TASK, TIME)).or_default();
        time.put(0, WATERMARK, &encode(&watermark));
    }
    inherited
}

/// The task's own tables.
#[derive(Debug, Default)]
pub struct TaskState {
    task: OperatorState,
    sink: OperatorState,
}

impl TaskState {
    pub fn new(task: OperatorState, sink: OperatorState) -> TaskState {
        TaskState { task, sink }
    }

    /// Gives its tables up.
    pub fn take_tables(&mut self) -> impl Iterator<Item = (TableId, Table)> + use<> {
        let own = self.task.take_tables(TASK);
        own.chain(self.sink.take_tables(SINK))
    }

    /// The watermark the task had passed on.
    pub fn watermark(&mut self) -> Timestamp {
        let stored = table(&mut self.task, TIME)
            .get(0, WATERMARK)
            .map(decode::<i64>);
        stored.map_or(Timestamp::MIN, Timestamp)
    }

    /// Whether it goes on from what a task before it had sealed.
    pub fn has_begun(&mut self) -> bool {
        table(&mut self.task, TIME).get(0, WATERMARK).is_some()
    }

    /// What it had passed on before this checkpoint, as long as that is kept.
    pub fn watermark_at(&self, checkpoint: CheckpointId) -> Timestamp {
        let table = self.task.tables.get(TIME);
        let stored = table.and_then(|table| {
            let at = At::Completed(checkpoint);
            table.get_at(at, 0, WATERMARK).ok().flatten()
        });
        stored.map(decode).map_or(Timestamp::MIN, Timestamp)
    }

    /// The splits of its source, if it ever read any.
    pub fn splits(&mut self) -> Vec<SplitState> {
        let mut splits = Vec::new();
        table(&mut self.task, SPLITS).for_each(0, |_, value| splits.push(decode(value)));
        splits
    }

    /// The latest event time read of each split.
    pub fn clocks(&mut self) -> Vec<(Arc<str>, Timestamp)> {
        let mut clocks = Vec::new();
        table(&mut self.task, CLOCKS).for_each(0, |key, value| {
            let split = String::from_utf8_lossy(key);
            clocks.push((Arc::from(split), Timestamp(decode(value))));
        });
        clocks
    }

    /// What its sink had prepared and may not have committed.
    pub fn committables(&mut self, up_to: CheckpointId) -> Vec<Committable> {
        let mut committables = Vec::new();
        let table = table(&mut self.sink, COMMITTABLES);
        table.for_each(0, |key, value| {
            if checkpoint_of(key) <= up_to {
                committables.push(Committable(value.to_vec()));
            }
        });
        committables
    }

    /// Notes how far a source was read.
    pub fn note_source<'a>(
        &mut self,
        splits: impl Iterator<Item = &'a SplitState>,
        clocks: impl Iterator<Item = (&'a Arc<str>, Timestamp)>,
    ) {
        let kept = table(&mut self.task, SPLITS);
        for split in splits {
            kept.put(0, split.split.as_bytes(), &encode(split));
        }
        let kept = table(&mut self.task, CLOCKS);
        for (split, latest) in clocks {
            kept.put(0, split.as_bytes(), &encode(&latest.0));
        }
    }

    /// Notes what the task has said about time, and seals everything but the sink's part.
    pub fn seal(&mut self, checkpoint: CheckpointId, watermark: Timestamp) {
        table(&mut self.task, TIME).put(0, WATERMARK, &encode(&watermark.0));
        seal_all(&mut self.task, checkpoint);
    }

    /// The sink has prepared the checkpoint, and this is what committing it needs.
    pub fn seal_sink(&mut self, checkpoint: CheckpointId, committable: Option<Committable>) {
        if let Some(Committable(bytes)) = committable {
            table(&mut self.sink, COMMITTABLES).put(0, &checkpoint.0.to_be_bytes(), &bytes);
        }
        seal_all(&mut self.sink, checkpoint);
    }

    /// The sink has been told to commit everything up to here.
    pub fn forget_committables(&mut self, up_to: CheckpointId) {
        let table = table(&mut self.sink, COMMITTABLES);
        let mut told = Vec::new();
        table.for_each(0, |key, _| {
            if checkpoint_of(key) <= up_to {
                told.push(key.to_vec());
            }
        });
        for key in told {
            table.delete(0, &key);
        }
    }

    pub fn complete(&mut self, checkpoint: CheckpointId) {
        for table in self
            .task
            .tables
            .values_mut()
            .chain(self.sink.tables.values_mut())
        {
            table.complete(checkpoint);
        }
    }

    pub fn deltas(&self, checkpoint: CheckpointId) -> Vec<TableDelta> {
        let mut deltas = deltas_of(TASK, &self.task, checkpoint);
        deltas.extend(deltas_of(SINK, &self.sink, checkpoint));
        deltas
    }

    /// Split → position as the checkpoint has them.
    pub fn positions(&self, checkpoint: CheckpointId) -> Vec<SplitState> {
        let entries = self
            .task
            .tables
            .get(SPLITS)
            .and_then(|table| table.entries(At::Completed(checkpoint)));
        entries
            .into_iter()
            .flatten()
            .map(|(_, _, value)| decode(value))
            .collect()
    }
}

/// The deltas that an operator's tables have for a checkpoint.
pub fn deltas_of(id: &str, state: &OperatorState, checkpoint: CheckpointId) -> Vec<TableDelta> {
    let delta = |(name, table): (&String, &Table)| {
        let id = TableId {
            operator: id.to_owned(),
            table: name.clone(),
        };
        Some((id, table.delta(checkpoint)?))
    };
    state.tables.iter().filter_map(delta).collect()
}

fn seal_all(state: &mut OperatorState, checkpoint: CheckpointId) {
    for table in state.tables.values_mut() {
        table.seal(checkpoint);
    }
}

fn table<'a>(state: &'a mut OperatorState, name: &str) -> &'a mut Table {
    if !state.tables.contains_key(name) {
        state.tables.insert(name.to_owned(), Table::default());
    }
    state.tables.get_mut(name).expect("it was just put there")
}

fn checkpoint_of(key: &[u8]) -> CheckpointId {
    let (checkpoint, _) = key
        .split_first_chunk()
        .expect("committables are kept by checkpoint");
    CheckpointId(u64::from_be_bytes(*checkpoint))
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("the task's own notes can be written")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    rmp_serde::from_slice(bytes).expect("the task's own notes are kept under a checksum")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(position: i64) -> SplitState {
        SplitState {
            split: "0".into(),
            position,
            end: None,
            of: None,
        }
    }

    #[test]
    fn what_was_sealed_is_what_a_later_life_starts_from() {
        let mut state = TaskState::default();
        assert_eq!(
            (state.watermark(), state.splits()),
            (Timestamp::MIN, vec![])
        );
        for (checkpoint, position) in [(1, 10), (2, 12)] {
            let clock = (&Arc::from("0"), Timestamp(position));
            state.note_source([split(position)].iter(), [clock].into_iter());
            state.seal(CheckpointId(checkpoint), Timestamp(position - 5));
        }
        assert_eq!(
            (state.watermark(), state.splits()),
            (Timestamp(7), vec![split(12)])
        );
        assert_eq!(state.clocks(), [(Arc::from("0"), Timestamp(12))]);
        assert_eq!(state.positions(CheckpointId(1)), [split(10)]);
        let at = |checkpoint| state.watermark_at(CheckpointId(checkpoint));
        assert_eq!((at(1), at(2)), (Timestamp(5), Timestamp(7)));
    }

    #[test]
    fn committables_are_kept_until_the_sink_was_told_to_commit_them() {
        let mut state = TaskState::default();
        for checkpoint in [1, 2, 3] {
            let committable = Committable(vec![checkpoint]);
            state.seal_sink(CheckpointId(u64::from(checkpoint)), Some(committable));
        }
        assert_eq!(state.committables(CheckpointId(2)).len(), 2);
        state.forget_committables(CheckpointId(2));
        assert_eq!(state.committables(CheckpointId(3)), [Committable(vec![3])]);
    }
}

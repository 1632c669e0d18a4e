//! Operators whose state is on disk only give what they give with all of it in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, TimestampMillisecondArray};
use arrow::util::pretty::pretty_format_batches;
use common::ids::CheckpointId;
use common::key_group::KeyGroupRange;
use common::plan::task_graph::PlannedOperator;
use common::time::Timestamp;
use proptest::prelude::*;

use super::custom::CustomOperators;
use super::harness::{KEY_GROUPS, batch, planned};
use super::{build, spills};
use crate::keyed_state::spill_tests::{Map, answer};
use crate::keyed_state::stored::Ask;
use crate::task::chain::{Chain, Progress, Work};
use crate::task::context::OperatorState;
use crate::task::message::Rows;

const INPUT: &[&str] = &["k BIGINT", "n BIGINT", "ts TIMESTAMP(3)"];

fn windows() -> PlannedOperator {
    planned(
        r#"{"type": "window_aggregate", "id": "w", "inputs": ["in"], "keys": ["k"], "time": "ts",
            "window": {"type": "hopping", "size": "10ms", "slide": "4ms"},
            "aggregates": [{"fn": "count", "as": "c"}, {"fn": "sum", "args": ["n"], "as": "s"}]}"#,
        &[INPUT],
        &[
            "k BIGINT",
            "window_start TIMESTAMP(3) NOT NULL",
            "window_end TIMESTAMP(3) NOT NULL",
            "c BIGINT NOT NULL",
            "s BIGINT",
        ],
    )
}

fn totals() -> PlannedOperator {
    planned(
        r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"],
            "aggregates": [{"fn": "count", "as": "c"}, {"fn": "sum", "args": ["n"], "as": "s"}]}"#,
        &[INPUT],
        &["k BIGINT", "c BIGINT NOT NULL", "s BIGINT"],
    )
}

/// What an operator with a store may hold outside its tables.
const MAY_HOLD: usize = 4_000;

/// An operator that keeps nothing in memory that is in its store too, if it has one.
struct Task {
    chain: Chain,
    store: Option<BTreeMap<String, Map>>,
    asked: usize,
}

impl Task {
    fn new(planned: &PlannedOperator, store: Option<BTreeMap<String, Map>>) -> Task {
        assert!(spills(&planned.spec, &CustomOperators::default()));
        let state = OperatorState {
            spills: store.is_some(),
            may_hold: store.as_ref().map_or(usize::MAX, |_| MAY_HOLD),
            ..OperatorState::default()
        };
        let operator = build(planned, &CustomOperators::default()).unwrap();
        let operators = vec![("o".to_owned(), operator, state)];
        let range = KeyGroupRange::of_task(0, KEY_GROUPS, 1);
        Task {
            chain: Chain::new(operators, Timestamp::MIN, range, KEY_GROUPS),
            store,
            asked: 0,
        }
    }

    /// What comes out, as text with the kinds of changes.
    fn run(&mut self, work: Work) -> String {
        self.chain.begin(work);
        let mut out = Vec::new();
        loop {
            let (output, question) = match self.chain.run().unwrap() {
                Progress::Done(output) => (output, None),
                Progress::Asks(output, question) => (output, Some(question)),
            };
            assert!(output.dead_letters.is_empty());
            out.extend(output.rows);
            let Some(mut question) = question else { break };
            self.asked += 1;
            let store = self.store.as_ref().expect("without a store nobody asks");
            if let Ask::Range(range) = &mut question.ask {
                // Little at a time: windows come out in many steps.
                range.bytes = 60;
            }
            let answer = answer(&store[&question.table.table], question.ask.clone());
            self.chain.answer(&question, answer);
        }
        let kinds: Vec<Vec<i8>> = out
            .iter()
            .map(|rows| {
                rows.kinds
                    .iter()
                    .flat_map(|k| k.values().to_vec())
                    .collect()
            })
            .collect();
        let lines: Vec<_> = out.into_iter().map(|rows| rows.batch).collect();
        let table = pretty_format_batches(&lines).unwrap().to_string();
        format!("{table}\n{:?}", kinds.concat())
    }

    /// A checkpoint is sealed, completed and folded; then everything is let go.
    fn checkpoint(&mut self, number: u64) -> String {
        let checkpoints = [CheckpointId(2 * number), CheckpointId(2 * number + 1)];
        let out = self.run(Work::Seal(checkpoints[0]));
        assert!(self.run(Work::Seal(checkpoints[1])).ends_with("[]"));
        let names: Vec<String> = self
            .chain
            .operators()
            .flat_map(|(_, _, state)| state.tables.keys().cloned())
            .collect();
        for (name, table) in names.into_iter().zip(self.chain.tables_mut()) {
            if let (Some(stores), Some(delta)) = (&mut self.store, table.delta(checkpoints[0])) {
                let store = stores.entry(name).or_default();
                for namespace in delta.cleared() {
                    store.retain(|(of, _), _| *of != namespace);
                }
                for change in delta.sorted(1) {
                    let key = (change.namespace, change.key.to_vec());
                    match change.value {
                        Some(value) => store.insert(key, value.to_vec()),
                        None => store.remove(&key),
                    };
                }
            }
            checkpoints
                .iter()
                .for_each(|checkpoint| table.complete(*checkpoint));
            table.folded(checkpoints[0]);
            while table.evict(u64::MAX) {}
        }
        out
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rows(Vec<(i64, i64)>),
    Watermark(i64),
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    // Keys, and how far their times are from the watermark.
    let rows = prop::collection::vec((0_i64..40, 0_i64..12), 1..20);
    prop_oneof![
        4 => rows.prop_map(Step::Rows),
        2 => (0_i64..6).prop_map(Step::Watermark),
        3 => Just(Step::Checkpoint),
    ]
}

fn compare(planned: &PlannedOperator, steps: &[Step]) -> Result<usize, TestCaseError> {
    let mut in_memory = Task::new(planned, None);
    let mut on_disk = Task::new(planned, Some(BTreeMap::new()));
    let (mut watermark, mut checkpoint) = (0, 0);
    for step in steps {
        let (expected, found) = match step {
            Step::Rows(rows) => {
                let column = |pick: &dyn Fn(&(i64, i64)) -> i64| {
                    Arc::new(Int64Array::from_iter_values(rows.iter().map(pick))) as ArrayRef
                };
                let times = rows.iter().map(|(_, after)| watermark + after);
                let times = TimestampMillisecondArray::from_iter_values(times);
                let columns = vec![column(&|row| row.0), column(&|row| row.1), Arc::new(times)];
                let rows = Rows::inserts(batch(INPUT, columns));
                let work = || Work::Rows(0, rows.clone());
                (in_memory.run(work()), on_disk.run(work()))
            }
            Step::Watermark(further) => {
                watermark += further;
                let work = || Work::Watermark(Timestamp(watermark));
                (in_memory.run(work()), on_disk.run(work()))
            }
            Step::Checkpoint => {
                checkpoint += 1;
                (
                    in_memory.checkpoint(checkpoint),
                    on_disk.checkpoint(checkpoint),
                )
            }
        };
        // Batches are cut elsewhere; their rows are the same, in the same order.
        prop_assert_eq!(expected, found);
    }
    let end = || Work::Watermark(Timestamp::MAX);
    prop_assert_eq!(in_memory.run(end()), on_disk.run(end()));
    Ok(on_disk.asked)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn operators_give_the_same_whether_their_state_is_in_memory_or_not(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        for planned in [windows(), totals()] {
            compare(&planned, &steps)?;
        }
    }
}

#[test]
fn what_was_let_go_is_asked_for() {
    let rows = |keys: std::ops::Range<i64>| Step::Rows(keys.map(|key| (key, 1)).collect());
    let steps = [
        rows(0..30),
        Step::Checkpoint,
        rows(10..50),
        Step::Checkpoint,
        rows(0..5),
    ];
    for planned in [windows(), totals()] {
        assert!(compare(&planned, &steps).unwrap() >= 2);
    }
}

/// Sixteen megabytes were held, and nobody counted them, where tables were to take as many in all.
#[test]
fn no_more_is_held_outside_a_table_than_may_be() {
    let mut task = Task::new(&windows(), Some(BTreeMap::new()));
    let mut most = 0;
    for first in (0..2_000).step_by(20) {
        let numbers = || Int64Array::from_iter_values(first..first + 20);
        let times = TimestampMillisecondArray::from_iter_values((0..20).map(|_| 1));
        let columns: Vec<ArrayRef> =
            vec![Arc::new(numbers()), Arc::new(numbers()), Arc::new(times)];
        task.run(Work::Rows(0, Rows::inserts(batch(INPUT, columns))));
        let tables = task.chain.tables_mut().map(|table| table.footprint());
        let tables: u64 = tables.sum();
        most = most.max(task.chain.footprint() - tables);
    }
    // What came last is merged before the next is added.
    let bound = MAY_HOLD as u64..3 * MAY_HOLD as u64;
    assert!(bound.contains(&most), "{most} bytes");
}

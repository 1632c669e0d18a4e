//! Operators over rows that change: what they give, taken together, is what they make of what is left.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int8Array, Int64Array};
use arrow::datatypes::Int64Type;
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedOperator;
use proptest::prelude::*;

use super::harness::{Harness, batch, from_topic, planned};
use crate::task::message::{Rows, kind};

const COLUMNS: &[&str] = &["k BIGINT", "v BIGINT"];

/// A change of one row: its key, its value, what kind of change.
type Change = (i64, i64, i8);

/// What a user does to a table.
#[derive(Clone, Debug)]
enum Step {
    Set(i64, i64),
    Remove(i64),
    /// Where a batch ends, also between the halves of the update that follows.
    Cut,
    CutInside,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_i64..4, -3_i64..4).prop_map(|(key, value)| Step::Set(key, value)),
        2 => (0_i64..4).prop_map(Step::Remove),
        1 => Just(Step::Cut),
        1 => Just(Step::CutInside),
    ];
    prop::collection::vec(step, 0..40)
}

/// The steps as changes in batches, and the table that is left.
fn changes(steps: &[Step]) -> (Vec<Vec<Change>>, BTreeMap<i64, i64>) {
    let mut table = BTreeMap::new();
    let mut batches: Vec<Vec<Change>> = vec![Vec::new()];
    let mut cut_inside = false;
    for step in steps {
        let mut give = |changes: &[Change]| {
            batches
                .last_mut()
                .expect("there is one")
                .extend_from_slice(changes);
        };
        match step {
            Step::Set(key, value) => match table.insert(*key, *value) {
                None => give(&[(*key, *value, kind::INSERT)]),
                Some(before) => {
                    give(&[(*key, before, kind::UPDATE_BEFORE)]);
                    if std::mem::take(&mut cut_inside) {
                        batches.push(Vec::new());
                    }
                    let after = (*key, *value, kind::UPDATE_AFTER);
                    batches.last_mut().expect("there is one").push(after);
                }
            },
            Step::Remove(key) => {
                if let Some(before) = table.remove(key) {
                    give(&[(*key, before, kind::DELETE)]);
                }
            }
            Step::Cut => batches.push(Vec::new()),
            Step::CutInside => cut_inside = true,
        }
    }
    batches.retain(|batch| !batch.is_empty());
    (batches, table)
}

fn rows(changes: &[Change]) -> Rows {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(changes.iter().map(|c| c.0))),
        Arc::new(Int64Array::from_iter_values(changes.iter().map(|c| c.1))),
    ];
    Rows {
        kinds: Some(Int8Array::from_iter_values(changes.iter().map(|c| c.2))),
        ..from_topic(batch(COLUMNS, arrays))
    }
}

fn given(harness: &Harness) -> Vec<Change> {
    let mut given = Vec::new();
    for rows in &harness.outputs.rows {
        let column = |i: usize| rows.batch.column(i).as_primitive::<Int64Type>();
        for row in 0..rows.len() {
            let change = rows
                .kinds
                .as_ref()
                .map_or(kind::INSERT, |kinds| kinds.value(row));
            given.push((column(0).value(row), column(1).value(row), change));
        }
    }
    given
}

/// What is left for a reader who takes every row that goes from the rows there are.
fn by_row(changes: &[Change]) -> Result<BTreeMap<(i64, i64), i64>, TestCaseError> {
    let mut left: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    for (key, value, change) in changes {
        let count = left.entry((*key, *value)).or_default();
        *count += match *change {
            kind::INSERT | kind::UPDATE_AFTER => 1,
            _ => -1,
        };
        prop_assert!(*count >= 0, "a row goes that was not there: {:?}", changes);
    }
    left.retain(|_, count| *count > 0);
    Ok(left)
}

/// What is left for a reader who keeps the latest row of a key, as a topic of records by key does.
fn by_key(changes: &[Change]) -> BTreeMap<i64, i64> {
    let mut left = BTreeMap::new();
    for (key, value, change) in changes {
        match *change {
            kind::INSERT | kind::UPDATE_AFTER => {
                left.insert(*key, *value);
            }
            kind::DELETE => {
                left.remove(key);
            }
            _ => {}
        }
    }
    left
}

fn over_changes(spec: &str, output: &[&str]) -> PlannedOperator {
    let mode = ChangelogMode::Retract {
        key: vec!["k".into()],
    };
    PlannedOperator {
        input_mode: mode.clone(),
        output_mode: mode,
        ..planned(spec, &[COLUMNS], output)
    }
}

fn check(
    spec: &str,
    steps: &[Step],
    expected: impl Fn(i64, i64) -> Option<(i64, i64)>,
) -> Result<(), TestCaseError> {
    let (batches, table) = changes(steps);
    let mut harness = Harness::new(&over_changes(spec, COLUMNS));
    for batch in &batches {
        harness.process(rows(batch));
    }
    let expected: BTreeMap<i64, i64> = table
        .into_iter()
        .filter_map(|(key, value)| expected(key, value))
        .collect();
    let given = given(&harness);
    let counted = expected.iter().map(|(key, value)| ((*key, *value), 1));
    prop_assert_eq!(by_row(&given)?, counted.collect::<BTreeMap<_, _>>());
    prop_assert_eq!(by_key(&given), expected, "{:?}", given);
    Ok(())
}

proptest! {
    #[test]
    fn what_a_filter_gives_is_the_filter_of_what_is_left(steps in steps()) {
        let spec = r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "v > 0"}"#;
        check(spec, &steps, |key, value| (value > 0).then_some((key, value)))?;
    }

    /// A row that the condition fails on is given up, whichever half of an update it is.
    #[test]
    fn a_filter_that_fails_on_some_rows_gives_what_it_leaves_of_the_others(steps in steps()) {
        let spec = r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "6 / v > 2"}"#;
        check(spec, &steps, |key, value| (value != 0 && 6 / value > 2).then_some((key, value)))?;
    }

    #[test]
    fn a_project_that_fails_on_some_rows_gives_what_it_makes_of_the_others(steps in steps()) {
        let spec = r#"{"type": "project", "id": "p", "inputs": ["in"],
            "columns": ["k", {"expr": "12 / v", "as": "v"}]}"#;
        check(spec, &steps, |key, value| (value != 0).then(|| (key, 12 / value)))?;
    }

    /// Every row of every input once, as the change it was, in the order of its input: so a row that several
    /// inputs have is there as often, and goes as often.
    #[test]
    fn a_union_gives_all_changes_as_they_came(
        inputs in prop::collection::vec(steps(), 1..4),
        turns in prop::collection::vec(any::<prop::sample::Index>(), 120),
    ) {
        let mut harness = Harness::new(&union_of(inputs.len()));
        let mut waiting: Vec<VecDeque<Vec<Change>>> = Vec::new();
        let mut expected: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for steps in &inputs {
            let (batches, table) = changes(steps);
            waiting.push(batches.into());
            for row in table {
                *expected.entry(row).or_default() += 1;
            }
        }
        let mut came = Vec::new();
        for turn in turns {
            let ready: Vec<usize> = (0..inputs.len()).filter(|i| !waiting[*i].is_empty()).collect();
            if ready.is_empty() {
                break;
            }
            let input = ready[turn.index(ready.len())];
            let batch = waiting[input].pop_front().expect("it is ready");
            let number = u16::try_from(input).expect("few inputs");
            harness.call(|operator, context| operator.process(number, rows(&batch), context));
            came.extend(batch);
        }
        prop_assert!(waiting.iter().all(VecDeque::is_empty), "a batch had no turn");
        let given = given(&harness);
        prop_assert_eq!(&given, &came);
        prop_assert_eq!(by_row(&given)?, expected);
    }
}

fn union_of(inputs: usize) -> PlannedOperator {
    let names: Vec<String> = (0..inputs).map(|input| format!("\"in{input}\"")).collect();
    let spec = format!(
        r#"{{"type": "union", "id": "u", "inputs": [{}]}}"#,
        names.join(", ")
    );
    let mode = ChangelogMode::Retract { key: Vec::new() };
    PlannedOperator {
        input_mode: mode.clone(),
        output_mode: mode,
        ..planned(&spec, &vec![COLUMNS; inputs], COLUMNS)
    }
}

#[test]
fn a_lone_half_of_an_update_appears_or_disappears() {
    let spec = r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "v > 0"}"#;
    let (before, after) = (kind::UPDATE_BEFORE, kind::UPDATE_AFTER);
    for (input, expected) in [
        // Both halves pass, only one does, none does.
        (
            vec![(1, 5, before), (1, 6, after)],
            vec![(1, 5, before), (1, 6, after)],
        ),
        (
            vec![(1, 5, before), (1, 0, after)],
            vec![(1, 5, kind::DELETE)],
        ),
        (
            vec![(1, 0, before), (1, 6, after)],
            vec![(1, 6, kind::INSERT)],
        ),
        (vec![(1, 0, before), (1, -1, after)], vec![]),
        // Halves of two updates that would stand side by side are no update.
        (
            vec![(1, 5, before), (1, 0, after), (2, 0, before), (2, 7, after)],
            vec![(1, 5, kind::DELETE), (2, 7, kind::INSERT)],
        ),
    ] {
        let mut harness = Harness::new(&over_changes(spec, COLUMNS));
        harness.process(rows(&input));
        assert_eq!(given(&harness), expected);
    }
}

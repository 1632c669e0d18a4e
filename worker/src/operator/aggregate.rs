//! Aggregates per key over all rows so far, and says each change of a result.
//!
//! Per batch and key at most one change comes out: the first result (insert), the result before and the
//! result now (update_before, update_after), or the last result of a key that has no rows any more
//! (delete). A result that did not change is not repeated. Rows may be taken back if all functions can do
//! that; one that was never added becomes a dead letter.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int8Array, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use common::error::{ErrorCode, Problem};
use common::plan::edge::ChangelogMode;
use common::plan::operator::Aggregate;
use common::plan::task_graph::PlannedOperator;
use common::protocol::state::StateEntry;
use common::schema::to_arrow_schema;

use super::accumulators::{Accumulators, AggregateCalls};
use super::expression::{CompiledExpression, Expressions};
use super::give_up::{batch, broken, evaluate, give_up};
use super::groups::Groups;
use super::key::Keys;
use super::retraction::RetractableCalls;
use super::{Call, Operator, OperatorError, Wanted, wanted};
use crate::keyed_state::codec::EncodedKeys;
use crate::keyed_state::row_codec::{EncodedRows, RowCodec};
use crate::keyed_state::stored::StoredRange;
use crate::keyed_state::table::Table;
use crate::task::context::Context;
use crate::task::dead_letter::Reason;
use crate::task::message::{Rows, kind};

/// Namespace: 0. Key: the keys. Value: the aggregates' states.
const TABLE: &str = "groups";
const NAMESPACE: i64 = 0;

/// The operator `aggregate`.
#[derive(Debug)]
pub struct AggregateRows {
    id: String,
    keys: Keys,
    functions: Functions,
    /// Compares results.
    results: RowCodec,
    /// Whether the result before comes out with the result now.
    gives_before: bool,
    output: SchemaRef,
}

/// What is computed: over rows that are only added, anything.
#[derive(Debug)]
enum Functions {
    Adding(Arc<AggregateCalls>),
    Retracting(RetractableCalls),
}

/// The groups of a batch: first those the table has, then the others, each in the order of their rows.
struct Batch {
    keys: EncodedKeys,
    /// For each place in that order the number of its group in `keys`.
    group_at: Vec<usize>,
    stored: usize,
    place_of_row: Vec<usize>,
}

/// What became of the groups, in the order of their places.
struct Outcome {
    /// The results of those the table had.
    before: Vec<ArrayRef>,
    now: Vec<ArrayRef>,
    states: EncodedRows,
    /// Whether a group has rows left.
    lives: Vec<bool>,
    /// Rows that take back what was never added.
    refused: Vec<usize>,
}

impl AggregateRows {
    pub fn new(spec: &Aggregate, planned: &PlannedOperator) -> Result<AggregateRows, Problem> {
        let expressions = Expressions::new(super::only_input(planned)?)?;
        let key_count = spec.keys.len();
        if planned.output.len() != key_count + spec.aggregates.len() {
            let detail = format!(
                "\"{}\" gives its keys and its aggregates, the plan has {} columns",
                spec.id,
                planned.output.len()
            );
            return Err(Problem::new(ErrorCode::InvalidGraph, detail));
        }
        let (key_columns, results) = planned.output.split_at(key_count);
        let functions = match &planned.input_mode {
            ChangelogMode::Append => Functions::Adding(Arc::new(AggregateCalls::compile(
                &expressions,
                &spec.aggregates,
                results,
            )?)),
            ChangelogMode::Retract { .. } => Functions::Retracting(RetractableCalls::compile(
                &expressions,
                &spec.aggregates,
                results,
            )?),
            ChangelogMode::Upsert { .. } => {
                let detail = format!("\"{}\" has to see the rows that are replaced", spec.id);
                return Err(Problem::new(ErrorCode::InvalidGraph, detail));
            }
        };
        let result_types = results
            .iter()
            .map(|column| column.kind.to_arrow())
            .collect();
        Ok(AggregateRows {
            id: spec.id.clone(),
            keys: Keys::compile(&expressions, &spec.keys, key_columns)?,
            functions,
            results: RowCodec::new(result_types)
                .map_err(|error| Problem::new(ErrorCode::SqlPlan, error.to_string()))?,
            gives_before: !matches!(planned.output_mode, ChangelogMode::Upsert { .. }),
            output: to_arrow_schema(&planned.output),
        })
    }

    fn group(&self, keys: &[ArrayRef], rows: usize, table: &Table) -> Batch {
        let mut groups = Groups::new(self.keys.codec().clone());
        let mut group_of_row = Vec::new();
        groups.number(keys, &vec![NAMESPACE; rows], &mut group_of_row);
        let mut keys = EncodedKeys::default();
        groups.encoded_keys(&mut keys);
        let is_stored = |group: &usize| table.get(NAMESPACE, keys.key(*group)).is_some();
        let (mut group_at, new): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(is_stored);
        let stored = group_at.len();
        group_at.extend(new);
        let mut place_of_group = vec![0; group_at.len()];
        for (place, group) in group_at.iter().enumerate() {
            place_of_group[*group] = place;
        }
        Batch {
            place_of_row: group_of_row.iter().map(|g| place_of_group[*g]).collect(),
            keys,
            group_at,
            stored,
        }
    }

    fn store(&self, batch: &Batch, outcome: &Outcome, table: &mut Table) {
        for place in 0..batch.len() {
            let key = batch.key(place);
            if outcome.lives[place] {
                table.put(NAMESPACE, key, outcome.states.row(place));
            } else if place < batch.stored {
                table.delete(NAMESPACE, key);
            }
        }
    }

    /// The changes of the groups' results, in the order in which the groups came.
    fn changes(&self, batch: &Batch, outcome: &Outcome) -> Result<Rows, OperatorError> {
        let mut before = EncodedRows::default();
        let mut now = EncodedRows::default();
        let unreadable = super::accumulators::unreadable;
        self.results
            .encode(&outcome.before, batch.stored, &mut before)
            .map_err(unreadable)?;
        self.results
            .encode(&outcome.now, batch.len(), &mut now)
            .map_err(unreadable)?;

        let mut places: Vec<usize> = (0..batch.len()).collect();
        places.sort_unstable_by_key(|place| batch.group_at[*place]);
        // Which of the two results a row is of, and of which place.
        let (mut of, mut kinds) = (Vec::new(), Vec::new());
        let mut give = |result: (usize, usize), change: i8| {
            of.push(result);
            kinds.push(change);
        };
        for place in places {
            match (place < batch.stored, outcome.lives[place]) {
                (false, false) => {}
                (false, true) => give((NOW, place), kind::INSERT),
                (true, false) => give((BEFORE, place), kind::DELETE),
                (true, true) if before.row(place) == now.row(place) => {}
                (true, true) => {
                    if self.gives_before {
                        give((BEFORE, place), kind::UPDATE_BEFORE);
                    }
                    give((NOW, place), kind::UPDATE_AFTER);
                }
            }
        }

        let rows = of.len();
        let keys = self
            .keys
            .decode((0..batch.len()).map(|place| batch.key(place)))?;
        let places = UInt32Array::from_iter_values(
            of.iter()
                .map(|(_, place)| u32::try_from(*place).expect("a batch has fewer rows")),
        );
        let mut columns = keys
            .iter()
            .map(|key| take(key, &places, None))
            .collect::<Result<Vec<_>, _>>()
            .map_err(broken)?;
        for (before, now) in outcome.before.iter().zip(&outcome.now) {
            let both: [&dyn Array; 2] = [before.as_ref(), now.as_ref()];
            columns.push(interleave(&both, &of).map_err(broken)?);
        }
        let all_inserts = kinds.iter().all(|change| *change == kind::INSERT);
        Ok(Rows {
            kinds: (!all_inserts).then(|| Int8Array::from(kinds)),
            ..Rows::inserts(self::batch(&self.output, columns, rows)?)
        })
    }
}

const BEFORE: usize = 0;
const NOW: usize = 1;

impl Operator for AggregateRows {
    fn prepare(
        &mut self,
        call: Call<'_>,
        _range: Option<StoredRange>,
        context: &mut Context<'_>,
    ) -> Result<Option<Wanted>, OperatorError> {
        let (Call::Rows(_, rows), true) = (call, context.table(TABLE).needs_store()) else {
            return Ok(None);
        };
        // Rows that fail are given up later; that their keys are read too does no harm.
        let keys = self.keys.expressions().iter();
        let keys = keys
            .map(|key| Ok(key.evaluate(&rows.batch)?.values))
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let mut groups = Groups::new(self.keys.codec().clone());
        groups.number(&keys, &vec![NAMESPACE; rows.len()], &mut Vec::new());
        let mut keys = EncodedKeys::default();
        groups.encoded_keys(&mut keys);
        let keys = keys.iter().map(|key| (NAMESPACE, key));
        Ok(wanted(TABLE, context.table(TABLE).unknown(keys)))
    }

    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let expressions = self
            .keys
            .expressions()
            .iter()
            .chain(self.functions.arguments());
        let (rows, columns) = evaluate(expressions, rows, &self.id, context)?;
        if rows.is_empty() {
            return Ok(());
        }
        let (keys, arguments) = columns.split_at(self.keys.expressions().len());
        let table = context.table(TABLE);
        let batch = self.group(keys, rows.len(), table);
        let stored = (0..batch.stored).filter_map(|place| table.get(NAMESPACE, batch.key(place)));
        let outcome = self
            .functions
            .apply(&self.id, &rows, arguments, &batch, stored)?;
        self.store(&batch, &outcome, table);
        for row in &outcome.refused {
            let detail = "it takes back a row that was never added".to_owned();
            give_up(&rows, *row, Reason::BadRecord, detail, &self.id, context);
        }
        context.emit(self.changes(&batch, &outcome)?);
        Ok(())
    }

    fn describe(
        &self,
        table: &str,
        _namespace: i64,
        key: &[u8],
        value: &[u8],
    ) -> Option<StateEntry> {
        (table == TABLE).then_some(())?;
        Some(StateEntry {
            key: self.keys.describe(key)?,
            window: None,
            value: match &self.functions {
                Functions::Adding(calls) => calls.describe(value)?,
                Functions::Retracting(calls) => calls.describe(value)?,
            },
        })
    }

    fn encode_key(&self, key: &serde_json::Value) -> Option<Vec<u8>> {
        self.keys.encode_json(key)
    }
}

impl Batch {
    fn len(&self) -> usize {
        self.group_at.len()
    }

    fn key(&self, place: usize) -> &[u8] {
        self.keys.key(self.group_at[place])
    }
}

impl Functions {
    fn arguments(&self) -> &[CompiledExpression] {
        match self {
            Functions::Adding(calls) => calls.arguments(),
            Functions::Retracting(calls) => calls.arguments(),
        }
    }

    /// `stored`: the table's rows of the groups it has.
    fn apply<'t>(
        &self,
        id: &str,
        rows: &Rows,
        arguments: &[ArrayRef],
        batch: &Batch,
        stored: impl Iterator<Item = &'t [u8]>,
    ) -> Result<Outcome, OperatorError> {
        let change_of = |row: usize| {
            rows.kinds
                .as_ref()
                .map_or(kind::INSERT, |kinds| kinds.value(row))
        };
        let adds = |row: usize| matches!(change_of(row), kind::INSERT | kind::UPDATE_AFTER);
        let (groups, place_of_row) = (batch.len(), &batch.place_of_row);
        let mut states = EncodedRows::default();
        match self {
            Functions::Adding(calls) => {
                if !(0..rows.len()).all(|row| change_of(row) == kind::INSERT) {
                    return Err(OperatorError {
                        reason: format!("\"{id}\" takes rows that are only added"),
                        fatal: true,
                    });
                }
                let mut held = Accumulators::new(calls)?;
                let mut before = calls.no_results();
                // DataFusion has no results of no groups.
                if batch.stored > 0 {
                    let known: Vec<usize> = (0..batch.stored).collect();
                    let stored = calls.decode(stored)?;
                    let mut of_stored = Accumulators::new(calls)?;
                    of_stored.merge(&stored, &known, batch.stored)?;
                    before = of_stored.into_results()?;
                    held.merge(&stored, &known, batch.stored)?;
                }
                held.update(arguments, place_of_row, groups)?;
                let held = held.into_states()?;
                calls.encode(&held, groups, &mut states)?;
                let mut now = Accumulators::new(calls)?;
                now.merge(&held, &(0..groups).collect::<Vec<_>>(), groups)?;
                Ok(Outcome {
                    before,
                    now: now.into_results()?,
                    states,
                    lives: vec![true; groups],
                    refused: Vec::new(),
                })
            }
            Functions::Retracting(calls) => {
                let stored: Vec<&[u8]> = stored.collect();
                let before = calls.load(stored.iter().copied(), batch.stored)?;
                let mut held = calls.load(stored, groups)?;
                let refused = held.change(arguments, place_of_row, adds)?;
                held.encode(&mut states)?;
                Ok(Outcome {
                    before: before.results()?,
                    now: held.results()?,
                    lives: held.rows().iter().map(|rows| *rows > 0).collect(),
                    states,
                    refused,
                })
            }
        }
    }
}

//! Aggregates per key and window of event time.
//!
//! Each row is aggregated once, in the slice of time it falls in. What arrived since the last barrier is
//! held in accumulators; at a barrier it is merged into the table, where every slice has an entry per key.
//! A window that is one slice, and has come since the last barrier, comes out of the accumulators and never
//! sees the table; for others what is held is merged first. When the watermark passes the end of a window and the allowed
//! lateness, its slices are merged and their result comes out, once, in the order of the keys. A row is
//! late if all its windows have closed.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::compute::{cast, filter, take};
use arrow::datatypes::{
    DataType, SchemaRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType,
};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_ROWS_PER_MESSAGE;
use common::plan::operator::WindowAggregate;
use common::plan::task_graph::PlannedOperator;
use common::protocol::state::StateEntry;
use common::schema::to_arrow_schema;
use common::time::{Span, Timestamp};

use super::accumulators::{Accumulators, AggregateCalls};
use super::expression::Expressions;
use super::give_up::{batch, broken, evaluate, give_up};
use super::groups::Groups;
use super::key::Keys;
use super::{Call, Operator, OperatorError, Wanted, wanted};
use crate::keyed_state::codec::{CorruptKey, EncodedKeys};
use crate::keyed_state::row_codec::EncodedRows;
use crate::keyed_state::stored::{Ask, StoredRange, Until};
use crate::keyed_state::table::{At, Table};
use crate::task::context::Context;
use crate::task::dead_letter::Reason;
use crate::task::message::{Rows, kind};
use crate::window::slices::{Slice, Slices};

/// Namespace: a slice's start. Key: the keys. Value: the aggregates' states.
const TABLE: &str = "slices";

/// Groups held outside the table at most.
const MAX_GROUPS: usize = 1 << 18;
/// Bytes held outside the table at most, if there is memory for them: about what stays in the processor's cache.
const MAX_HELD_BYTES: usize = 16 << 20;
/// The same if every batch visits every group.
const MAX_VISITED_GROUPS: usize = 1 << 11;

/// Of a window's entries on disk so many bytes are read at once.
const FIRE_BYTES: usize = 4 << 20;

/// The operator `window_aggregate`.
#[derive(Debug)]
pub struct WindowAggregateRows {
    id: String,
    keys: Keys,
    calls: Arc<AggregateCalls>,
    time_column: usize,
    slices: Slices,
    allowed_lateness: Span,
    output: SchemaRef,

    /// What came since it was last merged into the table.
    groups: Groups,
    accumulators: Accumulators,
    max_groups: usize,

    /// A window's result is coming out.
    firing: Option<Firing>,
    /// The slices that hold something, by their starts.
    filled: BTreeSet<i64>,
    /// Windows that start before this close, and those that start before the other have come out.
    first_open: i64,
    closed: i64,
    watermark: Timestamp,

    /// Filled anew for every batch.
    slice_of_row: Vec<i64>,
    group_of_row: Vec<usize>,
}

/// How far the result of the first window that has closed has come out.
#[derive(Debug, Default)]
struct Firing {
    /// The last key; `None`: none yet.
    after: Option<Vec<u8>>,
}

impl WindowAggregateRows {
    pub fn new(
        spec: &WindowAggregate,
        planned: &PlannedOperator,
    ) -> Result<WindowAggregateRows, Problem> {
        let input = super::only_input(planned)?;
        let expressions = Expressions::new(input)?;
        let (key_count, call_count) = (spec.keys.len(), spec.aggregates.len());
        if planned.output.len() != key_count + 2 + call_count {
            let detail = format!(
                "\"{}\" gives its keys, the window's start and end, and its aggregates, the plan has {} columns",
                spec.id,
                planned.output.len()
            );
            return Err(Problem::new(ErrorCode::InvalidGraph, detail));
        }
        let keys = Keys::compile(&expressions, &spec.keys, &planned.output[..key_count])?;
        let calls = AggregateCalls::compile(
            &expressions,
            &spec.aggregates,
            &planned.output[key_count + 2..],
        )?;
        let calls = Arc::new(calls);
        let slices = Slices::new(&spec.window, spec.allowed_lateness)?;
        Ok(WindowAggregateRows {
            id: spec.id.clone(),
            time_column: time_column(spec, planned)?,
            groups: Groups::new(keys.codec().clone()),
            accumulators: Accumulators::new(&calls).map_err(unusable)?,
            max_groups: match calls.visit_every_group() {
                true => MAX_VISITED_GROUPS,
                false => MAX_GROUPS,
            },
            first_open: slices.first_open(Timestamp::MIN),
            closed: slices.first_open(Timestamp::MIN),
            watermark: Timestamp::MIN,
            slices,
            allowed_lateness: spec.allowed_lateness,
            keys,
            calls,
            output: to_arrow_schema(&planned.output),
            firing: None,
            filled: BTreeSet::new(),
            slice_of_row: Vec::new(),
            group_of_row: Vec::new(),
        })
    }

    fn advance(&mut self, watermark: Timestamp) {
        if watermark > self.watermark {
            self.watermark = watermark;
            self.first_open = self.slices.first_open(watermark);
        }
    }

    /// Finds each row's slice. Rows without one, and late ones, are given up; what comes back are the
    /// values of the others.
    fn place(
        &mut self,
        rows: &Rows,
        columns: Vec<ArrayRef>,
        context: &mut Context<'_>,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let times = milliseconds(rows.batch.column(self.time_column));
        let mut keep = Vec::new();
        let mut slice = Slice { start: 0, end: 0 };
        let mut late = false;
        self.slice_of_row.clear();
        for row in 0..rows.len() {
            let time = times.is_valid(row).then(|| times.value(row));
            // Rows mostly come in the order of their times: the last slice is tried first.
            if !time.is_some_and(|time| slice.contains(time)) {
                let Some(found) = time.and_then(|time| self.slices.containing(time)) else {
                    keep.resize(row, true);
                    keep.push(false);
                    self.give_up_without_time(rows, row, time, context);
                    continue;
                };
                slice = found;
                late = self.slices.window_at(slice.start) < self.first_open;
            }
            if late {
                keep.resize(row, true);
                keep.push(false);
                self.give_up_late(rows, row, slice, context);
                continue;
            }
            self.slice_of_row.push(slice.start);
        }
        if keep.is_empty() {
            return Ok(columns);
        }
        keep.resize(rows.len(), true);
        let keep = BooleanArray::from(keep);
        columns
            .iter()
            .map(|column| filter(column, &keep).map_err(broken))
            .collect()
    }

    fn give_up_without_time(
        &self,
        rows: &Rows,
        row: usize,
        time: Option<i64>,
        context: &mut Context<'_>,
    ) {
        let schema = rows.batch.schema_ref();
        let column = schema.field(self.time_column).name();
        let detail = match time {
            None => format!("\"{column}\" is null, so the row is in no window"),
            Some(time) => format!("\"{column}\" is {time} ms from 1970, beyond every window"),
        };
        give_up(rows, row, Reason::BadRecord, detail, &self.id, context);
    }

    fn give_up_late(&self, rows: &Rows, row: usize, slice: Slice, context: &mut Context<'_>) {
        let end = self.slices.window_at(slice.start) + self.slices.size();
        let detail = format!(
            "its last window ended at {}, and the watermark is at {}",
            Timestamp(end),
            self.watermark
        );
        give_up(rows, row, Reason::Late, detail, &self.id, context);
    }

    /// Merges what is held outside the table into it.
    fn merge_into_table(&mut self, context: &mut Context<'_>) -> Result<(), OperatorError> {
        let table = context.table(TABLE);
        let count = self.groups.len();
        if count == 0 {
            return Ok(());
        }
        let mut keys = EncodedKeys::default();
        self.groups.encoded_keys(&mut keys);
        let namespaces = self.groups.namespaces();
        let fresh = Accumulators::new(&self.calls)?;
        let mut states = std::mem::replace(&mut self.accumulators, fresh).into_states()?;

        let mut order: Vec<usize> = (0..count).collect();
        let (mut stored, mut new) = (Vec::new(), Vec::new());
        let mut stored_rows = Vec::new();
        for (group, namespace) in namespaces.iter().enumerate() {
            match table.get(*namespace, keys.key(group)) {
                Some(row) => {
                    stored.push(group);
                    stored_rows.push(row);
                }
                None => new.push(group),
            }
        }
        if !stored.is_empty() {
            let stored_states = self.calls.decode(stored_rows)?;
            // What is in the table came first: some aggregates keep the first or the last value. So its
            // groups are the first ones here.
            order = stored;
            let stored_count = order.len();
            order.extend(new);
            let mut position_of_group = vec![0; count];
            for (position, group) in order.iter().enumerate() {
                position_of_group[*group] = position;
            }
            let mut merged = Accumulators::new(&self.calls)?;
            let first: Vec<usize> = (0..stored_count).collect();
            merged.merge(&stored_states, &first, stored_count)?;
            merged.merge(&states, &position_of_group, count)?;
            states = merged.into_states()?;
        }

        let mut rows = EncodedRows::default();
        self.calls.encode(&states, count, &mut rows)?;
        for (position, group) in order.into_iter().enumerate() {
            table.put(namespaces[group], keys.key(group), rows.row(position));
        }
        self.groups.clear();
        // Memory for many groups is kept for as many, but not if it alone is about what may be held.
        if self.groups.footprint() > may_hold(context) / 4 * 3 {
            self.groups = Groups::new(self.keys.codec().clone());
        }
        Ok(())
    }

    /// Whether what is held should go into the table before more is added.
    fn is_full(&self, context: &Context<'_>) -> bool {
        self.groups.len() >= self.max_groups || self.held_bytes() >= may_hold(context)
    }

    /// Emits the result of a window that is one slice, of which the table has nothing.
    fn fire_held(&mut self, start: i64, context: &mut Context<'_>) -> Result<(), OperatorError> {
        let fresh = Accumulators::new(&self.calls)?;
        let states = std::mem::replace(&mut self.accumulators, fresh).into_states()?;
        let namespaces = self.groups.namespaces();
        let (mut fired, others): (Vec<usize>, Vec<usize>) =
            (0..self.groups.len()).partition(|group| namespaces[*group] == start);
        self.groups.sort_by_key(&mut fired);
        for run in fired.chunks(MAX_ROWS_PER_MESSAGE) {
            let results = self.merged(&states, run)?.into_results()?;
            let keys = self.groups.key_columns(run).map_err(unreadable_key)?;
            self.emit(start, keys, results, run.len(), context)?;
        }
        if !others.is_empty() {
            self.accumulators = self.merged(&states, &others)?;
        }
        self.groups.keep_only(&others);
        Ok(())
    }

    /// Accumulators over some groups, in this order.
    fn merged(&self, states: &[ArrayRef], groups: &[usize]) -> Result<Accumulators, OperatorError> {
        let places = UInt32Array::from_iter_values(
            groups
                .iter()
                .map(|group| u32::try_from(*group).expect("there are fewer groups")),
        );
        let states = states
            .iter()
            .map(|state| take(state, &places, None))
            .collect::<Result<Vec<_>, _>>()
            .map_err(broken)?;
        let numbers: Vec<usize> = (0..groups.len()).collect();
        let mut accumulators = Accumulators::new(&self.calls)?;
        accumulators.merge(&states, &numbers, groups.len())?;
        Ok(accumulators)
    }

    /// Emits rows of a window's result.
    fn emit(
        &self,
        start: i64,
        keys: Vec<ArrayRef>,
        results: Vec<ArrayRef>,
        rows: usize,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let mut columns = keys;
        for bound in [start, start + self.slices.size()] {
            let bound = TimestampMillisecondArray::from_value(bound, rows);
            columns.push(Arc::new(bound));
        }
        columns.extend(results);
        for (column, field) in columns.iter_mut().zip(self.output.fields()) {
            if column.data_type() != field.data_type() {
                *column = cast(column, field.data_type()).map_err(broken)?;
            }
        }
        context.emit(Rows::inserts(batch(&self.output, columns, rows)?));
        Ok(())
    }

    /// The start of the first window from `start` that holds something.
    fn filled_window_from(&self, start: i64) -> Option<i64> {
        let slice = *self.filled.range(start..).next()?;
        let slice = self
            .slices
            .containing(slice)
            .expect("only times within the limit are put into slices");
        Some(self.slices.first_window_with(slice).max(start))
    }

    /// What has to be known before the groups can be merged into the table.
    fn unknown_groups(&self, table: &Table) -> Option<Wanted> {
        if self.groups.len() == 0 || !table.needs_store() {
            return None;
        }
        let mut keys = EncodedKeys::default();
        self.groups.encoded_keys(&mut keys);
        let namespaces = self.groups.namespaces().iter().copied();
        wanted(TABLE, table.unknown(namespaces.zip(keys.iter())))
    }

    /// Lets the results of all windows out that have closed, as far as is possible without the store.
    fn close(
        &mut self,
        watermark: Timestamp,
        mut range: Option<StoredRange>,
        context: &mut Context<'_>,
    ) -> Result<Option<Wanted>, OperatorError> {
        self.advance(watermark);
        while let Some(start) = self.filled_window_from(self.closed)
            && start < self.first_open
        {
            let is_one_slice = self.slices.size() == self.slices.slide();
            if is_one_slice && !context.table(TABLE).has_namespace(start) {
                self.fire_held(start, context)?;
                self.filled.remove(&start);
                self.closed = start + self.slices.slide();
                continue;
            }
            if self.firing.is_none() {
                if let Some(wanted) = self.unknown_groups(context.table(TABLE)) {
                    return Ok(Some(wanted));
                }
                self.merge_into_table(context)?;
                self.firing = Some(Firing::default());
            }
            let firing = self.firing.as_ref();
            let after = firing.and_then(|firing| firing.after.as_deref());
            let slices = self
                .filled
                .range(start..start + self.slices.size())
                .copied();
            let ask = context
                .table(TABLE)
                .ask_range(At::Live, slices, after, FIRE_BYTES);
            if let (Some(ask), None) = (ask, &range) {
                let ask = Ask::Range(ask);
                return Ok(Some(Wanted { table: TABLE, ask }));
            }
            let range = range.take().unwrap_or_default();
            self.fire(start, after, &range, context)?;
            if let Until::Key(last) = range.until {
                self.firing = Some(Firing { after: Some(last) });
                continue;
            }
            self.firing = None;
            self.closed = start + self.slices.slide();
            // No later window needs the slices before the next start.
            while let Some(slice) = self.filled.first().copied()
                && slice < self.closed
            {
                self.filled.remove(&slice);
                context.table(TABLE).clear_namespace(slice);
            }
        }
        self.closed = self.first_open;
        Ok(None)
    }

    /// Emits a window's result, of the keys after `after` and in the range.
    fn fire(
        &self,
        start: i64,
        after: Option<&[u8]>,
        range: &StoredRange,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let end = start + self.slices.size();
        let table = context.table(TABLE);
        let mut entries = Entries::default();
        for slice in self.filled.range(start..end) {
            table.for_each_in(At::Live, *slice, after, range, |key, value| {
                entries.push(key, value);
            });
        }
        for run in entries.in_key_order(MAX_ROWS_PER_MESSAGE) {
            let mut accumulators = Accumulators::new(&self.calls)?;
            let states = self
                .calls
                .decode(run.entries.iter().map(|entry| entries.values.row(*entry)))?;
            accumulators.merge(&states, &run.group_of_entry, run.groups())?;
            let keys = self.keys.decode(run.first_of_group.iter().map(|entry| {
                let entry = run.entries[*entry];
                entries.keys.key(entry)
            }))?;
            let results = accumulators.into_results()?;
            self.emit(start, keys, results, run.groups(), context)?;
        }
        Ok(())
    }
}

impl Operator for WindowAggregateRows {
    fn prepare(
        &mut self,
        call: Call<'_>,
        range: Option<StoredRange>,
        context: &mut Context<'_>,
    ) -> Result<Option<Wanted>, OperatorError> {
        match call {
            Call::Rows(..) if !self.is_full(context) => Ok(None),
            Call::Rows(..) | Call::Seal => Ok(self.unknown_groups(context.table(TABLE))),
            Call::Watermark(watermark) => self.close(watermark, range, context),
        }
    }

    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        if self.is_full(context) {
            self.merge_into_table(context)?;
        }
        if let Some(kinds) = &rows.kinds
            && kinds.values().iter().any(|change| *change != kind::INSERT)
        {
            return Err(OperatorError {
                reason: format!("\"{}\" takes rows that are only added", self.id),
                fatal: true,
            });
        }
        self.advance(context.watermark());
        let expressions = self.keys.expressions().iter().chain(self.calls.arguments());
        let (rows, columns) = evaluate(expressions, rows, &self.id, context)?;
        let columns = self.place(&rows, columns, context)?;
        let (keys, arguments) = columns.split_at(self.keys.expressions().len());
        let before = self.groups.len();
        self.groups
            .number(keys, &self.slice_of_row, &mut self.group_of_row);
        if self.group_of_row.is_empty() {
            return Ok(());
        }
        self.filled.extend(&self.groups.namespaces()[before..]);
        self.accumulators
            .update(arguments, &self.group_of_row, self.groups.len())
    }

    fn watermark(
        &mut self,
        watermark: Timestamp,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        match self.close(watermark, None, context)? {
            None => Ok(()),
            Some(wanted) => panic!("{wanted:?} was not asked for"),
        }
    }

    /// A window comes out the allowed lateness after its end: to whoever places it by its end, it would be
    /// late behind the input's watermark.
    fn delays_watermark(&self) -> Span {
        self.allowed_lateness
    }

    fn seal(&mut self, context: &mut Context<'_>) -> Result<(), OperatorError> {
        self.merge_into_table(context)
    }

    fn held_bytes(&self) -> usize {
        self.groups.footprint() + self.accumulators.footprint()
    }

    fn restore(&mut self, context: &mut Context<'_>) -> Result<(), OperatorError> {
        self.advance(context.watermark());
        self.closed = self.first_open;
        self.filled = context.table(TABLE).namespaces().collect();
        Ok(())
    }

    fn describe(
        &self,
        table: &str,
        namespace: i64,
        key: &[u8],
        value: &[u8],
    ) -> Option<StateEntry> {
        if table != TABLE {
            return None;
        }
        let slice = self.slices.containing(namespace)?;
        Some(StateEntry {
            key: self.keys.describe(key)?,
            window: Some([slice.start, slice.end]),
            value: self.calls.describe(value)?,
        })
    }

    fn encode_key(&self, key: &serde_json::Value) -> Option<Vec<u8>> {
        self.keys.encode_json(key)
    }
}

fn may_hold(context: &Context<'_>) -> usize {
    MAX_HELD_BYTES.min(context.may_hold())
}

/// The entries of a window's slices.
#[derive(Default)]
struct Entries {
    keys: EncodedKeys,
    values: EncodedRows,
}

/// Entries of a run of keys.
struct Run {
    entries: Vec<usize>,
    group_of_entry: Vec<usize>,
    /// For each group, the position in `entries` of its first one.
    first_of_group: Vec<usize>,
}

impl Entries {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// The entries in runs of at most so many keys, in the order of the keys; those of one key in the
    /// order of their slices.
    fn in_key_order(&self, max_groups: usize) -> Vec<Run> {
        // Most keys differ in their first bytes, which are compared without going to where the key is.
        let mut order: Vec<(u128, usize)> = (0..self.keys.len())
            .map(|entry| (first_bytes(self.keys.key(entry)), entry))
            .collect();
        order.sort_unstable_by(|(first_a, a), (first_b, b)| {
            let whole = || self.keys.key(*a).cmp(self.keys.key(*b));
            first_a.cmp(first_b).then_with(whole).then(a.cmp(b))
        });
        let mut runs: Vec<Run> = Vec::new();
        let mut last_key: Option<&[u8]> = None;
        for (_, entry) in order {
            let key = self.keys.key(entry);
            let is_new = last_key != Some(key);
            last_key = Some(key);
            if is_new && runs.last().is_none_or(|run| run.groups() == max_groups) {
                runs.push(Run {
                    entries: Vec::new(),
                    group_of_entry: Vec::new(),
                    first_of_group: Vec::new(),
                });
            }
            let run = runs.last_mut().expect("the first key is new");
            if is_new {
                run.first_of_group.push(run.entries.len());
            }
            run.entries.push(entry);
            run.group_of_entry.push(run.groups() - 1);
        }
        runs
    }
}

impl Run {
    fn groups(&self) -> usize {
        self.first_of_group.len()
    }
}

/// As a number that sorts like these bytes.
fn first_bytes(key: &[u8]) -> u128 {
    let mut first = [0; 16];
    let length = key.len().min(16);
    first[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(first)
}

fn time_column(spec: &WindowAggregate, planned: &PlannedOperator) -> Result<usize, Problem> {
    let input = super::only_input(planned)?;
    let problem = |detail: String| Err(Problem::new(ErrorCode::InvalidGraph, detail));
    let Some(name) = spec.time.as_ref().or(planned.time_column.as_ref()) else {
        return problem(format!(
            "\"{}\" has no column that places a row in time",
            spec.id
        ));
    };
    let Some(position) = input.iter().position(|column| column.name == *name) else {
        return problem(format!(
            "the input of \"{}\" has no column \"{name}\"",
            spec.id
        ));
    };
    match input[position].kind.to_arrow() {
        DataType::Timestamp(_, None) => Ok(position),
        _ => problem(format!(
            "\"{name}\" places the rows of \"{}\" in time, but it is no TIMESTAMP",
            spec.id
        )),
    }
}

/// A time column in milliseconds since 1970; parts of one are left out, downwards.
fn milliseconds(column: &ArrayRef) -> TimestampMillisecondArray {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            column.as_primitive::<TimestampMillisecondType>().clone()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => column
            .as_primitive::<TimestampMicrosecondType>()
            .unary(|time| time.div_euclid(1_000)),
        _ => column
            .as_primitive::<TimestampNanosecondType>()
            .unary(|time| time.div_euclid(1_000_000)),
    }
}

fn unreadable_key(error: CorruptKey) -> OperatorError {
    OperatorError {
        reason: format!("a key that was just held: {error}"),
        fatal: true,
    }
}

fn unusable(error: OperatorError) -> Problem {
    Problem::new(ErrorCode::SqlPlan, error.reason)
}

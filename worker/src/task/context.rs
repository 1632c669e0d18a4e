//! All an operator may touch: its tables, its outputs, the watermark. No clock, no IO.

use std::collections::BTreeMap;

use common::key_group::KeyGroupRange;
use common::time::Timestamp;

use super::dead_letter::DeadLetter;
use super::message::Rows;
use crate::keyed_state::section::TableId;
use crate::keyed_state::table::Table;

/// The tables of one operator of one task, by name.
#[derive(Debug)]
pub struct OperatorState {
    pub tables: BTreeMap<String, Table>,
    /// Whether the operator asks before it reads: then its tables need not be in memory.
    pub spills: bool,
    /// Bytes it may hold outside its tables, from one call to the next.
    pub may_hold: usize,
}

impl Default for OperatorState {
    fn default() -> OperatorState {
        OperatorState {
            tables: BTreeMap::new(),
            spills: false,
            may_hold: usize::MAX,
        }
    }
}

impl OperatorState {
    /// Its tables, under the id of the operator.
    pub fn take_tables(&mut self, id: &str) -> impl Iterator<Item = (TableId, Table)> + use<> {
        let id = id.to_owned();
        let tables = std::mem::take(&mut self.tables).into_iter();
        tables.map(move |(table, content)| {
            let operator = id.clone();
            (TableId { operator, table }, content)
        })
    }
}

/// What an operator gave during one call.
#[derive(Debug, Default)]
pub struct Outputs {
    pub rows: Vec<Rows>,
    /// Side output: rows and records that were given up.
    pub dead_letters: Vec<DeadLetter>,
    /// How many of the dead letters were late rows.
    pub late_rows: u64,
}

/// The surroundings of one call of an operator.
#[derive(Debug)]
pub struct Context<'a> {
    state: &'a mut OperatorState,
    outputs: &'a mut Outputs,
    /// The watermark that the input had reached before this call.
    watermark: Timestamp,
    key_range: KeyGroupRange,
    key_groups: u16,
}

impl<'a> Context<'a> {
    pub fn new(
        state: &'a mut OperatorState,
        outputs: &'a mut Outputs,
        watermark: Timestamp,
        key_range: KeyGroupRange,
        key_groups: u16,
    ) -> Context<'a> {
        Context {
            state,
            outputs,
            watermark,
            key_range,
            key_groups,
        }
    }

    /// Gives rows to the next operator.
    pub fn emit(&mut self, rows: Rows) {
        if !rows.is_empty() {
            self.outputs.rows.push(rows);
        }
    }

    pub fn dead_letter(&mut self, letter: DeadLetter) {
        self.outputs.late_rows += u64::from(letter.reason == super::dead_letter::Reason::Late);
        self.outputs.dead_letters.push(letter);
    }

    /// The operator's own table of this name; empty before its first use.
    pub fn table(&mut self, name: &str) -> &mut Table {
        if !self.state.tables.contains_key(name) {
            let mut table = Table::default();
            if self.state.spills {
                table.spill();
            }
            self.state.tables.insert(name.to_owned(), table);
        }
        self.state
            .tables
            .get_mut(name)
            .expect("it was just put there")
    }

    /// Bytes that the operator may hold outside its tables when the call is over.
    pub fn may_hold(&self) -> usize {
        self.state.may_hold
    }

    pub fn watermark(&self) -> Timestamp {
        self.watermark
    }

    /// The key groups this task owns, of how many.
    pub fn key_range(&self) -> (KeyGroupRange, u16) {
        (self.key_range, self.key_groups)
    }
}

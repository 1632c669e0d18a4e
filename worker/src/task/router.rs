//! Which task of the next stage each row goes to (pure).
//!
//! Rows with equal keys go to the same task: the one that owns their key group. The order of rows that
//! go to one task is kept.

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use common::error::{ErrorCode, Problem};
use common::key_group::{KeyGroup, hash_key, key_group_of_hash, owner};
use common::plan::edge::Route;
use common::schema::Column;

use super::message::Rows;
use crate::keyed_state::codec::{EncodedKeys, KeyCodec, bigint_key};
use crate::operator::expression::{CompiledExpression, Expressions};

/// Routes the rows of one edge, from one task.
#[derive(Debug)]
pub struct Router {
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// There is one task to go to.
    Only,
    /// Whole batches, to each task in turn.
    InTurn {
        targets: usize,
        next: usize,
    },
    ByKey(ByKey),
}

impl Router {
    /// `targets`: how many tasks the edge leads to from here.
    pub fn new(
        route: &Route,
        columns: &[Column],
        targets: usize,
        key_groups: u16,
    ) -> Result<Router, Problem> {
        assert!(targets > 0, "an edge leads somewhere");
        let way = match route {
            _ if targets == 1 => Way::Only,
            Route::Rebalance => Way::InTurn { targets, next: 0 },
            // Without keys there is one group for all rows, and it is kept by the first task.
            Route::Hash { keys } if keys.is_empty() => Way::Only,
            Route::Hash { keys } => {
                let expressions = Expressions::new(columns)?;
                let keys = keys
                    .iter()
                    .map(|key| expressions.compile(key))
                    .collect::<Result<Vec<_>, _>>()?;
                Way::ByKey(ByKey::new(keys, targets, key_groups)?)
            }
            Route::Forward => {
                let detail = format!("rows go forward to one task, not to {targets}");
                return Err(Problem::new(ErrorCode::InvalidGraph, detail));
            }
        };
        Ok(Router { way })
    }

    /// The rows for each task that gets some, by the task's position.
    pub fn route(&mut self, rows: &Rows) -> Result<Vec<(usize, Rows)>, ArrowError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        match &mut self.way {
            Way::Only => Ok(vec![(0, rows.clone())]),
            Way::InTurn { targets, next } => {
                let target = *next;
                *next = (target + 1) % *targets;
                Ok(vec![(target, rows.clone())])
            }
            Way::ByKey(by_key) => by_key.route(rows),
        }
    }
}

#[derive(Debug)]
struct ByKey {
    keys: Vec<CompiledExpression>,
    codec: KeyCodec,
    key_groups: u16,
    /// Which task owns each key group.
    owners: Vec<u32>,
    targets: usize,
    /// Buffers that are filled anew for every batch.
    encoded: EncodedKeys,
    hashes: Vec<u64>,
    target_of_row: Vec<u32>,
}

impl ByKey {
    fn new(
        keys: Vec<CompiledExpression>,
        targets: usize,
        key_groups: u16,
    ) -> Result<ByKey, Problem> {
        let types = keys.iter().map(|key| key.data_type().clone()).collect();
        let codec = KeyCodec::new(types)
            .map_err(|error| Problem::new(ErrorCode::SqlPlan, error.to_string()))?;
        let parallelism = u32::try_from(targets).expect("a stage has fewer than 2^32 tasks");
        let owners = (0..key_groups)
            .map(|group| owner(KeyGroup(group), key_groups, parallelism))
            .collect();
        Ok(ByKey {
            keys,
            codec,
            key_groups,
            owners,
            targets,
            encoded: EncodedKeys::default(),
            hashes: Vec::new(),
            target_of_row: Vec::new(),
        })
    }

    fn route(&mut self, rows: &Rows) -> Result<Vec<(usize, Rows)>, ArrowError> {
        // A key that cannot be computed counts as null here: the operator that gets the row gives it up.
        let columns = self
            .keys
            .iter()
            .map(|key| Ok(key.evaluate(&rows.batch)?.values))
            .collect::<Result<Vec<_>, crate::operator::OperatorError>>()
            .map_err(|error| ArrowError::ComputeError(error.reason))?;
        self.hash(&columns, rows.len());
        self.target_of_row.clear();
        self.target_of_row.extend(self.hashes.iter().map(|hash| {
            let group = key_group_of_hash(*hash, self.key_groups);
            self.owners[usize::from(group.0)]
        }));
        let first = self.target_of_row[0];
        if self.target_of_row.iter().all(|target| *target == first) {
            return Ok(vec![(first as usize, rows.clone())]);
        }
        self.split(rows)
    }

    fn hash(&mut self, columns: &[ArrayRef], rows: usize) {
        if let [column] = columns
            && column.data_type() == &DataType::Int64
            && column.null_count() == 0
        {
            let values = column.as_primitive::<Int64Type>().values();
            self.hashes.clear();
            self.hashes
                .extend(values.iter().map(|value| hash_key(&bigint_key(*value))));
            return;
        }
        self.codec.encode(columns, rows, &mut self.encoded);
        self.encoded.hash_each(&mut self.hashes);
    }

    /// Sorts the rows' positions by target, in order, and takes each target's.
    fn split(&self, rows: &Rows) -> Result<Vec<(usize, Rows)>, ArrowError> {
        let mut starts = vec![0_usize; self.targets + 1];
        for target in &self.target_of_row {
            starts[*target as usize + 1] += 1;
        }
        for target in 0..self.targets {
            starts[target + 1] += starts[target];
        }
        let mut next = starts.clone();
        let mut positions = vec![0_u32; rows.len()];
        for (row, target) in (0_u32..).zip(&self.target_of_row) {
            let slot = &mut next[*target as usize];
            positions[*slot] = row;
            *slot += 1;
        }
        let positions = Buffer::from_vec(positions);
        let mut routed = Vec::with_capacity(self.targets);
        for target in 0..self.targets {
            let (start, end) = (starts[target], starts[target + 1]);
            if start < end {
                let own = ScalarBuffer::new(positions.clone(), start, end - start);
                routed.push((target, rows.take(&UInt32Array::new(own, None))?));
            }
        }
        Ok(routed)
    }
}

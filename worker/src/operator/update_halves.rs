//! What becomes of an update when only one half of it goes on.
//!
//! An update is two rows in a row: as it was, as it is now. If only the row before goes on, it is a row that
//! disappears; if only the row after does, it is one that appears. Whoever finds rows by key forgets the row
//! before of an update, so a half must not pass for a whole.

use arrow::array::{Array, BooleanArray, Int8Array};
use arrow::error::ArrowError;

use crate::task::message::{Rows, kind};

/// The rows for which `keep` is true, halves of updates as deletes and inserts.
pub(super) fn keep(rows: &Rows, keep: &BooleanArray) -> Result<Rows, ArrowError> {
    assert_eq!(rows.len(), keep.len(), "a row is kept or not");
    let kept = |row: usize| keep.is_valid(row) && keep.value(row);
    let mended = mended(rows, kept);
    match (0..rows.len()).all(kept) {
        true => Ok(mended),
        false => mended.filter(keep),
    }
}

/// All rows. A half of an update whose other half is in another batch, where it may or may not go on, becomes
/// a delete or an insert.
pub(super) fn keep_all(rows: Rows) -> Rows {
    match rows.kinds {
        Some(_) => mended(&rows, |_| true),
        None => rows,
    }
}

fn mended(rows: &Rows, kept: impl Fn(usize) -> bool) -> Rows {
    let Some(kinds) = &rows.kinds else {
        return rows.clone();
    };
    let is = |row: usize, change: i8| row < rows.len() && kinds.value(row) == change;
    let whole = |before: usize| {
        is(before, kind::UPDATE_BEFORE)
            && is(before + 1, kind::UPDATE_AFTER)
            && kept(before)
            && kept(before + 1)
    };
    let mended = (0..rows.len()).map(|row| match kinds.value(row) {
        kind::UPDATE_BEFORE if !whole(row) => kind::DELETE,
        kind::UPDATE_AFTER if row == 0 || !whole(row - 1) => kind::INSERT,
        other => other,
    });
    Rows {
        kinds: Some(Int8Array::from_iter_values(mended)),
        ..rows.clone()
    }
}

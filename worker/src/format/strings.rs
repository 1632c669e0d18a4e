//! Values of varying length under construction, as Arrow lays them out.

use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use super::value::Misfit;

/// Values of varying length, one after another.
#[derive(Debug, Default)]
pub(super) struct Strings {
    bytes: Vec<u8>,
    /// Where each value ends; the first starts at 0.
    ends: Vec<i32>,
}

impl Strings {
    pub(super) fn push(&mut self, value: &[u8]) -> Result<(), Misfit> {
        let end = i32::try_from(self.bytes.len() + value.len());
        let end = end.map_err(|_| Misfit("the batch's text is over 2 GiB".to_owned()))?;
        self.bytes.extend_from_slice(value);
        self.ends.push(end);
        Ok(())
    }

    pub(super) fn push_empty(&mut self) {
        self.ends.push(self.end(self.ends.len()));
    }

    /// Where the first `values` values end.
    fn end(&self, values: usize) -> i32 {
        values.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    pub(super) fn truncate(&mut self, values: usize) {
        let end = self.end(values);
        self.bytes.truncate(unsigned(end));
        self.ends.truncate(values);
    }

    pub(super) fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let capacity = self.bytes.len();
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity));
        (offsets(&mut self.ends), Buffer::from(bytes))
    }
}

/// Arrow's offsets of values that end here; room is kept for as many again.
pub(super) fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.append(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

pub(super) fn unsigned(offset: i32) -> usize {
    usize::try_from(offset).expect("an offset is not negative")
}

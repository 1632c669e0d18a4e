//! Which leader wrote which part of the log.
//!
//! Two logs agree up to where they first have batches of different leaders. Asking "where did your epoch
//! end?" finds that place without comparing bytes.

use common::ids::LeaderEpoch;
use common::offset::Offset;
use serde::{Deserialize, Serialize};

/// The first offset of every leader epoch in the log, in order; both numbers rise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaderEpochs {
    starts: Vec<(LeaderEpoch, Offset)>,
}

/// The newest epoch that is not newer than the one asked for, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpochEnd {
    pub epoch: LeaderEpoch,
    pub end: Offset,
}

/// A batch of an older leader follows one of a newer: the log was not written by our rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("leader epoch {found} at offset {offset} follows epoch {latest}")]
pub struct EpochFellBack {
    pub found: LeaderEpoch,
    pub latest: LeaderEpoch,
    pub offset: Offset,
}

impl LeaderEpochs {
    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.starts.last().map(|(epoch, _)| *epoch)
    }

    /// Whether a batch of this epoch may come next.
    pub fn check(&self, epoch: LeaderEpoch, offset: Offset) -> Result<(), EpochFellBack> {
        match self.latest() {
            Some(latest) if epoch < latest => Err(EpochFellBack {
                found: epoch,
                latest,
                offset,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// A batch of this epoch was appended.
    pub fn append(&mut self, epoch: LeaderEpoch, offset: Offset) -> Result<(), EpochFellBack> {
        self.check(epoch, offset)?;
        if self.latest() != Some(epoch) {
            self.starts.push((epoch, offset));
        }
        Ok(())
    }

    /// Where the asked epoch ends in this log, or the one before it if it is not here.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<EpochEnd> {
        let after = self.starts.partition_point(|(start, _)| *start <= epoch);
        let (found, _) = *self.starts.get(after.checked_sub(1)?)?;
        let end = self.starts.get(after).map_or(log_end, |(_, start)| *start);
        Some(EpochEnd { epoch: found, end })
    }

    /// The log now ends here.
    pub fn truncate(&mut self, log_end: Offset) {
        self.starts.retain(|(_, start)| *start < log_end);
    }

    /// The log now starts here: epochs that lie wholly before are forgotten.
    pub fn drop_before(&mut self, log_start: Offset) {
        let after = self
            .starts
            .partition_point(|(_, start)| *start <= log_start);
        self.starts.drain(..after.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The reference is the log itself: the epoch of every offset.
        #[test]
        fn the_end_of_an_epoch_is_what_a_scan_of_the_log_says(
            runs in proptest::collection::vec((1_i32..4, 1_usize..5), 1..8),
            cut in 0_usize..40,
            asked in 0_i32..40,
        ) {
            let mut log: Vec<i32> = Vec::new();
            let mut epochs = LeaderEpochs::default();
            let mut epoch = 0;
            for (step, length) in runs {
                epoch += step;
                for _ in 0..length {
                    let offset = Offset(i64::try_from(log.len()).unwrap());
                    epochs.append(LeaderEpoch(epoch), offset).unwrap();
                    log.push(epoch);
                }
            }
            prop_assert!(epochs.append(LeaderEpoch(epoch - 1), Offset(99)).is_err());
            log.truncate(cut);
            let end = Offset(i64::try_from(log.len()).unwrap());
            epochs.truncate(end);
            let expected = log.iter().copied().filter(|e| *e <= asked).max().map(|found| {
                let last = log.iter().rposition(|e| *e == found).unwrap();
                EpochEnd {
                    epoch: LeaderEpoch(found),
                    end: Offset(i64::try_from(last + 1).unwrap()),
                }
            });
            prop_assert_eq!(epochs.end_of(LeaderEpoch(asked), end), expected);
        }
    }

    #[test]
    fn what_lies_before_the_start_is_forgotten_but_the_epoch_of_the_start_is_not() {
        let mut epochs = LeaderEpochs::default();
        for (epoch, offset) in [(1, 0), (2, 10), (5, 20)] {
            epochs.append(LeaderEpoch(epoch), Offset(offset)).unwrap();
        }
        epochs.drop_before(Offset(15));
        assert_eq!(epochs.end_of(LeaderEpoch(1), Offset(30)), None);
        assert_eq!(
            epochs.end_of(LeaderEpoch(4), Offset(30)),
            Some(EpochEnd {
                epoch: LeaderEpoch(2),
                end: Offset(20)
            })
        );
    }
}

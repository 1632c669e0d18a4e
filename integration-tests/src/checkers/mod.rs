//! What must never happen, one file each: told of everything that is seen in a run, each says at once
//! when its promise is broken.

pub mod committed_stays;
pub mod exactly_once;
pub mod watermarks_rise;
pub mod one_leader;

use committed_stays::CommittedStays;
use exactly_once::ExactlyOnce;
use one_leader::OneLeader;
use watermarks_rise::WatermarksRise;

/// A promise that was broken, in words.
pub type Verdict = Result<(), String>;

#[derive(Debug, Default)]
pub struct Checkers {
    pub committed: CommittedStays,
    pub outputs: ExactlyOnce,
    pub watermarks: WatermarksRise,
    pub leaders: OneLeader,
}

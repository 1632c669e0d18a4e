//! What must never happen, one file each: told of everything that is seen in a run, each says at once
//! when its promise is broken.

pub mod committed_stays;
pub mod replicas_agree;
pub mod leaders_have_all;
pub mod in_sync_have_all;
pub mod exactly_once;
pub mod holders_can_go_on;
pub mod watermarks_rise;
pub mod one_leader;

use committed_stays::CommittedStays;
use exactly_once::ExactlyOnce;
use holders_can_go_on::HoldersCanGoOn;
use in_sync_have_all::InSyncHaveAll;
use leaders_have_all::LeadersHaveAll;
use one_leader::OneLeader;
use replicas_agree::ReplicasAgree;
use watermarks_rise::WatermarksRise;

/// A promise that was broken, in words.
pub type Verdict = Result<(), String>;

#[derive(Debug, Default)]
pub struct Checkers {
    pub committed: CommittedStays,
    pub replicas: ReplicasAgree,
    pub reigns: LeadersHaveAll,
    pub in_sync: InSyncHaveAll,
    pub outputs: ExactlyOnce,
    pub holders: HoldersCanGoOn,
    pub watermarks: WatermarksRise,
    pub leaders: OneLeader,
}

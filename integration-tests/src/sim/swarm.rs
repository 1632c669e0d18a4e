//! What may strike a world, and what did while there was work under way.
//!
//! Every seed switches some of it off altogether: faults that are always there hide what only happens without
//! them, as a session that ends before anything could have been lost.

use std::fmt;

use common::random::{below, seeded};

use super::plan::Plan;

/// A kind of fault, or something that worlds do or do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    WorkerKilled,
    WorkerWithoutPower,
    CoordinatorKilled,
    CoordinatorWithoutPower,
    ProcessesCut,
    WorkerIsolated,
    /// Another coordinator of the group came to lead.
    LeaderSucceeded,
    CoordinatorIsolated,
    WorkerStopped,
    CoordinatorStopped,
    /// Somebody has set a wall clock wrong.
    ClockSet,
    /// Of different processes they go at different paces.
    ClocksDiffer,
    DiskSlow,
    DiskLost,
    MessageLost,
    MessageRepeated,
    MessageSlow,
    ReplicasMoved,
    /// Faults come one upon the other.
    Storm,
    Copies,
    CommittedInMemory,
    Standbys,
    StateOnDisk,
    Rescaled,
    Drained,
}

impl Kind {
    pub const ALL: [Kind; 25] = [
        Kind::WorkerKilled,
        Kind::WorkerWithoutPower,
        Kind::CoordinatorKilled,
        Kind::CoordinatorWithoutPower,
        Kind::ProcessesCut,
        Kind::WorkerIsolated,
        Kind::LeaderSucceeded,
        Kind::CoordinatorIsolated,
        Kind::WorkerStopped,
        Kind::CoordinatorStopped,
        Kind::ClockSet,
        Kind::ClocksDiffer,
        Kind::DiskSlow,
        Kind::DiskLost,
        Kind::MessageLost,
        Kind::MessageRepeated,
        Kind::MessageSlow,
        Kind::ReplicasMoved,
        Kind::Storm,
        Kind::Copies,
        Kind::CommittedInMemory,
        Kind::Standbys,
        Kind::StateOnDisk,
        Kind::Rescaled,
        Kind::Drained,
    ];
}

/// Some of the kinds.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    pub fn add(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u32;
    }

    pub fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }

    pub fn join(&mut self, others: Kinds) {
        self.0 |= others.0;
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = Kind::ALL.iter().filter(|kind| self.has(**kind));
        f.debug_set().entries(kinds).finish()
    }
}

/// How far apart faults of a storm are at most.
pub const STORM_MS: u64 = 300;

/// Switches off some of what this plan has, and makes some worlds stormy.
pub fn switch(mut plan: Plan) -> Plan {
    let mut random = seeded(plan.seed, 12);
    let mut is_off = || below(&mut random, 3) == 0;
    if is_off() {
        plan.weather.lost_permille = 0;
    }
    if is_off() {
        plan.weather.twice_permille = 0;
    }
    if is_off() {
        plan.weather.slow_permille = 0;
    }
    if is_off() {
        plan.kinds.isolations = false;
    }
    if is_off() {
        plan.replicas.moves = 0;
    }
    // One worker's disk is lost when others have had time to have what was on it.
    if is_off() && !plan.replicas.loses_disk {
        plan.fault_every_ms = STORM_MS;
        plan.faults *= 2;
    }
    if is_off() {
        plan.rescales = 0;
    }
    plan
}

/// What may strike the world of this plan.
pub fn kinds(plan: &Plan) -> Kinds {
    let mut kinds = Kinds::default();
    let mut add = |kind, on: bool| {
        if on {
            kinds.add(kind);
        }
    };
    let several = plan.workers > 1;
    let copies = plan.replicas.clicks.max(plan.replicas.tallies) > 1;
    let more = plan.replicas.more_faults > 0;
    let workers = plan.kinds.workers && plan.faults > 0 || more;
    let coordinator = plan.kinds.coordinator && plan.faults > 0;
    add(Kind::WorkerKilled, workers);
    add(Kind::WorkerWithoutPower, workers && plan.kinds.power);
    add(Kind::CoordinatorKilled, coordinator);
    add(
        Kind::CoordinatorWithoutPower,
        coordinator && plan.kinds.power,
    );
    add(
        Kind::ProcessesCut,
        plan.kinds.cuts && plan.faults > 0 || more,
    );
    add(Kind::WorkerIsolated, more && plan.kinds.isolations);
    let isolated = coordinator && plan.coordinators > 1;
    add(Kind::LeaderSucceeded, isolated);
    add(Kind::CoordinatorIsolated, isolated);
    let mishaps = plan.mishaps.count > 0;
    add(Kind::WorkerStopped, mishaps);
    add(Kind::CoordinatorStopped, mishaps);
    add(Kind::ClockSet, mishaps);
    add(Kind::ClocksDiffer, plan.mishaps.drift_permille > 0);
    add(Kind::DiskSlow, mishaps);
    add(Kind::DiskLost, plan.replicas.loses_disk);
    add(Kind::MessageLost, plan.weather.lost_permille > 0);
    add(Kind::MessageRepeated, plan.weather.twice_permille > 0);
    add(Kind::MessageSlow, plan.weather.slow_permille > 0);
    add(Kind::ReplicasMoved, several && plan.replicas.moves > 0);
    add(
        Kind::Storm,
        plan.fault_every_ms <= STORM_MS && plan.faults > 1,
    );
    add(Kind::Copies, copies);
    add(Kind::CommittedInMemory, copies && plan.replicas.in_memory);
    add(Kind::Standbys, several && plan.standbys.count > 0);
    add(Kind::StateOnDisk, plan.store.table_bytes.is_some());
    add(Kind::Rescaled, plan.rescales > 0);
    add(Kind::Drained, plan.drain);
    kinds
}

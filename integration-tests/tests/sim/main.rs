//! Simulated worlds: some new seeds each time, past failures by the names of their bugs, and mistakes
//! made on purpose, which must be found.
//!
//! `MILLSTREAM_SIM_SEED=7` runs that seed alone; `MILLSTREAM_SIM_SECONDS=300` runs new seeds for so long. A world
//! that fails is made smaller, and its line runs it again: `MILLSTREAM_SIM_WORLD="seed=7 workers=2"`.

mod models;
mod sabotage;
mod shrinking;
mod swarm;

use common::time::{Span, SystemClock};
use integration_tests::sim::description::read;
use integration_tests::sim::plan::{Mishaps, Plan};
use integration_tests::sim::shrink::shrink;
use integration_tests::sim::swarm::{Kind, Kinds};
use integration_tests::sim::{Summary, run, run_plan};

/// New seeds of every run of the tests.
const NEW_SEEDS: u64 = 12;

fn expect(seed: u64) -> Summary {
    run(seed, None).unwrap_or_else(|failure| panic!("{failure}"))
}

/// A new world, of which a smaller one is told if it fails.
fn expect_new(plan: &Plan) -> Summary {
    run_plan(plan, None).unwrap_or_else(|failure| {
        let smaller = shrink(plan, None, &failure);
        panic!("{failure}\n{}", smaller.advice());
    })
}

/// A world of before there were copies.
fn expect_single(seed: u64) {
    let run = run_plan(&Plan::single(seed), None);
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A world of before replicas moved.
fn expect_unmoved(seed: u64) {
    let mut plan = Plan::alone(seed);
    plan.replicas.moves = 0;
    run_plan(&plan, None).unwrap_or_else(|failure| panic!("{failure}"));
}

/// A world of before jobs were given more or fewer tasks, and of before there were groups and mishaps.
fn expect_unscaled(seed: u64) {
    let mut plan = Plan::draw(seed);
    plan.mishaps = Mishaps::NONE;
    plan.rescales = 0;
    plan.coordinators = 1;
    run_plan(&plan, None).unwrap_or_else(|failure| panic!("{failure}"));
}

/// A world by its line.
fn expect_world(line: &str) {
    run_plan(&read(line), None).unwrap_or_else(|failure| panic!("{failure}"));
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("the variable is a number"))
}

#[test]
fn an_undisturbed_world_completes_epochs_and_counts_every_click_once() {
    for seed in 1..=3 {
        let plan = Plan::undisturbed(seed);
        let summary = run_plan(&plan, None).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(summary.epochs > 0, "seed {seed}: {summary:?}");
        assert_eq!(
            summary.generations, 2,
            "it ran, and was stopped: seed {seed}"
        );
    }
}

#[test]
fn a_seed_makes_the_same_world_every_time() {
    assert_eq!(expect(11), expect(11));
}

#[test]
fn new_worlds_keep_every_promise() {
    if let Some(seed) = number("MILLSTREAM_SIM_SEED") {
        println!("seed {seed}: {:?}", expect_new(&Plan::draw(seed)));
        return;
    }
    if let Ok(world) = std::env::var("MILLSTREAM_SIM_WORLD") {
        println!("{world}: {:?}", expect_new(&read(&world)));
        return;
    }
    let clock = SystemClock::shared();
    let first = clock.wall().0.unsigned_abs();
    let seconds = number("MILLSTREAM_SIM_SECONDS").map(Span::from_secs);
    println!("seeds from {first} on");
    let started = clock.tick();
    let mut total = Summary::default();
    for seed in first.. {
        let ran = seed - first;
        let enough = match seconds {
            Some(seconds) => clock.tick().since(started) >= seconds,
            None => ran >= NEW_SEEDS,
        };
        if enough {
            println!("{ran} seeds: {total:?}");
            break;
        }
        let summary = expect_new(&Plan::draw(seed));
        total.struck.join(summary.struck);
        total.events += summary.events;
        total.virtual_ms += summary.virtual_ms;
        total.generations += summary.generations;
        total.epochs += summary.epochs;
        total.crashes += summary.crashes;
        total.questions += summary.questions;
        total.reigns += summary.reigns;
        total.cut_off += summary.cut_off;
        total.unclean += summary.unclean;
        total.suspected += summary.suspected;
        total.promoted += summary.promoted;
        total.promoted_hot += summary.promoted_hot;
        total.rescales += summary.rescales;
        total.rescaled += summary.rescaled;
        total.successions += summary.successions;
        total.lost += summary.lost;
        total.looked_at += summary.looked_at;
    }
    assert!(
        total.epochs > 0
            && total.crashes > 0
            && total.questions > 0
            && total.reigns > 0
            && total.looked_at > 0,
        "nothing was put to the test"
    );
}

#[test]
fn a_job_outlives_a_worker_with_its_tasks_and_that_workers_disk() {
    let mut lost = 0;
    for seed in 1..=6 {
        let run = run_plan(&Plan::losing(seed), None);
        lost += run.unwrap_or_else(|failure| panic!("{failure}")).lost;
    }
    assert!(lost > 0, "no disk with tasks on it was lost");
}

#[test]
fn a_job_is_divided_anew_while_things_go_wrong() {
    let mut rescaled = 0;
    for seed in 1..=12 {
        let run = run_plan(&Plan::rescaled(seed), None);
        rescaled += run.unwrap_or_else(|failure| panic!("{failure}")).rescaled;
    }
    assert!(rescaled > 4, "it was divided anew {rescaled} times only");
}

#[test]
fn a_group_of_coordinators_outlives_those_that_lead_it() {
    let mut successions = 0;
    for seed in 1..=12 {
        let run = run_plan(&Plan::of_group(seed), None);
        successions += run
            .unwrap_or_else(|failure| panic!("{failure}"))
            .successions;
    }
    assert!(
        successions > 6,
        "others came to lead {successions} times only"
    );
}

#[test]
fn nothing_is_lost_where_clocks_are_wrong_and_processes_and_disks_too_slow() {
    let mut struck = Kinds::default();
    for seed in 1..=12 {
        let run = run_plan(&Plan::mistimed(seed), None);
        struck.join(run.unwrap_or_else(|failure| panic!("{failure}")).struck);
    }
    for kind in [
        Kind::WorkerStopped,
        Kind::CoordinatorStopped,
        Kind::ClockSet,
        Kind::ClocksDiffer,
        Kind::DiskSlow,
    ] {
        assert!(struck.has(kind), "{kind:?} never struck: {struck:?}");
    }
}

/// Power goes while records are acknowledged in memory, though never everywhere at once.
#[test]
fn what_is_acknowledged_in_memory_outlives_the_loss_of_all_memories_but_one() {
    let (mut suspected, mut unclean) = (0, 0);
    for seed in 1..=8 {
        let run = run_plan(&Plan::in_memory(seed), None);
        let summary = run.unwrap_or_else(|failure| panic!("{failure}"));
        suspected += summary.suspected;
        unclean += summary.unclean;
    }
    assert!(suspected > 0, "nobody was suspect");
    assert!(unclean > 0, "all were never suspect at once");
}

// Past failures, by the names of their bugs.

/// It waited for a fold that was not to come: its changes were fewer than a fold is worth, or there was
/// nothing left to be folded; or nothing had been completed since it was restored.
#[test]
fn a_task_whose_memory_no_fold_can_give_back_goes_on() {
    for seed in [72, 142, 1_795_408_216_641, 1_795_408_438_505] {
        expect_single(seed);
    }
}

#[test]
fn a_job_whose_last_checkpoint_was_given_up_stops_all_the_same() {
    let plan = Plan::single(10);
    let plan = Plan {
        batch: 20,
        produce_every_ms: plan.produce_every_ms / 3,
        ..plan
    };
    run_plan(&plan, None).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_checkpoint_that_a_killed_coordinator_wrote_and_did_not_apply_is_complete() {
    expect_single(1_795_879_481_034);
}

/// It was told to cut its log off in the middle of a batch, because the leader's epoch ends there that it has not
/// heard of, and could not, again and again.
#[test]
fn a_replica_that_missed_an_epoch_which_its_leader_has_follows_again() {
    expect_unmoved(1_795_895_850_205);
}

/// It had led before, and said where its log ended before that was synced; its leader had nothing more for it, so
/// it never said that it was.
#[test]
fn a_follower_that_had_yet_to_sync_what_it_has_says_so_when_it_has() {
    expect_unmoved(1_795_896_038_445);
}

/// It stood by no more and then again, all in one generation and one life of its worker. The world gave it an
/// answer that it had been asked for before.
#[test]
fn a_standby_that_begins_again_in_one_generation_is_not_given_answers_of_before() {
    expect_world(
        "seed=1795923816797 mishaps=0 drift_permille=0 coordinators=1 rescales=0 loser_works=0 slow_permille=5 without=0,1,2,3,4,5,6,9,10",
    );
}

/// Of a batch that was written and not synced, the power took a sector with nothing of it but its offset, and its log
/// could not be opened.
#[test]
fn a_log_that_was_torn_between_a_batchs_offset_and_its_checksum_opens() {
    expect_unscaled(1_795_924_056_698);
}

/// Its sources had stopped for another number of tasks, and the last checkpoint before that passed for that of the
/// drain: windows stayed open.
#[test]
fn a_job_that_is_to_be_drained_while_it_is_divided_anew_lets_every_window_out() {
    expect_world(
        "seed=1795953236488 mishaps=0 drift_permille=0 coordinators=1 faults=0 clicks=1 keys=1 rescales=1 isolations=0 delay_ms=1 table_bytes=953",
    );
}

/// Two checkpoints were under way, and what was prepared had got the second only.
#[test]
fn who_prepares_a_task_has_each_checkpoint_that_it_is_named_a_holder_of() {
    expect_world(
        "seed=1795953445892 mishaps=0 drift_permille=0 coordinators=1 faults=2 more_faults=1 click_partitions=2 tally_partitions=2 sources=2 keys=1 rescales=2 \
         loser_works=0 in_memory=0 isolations=0 twice_permille=0 slow_permille=0 delay_ms=2 \
         without=2,3,4,5,6,7,8,9,10,11",
    );
}

/// A worker had begun to prepare a task, was told to remove it, and had some of it in its log again after a crash. Its
/// folds failed from then on, and let nothing of the log go.
#[test]
fn what_is_left_of_a_task_and_leads_nowhere_does_not_hold_up_the_log() {
    expect_world(
        "seed=1795955014439 mishaps=0 drift_permille=0 faults=3 more_faults=0 clicks=186 tally_partitions=2 sources=2 keys=17 rescales=1 \
         loser_works=0 tally_copies=1 click_copies_enough=1 cuts=0 isolations=0 drain=0 table_bytes=1221",
    );
}

/// A worker was registered again in one generation, before it had begun it. The world restored the second time it began
/// twice.
#[test]
fn a_generation_that_begins_again_at_once_is_restored_once() {
    expect_world(
        "seed=1795955480687 mishaps=0 drift_permille=0 more_faults=3 keys=1 isolations=0 drain=0 without=10",
    );
}

/// Each of its splits was found by itself, and the first passed for all: windows closed before what the others still had
/// for them. Seen as state that lacked a window in a run with real processes.
#[test]
fn a_source_that_begins_again_says_nothing_of_time_before_it_knows_all_of_its_splits() {
    expect_world(
        "seed=1795959485308 mishaps=0 drift_permille=0 faults=2 clicks=1 workers=1 click_partitions=2 keys=1 loses_disk=0 moves=0 standbys=0 \
         click_copies=1 tally_copies=1 click_copies_enough=1 tally_copies_enough=1 coordinator_faults=0 isolations=0 \
         delay_ms=1 without=0",
    );
}

/// Stopped for a while, it was fenced and registered again. What it heard of before that came as if nothing had been,
/// and its tasks of the past took what others had completed for theirs.
#[test]
fn tasks_of_a_worker_that_slept_do_not_take_what_others_completed_for_theirs() {
    expect_world(
        "seed=8633 mishaps=10 drift_permille=14 keys=25 loses_disk=0 moves=4 loser_works=0 without=0,2,3,5,6,9,10",
    );
}

/// A clock was set back and forth between two looks at it, and a producer that had just been heard of was taken for one
/// that had been silent for days: what it sent again was new.
#[test]
fn a_producer_is_not_forgotten_because_a_clock_was_set() {
    expect_world(
        "seed=700816 faults=0 mishaps=16 drift_permille=11 clicks=12 tally_partitions=1 sources=1 operators=1 keys=1 standbys=0 loser_works=0 \
         coordinator_faults=0 lost_permille=0 slow_permille=0 without=1,2,6,7,8,9,10,11,12,13,14,15",
    );
}

/// Two had lost their power and nobody knew. The third was killed, was out of sync at once, and had all that the others
/// had lost; one of those led.
#[test]
fn one_that_was_killed_and_has_everything_leads_where_the_others_lost_their_memory() {
    expect_world(
        "seed=710065 faults=3 more_faults=0 clicks=23 coordinators=1 click_partitions=1 operators=1 keys=1 rescales=0 cuts=0 isolations=0 \
         drain=0 lost_permille=0 twice_permille=0 delay_ms=4 table_bytes=0",
    );
}

/// It had begun to prepare a task, and later stood by for it, when that had been made anew elsewhere. What was left of
/// before led nowhere, and its folds failed until it had the rest.
#[test]
fn what_is_left_of_a_task_that_is_stood_by_for_later_does_not_hold_up_the_log() {
    expect_world(
        "seed=710539 mishaps=19 drift_permille=1 clicks=85 moves=3 standbys=1 loser_works=0 in_memory=0 cuts=0 isolations=0 drain=0 \
         twice_permille=0 slow_permille=0 table_bytes=2782 without=1,3,4,5,6,7,8,9,10,11,12,13,14,15,19,21,22,23,24,25",
    );
}

/// Its generation was over, a partition refused what its sink had to say, and what it had in memory was gone with it.
#[test]
fn a_task_whose_sink_is_refused_leaves_its_tables_to_the_next_generation() {
    let left: u64 = (1..=40).map(|seed| expect(seed).left_by_failed).sum();
    assert!(left > 0, "no task failed that way");
}

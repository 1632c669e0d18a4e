//! Every course of events of the models keeps every promise, and each mistake made on purpose is found by the
//! shortest way to it.

use integration_tests::models::explorer::{Model, explore};
use integration_tests::models::generations::{self, Begins, Generations};
use integration_tests::models::replication::{self, Replication};
use integration_tests::models::transactions::{self, Output};

fn holds(model: &impl Model) {
    match explore(model) {
        Ok(explored) => println!("{}: {explored:?}", model.name()),
        Err(found) => panic!("{found}"),
    }
}

fn is_found(model: &impl Model) {
    match explore(model) {
        Ok(_) => panic!("nothing is wrong in {}", model.name()),
        Err(found) => {
            println!("{found}");
            assert!(!found.way.is_empty(), "it says how to get there");
        }
    }
}

/// Two of three are enough, one goes and comes back.
const THREE: Replication = Replication {
    replicas: 3,
    min_insync: 2,
    records: 1,
    failures: 1,
    losses: 0,
    wishes: 1,
    late_syncs: false,
    mistake: None,
};

/// One of two is enough, and messages are lost.
const TWO: Replication = Replication {
    replicas: 2,
    min_insync: 1,
    records: 2,
    losses: 1,
    late_syncs: true,
    ..THREE
};

/// One leaves, and joins again.
const JOINING: Replication = Replication {
    records: 1,
    wishes: 2,
    late_syncs: false,
    ..TWO
};

#[test]
fn three_replicas_of_which_two_are_enough_lose_nothing() {
    holds(&THREE);
    let failing = Replication {
        records: 2,
        wishes: 0,
        ..THREE
    };
    holds(&failing);
}

#[test]
fn two_replicas_of_which_one_is_enough_lose_nothing() {
    holds(&TWO);
}

#[test]
fn a_replica_that_left_and_joins_again_has_everything() {
    holds(&JOINING);
}

#[test]
fn every_mistake_of_replication_is_found() {
    for (mistake, model) in [
        (replication::Mistake::SayUnsynced, TWO),
        (replication::Mistake::CountDiverging, TWO),
        (replication::Mistake::CommitByInSync, JOINING),
        (replication::Mistake::ForgetWish, JOINING),
        (replication::Mistake::TellUncommitted, TWO),
    ] {
        let mistake = Some(mistake);
        is_found(&Replication { mistake, ..model });
    }
}

const OUTPUT: Output = Output {
    records: [1, 1],
    barriers: 2,
    elections: 1,
    fenced: true,
    mistake: None,
};

#[test]
fn every_leader_commits_what_lies_before_a_completed_checkpoint_and_nothing_else() {
    holds(&OUTPUT);
    // One generation in both partitions.
    holds(&Output {
        records: [2, 1],
        elections: 0,
        ..OUTPUT
    });
}

#[test]
fn what_a_writer_of_the_past_gets_in_is_taken_back() {
    holds(&Output {
        fenced: false,
        elections: 0,
        ..OUTPUT
    });
}

#[test]
fn every_mistake_of_transactions_is_found() {
    for mistake in transactions::Mistake::ALL {
        let mistake = Some(mistake);
        is_found(&Output { mistake, ..OUTPUT });
    }
}

const GENERATIONS: Generations = Generations {
    begins: Begins::Deployed,
    ticks: 2,
    failures: 1,
    successors: 0,
    wishes: 0,
    delays: 0,
    mistake: None,
};

/// Another coordinator follows.
const SUCCEEDED: Generations = Generations {
    ticks: 3,
    failures: 0,
    successors: 1,
    ..GENERATIONS
};

#[test]
fn no_checkpoint_of_a_generation_is_completed_after_it() {
    holds(&GENERATIONS);
}

#[test]
fn a_coordinator_that_follows_goes_on_with_the_checkpoints() {
    holds(&SUCCEEDED);
    // And a worker fails meanwhile.
    holds(&Generations {
        successors: 1,
        ..GENERATIONS
    });
}

/// A user wants the job divided into other tasks.
const DIVIDED: Generations = Generations {
    begins: Begins::Checkpointed,
    ticks: 2,
    failures: 0,
    wishes: 1,
    ..GENERATIONS
};

/// It is about to be.
const CUTTING_OVER: Generations = Generations {
    begins: Begins::CuttingOver,
    wishes: 0,
    ..DIVIDED
};

#[test]
fn a_job_is_divided_anew_only_at_its_cut_over() {
    holds(&DIVIDED);
}

#[test]
fn sources_that_stopped_for_a_cut_over_that_is_not_wanted_any_more_read_again() {
    holds(&Generations {
        wishes: 2,
        ..CUTTING_OVER
    });
    holds(&Generations {
        delays: 1,
        ..CUTTING_OVER
    });
}

#[test]
fn a_worker_is_lost_while_the_job_is_divided_anew() {
    holds(&Generations {
        ticks: 1,
        failures: 1,
        wishes: 1,
        ..CUTTING_OVER
    });
}

#[test]
fn a_coordinator_that_follows_divides_the_job_anew() {
    holds(&Generations {
        successors: 1,
        ..CUTTING_OVER
    });
    // And the user thinks again.
    holds(&Generations {
        successors: 1,
        wishes: 1,
        ..CUTTING_OVER
    });
}

#[test]
fn every_mistake_of_generations_is_found() {
    for (mistake, model) in [
        (generations::Mistake::NameUnprepared, DIVIDED),
        (generations::Mistake::BeginWithoutCutOver, DIVIDED),
        (
            generations::Mistake::ForgetHalting,
            Generations {
                wishes: 1,
                ..CUTTING_OVER
            },
        ),
        (generations::Mistake::CompleteWithoutOne, GENERATIONS),
        (generations::Mistake::CompleteInAnother, GENERATIONS),
        (generations::Mistake::NumbersAgain, SUCCEEDED),
    ] {
        let mistake = Some(mistake);
        is_found(&Generations { mistake, ..model });
    }
}

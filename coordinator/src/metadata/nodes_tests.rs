//! Who a worker is to the cluster, and who is refused.

use common::ids::{ClusterId, NodeId, StorageId};
use uuid::Uuid;

use super::command::{Command, Outcome, Registration, Rejection};
use super::test_history::{History, registration};

#[test]
fn the_predecessor_of_a_process_had_its_storage_another_incarnation_and_another_address() {
    let mut history = History::announced();
    let (first, _) = history.active_worker(10);
    let before = registration(10);
    let asked = |storage: u128, incarnation: Uuid, address: &str| {
        let storage = StorageId(Uuid::from_u128(storage));
        let found = history.metadata.predecessor(storage, incarnation, address);
        found.map(|row| row.id)
    };
    let another = Uuid::from_u128(99);
    let elsewhere = "http://copy:7171";
    assert_eq!(asked(10, another, elsewhere), Some(first));
    // The same process behind a new address, its next life at the old one, and a worker nobody has seen.
    assert_eq!(asked(10, before.incarnation, elsewhere), None);
    assert_eq!(asked(10, another, &before.address), None);
    assert_eq!(asked(20, another, elsewhere), None);
}

#[test]
fn a_data_directory_keeps_its_worker_id_and_every_life_has_a_new_epoch() {
    let mut history = History::announced();
    let (first, epoch) = history.active_worker(10);
    let (second, _) = history.active_worker(20);
    assert_ne!(first, second);

    let next_life = Registration {
        worker: Some(first),
        incarnation: Uuid::from_u128(99),
        ..registration(10)
    };
    let (again, next_epoch) = history.register(next_life.clone());
    assert_eq!(again, first);
    assert!(next_epoch > epoch);
    assert!(
        !history.metadata.is_active(first),
        "it has yet to recover its logs"
    );
    let old = Command::UnfenceWorker {
        worker: first,
        epoch,
    };
    assert!(matches!(
        history.command(old),
        Err(Rejection::FencedWorkerEpoch { .. })
    ));

    // The reply was lost, so the same process asks again, and asks also without knowing its id.
    assert_eq!(history.register(next_life.clone()), (first, next_epoch));
    let forgetful = Registration {
        worker: None,
        ..next_life.clone()
    };
    assert_eq!(history.register(forgetful), (first, next_epoch));

    // Fenced, the same process begins a new epoch.
    let fence = Command::FenceWorker {
        worker: first,
        epoch: next_epoch,
    };
    assert_eq!(history.command(fence), Ok(Outcome::Done));
    let (_, third_epoch) = history.register(next_life);
    assert!(third_epoch > next_epoch);
}

#[test]
fn a_worker_of_another_cluster_or_with_another_disk_is_refused() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let before = history.metadata.clone();
    for (request, expected) in [
        (
            Registration {
                cluster: Some(ClusterId(Uuid::from_u128(2))),
                ..registration(30)
            },
            "WrongCluster",
        ),
        (
            Registration {
                worker: Some(worker),
                ..registration(30)
            },
            "OtherStorage",
        ),
        (
            Registration {
                worker: Some(NodeId(77)),
                ..registration(30)
            },
            "UnknownWorker",
        ),
    ] {
        let rejection = history
            .command(Command::RegisterWorker(request))
            .unwrap_err();
        assert!(
            format!("{rejection:?}").starts_with(expected),
            "{rejection:?}"
        );
    }
    assert!(history.metadata.workers().eq(before.workers()));
}

//! Far more than a worker takes: nothing that was acknowledged is lost, nobody is taken for lost, and then all is well.

use std::time::Duration;

use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, mebibytes, resident_bytes};
use integration_tests::overload::producer::{Offer, RECORD_BYTES, produce};
use integration_tests::overload::{Work, check, deploy, finish, lag, standing, until_drained};

use crate::steps::{PATIENCE, talk};

const MEMORY: &str = "384MiB";
const MEMORY_BYTES: u64 = 384 << 20;
/// So little that one client meets it on a slow machine, too.
const BYTE_RATE: u64 = 512 << 10;
/// More than a worker with so little memory takes at once and lets wait: 80 and 128.
const FLOOD: u64 = 300;
const FLOODING: Offer = Offer {
    records_per_request: 2_000,
    every: Duration::from_millis(100),
    lasts: Duration::from_secs(4),
};
/// One client, over several connections. Together they ask for much more than it may have.
const GREEDY: u64 = 4;
const GREED: Offer = Offer {
    records_per_request: 5_000,
    every: Duration::from_millis(50),
    lasts: FLOODING.lasts,
};

#[test]
fn a_worker_survives_more_than_it_takes() {
    let options = ["--memory", MEMORY, "--producer-byte-rate", "512KiB"];
    let mut cluster = Cluster::start_with(1, &options).unwrap();
    let client = cluster.client().unwrap();
    let worker = cluster.worker(0).to_owned();
    let process = cluster.worker_process(0).unwrap().id();
    talk(async {
        deploy(&client, Work::LIGHT).await.unwrap();
        let before = standing(&client).await.unwrap();
        let clock = Stopwatch::start();
        let (flood, greedy) = tokio::join!(
            produce(&worker, clock, 0..FLOOD, None, FLOODING),
            produce(&worker, clock, FLOOD..FLOOD + GREEDY, Some("greedy"), GREED),
        );
        let (flood, greedy) = (flood.unwrap(), greedy.unwrap());
        let took = clock.elapsed();
        let behind = lag(&client).await.unwrap();
        assert!(flood.overloaded > 0, "{flood:?}");
        assert!(flood.records() > 0, "{flood:?}");
        assert_eq!((flood.troubles, greedy.troubles), (0, 0));

        // What it may have in this time, its burst, and the rest of one request.
        let had = greedy.records() * RECORD_BYTES as u64;
        let request = (GREED.records_per_request * RECORD_BYTES) as u64;
        let most = BYTE_RATE * (took.as_secs() + 1) + BYTE_RATE + request;
        assert!(greedy.over_quota > 0 && had > 0, "{greedy:?}");
        assert!(had <= most, "{had} bytes in {took:?}");

        let drained = tokio::time::timeout(PATIENCE, until_drained(&client)).await;
        drained
            .unwrap_or_else(|_| panic!("{behind} records were behind"))
            .unwrap();
        assert_eq!(standing(&client).await.unwrap(), before);
        let (peak, _) = resident_bytes(process).unwrap();
        println!(
            "{:.0} MiB resident at most, {behind} records behind",
            mebibytes(peak)
        );
        assert!(
            peak < MEMORY_BYTES,
            "{:.0} MiB were resident, --memory is {MEMORY}",
            mebibytes(peak)
        );
        let acknowledged = [flood.acknowledged, greedy.acknowledged].concat();
        check::records(&client, &worker, &acknowledged)
            .await
            .unwrap();
        finish(&client, &acknowledged).await.unwrap();
    });
}

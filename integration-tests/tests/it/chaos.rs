//! A minute of random kills. `MILLSTREAM_SEED` repeats the seed of a run that failed.

use common::time::Span;
use integration_tests::chaos::{self, Options};

/// What a minute brings on a machine that does other things as well.
const LEAST_RECORDS: u64 = 30_000;

#[test]
fn nobody_can_tell_that_processes_were_killed_for_a_minute() {
    let seed = chaos::seed().unwrap();
    println!("MILLSTREAM_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        seed,
        coordinators: 3,
        workers: 3,
        duration: Span::from_secs(60),
        interval: Span::from_secs(3),
        events_per_second: 4_000,
        directory: directory.path().to_owned(),
    };
    let outcome = chaos::run(&options).and_then(|summary| {
        println!("{summary}");
        summary.require(LEAST_RECORDS)
    });
    if let Err(error) = outcome {
        // Whoever looks for the cause needs what the processes wrote.
        let kept = directory.keep();
        // On one line: where it was noticed says less, and hides it.
        panic!("{error:#}\nlogs and data are in {}", kept.display());
    }
}

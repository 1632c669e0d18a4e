//! Over some seeds everything that may strike a world does while there is work under way, and there are worlds that
//! know nothing of it.

use integration_tests::sim::plan::Plan;
use integration_tests::sim::swarm::{Kind, Kinds, kinds};

use crate::expect;

const SEEDS: u64 = 40;

#[test]
fn every_kind_of_fault_and_every_feature_strikes_and_is_off_sometimes() {
    let mut struck = Kinds::default();
    for seed in 1..=SEEDS {
        struck.join(expect(seed).struck);
    }
    for kind in Kind::ALL {
        assert!(struck.has(kind), "{kind:?} never struck: {struck:?}");
        let mut plans = (1..=SEEDS).map(Plan::draw);
        let off = plans.any(|plan| !kinds(&plan).has(kind));
        assert!(off, "{kind:?} is never off");
    }
}

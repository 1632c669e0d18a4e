//! A world that fails is made smaller, fails in the same way, and is run again from its line of text.

use integration_tests::sim::description::{KNOBS, describe, read};
use integration_tests::sim::faults;
use integration_tests::sim::plan::Plan;
use integration_tests::sim::run_plan;
use integration_tests::sim::sabotage::Sabotage;
use integration_tests::sim::shrink::shrink;

#[test]
fn a_world_is_read_back_from_its_line() {
    for seed in 1..=20 {
        for plan in [
            Plan::draw,
            Plan::single,
            Plan::alone,
            Plan::stood_by,
            Plan::losing,
            Plan::rescaled,
            Plan::of_group,
            Plan::mistimed,
        ] {
            let mut plan = plan(seed);
            plan.without.extend([1, 3]);
            assert_eq!(read(&describe(&plan)), plan, "{}", describe(&plan));
        }
    }
}

#[test]
fn a_world_that_fails_is_made_smaller_and_fails_in_the_same_way() {
    for (sabotage, plan) in [
        (
            Sabotage::AcknowledgeBeforeSync,
            Plan::single as fn(u64) -> Plan,
        ),
        (Sabotage::TakeRepeatedFrames, Plan::single),
        (Sabotage::CountDiverging, Plan::alone),
    ] {
        let mut plans = (1..).map(plan);
        let failing = plans.find_map(|plan| {
            let failure = run_plan(&plan, Some(sabotage)).err()?;
            Some((plan, failure))
        });
        let (plan, failure) = failing.expect("it is found");
        let smaller = shrink(&plan, Some(sabotage), &failure);
        println!("{failure}\n{}", smaller.advice());
        assert_eq!(smaller.failure.way(), failure.way());
        let size = |plan: &Plan| -> u64 {
            let knobs = KNOBS.iter().filter(|knob| knob.least.is_some());
            let faults = faults::happening(plan).len() as u64;
            faults + knobs.map(|knob| (knob.get)(plan)).sum::<u64>()
        };
        assert!(size(&smaller.plan) < size(&plan), "{:?}", smaller.plan);
        let again = run_plan(&read(&describe(&smaller.plan)), Some(sabotage));
        let again = again.expect_err("the line says all there is to say");
        assert_eq!(again.broken, smaller.failure.broken);
    }
}

//! Makes a world that fails smaller, as long as it goes on failing in the same way.
//!
//! Faults are left out, halves of them first and then one by one; workers, partitions, clicks, copies and bad
//! weather are taken away. Each attempt is a whole run, so their number is bounded; every attempt is a world of
//! its own, which may fail for another reason, and then does not count.

use super::description::{KNOBS, Knob, describe};
use super::faults;
use super::plan::Plan;
use super::sabotage::Sabotage;
use super::{Failure, run_plan};

/// Runs, of a second at most each.
const MOST_RUNS: usize = 150;
/// How often a number is halved, once the least has turned out to be too little.
const HALVINGS: u32 = 4;

/// The smallest world that was found.
#[derive(Clone, Debug)]
pub struct Shrunk {
    pub plan: Plan,
    pub failure: Failure,
    pub runs: usize,
}

struct Shrinking {
    sabotage: Option<Sabotage>,
    smallest: Plan,
    failure: Failure,
    runs: usize,
}

pub fn shrink(plan: &Plan, sabotage: Option<Sabotage>, failure: &Failure) -> Shrunk {
    let mut shrinking = Shrinking {
        sabotage,
        smallest: plan.clone(),
        failure: failure.clone(),
        runs: 0,
    };
    loop {
        let before = shrinking.smallest.clone();
        for knob in &KNOBS {
            shrinking.turn_down(knob);
        }
        shrinking.leave_out_faults();
        if shrinking.smallest == before || shrinking.runs == MOST_RUNS {
            break;
        }
    }
    Shrunk {
        plan: shrinking.smallest,
        failure: shrinking.failure,
        runs: shrinking.runs,
    }
}

impl Shrinking {
    /// Whether the world is smaller and fails in the same way; then it is the smallest.
    fn attempt(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        if self.runs == MOST_RUNS {
            return false;
        }
        let mut plan = self.smallest.clone();
        change(&mut plan);
        plan.fit();
        if plan == self.smallest {
            return false;
        }
        self.runs += 1;
        match run_plan(&plan, self.sabotage) {
            Err(failure) if failure.way() == self.failure.way() => {
                self.smallest = plan;
                self.failure = failure;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn turn_down(&mut self, knob: &Knob) {
        let Some(mut low) = knob.least else { return };
        let now = (knob.get)(&self.smallest);
        if now <= low || self.attempt(|plan| (knob.set)(plan, low)) {
            return;
        }
        for _ in 0..HALVINGS {
            let middle = low.midpoint((knob.get)(&self.smallest));
            if middle <= low {
                return;
            }
            if !self.attempt(|plan| (knob.set)(plan, middle)) {
                low = middle;
            }
        }
    }

    fn leave_out_faults(&mut self) {
        let mut at_once = faults::happening(&self.smallest).len().div_ceil(2);
        while at_once > 0 {
            let happening = faults::happening(&self.smallest);
            for some in happening.chunks(at_once) {
                self.attempt(|plan| plan.without.extend(some));
            }
            at_once /= 2;
        }
    }
}

impl Shrunk {
    /// How to see it again, and how to keep it.
    pub fn advice(&self) -> String {
        let world = describe(&self.plan);
        format!(
            "a smaller world, found in {} runs, fails in the same way: {}\n\
             run it again:\n  \
             MILLSTREAM_SIM_WORLD=\"{world}\" cargo test --workspace --test sim new_worlds -- --nocapture\n\
             keep it:\n  \
             #[test]\n  fn what_was_wrong() {{\n      expect_world(\"{world}\");\n  }}",
            self.runs, self.failure.broken
        )
    }
}

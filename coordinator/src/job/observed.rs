//! How a job is doing, as heartbeats and its machine say: for people, never for decisions.

use std::collections::{BTreeMap, VecDeque};

use common::ids::{Generation, TaskId};
use common::protocol::task::{TaskMetrics, TaskReport, TaskState};
use common::time::{Span, Tick};

/// Rates are taken over what was reported within this time.
const RATE_WINDOW: Span = Span::from_secs(5);
/// A worker reports twice a second, and at once when a task changes state.
const MAX_SAMPLES: usize = 32;

/// The tasks of one generation, as last reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    generation: Generation,
    tasks: BTreeMap<TaskId, ObservedTask>,
    obstacle: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObservedTask {
    pub state: TaskState,
    pub metrics: TaskMetrics,
    pub rates: Rates,
    /// Oldest first; at least the last one.
    samples: VecDeque<(Tick, Counters)>,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub rows_in: f64,
    pub rows_out: f64,
    pub bytes_in: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    rows_in: u64,
    rows_out: u64,
    bytes_in: u64,
}

impl Observed {
    /// What keeps the job from being divided as it is wanted; empty: nothing.
    pub fn obstacle(&self) -> &str {
        &self.obstacle
    }

    #[must_use]
    pub fn with_obstacle(mut self, obstacle: Option<String>) -> Observed {
        self.obstacle = obstacle.unwrap_or_default();
        self
    }

    /// Forgets what was reported of other generations.
    pub fn follow(&mut self, generation: Generation) {
        if generation != self.generation {
            self.generation = generation;
            self.tasks.clear();
        }
    }

    pub fn report(&mut self, now: Tick, report: &TaskReport) {
        if report.generation != self.generation {
            return;
        }
        let sample = (now, Counters::of(&report.metrics));
        let task = self
            .tasks
            .entry(report.task)
            .or_insert_with(|| ObservedTask {
                state: report.state.clone(),
                metrics: report.metrics,
                rates: Rates::default(),
                samples: VecDeque::new(),
            });
        task.state.clone_from(&report.state);
        task.metrics = report.metrics;
        task.samples.push_back(sample);
        while task.samples.len() > MAX_SAMPLES
            || task
                .samples
                .front()
                .is_some_and(|(at, _)| now.since(*at) > RATE_WINDOW)
                && task.samples.len() > 2
        {
            task.samples.pop_front();
        }
        task.rates = rates(&task.samples);
    }

    /// Whose tasks these are.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Nothing runs any more, or not yet: the numbers stay, but nothing moves.
    pub fn stand_still(&mut self) {
        for task in self.tasks.values_mut() {
            task.rates = Rates::default();
            task.metrics.busy_permille = 0;
            task.metrics.blocked_permille = 0;
        }
    }

    pub fn task(&self, generation: Generation, task: TaskId) -> Option<&ObservedTask> {
        if generation != self.generation {
            return None;
        }
        self.tasks.get(&task)
    }
}

impl Counters {
    fn of(metrics: &TaskMetrics) -> Counters {
        Counters {
            rows_in: metrics.rows_in,
            rows_out: metrics.rows_out,
            bytes_in: metrics.bytes_in,
        }
    }
}

impl std::ops::AddAssign for Rates {
    fn add_assign(&mut self, other: Rates) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_in += other.bytes_in;
    }
}

fn rates(samples: &VecDeque<(Tick, Counters)>) -> Rates {
    let (Some((from, first)), Some((to, last))) = (samples.front(), samples.back()) else {
        return Rates::default();
    };
    let elapsed_ms = to.since(*from).0;
    if elapsed_ms == 0 {
        return Rates::default();
    }
    let per_second = |first: u64, last: u64| {
        let thousandths = last.saturating_sub(first) as f64 * 1000.0 / elapsed_ms as f64;
        // One digit is what people read; more only flickers.
        (thousandths * 10.0).round() / 10.0
    };
    Rates {
        rows_in: per_second(first.rows_in, last.rows_in),
        rows_out: per_second(first.rows_out, last.rows_out),
        bytes_in: per_second(first.bytes_in, last.bytes_in),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{JobId, StageId};

    use super::*;

    const TASK: TaskId = TaskId {
        stage: StageId(0),
        index: 0,
    };

    fn report(generation: u32, rows_in: u64) -> TaskReport {
        TaskReport {
            job: JobId(1),
            generation: Generation(generation),
            task: TASK,
            state: TaskState::Running,
            wants_checkpoint: false,
            metrics: TaskMetrics {
                rows_in,
                ..TaskMetrics::default()
            },
        }
    }

    #[test]
    fn rates_follow_the_last_seconds_and_fall_to_nothing() {
        let mut observed = Observed::default();
        observed.follow(Generation(1));
        let rate = |observed: &Observed| observed.task(Generation(1), TASK).unwrap().rates.rows_in;
        for half_second in 0..=10 {
            observed.report(Tick(half_second * 500), &report(1, half_second * 1_000));
        }
        assert_eq!(rate(&observed), 2_000.0);
        for half_second in 11..=25 {
            observed.report(Tick(half_second * 500), &report(1, 10_000));
        }
        assert_eq!(rate(&observed), 0.0);
    }

    #[test]
    fn a_new_generation_starts_from_nothing() {
        let mut observed = Observed::default();
        observed.follow(Generation(1));
        observed.report(Tick(0), &report(1, 5));
        observed.follow(Generation(2));
        assert_eq!(observed.task(Generation(2), TASK), None);
        observed.report(Tick(500), &report(1, 10));
        assert_eq!(observed.task(Generation(2), TASK), None);
        observed.report(Tick(1000), &report(2, 0));
        assert_eq!(
            observed.task(Generation(2), TASK).unwrap().rates,
            Rates::default()
        );
    }
}

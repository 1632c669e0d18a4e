//! Its jobs: it begins and ends generations of them, and does what their tasks and standbys want done.

use std::collections::BTreeMap;

use common::error::{ErrorCode, Problem};
use common::ids::{Generation, JobId, TaskId, TopicPartition};
use common::protocol::checkpoint::{AckCheckpoint, InjectBarrier};
use common::protocol::standby::{AckStandby, FetchState};
use common::time::Span;
use worker::job::assignment::{changes, completed};
use worker::sink::write_queue::NextAppend;
use worker::standby::machine::Event as StandbyEvent;

use super::{
    BUNDLE_DEADLINE, CALL_DEADLINE, KEEP_MS, Life, OPEN_MS, Purpose, READ_MS, RETRY_EVERY, STEP_MS,
    Timer, Who,
};
use crate::sim::env::Env;
use crate::sim::generation::RunningJob;
use crate::sim::network::{Process, Request};
use crate::sim::sabotage::Sabotage;
use crate::sim::standby::{self, Began, Mail, Wish, Work};
use crate::sim::task::{Wanted, append_request};

impl Life {
    pub(super) fn follow_jobs(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let image = self.image.clone();
        let generations = self.jobs.iter().map(|(job, running)| {
            let (generation, epoch, _) = running.began();
            (*job, (generation, epoch))
        });
        let changes = changes(
            &image,
            session.worker,
            session.epoch(),
            &generations.collect(),
            &self.kept,
        );
        for (job, generation) in changes.stop {
            env.trace(|| format!("{:?} stops generation {generation}", self.who));
            let stopped = self.jobs.remove(&job);
            let left = stopped.and_then(|stopped| stopped.leave(env));
            self.left.extend(left.map(|left| (job, left)));
            if let Some(lanes) = &self.lanes {
                lanes.lanes.close(job, generation);
            }
            self.reports.remove(job, generation);
            self.stopping.insert(job);
            let delay = env.some_disk_ms(OPEN_MS);
            self.who.after(env, delay, Timer::Stopped(job));
        }
        for deployment in changes.start {
            let job = deployment.job;
            if self.stopping.contains(&job) {
                continue;
            }
            let me = (session.worker, session.epoch());
            let left = self.left.remove(&job);
            let facts = image.jobs.get(&job);
            let left = left.map(|left| left.for_next(&deployment, facts));
            let (custom, memory) = (self.custom.clone(), self.memory.clone());
            self.begun += 1;
            let (begun, choice) = (self.begun, self.choice);
            let running = RunningJob::new(deployment, me, begun, choice, custom, memory, left);
            running.begin(env, self.who, &self.reports, &self.urgent);
            self.kept.insert(job);
            self.jobs.insert(job, running);
        }
        for (job, running) in &mut self.jobs {
            if let Some(completed) = completed(&image, *job, running.generation()) {
                running.completed(env, self.who, &image, completed);
            }
            if let Some(deployment) = image.deployments.get(job) {
                running.deployed(env, self.who, &image, deployment);
            }
            running.facts_changed(env, self.who);
        }
    }

    /// Does what a standby wants done.
    pub(super) fn grant(&mut self, env: &mut Env, job: JobId, began: Began, wish: Wish) {
        match wish {
            Wish::Ask { worker, positions } => {
                let asked = self.image.workers.get(&worker);
                let Some(asked) = asked.map(|asked| asked.address.clone()) else {
                    let event = StandbyEvent::Unanswered { by: worker };
                    let mail = standby::Timer::Mail(Mail::Happened(event));
                    let timer = Timer::Standby(job, began, mail);
                    return self.who.after(env, Span(0), timer);
                };
                let request = Request::FetchState(FetchState {
                    job,
                    generation: began.0,
                    positions,
                    wait: standby::HOLD,
                });
                let process = Process::Worker(asked.parse().expect("an index"));
                let purpose = Purpose::Ask(job, began, worker);
                self.call(env, process, request, BUNDLE_DEADLINE, purpose);
            }
            Wish::Work(work) => self.work(env, work),
            Wish::Tell(what) => {
                let Some(session) = self.session.clone() else {
                    return;
                };
                let request = Request::Hold(AckStandby {
                    worker: session.worker,
                    worker_epoch: session.epoch(),
                    job,
                    generation: began.0,
                    held: what.clone().into_iter().collect(),
                });
                let purpose = Purpose::Tell(job, began, what);
                self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
            }
        }
    }

    pub(super) fn work(&mut self, env: &mut Env, mut work: Work) {
        self.last_work += 1;
        let number = self.last_work;
        let mut delay = match work.keeps_of() {
            Some(_) => env.some_disk_ms(KEEP_MS),
            None => env.some_disk_ms(STEP_MS),
        };
        if let Some(of) = work
            .keeps_of()
            .filter(|_| env.sabotaged(Sabotage::HoldUnkept))
        {
            let mail = standby::Timer::Mail(Mail::Happened(StandbyEvent::Kept { of }));
            let timer = Timer::Standby(work.job, work.began, mail);
            self.who.after(env, Span(1), timer);
            delay = Span(400);
        } else if env.draw(2) == 0 {
            // The bytes may be there early in the time it takes, or late: a crash meets either.
            run(env, self.who, &mut work);
        }
        self.working.insert(number, work);
        self.who.after(env, delay, Timer::Worked(number));
    }

    pub(super) fn worked(&mut self, env: &mut Env, number: u64) {
        let Some(mut work) = self.working.remove(&number) else {
            return;
        };
        let told_before = work.keeps_of().is_some() && env.sabotaged(Sabotage::HoldUnkept);
        run(env, self.who, &mut work);
        let (job, began, mail) = (work.job, work.began, work.take_mail());
        drop(work);
        if let Some(mail) = mail.filter(|_| !told_before) {
            self.mail(env, job, began, mail);
        }
    }

    pub(super) fn mail(&mut self, env: &mut Env, job: JobId, began: Began, mail: Mail) {
        let image = self.image.clone();
        if let Some(running) = since(&mut self.jobs, job, began) {
            running.mail(env, self.who, &image, mail);
        }
    }

    pub(super) fn inject(&mut self, env: &mut Env, barrier: &InjectBarrier) -> Result<(), Problem> {
        // A coordinator that has been replaced must not cut a job's rows any more.
        if barrier.control_epoch < self.image.control_epoch {
            let detail = format!("coordinator {} was followed", barrier.control_epoch);
            return Err(Problem::new(ErrorCode::StaleControlEpoch, detail));
        }
        match self.jobs.get_mut(&barrier.job) {
            Some(running) => running.inject(env, self.who, barrier),
            None => Err(not_running()),
        }
    }

    /// Begins the appends and fetches that a turn of a task asked for.
    pub(super) fn begin(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        wanted: Wanted,
    ) {
        for next in wanted.appends {
            self.append(env, job, generation, task, next);
        }
        for split in wanted.fetches {
            self.fetch(env, job, generation, task, split);
        }
        if let Some(question) = wanted.question {
            env.questions += 1;
            let delay = env.some_disk_ms(READ_MS);
            let timer = Timer::Answer(job, generation, task, question);
            self.who.after(env, delay, timer);
        }
    }

    pub(super) fn append(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        next: NextAppend,
    ) {
        let Some(leader) = self.leader(next.partition) else {
            let timer = Timer::Append(job, generation, task, next);
            return self.who.after(env, RETRY_EVERY, timer);
        };
        let request = append_request(&next);
        let purpose = Purpose::Append(job, generation, task, next);
        self.call(env, leader, request, BUNDLE_DEADLINE, purpose);
    }

    pub(super) fn fetch(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        split: u32,
    ) {
        let Some(running) = running(&mut self.jobs, job, generation) else {
            return;
        };
        let Some(request) = running.fetch_request(task, split) else {
            return;
        };
        let Some(leader) = self.leader(request.partition) else {
            let timer = Timer::Fetch(job, generation, task, split);
            return self.who.after(env, RETRY_EVERY, timer);
        };
        let purpose = Purpose::Fetch(job, generation, task, split);
        let request = Request::Fetch(request);
        self.call(env, leader, request, BUNDLE_DEADLINE, purpose);
    }

    pub(super) fn acknowledge(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        ack: AckCheckpoint,
    ) {
        if running(&mut self.jobs, job, generation).is_none() {
            return;
        }
        for snapshot in &ack.tasks {
            let (node, life) = (ack.worker, self.who.life);
            let leaders = &mut env.checkers.leaders;
            let verdict = leaders.runs(generation, snapshot.task, node, life);
            env.check(verdict);
        }
        let request = Request::Acknowledge(ack.clone());
        let purpose = Purpose::Acknowledge(job, generation, ack);
        self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
    }

    fn leader(&self, partition: TopicPartition) -> Option<Process> {
        let leader = self.image.leader(partition)?;
        Some(Process::Worker(leader.address.parse().expect("an index")))
    }
}

pub(super) fn running(
    jobs: &mut BTreeMap<JobId, RunningJob>,
    job: JobId,
    generation: Generation,
) -> Option<&mut RunningJob> {
    let running = jobs.get_mut(&job)?;
    (running.generation() == generation).then_some(running)
}

pub(super) fn since(
    jobs: &mut BTreeMap<JobId, RunningJob>,
    job: JobId,
    began: Began,
) -> Option<&mut RunningJob> {
    let running = jobs.get_mut(&job)?;
    (running.began() == began).then_some(running)
}

pub(super) fn run(env: &mut Env, who: Who, work: &mut Work) {
    if let Err(error) = work.run() {
        env.break_promise(format!("{who:?} cannot work on its state: {error}"));
    }
}

pub(super) fn not_running() -> Problem {
    Problem::new(ErrorCode::MetadataStale, "the job does not run here yet")
}

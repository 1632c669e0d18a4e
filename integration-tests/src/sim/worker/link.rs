//! Its line to the coordinator: it registers, says that it lives, and hears what was decided.

use std::sync::Arc;

use common::limits::MAX_WAIT;
use common::protocol::metadata::{FetchMetadata, MetadataDelta};
use common::protocol::node::{Heartbeat, NodeLoad, Registered};
use common::time::Span;
use worker::link::{DOUBT_AFTER, Session};

use super::{CALL_DEADLINE, Life, Purpose, Timer};
use crate::sim::env::Env;
use crate::sim::lanes::WorkerLanes;
use crate::sim::network::{CallId, Process, Request};
use crate::sim::replication::Replication;

impl Life {
    pub(super) fn call(
        &mut self,
        env: &mut Env,
        callee: Process,
        request: Request,
        deadline: Span,
        purpose: Purpose,
    ) -> CallId {
        let caller = (self.who.process, self.who.life);
        let call = env.call(caller, callee, request, deadline);
        self.coordinators.asks(call, callee);
        self.calls.insert(call, purpose);
        call
    }

    pub(super) fn ask_coordinator(
        &mut self,
        env: &mut Env,
        request: Request,
        deadline: Span,
        purpose: Purpose,
    ) -> CallId {
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, deadline, purpose)
    }

    /// What waits at a coordinator that hangs would not notice it.
    pub(super) fn move_on(&mut self, env: &mut Env) {
        let waits = |purpose: &Purpose| matches!(purpose, Purpose::Metadata);
        if self.coordinators.give_up(&mut self.calls, waits) {
            self.fetch_metadata(env);
        }
    }

    /// A heartbeat is said twice rather than too late.
    pub(super) fn doubt(&mut self, env: &mut Env, call: CallId) {
        if self.coordinators.doubt(call) {
            self.move_on(env);
            self.heartbeat(env);
        }
    }

    pub(super) fn register(&mut self, env: &mut Env) {
        let request = Request::Register(self.registration.clone());
        self.ask_coordinator(env, request, CALL_DEADLINE, Purpose::Register);
    }

    pub(super) fn registered(&mut self, env: &mut Env, registered: &Registered) {
        let Registered { worker, epoch, .. } = *registered;
        env.trace(|| format!("{:?} is worker {worker} in epoch {epoch}", self.who));
        let first = self.session.is_none();
        match &self.session {
            Some(session) => session.registered_again(epoch),
            None => self.session = Some(Session::of(registered)),
        }
        self.sequence = 0;
        for running in self.jobs.values_mut() {
            running.worker_is_now(epoch);
        }
        if first {
            self.lanes = Some(WorkerLanes::new(worker, epoch));
            self.replication = Some(Replication::new(worker, epoch));
            self.fetch_metadata(env);
        }
        if let Some(replication) = &mut self.replication {
            replication.worker_is_now(epoch);
        }
        self.heartbeat(env);
    }

    pub(super) fn next_heartbeat(&mut self, env: &mut Env, after: Span) {
        self.heartbeat += 1;
        self.who.after(env, after, Timer::Heartbeat(self.heartbeat));
    }

    pub(super) fn heartbeat(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        // Whatever else is due is this one.
        self.heartbeat += 1;
        self.sequence += 1;
        let heartbeat = Heartbeat {
            cluster: session.cluster,
            worker: session.worker,
            epoch: session.epoch(),
            sequence: self.sequence,
            metadata_version: self.image.version,
            ready: self.ready,
            tasks: self.reports.all(),
            load: NodeLoad::default(),
        };
        let request = Request::Heartbeat(heartbeat);
        let purpose = Purpose::Heartbeat(env.now);
        let call = self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
        self.who.after(env, DOUBT_AFTER, Timer::Doubt(call));
    }

    pub(super) fn fetch_metadata(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::FetchMetadata(FetchMetadata {
            cluster: session.cluster,
            worker: Some(session.worker),
            since: self.image.version,
            wait: MAX_WAIT,
        });
        let deadline = Span(MAX_WAIT.0 + CALL_DEADLINE.0);
        let purpose = Purpose::Metadata;
        self.ask_coordinator(env, request, deadline, purpose);
    }

    pub(super) fn learn(&mut self, env: &mut Env, delta: MetadataDelta) {
        let newer = self.image.after(delta, env.now);
        let Some(image) = newer.filter(|image| image.version > self.image.version) else {
            return;
        };
        self.image = Arc::new(image);
        self.follow_partitions(env);
        if let Some(replication) = self.replication.as_mut().filter(|_| self.ready) {
            let image = self.image.clone();
            let calls = replication.follow(env, self.who, &mut self.partitions, &image);
            self.replicate(env, calls);
        }
        self.follow_jobs(env);
    }
}

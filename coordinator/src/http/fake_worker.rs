//! A worker that runs nothing and says it does: it registers, beats, follows the metadata, confirms
//! barriers and acknowledges checkpoints, as a test tells it to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, StorageId, TaskId};
use common::protocol::checkpoint::{
    AckCheckpoint, CheckpointKind, InjectBarrier, Injected, TaskCounts, TaskSnapshot,
};
use common::protocol::metadata::FetchMetadata;
use common::protocol::node::{Heartbeat, NodeLoad, RegisterWorker, Registered};
use common::protocol::state::{QueryState, StateEntries, StateEntry, StatePlace};
use common::protocol::task::{Deployment, TaskMetrics, TaskReport, TaskState};
use common::time::{Span, Timestamp};
use common::transport::client::Transport;
use common::transport::server::{HttpServer, register, resource};

const DEADLINE: Span = Span::from_secs(30);
const BEAT_EVERY: Duration = Duration::from_millis(100);

pub(super) struct FakeWorker {
    shared: Arc<Shared>,
    server: Option<HttpServer>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    coordinator: String,
    transport: Transport,
    changed: Notify,
    life: Mutex<Life>,
}

/// What the worker is and does.
struct Life {
    registered: Option<Registered>,
    deployments: BTreeMap<JobId, Arc<Deployment>>,
    /// What its tasks report from now on; sources apart from the others.
    sources: TaskState,
    others: TaskState,
    acknowledges: bool,
    /// What it says instead of the state of its tasks.
    refuses_state: Option<ErrorCode>,
    barriers: Vec<(CheckpointId, CheckpointKind)>,
    /// The generation whose last checkpoint was acknowledged.
    finished: Option<Generation>,
    beats: u64,
}

impl FakeWorker {
    /// A process on the data directory `storage`, with room for so many instances of jobs.
    pub(super) fn start(coordinator: &str, storage: u128, slots: u32) -> FakeWorker {
        let shared = Arc::new(Shared {
            coordinator: coordinator.to_owned(),
            transport: Transport::start("fake-worker").unwrap(),
            changed: Notify::new(),
            life: Mutex::new(Life {
                registered: None,
                deployments: BTreeMap::new(),
                sources: TaskState::Running,
                others: TaskState::Running,
                acknowledges: true,
                refuses_state: None,
                barriers: Vec::new(),
                finished: None,
                beats: 0,
            }),
        });
        let routes = Arc::clone(&shared);
        let server = HttpServer::start(
            "fake-worker",
            "127.0.0.1:0".parse().unwrap(),
            1,
            Span::from_secs(1),
            move |config| {
                let inject = Arc::clone(&routes);
                register(config, move |barrier| confirm(Arc::clone(&inject), barrier));
                let query = Arc::clone(&routes);
                register(config, move |question| {
                    let answer = query.answer(&question);
                    async move { answer }
                });
                let records = resource("/v1/topics/{topic}/partitions/{partition}/records");
                config.service(records.route(web::get().to(echo)));
            },
        )
        .unwrap();
        let address = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let alive = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                tokio::select! {
                    () = live(alive, address, storage, slots) => {}
                    _ = stopped => {}
                }
            });
        });
        FakeWorker {
            shared,
            server: Some(server),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// All its tasks are in this state from now on.
    pub(super) fn report(&self, state: TaskState) {
        {
            let mut life = self.shared.life();
            life.sources = state.clone();
            life.others = state;
        }
        self.shared.changed.notify_one();
    }

    pub(super) fn exhaust_sources(&self) {
        self.shared.life().sources = TaskState::Exhausted;
        self.shared.changed.notify_one();
    }

    pub(super) fn acknowledge(&self, acknowledges: bool) {
        self.shared.life().acknowledges = acknowledges;
    }

    pub(super) fn refuse_state(&self, code: ErrorCode) {
        self.shared.life().refuses_state = Some(code);
    }

    pub(super) fn barriers(&self) -> Vec<(CheckpointId, CheckpointKind)> {
        self.shared.life().barriers.clone()
    }

    pub(super) fn deployment(&self) -> Arc<Deployment> {
        let life = self.shared.life();
        Arc::clone(life.deployments.values().next().expect("a job runs here"))
    }

    /// The process dies: nobody listens at its address any more.
    pub(super) fn kill(self) {}
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        drop(self.server.take());
    }
}

impl Shared {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap()
    }

    fn heartbeat(&self, me: &Registered) -> Heartbeat {
        let mut life = self.life();
        life.beats += 1;
        let tasks = life.deployments.values().flat_map(|deployment| {
            here(deployment, me).map(|task| TaskReport {
                job: deployment.job,
                generation: deployment.generation,
                task,
                state: match is_source(deployment, task) {
                    _ if life.finished == Some(deployment.generation) => TaskState::Finished,
                    true => life.sources.clone(),
                    false => life.others.clone(),
                },
                wants_checkpoint: false,
                metrics: TaskMetrics {
                    rows_in: life.beats * 100,
                    watermark: Some(Timestamp(1_700_000_000_000)),
                    ..TaskMetrics::default()
                },
            })
        });
        Heartbeat {
            cluster: me.cluster,
            worker: me.worker,
            epoch: me.epoch,
            sequence: life.beats,
            metadata_version: MetadataVersion(0),
            ready: true,
            tasks: tasks.collect(),
            load: NodeLoad::default(),
        }
    }

    /// Three keys per task, at checkpoints that are complete here.
    fn answer(&self, question: &QueryState) -> Result<StateEntries, Problem> {
        let life = self.life();
        if let Some(code) = life.refuses_state {
            return Err(Problem::new(code, "as the test wants it"));
        }
        let deployment = life.deployments.get(&question.job);
        if deployment.map(|deployment| deployment.generation) != Some(question.generation) {
            return Err(Problem::new(
                ErrorCode::StaleGeneration,
                "another generation",
            ));
        }
        let entries = (0..3_u64).map(|number| StateEntry {
            key: [(
                "sensor".to_owned(),
                json!(format!("{}-{number}", question.task.index)),
            )]
            .into_iter()
            .collect(),
            window: None,
            value: [("readings".to_owned(), json!(number))]
                .into_iter()
                .collect(),
        });
        let wanted = |entry: &StateEntry| match &question.key {
            Some(key) => entry.key["sensor"] == *key,
            None => true,
        };
        let found: Vec<StateEntry> = entries.filter(wanted).collect();
        let after = question.after.as_ref();
        let skip = after.map_or(0, |StatePlace(place)| place[0].into());
        let limit = usize::try_from(question.limit).unwrap();
        let end = skip + limit;
        Ok(StateEntries {
            next: (found.len() > end).then(|| StatePlace(vec![u8::try_from(end).unwrap()])),
            entries: found.into_iter().skip(skip).take(limit).collect(),
            watermark: Some(Timestamp(1_700_000_000_000)),
        })
    }
}

async fn live(shared: Arc<Shared>, address: String, storage: u128, slots: u32) {
    let introduction = RegisterWorker {
        cluster: None,
        worker: None,
        storage: StorageId(Uuid::from_u128(storage)),
        incarnation: Uuid::new_v4(),
        address,
        clean_shutdown: true,
        version: "1".to_owned(),
        cores: 2,
        slots,
        memory_bytes: 1 << 30,
        operators: Vec::new(),
        rack: None,
    };
    let calling = shared
        .transport
        .call(&shared.coordinator, &introduction, DEADLINE);
    let me = calling.await.unwrap();
    shared.life().registered = Some(me.clone());
    tokio::join!(beat(&shared, &me), follow(&shared, &me));
}

async fn beat(shared: &Shared, me: &Registered) {
    loop {
        let heartbeat = shared.heartbeat(me);
        // A coordinator that is away is tried again at the next beat.
        let calling = shared
            .transport
            .call(&shared.coordinator, &heartbeat, DEADLINE);
        drop(calling.await);
        tokio::select! {
            () = shared.changed.notified() => {}
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
    }
}

async fn follow(shared: &Shared, me: &Registered) {
    let mut since = MetadataVersion(0);
    loop {
        let request = FetchMetadata {
            cluster: me.cluster,
            worker: Some(me.worker),
            since,
            wait: Span::from_secs(5),
        };
        let fetching = shared
            .transport
            .call(&shared.coordinator, &request, DEADLINE);
        let Ok(delta) = fetching.await else {
            tokio::time::sleep(BEAT_EVERY).await;
            continue;
        };
        since = delta.version;
        let mut life = shared.life();
        for job in delta.jobs {
            if !job.running {
                life.deployments.remove(&job.id);
            }
        }
        for deployment in delta.deployments {
            let of_this_life = me.epoch.0 < deployment.version.0;
            if of_this_life && here(&deployment, me).next().is_some() {
                life.deployments.insert(deployment.job, deployment);
            } else {
                life.deployments.remove(&deployment.job);
            }
        }
        drop(life);
        shared.changed.notify_one();
    }
}

/// Confirms the barrier, and has every task here acknowledge it.
async fn confirm(shared: Arc<Shared>, barrier: InjectBarrier) -> Result<Injected, Problem> {
    let ack = {
        let mut life = shared.life();
        let me = life
            .registered
            .clone()
            .expect("a worker with tasks is registered");
        let deployment = life.deployments.get(&barrier.job).cloned();
        let deployment = deployment
            .filter(|deployment| deployment.generation == barrier.generation)
            .ok_or_else(|| Problem::new(ErrorCode::FencedGeneration, "another generation"))?;
        if life
            .barriers
            .iter()
            .all(|(known, _)| *known != barrier.checkpoint)
        {
            life.barriers.push((barrier.checkpoint, barrier.kind));
        }
        let tasks = here(&deployment, &me).map(|task| TaskSnapshot {
            task,
            delta_bytes: 10,
            state_bytes: 100,
            positions: match is_source(&deployment, task) {
                true => [(task.index.to_string(), 42)].into(),
                false => BTreeMap::new(),
            },
            counts: TaskCounts::default(),
        });
        if life.acknowledges && barrier.kind.is_last() {
            life.finished = Some(barrier.generation);
        }
        life.acknowledges.then(|| AckCheckpoint {
            worker: me.worker,
            worker_epoch: me.epoch,
            job: barrier.job,
            generation: barrier.generation,
            checkpoint: barrier.checkpoint,
            tasks: tasks.collect(),
        })
    };
    if let Some(ack) = ack {
        let calling = shared.transport.call(&shared.coordinator, &ack, DEADLINE);
        // A checkpoint that is lost is followed by the next.
        drop(calling.await);
    }
    Ok(Injected {})
}

fn here(deployment: &Deployment, me: &Registered) -> impl Iterator<Item = TaskId> {
    let worker = me.worker;
    let tasks = deployment.tasks.iter();
    tasks
        .filter(move |assigned| assigned.worker == worker)
        .map(|assigned| assigned.task)
}

fn is_source(deployment: &Deployment, task: TaskId) -> bool {
    deployment.graph.stage(task.stage).source.is_some()
}

/// What was asked, as if it were records.
async fn echo(request: HttpRequest) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "path": request.path(),
        "query": request.query_string(),
    }))
}

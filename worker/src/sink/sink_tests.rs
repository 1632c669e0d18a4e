//! What sinks promise: rows of completed checkpoints are there exactly once, others never, through crashes
//! at any moment; and what each does with a world that fails.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation, JobName, TopicName};
use common::limits::TRANSACTION_SLOTS;
use common::partitioner::partition_of_key;
use common::plan::connector::{
    Delivery, FileSink, Format, Partitioner, SinkSpec, TopicSink, WebhookSink,
};
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedSink;
use common::producer_id::InternalPid;
use common::protocol::metadata::JobImage;
use common::schema::{Column, ColumnType, to_arrow_schema};
use common::time::{ManualClock, Timestamp};
use futures_util::future::FutureExt;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dead_letters::DeadLetterSink;
use super::{Committable, Sink, SinkContext, SinkError, open};
use crate::task::dead_letter::{DeadLetter, Reason};
use crate::task::message::Rows;
use crate::test_log::{JOB, TestLog, partition};

fn columns() -> Vec<Column> {
    vec![
        Column::new("v", ColumnType::BigInt, false),
        Column::new("t", ColumnType::Varchar, true),
    ]
}

fn rows(values: impl IntoIterator<Item = i64>) -> Rows {
    let values: Int64Array = values.into_iter().map(Some).collect();
    let texts: StringArray = values
        .iter()
        .map(|v| v.map(|v| format!("text {v}")))
        .collect();
    let arrays: Vec<ArrayRef> = vec![Arc::new(values), Arc::new(texts)];
    Rows::inserts(RecordBatch::try_new(to_arrow_schema(&columns()), arrays).unwrap())
}

fn planned(spec: SinkSpec) -> PlannedSink {
    PlannedSink {
        name: "out".to_owned(),
        spec,
        columns: columns(),
        mode: ChangelogMode::Append,
    }
}

fn topic_spec() -> TopicSink {
    TopicSink {
        input: "in".to_owned(),
        topic: "t".parse().unwrap(),
        format: Format::Json,
        key: Vec::new(),
        partitioner: Partitioner::Key,
        delivery: Delivery::ExactlyOnce,
    }
}

fn file_spec(path: &Path, format: Format) -> FileSink {
    FileSink {
        input: "in".to_owned(),
        // What is there as a directory is named as one.
        path: format!("{}{}", path.display(), if path.is_dir() { "/" } else { "" }),
        format,
    }
}

fn context(log: &TestLog, generation: u32, restored: Option<u64>) -> SinkContext {
    SinkContext {
        job: JOB,
        job_name: JobName::new("job").unwrap(),
        generation: Generation(generation),
        ordinal: 4,
        task_index: 0,
        parallelism: 1,
        restored: restored.map(CheckpointId),
        log: log.client.clone(),
        transport: log.transport.clone(),
        clock: Arc::new(ManualClock::at(Timestamp(1_700_000_000_000))),
    }
}

fn values_of_lines(text: &str) -> Vec<i64> {
    let value = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["v"].as_i64().unwrap()
    };
    text.lines().map(value).collect()
}

// ---- Exactly once, through crashes -------------------------------------------------------------------

/// A job with one sink: what its coordinator would do, and what may happen to it.
struct World {
    log: TestLog,
    planned: PlannedSink,
    sink: Box<dyn Sink>,
    generation: u32,
    /// The last checkpoint given out.
    checkpoint: u64,
    completed: Option<u64>,
    finals: BTreeMap<Generation, Option<CheckpointId>>,
    /// What the sink prepared and was not told to commit yet, with its checkpoint.
    prepared: Vec<(u64, Committable)>,
    /// Rows since the last barrier; rows of sealed checkpoints that are not completed; rows that count.
    written: Vec<i64>,
    sealed: Vec<(u64, Vec<i64>)>,
    counting: Vec<i64>,
    next: i64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(i64),
    Barrier,
    /// The last sealed checkpoint is completed; whether the sink hears of it before it crashes.
    Complete {
        told: bool,
    },
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..20_i64).prop_map(Step::Write),
        3 => Just(Step::Barrier),
        2 => any::<bool>().prop_map(|told| Step::Complete { told }),
        2 => Just(Step::Crash),
    ]
}

impl World {
    async fn new(spec: SinkSpec) -> World {
        let log = TestLog::start("t", 1);
        let planned = planned(spec);
        let sink = open(&planned, context(&log, 1, None)).await.unwrap();
        World {
            log,
            planned,
            sink,
            generation: 1,
            checkpoint: 0,
            completed: None,
            finals: BTreeMap::new(),
            prepared: Vec::new(),
            written: Vec::new(),
            sealed: Vec::new(),
            counting: Vec::new(),
            next: 0,
        }
    }

    async fn perform(&mut self, step: Step) {
        match step {
            Step::Write(count) => {
                let values = self.next..self.next + count;
                self.next = values.end;
                self.sink.write(rows(values.clone())).await.unwrap();
                self.written.extend(values);
            }
            Step::Barrier => {
                // Checkpoints of several jobs are numbered together, so there are gaps.
                self.checkpoint += 2;
                let committable = self
                    .sink
                    .prepare(CheckpointId(self.checkpoint))
                    .await
                    .unwrap();
                self.prepared
                    .extend(committable.map(|c| (self.checkpoint, c)));
                self.sealed
                    .push((self.checkpoint, std::mem::take(&mut self.written)));
            }
            Step::Complete { told } => {
                let Some((checkpoint, _)) = self.sealed.last() else {
                    return;
                };
                self.completed = Some(*checkpoint);
                self.log.complete(self.generation, *checkpoint);
                for (_, values) in self.sealed.drain(..) {
                    self.counting.extend(values);
                }
                if told {
                    self.commit().await;
                }
            }
            Step::Crash => {
                let superseded = self.completed.map(CheckpointId);
                self.finals.insert(Generation(self.generation), superseded);
                self.generation += 1;
                self.written.clear();
                self.sealed.clear();
                // The restored checkpoint holds what was prepared up to it.
                let restored = self.completed.unwrap_or(0);
                self.prepared
                    .retain(|(checkpoint, _)| *checkpoint <= restored);
                let context = context(&self.log, self.generation, self.completed);
                self.sink = open(&self.planned, context).await.unwrap();
                if self.completed.is_some() {
                    self.commit().await;
                }
            }
        }
    }

    /// Tells the sink what is completed, twice, as may happen.
    async fn commit(&mut self) {
        let completed = self.completed.unwrap();
        let up_to = |(checkpoint, _): &&(u64, Committable)| *checkpoint <= completed;
        let prepared: Vec<Committable> = self
            .prepared
            .iter()
            .filter(up_to)
            .map(|(_, c)| c.clone())
            .collect();
        for _ in 0..2 {
            self.sink
                .commit(CheckpointId(completed), prepared.clone())
                .await
                .unwrap();
        }
        self.prepared
            .retain(|(checkpoint, _)| *checkpoint > completed);
    }

    fn image(&self) -> JobImage {
        JobImage {
            id: JOB,
            name: JobName::new("job").unwrap(),
            generation: Generation(self.generation),
            completed: self.completed.map(CheckpointId),
            finals: self.finals.clone(),
            running: true,
            deleted: false,
        }
    }

    /// What a reader of committed rows sees, sorted.
    fn visible(&self) -> Vec<i64> {
        let mut values = match &self.planned.spec {
            SinkSpec::Files(spec) => visible_in_files(Path::new(&spec.path)),
            SinkSpec::Topic(_) => visible_in_topic(&self.log, &self.image()),
            other => panic!("{other:?} makes nothing visible"),
        };
        values.sort_unstable();
        values
    }
}

fn visible_in_files(path: &Path) -> Vec<i64> {
    if path.is_file() {
        return values_of_lines(&std::fs::read_to_string(path).unwrap());
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let files = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| !is_hidden(path));
    files
        .flat_map(|path| values_of_lines(&std::fs::read_to_string(path).unwrap()))
        .collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .unwrap()
        .as_encoded_bytes()
        .starts_with(b".")
}

fn hidden_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| is_hidden(path))
        .collect()
}

/// The partition leader's rule, for all transactions at once.
fn visible_in_topic(log: &TestLog, job: &JobImage) -> Vec<i64> {
    let mut values = Vec::new();
    for batch in &log.state().partitions[&0].batches {
        let stamp = batch.header().producer.unwrap();
        let pid = InternalPid::decode(stamp.id, stamp.epoch).unwrap();
        assert!(batch.header().transactional && pid.job == JOB && pid.task == 4);
        if job.counts(pid.generation, pid.label) == Some(true) {
            for record in batch.records().unwrap().iter() {
                let text = std::str::from_utf8(record.unwrap().value.unwrap())
                    .unwrap()
                    .to_owned();
                values.extend(values_of_lines(&text));
            }
        }
    }
    values
}

fn conforms(spec: impl Fn(&Path) -> SinkSpec, steps: Vec<Step>) -> TestCaseResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::new(spec(folder.path())).await;
        for step in steps {
            world.perform(step).await;
            // Rows are seen only if they count; those that count are seen at the latest after a restart.
            let visible = world.visible();
            prop_assert!(
                visible.iter().all(|value| world.counting.contains(value)),
                "{step:?}"
            );
            let mut once = visible.clone();
            once.dedup();
            prop_assert_eq!(&once, &visible, "after {:?}", step);
        }
        world.perform(Step::Crash).await;
        prop_assert_eq!(world.visible(), world.counting.clone());
        // The new life's first rows clear away what the former ones left.
        world.perform(Step::Write(1)).await;
        world.perform(Step::Barrier).await;
        world.perform(Step::Complete { told: true }).await;
        prop_assert_eq!(world.visible(), world.counting.clone());
        if let SinkSpec::Files(_) = world.planned.spec {
            prop_assert_eq!(hidden_files(folder.path()), Vec::<PathBuf>::new());
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_directory_of_files_has_every_completed_row_once(steps in prop::collection::vec(step(), 0..25)) {
        conforms(|folder| SinkSpec::Files(file_spec(folder, Format::Json)), steps)?;
    }

    #[test]
    fn a_single_file_has_every_completed_row_once(steps in prop::collection::vec(step(), 0..25)) {
        conforms(|folder| SinkSpec::Files(file_spec(&folder.join("all.json"), Format::Json)), steps)?;
    }

    #[test]
    fn a_topic_has_every_completed_row_once(steps in prop::collection::vec(step(), 0..25)) {
        conforms(|_| SinkSpec::Topic(topic_spec()), steps)?;
    }
}

// ---- Files ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_crash_in_the_middle_of_appending_is_made_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.csv");
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Files(file_spec(&path, Format::Csv)));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    sink.write(rows([1, 2])).await.unwrap();
    let first = sink.prepare(CheckpointId(1)).await.unwrap().unwrap();
    sink.write(rows([3])).await.unwrap();
    let second = sink.prepare(CheckpointId(2)).await.unwrap().unwrap();
    sink.commit(CheckpointId(1), vec![first.clone()])
        .await
        .unwrap();
    let expected = "v,t\n1,text 1\n2,text 2\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    // Half of the second part had been appended when the machine went down.
    std::fs::write(&path, format!("{expected}3,te")).unwrap();
    let mut sink = open(&planned, context(&log, 2, Some(2))).await.unwrap();
    sink.commit(CheckpointId(2), vec![first, second])
        .await
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        format!("{expected}3,text 3\n")
    );
}

#[tokio::test]
async fn a_file_of_another_and_a_file_cut_off_are_treated_with_care() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.json");
    std::fs::write(&path, "{\"v\": 100}\n").unwrap();
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Files(file_spec(&path, Format::Json)));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    sink.write(rows([1])).await.unwrap();
    let prepared = sink.prepare(CheckpointId(1)).await.unwrap().unwrap();
    sink.commit(CheckpointId(1), vec![prepared]).await.unwrap();
    assert_eq!(visible_in_files(&path), [100, 1], "what was there stays");
    sink.write(rows([2])).await.unwrap();
    let prepared = sink.prepare(CheckpointId(2)).await.unwrap().unwrap();
    std::fs::write(&path, "").unwrap();
    let refused = sink.commit(CheckpointId(2), vec![prepared]).await;
    assert!(matches!(refused, Err(SinkError::Fatal(_))), "{refused:?}");
}

/// It was tried again until the job's restarts were used up.
#[tokio::test]
async fn a_directory_that_cannot_be_made_needs_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let log = TestLog::start("t", 1);
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for directory in [file.join("below/"), Path::new("/proc/below/").to_owned()] {
        let spec = planned(SinkSpec::Files(file_spec(&directory, Format::Json)));
        let refused = open(&spec, context(&log, 1, None)).await.map(|_| ());
        let refused = refused.map_err(SinkError::from);
        assert!(
            matches!(&refused, Err(SinkError::Fatal(why)) if why.contains("below")),
            "{refused:?}"
        );
    }
}

/// The planner and the sink each had a rule of their own: a path without `/` and extension got one task, which
/// wrote a directory.
#[tokio::test]
async fn a_path_is_a_directory_if_it_ends_in_a_slash_and_else_a_file() {
    let log = TestLog::start("t", 1);
    for (name, is_file) in [
        ("out", true),
        ("out.json", true),
        (".hidden", true),
        ("day.1", true),
        ("out/", false),
        ("day.1/", false),
        ("deep/below/", false),
        ("deep/below", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("{}/{name}", folder.path().display());
        let spec = FileSink {
            path: path.clone(),
            ..file_spec(folder.path(), Format::Json)
        };
        let planned = planned(SinkSpec::Files(spec));
        let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
        sink.write(rows([1])).await.unwrap();
        let prepared = sink.prepare(CheckpointId(1)).await.unwrap().unwrap();
        sink.commit(CheckpointId(1), vec![prepared]).await.unwrap();
        let path = Path::new(&path);
        assert_eq!(path.is_file(), is_file, "{name}");
        assert_eq!(visible_in_files(path), [1], "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let spec = FileSink {
        path: folder.path().display().to_string(),
        ..file_spec(folder.path(), Format::Json)
    };
    let refused = open(
        &planned(SinkSpec::Files(spec.clone())),
        context(&log, 1, None),
    )
    .await
    .unwrap_err();
    assert!(refused.detail.contains("is a directory"), "{refused:?}");
    assert_eq!(refused.hint, format!("Name it \"{}/\".", spec.path));
}

#[tokio::test]
async fn files_that_lines_cannot_say_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let log = TestLog::start("t", 1);
    let msgpack = planned(SinkSpec::Files(file_spec(folder.path(), Format::Msgpack)));
    assert!(open(&msgpack, context(&log, 1, None)).await.is_err());
    let changing = PlannedSink {
        mode: ChangelogMode::Upsert {
            key: vec!["v".to_owned()],
        },
        ..planned(SinkSpec::Files(file_spec(folder.path(), Format::Json)))
    };
    assert!(open(&changing, context(&log, 1, None)).await.is_err());
    let single = planned(SinkSpec::Files(file_spec(
        &folder.path().join("a.json"),
        Format::Json,
    )));
    let one_of_two = SinkContext {
        parallelism: 2,
        ..context(&log, 1, None)
    };
    assert!(open(&single, one_of_two).await.is_err());
}

// ---- Topics --------------------------------------------------------------------------------------------

/// Leaders decide a transaction when they hear of its checkpoint, which may be after the sink has: a job had
/// ended, and its last results were not there to be read.
#[tokio::test]
async fn what_a_job_ends_with_is_shown_to_readers_before_it_has_ended() {
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Topic(topic_spec()));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    let hide_from = |offset: Option<i64>| {
        log.state().partitions.get_mut(&0).unwrap().stable = offset;
    };
    hide_from(Some(0));
    sink.write(rows([1])).await.unwrap();
    sink.prepare(CheckpointId(1)).await.unwrap();
    let fetches = log.state().fetches;
    sink.commit(CheckpointId(1), Vec::new()).await.unwrap();
    assert_eq!(log.state().fetches, fetches, "the job goes on");

    let mut showing = sink.shown();
    while log.state().fetches == fetches {
        assert!(showing.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert!(showing.as_mut().now_or_never().is_none());
    hide_from(None);
    showing.await;
    let fetches = log.state().fetches;
    sink.shown().await;
    assert_eq!(log.state().fetches, fetches, "nothing is hidden any more");
}

#[tokio::test]
async fn failures_and_lost_answers_neither_lose_nor_repeat_nor_reorder_a_record() {
    let log = TestLog::start("t", 3);
    let planned = planned(SinkSpec::Topic(TopicSink {
        key: vec!["v".to_owned()],
        ..topic_spec()
    }));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    for round in 0..5 {
        log.state().lost_answers = 2;
        log.state()
            .failures
            .extend([ErrorCode::NotLeader, ErrorCode::MetadataStale]);
        // Far more than one batch per partition.
        for part in 0..3 {
            let first = round * 60_000 + part * 20_000;
            sink.write(rows(first..first + 20_000)).await.unwrap();
        }
        sink.flush().await.unwrap();
    }
    let mut all = Vec::new();
    for number in 0..3 {
        let values: Vec<i64> = log
            .values(number)
            .iter()
            .flat_map(|v| values_of_lines(v))
            .collect();
        assert!(values.is_sorted(), "order is kept in a partition");
        for value in values.iter().step_by(1_000) {
            let key = format!("{{\"v\":{value}}}");
            assert_eq!(partition_of_key(key.as_bytes(), 3).0, number);
        }
        all.extend(values);
        let state = log.state();
        let mut next = 0;
        for batch in &state.partitions[&number].batches {
            assert_eq!(batch.header().producer.unwrap().base_sequence, next);
            next += i32::try_from(batch.header().record_count).unwrap();
            assert!(batch.bytes().len() <= common::limits::TARGET_BATCH_BYTES);
        }
    }
    all.sort_unstable();
    assert_eq!(all, (0..300_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn at_least_once_writes_plainly_and_rows_without_key_stay_together() {
    let log = TestLog::start("t", 3);
    let planned = planned(SinkSpec::Topic(TopicSink {
        delivery: Delivery::AtLeastOnce,
        ..topic_spec()
    }));
    let context = SinkContext {
        task_index: 4,
        ..context(&log, 1, None)
    };
    let mut sink = open(&planned, context).await.unwrap();
    sink.write(rows(0..10)).await.unwrap();
    assert_eq!(sink.prepare(CheckpointId(1)).await.unwrap(), None);
    assert_eq!(log.values(1).len(), 10);
    let state = log.state();
    let header = *state.partitions[&1].batches[0].header();
    assert!(header.producer.is_none() && !header.transactional);
    assert_eq!(header.first_timestamp, Timestamp(1_700_000_000_000));
}

#[tokio::test]
async fn a_writer_whose_transactions_are_all_undecided_waits_for_the_fact() {
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Topic(topic_spec()));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    let slots = u64::from(TRANSACTION_SLOTS);
    for checkpoint in 1..=slots {
        sink.write(rows([1])).await.unwrap();
        sink.prepare(CheckpointId(checkpoint)).await.unwrap();
    }
    let before = log.state().appends;
    let mut writing = sink.write(rows([2]));
    assert!(futures_util::poll!(&mut writing).is_pending());
    assert_eq!(log.state().appends, before);
    log.complete(1, 3);
    writing.await.unwrap();
    sink.flush().await.unwrap();
    assert_eq!(log.values(0).len(), usize::try_from(slots).unwrap() + 1);
}

#[tokio::test]
async fn a_writer_of_the_past_stops_and_a_record_too_large_needs_a_person() {
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Topic(topic_spec()));
    for (code, fatal) in [
        (ErrorCode::FencedGeneration, false),
        (ErrorCode::OutOfOrderSequence, false),
        (ErrorCode::RecordTooLarge, true),
        (ErrorCode::UnknownTopic, true),
    ] {
        let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
        log.state().failures.push_back(code);
        sink.write(rows([1])).await.unwrap();
        let failure = sink.flush().await.unwrap_err();
        assert_eq!(
            matches!(failure, SinkError::Fatal(_)),
            fatal,
            "{code:?}: {failure}"
        );
    }
}

#[tokio::test]
async fn a_row_no_topic_takes_needs_a_person() {
    let log = TestLog::start("t", 1);
    let planned = planned(SinkSpec::Topic(topic_spec()));
    let mut sink = open(&planned, context(&log, 1, None)).await.unwrap();
    let huge: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(17 << 20)]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let batch = RecordBatch::try_new(to_arrow_schema(&columns()), vec![number, huge]).unwrap();
    let refused = sink.write(Rows::inserts(batch)).await;
    assert!(matches!(refused, Err(SinkError::Fatal(_))), "{refused:?}");
}

#[tokio::test]
async fn the_jobs_own_dead_letters_are_no_sink() {
    let log = TestLog::start("job.dead-letters", 1);
    let planned = planned(SinkSpec::Topic(TopicSink {
        topic: TopicName::new("job.dead-letters").unwrap(),
        ..topic_spec()
    }));
    assert!(open(&planned, context(&log, 1, None)).await.is_err());
}

#[tokio::test]
async fn dead_letters_are_written_in_the_transaction_of_the_output() {
    let log = TestLog::start("job.dead-letters", 2);
    let context = SinkContext {
        task_index: 3,
        ..context(&log, 1, Some(41))
    };
    let mut letters = DeadLetterSink::new(context);
    let letter = DeadLetter {
        reason: Reason::Late,
        detail: "all its windows had closed".to_owned(),
        operator: "counts".to_owned(),
        origin: None,
        value: bytes::Bytes::from_static(b"{\"v\": 1}"),
    };
    letters.write(vec![letter.clone()]).await.unwrap();
    letters.prepare(CheckpointId(42)).await.unwrap();
    letters.commit(CheckpointId(42));
    letters.write(vec![letter]).await.unwrap();
    letters.flush().await.unwrap();
    let values = log.values(1);
    let first: serde_json::Value = serde_json::from_str(&values[0]).unwrap();
    assert_eq!(first["reason"], "late");
    assert_eq!(first["value"], serde_json::json!({"v": 1}));
    let labels: Vec<u64> = log.state().partitions[&partition(1).partition.0]
        .batches
        .iter()
        .map(|batch| batch.header().producer.unwrap())
        .map(|stamp| InternalPid::decode(stamp.id, stamp.epoch).unwrap().label.0)
        .collect();
    assert_eq!(labels, [42, 43]);
}

// ---- Webhooks ------------------------------------------------------------------------------------------

/// Answers one request after the other with these statuses, 200 after the last; gives back the requests.
async fn endpoint(
    mut statuses: VecDeque<u16>,
) -> (
    String,
    tokio::sync::mpsc::UnboundedReceiver<(String, serde_json::Value)>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
    let (sender, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let body_at = loop {
                let mut chunk = [0; 4_096];
                let read = stream.read(&mut chunk).await.unwrap();
                request.extend_from_slice(&chunk[..read]);
                let head = String::from_utf8_lossy(&request).into_owned();
                let Some(end) = head.find("\r\n\r\n") else {
                    continue;
                };
                let length = head.lines().find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                });
                if request.len() >= end + 4 + length.unwrap_or(0) {
                    break end + 4;
                }
            };
            let head = String::from_utf8(request[..body_at].to_vec()).unwrap();
            let body = serde_json::from_slice(&request[body_at..]).unwrap();
            let status = statuses.pop_front().unwrap_or(200);
            if status != 0 {
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            if sender.send((head, body)).is_err() {
                return;
            }
        }
    });
    (url, received)
}

fn webhook(url: String) -> PlannedSink {
    planned(SinkSpec::Webhook(WebhookSink {
        input: "in".to_owned(),
        url,
        headers: [("Authorization".to_owned(), "Bearer x".to_owned())].into(),
        max_rows: 2,
    }))
}

#[tokio::test]
async fn a_webhook_repeats_a_request_with_its_keys_until_it_is_taken() {
    // 0: the connection is closed without an answer.
    let (url, mut received) = endpoint(VecDeque::from([503, 429, 0])).await;
    let log = TestLog::start("t", 1);
    let mut sink = open(&webhook(url), context(&log, 6, None)).await.unwrap();
    sink.write(rows([1, 2, 3])).await.unwrap();
    let expected = serde_json::json!([
        {"v": 1, "t": "text 1", "idempotency_key": "job-6-out-0-0"},
        {"v": 2, "t": "text 2", "idempotency_key": "job-6-out-0-1"},
    ]);
    for _ in 0..4 {
        let (head, body) = received.recv().await.unwrap();
        assert!(head.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer x\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/json\r\n"),
            "{head}"
        );
        assert_eq!(body, expected);
    }
    let (_, body) = received.recv().await.unwrap();
    assert_eq!(
        body,
        serde_json::json!([{"v": 3, "t": "text 3", "idempotency_key": "job-6-out-0-2"}])
    );
}

#[tokio::test]
async fn a_webhook_that_refuses_needs_a_person() {
    let (url, _received) = endpoint(VecDeque::from([400])).await;
    let log = TestLog::start("t", 1);
    let mut sink = open(&webhook(url), context(&log, 1, None)).await.unwrap();
    let refused = sink.write(rows([1])).await;
    assert!(
        matches!(&refused, Err(SinkError::Fatal(why)) if why.contains("400")),
        "{refused:?}"
    );
    for url in ["https://x/", "x", "http://", "http:///a", "ftp://x"] {
        assert!(
            open(&webhook(url.to_owned()), context(&log, 1, None))
                .await
                .is_err(),
            "{url}"
        );
    }
}

//! Files are read once, whole, in order; a reader that is opened again goes on where the last one was.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use common::plan::connector::{BadRecords, FileSource as Spec, Format};
use common::schema::{Column, ColumnType};
use common::time::{Span, SystemClock};

use super::files::FileSource;
use super::{Source, SourceContext, SourceError, SourceEvent, SplitState};
use crate::task::dead_letter::DeadLetter;
use crate::task::source_input::SourceInput;
use crate::test_log::TestLog;

fn spec(path: &Path, format: Format) -> Spec {
    Spec {
        path: path.to_str().unwrap().to_owned(),
        format,
        schema: vec![
            Column::new("v", ColumnType::BigInt, false),
            Column::new("t", ColumnType::Varchar, true),
        ],
        watermark: None,
        watch: None,
        idle_timeout: None,
        bad_records: BadRecords::DeadLetter,
    }
}

struct Reading {
    log: TestLog,
    spec: Spec,
    restored: Option<Vec<SplitState>>,
}

/// What came out of a source.
#[derive(Default)]
struct Read {
    values: Vec<i64>,
    letters: Vec<DeadLetter>,
    splits: BTreeMap<Arc<str>, SplitState>,
    ended: usize,
    caught_up: usize,
}

impl Reading {
    fn of(spec: Spec) -> Reading {
        Reading {
            log: TestLog::start("t", 1),
            spec,
            restored: None,
        }
    }

    fn open(&self, task_index: u32, parallelism: u32) -> FileSource {
        let context = SourceContext {
            task_index,
            parallelism,
            restored: self.restored.clone(),
            log: self.log.client.clone(),
            clock: SystemClock::shared(),
        };
        FileSource::open("files", &self.spec, &self.spec.schema, &context).unwrap()
    }

    /// Everything of one task, to its end.
    async fn all(&self, task_index: u32, parallelism: u32) -> Result<Read, SourceError> {
        let mut source = self.open(task_index, parallelism);
        let mut read = Read::default();
        while read.take(source.next().await?) {}
        Ok(read)
    }
}

impl Read {
    /// Whether more may come.
    fn take(&mut self, event: SourceEvent) -> bool {
        match event {
            SourceEvent::Rows(rows) => {
                self.values
                    .extend(rows.rows.batch["v"].as_primitive::<Int64Type>().values());
                self.letters.extend(rows.dead_letters);
                let split = self.splits.get_mut(&rows.split).unwrap();
                assert!(rows.next_position >= split.position);
                split.position = rows.next_position;
            }
            SourceEvent::Discovered { split } => {
                let known = self.splits.insert(split.split.clone(), split);
                assert!(known.is_none());
            }
            SourceEvent::Ended { .. } => self.ended += 1,
            SourceEvent::CaughtUp { .. } => self.caught_up += 1,
            SourceEvent::Waiting | SourceEvent::Exhausted => return false,
        }
        true
    }
}

fn lines(range: std::ops::Range<i64>) -> String {
    range
        .map(|v| format!("{{\"v\": {v}, \"t\": \"some text\"}}\n"))
        .collect()
}

#[tokio::test]
async fn the_files_of_a_directory_are_dealt_over_tasks_and_read_once() {
    let folder = tempfile::tempdir().unwrap();
    for file in 0..20 {
        let path = folder.path().join(format!("part-{file:02}.json"));
        std::fs::write(path, lines(file * 100..(file + 1) * 100)).unwrap();
    }
    std::fs::write(folder.path().join(".hidden.json"), "nonsense").unwrap();
    let packed = std::fs::File::create(folder.path().join("packed.json.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed.write_all(lines(2_000..2_100).as_bytes()).unwrap();
    packed.finish().unwrap();

    let reading = Reading::of(spec(folder.path(), Format::Json));
    let mut values = Vec::new();
    for task in 0..3 {
        let read = reading.all(task, 3).await.unwrap();
        assert_eq!(read.ended, read.splits.len());
        values.extend(read.values);
    }
    values.sort_unstable();
    assert_eq!(values, (0..2_100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_goes_on_from_any_position_a_checkpoint_may_hold() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.json"), lines(0..30_000)).unwrap();
    let packed = std::fs::File::create(folder.path().join("b.json.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed
        .write_all(lines(30_000..60_000).trim_end().as_bytes())
        .unwrap();
    packed.finish().unwrap();

    let mut reading = Reading::of(spec(folder.path(), Format::Json));
    let mut values = Vec::new();
    let mut restarts = 0;
    loop {
        let mut source = reading.open(0, 1);
        let mut read = Read::default();
        for split in reading.restored.iter().flatten() {
            read.splits.insert(split.split.clone(), split.clone());
        }
        // Crashes after every second batch.
        let mut batches = 0;
        let mut more = true;
        while more && batches < 2 {
            let event = source.next().await.unwrap();
            batches += usize::from(matches!(event, SourceEvent::Rows(_)));
            more = read.take(event);
        }
        values.extend(read.values);
        reading.restored = Some(read.splits.into_values().collect());
        if !more {
            break;
        }
        restarts += 1;
    }
    assert_eq!(values, (0..60_000).collect::<Vec<_>>());
    assert!(restarts > 3, "only {restarts} restarts");
}

#[tokio::test]
async fn bad_lines_are_put_aside_with_their_place_and_a_last_line_needs_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    std::fs::write(
        &path,
        "{\"v\": 1}\n\n{\"v\": true}\r\n  \nnonsense\n{\"v\": 2}",
    )
    .unwrap();
    let mut reading = Reading::of(spec(&path, Format::Json));
    let read = reading.all(0, 1).await.unwrap();
    assert_eq!(read.values, [1, 2]);
    let letters: Vec<_> = read
        .letters
        .iter()
        .map(|letter| (letter.origin.as_ref().unwrap().offset, &letter.value[..]))
        .collect();
    assert_eq!(letters, [(10, &b"{\"v\": true}"[..]), (26, b"nonsense")]);
    reading.spec.bad_records = BadRecords::Drop;
    let read = reading.all(0, 1).await.unwrap();
    assert_eq!((read.values.len(), read.letters.len()), (2, 0));
    reading.spec.bad_records = BadRecords::Fail;
    let failure = reading.all(0, 1).await.err().unwrap();
    assert!(
        matches!(&failure, SourceError::Fatal(why) if why.contains("record 10")),
        "{failure}"
    );
}

#[tokio::test]
async fn csv_may_have_a_first_line_of_names_and_records_of_several_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    std::fs::write(&path, "v,t\n1,\"two\nlines\"\n2,x\n").unwrap();
    let reading = Reading::of(spec(&path, Format::Csv));
    let read = reading.all(0, 1).await.unwrap();
    assert_eq!((read.values, read.letters.len()), (vec![1, 2], 0));
    std::fs::write(&path, "7,v\n8,t\n").unwrap();
    assert_eq!(reading.all(0, 1).await.unwrap().values, [7, 8]);
}

#[tokio::test]
async fn what_cannot_be_read_on_needs_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Reading::of(spec(&folder.path().join("none.json"), Format::Json));
    assert!(matches!(
        missing.all(0, 1).await,
        Err(SourceError::Fatal(_))
    ));

    let path = folder.path().join("a.json");
    std::fs::write(&path, lines(0..10)).unwrap();
    let mut reading = Reading::of(spec(folder.path(), Format::Json));
    let state = |position, end| SplitState {
        split: path.to_str().unwrap().into(),
        position,
        end: Some(end),
        of: None,
    };
    reading.restored = Some(vec![state(20, 100_000)]);
    assert!(
        matches!(reading.all(0, 1).await, Err(SourceError::Fatal(_))),
        "it has shrunk"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(
        matches!(reading.all(0, 1).await, Err(SourceError::Fatal(_))),
        "it is gone"
    );
    reading.restored = Some(vec![state(300, 300)]);
    assert!(reading.all(0, 1).await.is_ok(), "it had been read");
}

#[tokio::test]
async fn a_watched_directory_gives_new_files_and_a_watched_file_new_lines() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.json"), lines(0..3)).unwrap();
    let mut reading = Reading::of(spec(folder.path(), Format::Json));
    reading.spec.watch = Some(Span(2));
    let mut source = reading.open(0, 1);
    let mut read = Read::default();
    while read.values.len() < 3 {
        read.take(source.next().await.unwrap());
    }
    std::fs::write(folder.path().join(".b"), lines(3..6)).unwrap();
    std::fs::rename(folder.path().join(".b"), folder.path().join("b.json")).unwrap();
    while read.values.len() < 6 {
        read.take(source.next().await.unwrap());
    }
    assert_eq!(read.values, (0..6).collect::<Vec<_>>());

    let path = folder.path().join("log.json");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"{\"v\": 1}\n{\"v\": ").unwrap();
    let mut reading = Reading::of(spec(&path, Format::Json));
    reading.spec.watch = Some(Span(2));
    let mut source = reading.open(0, 1);
    let mut read = Read::default();
    while read.caught_up < 2 {
        read.take(source.next().await.unwrap());
    }
    assert_eq!(read.values, [1], "half a line is no record");
    file.write_all(b"2}\n").unwrap();
    while read.values.len() < 2 {
        read.take(source.next().await.unwrap());
    }
    assert_eq!(
        (read.values, read.letters.len(), read.ended),
        (vec![1, 2], 0, 0)
    );
    file.set_len(3).unwrap();
    let failure = loop {
        if let Err(failure) = source.next().await {
            break failure;
        }
    };
    assert!(matches!(failure, SourceError::Fatal(_)), "{failure}");
}

/// Reads a source as its task does, and answers what a checkpoint at its end would keep.
async fn splits_at_the_end(source: FileSource) -> Vec<SplitState> {
    let wake: Arc<tokio::sync::Notify> = Arc::default();
    let opening = async move { Ok(Box::new(source) as Box<dyn Source>) };
    let mut input = SourceInput::start(Box::pin(opening), wake.clone());
    loop {
        match input.take() {
            Some(Ok(SourceEvent::Exhausted)) => return input.splits().cloned().collect(),
            Some(event) => drop(event.unwrap()),
            None => wake.notified().await,
        }
    }
}

#[tokio::test]
async fn a_packed_file_that_was_read_to_its_end_may_be_gone_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.json.gz");
    let packed = std::fs::File::create(&path).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed.write_all(lines(0..100).as_bytes()).unwrap();
    packed.finish().unwrap();
    let mut reading = Reading::of(spec(folder.path(), Format::Json));
    let source = reading.open(0, 1);
    let local = tokio::task::LocalSet::new();
    reading.restored = Some(local.run_until(splits_at_the_end(source)).await);
    std::fs::remove_file(&path).unwrap();
    let again = reading.all(0, 1).await.unwrap();
    assert!(again.values.is_empty());
}

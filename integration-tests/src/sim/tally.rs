//! The job of the simulated world: clicks are counted per key, and per key and window of time.
//!
//! Every click that is counted comes out with its number in its key's row of numbers, so that whatever
//! order the world chose, the output is right if each click came out once and each number of each key
//! once. Windows come out when the watermark passes their ends; what comes later is said to be late.

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use common::ids::{StageId, TaskId, TopicId, TopicName};
use common::plan::JobGraph;
use common::plan::connector::{
    BadRecords, BoundedMode, Delivery, Format, Isolation, Partitioner, SinkSpec, SourceSpec,
    StartupMode, TopicSink, TopicSource, WatermarkSpec,
};
use common::plan::edge::{ChangelogMode, Route};
use common::plan::expression::{Expression, NamedExpression};
use common::plan::operator::{Custom, OperatorSpec};
use common::plan::task_graph::{
    Edge, PlannedOperator, PlannedSink, PlannedSource, Stage, TaskGraph,
};
use common::schema::{Column, ColumnType};
use common::time::{Span, Timestamp};
use uuid::Uuid;
use worker::keyed_state::codec::bigint_key;
use worker::keyed_state::stored::{Answer, Ask, StoredRange, Until};
use worker::keyed_state::table::{At, Table};
use worker::operator::custom::CustomOperators;
use worker::operator::{Call, Operator, OperatorError, Wanted};
use worker::task::context::Context;
use worker::task::message::Rows;

use std::collections::BTreeMap;
use std::sync::Arc;

pub const KEY_GROUPS: u16 = 16;
/// How long a window is, and how far the watermark stays behind, in milliseconds of event time.
pub const WINDOW: i64 = 100;
pub const DELAY: u64 = 50;
/// The topics of clicks and of what was counted.
pub const CLICKS: TopicId = TopicId(Uuid::from_u128(1));
pub const COUNTED: TopicId = TopicId(Uuid::from_u128(2));
const SOURCES: StageId = StageId(0);
const TALLIES: StageId = StageId(1);
const OPERATOR: &str = "tally";
/// The same, told that its state may be larger than memory.
const SPILLING: &str = "spilling tally";
/// Key → how many of its clicks were counted.
const COUNTS: &str = "counts";
/// Namespace: the window's end. Key → how many.
const WINDOWS: &str = "windows";
/// Of a window that closes, read from the store at once.
const FIRE_BYTES: usize = 100;

/// What goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Click {
    pub key: i64,
    pub id: i64,
    pub time: i64,
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tally {
    /// This click was its key's `count`th.
    Running { key: i64, count: i64, id: i64 },
    /// The window that ends then had so many clicks of the key.
    Window { key: i64, end: i64, count: i64 },
    /// The click came after its window.
    Late { key: i64, end: i64, id: i64 },
}

/// What the job is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub clicks: TopicName,
    pub tallies: TopicName,
    pub sources: u32,
    pub operators: u32,
    pub spills: bool,
}

impl Click {
    pub fn encode(self) -> Vec<u8> {
        numbers_to_bytes([self.key, self.id, self.time])
    }

    pub fn decode(bytes: &[u8]) -> Click {
        let [key, id, time] = bytes_to_numbers(bytes);
        Click { key, id, time }
    }

    pub fn window_end(self) -> i64 {
        window_end(self.time)
    }
}

impl Tally {
    pub fn encode(self) -> Vec<u8> {
        numbers_to_bytes(self.to_row())
    }

    pub fn decode(bytes: &[u8]) -> Tally {
        Tally::from_row(bytes_to_numbers(bytes))
    }

    pub fn key(self) -> i64 {
        let [_, key, _, _] = self.to_row();
        key
    }

    fn to_row(self) -> [i64; 4] {
        match self {
            Tally::Running { key, count, id } => [0, key, count, id],
            Tally::Window { key, end, count } => [1, key, end, count],
            Tally::Late { key, end, id } => [2, key, end, id],
        }
    }

    fn from_row([kind, key, a, b]: [i64; 4]) -> Tally {
        match kind {
            0 => Tally::Running {
                key,
                count: a,
                id: b,
            },
            1 => Tally::Window {
                key,
                end: a,
                count: b,
            },
            2 => Tally::Late { key, end: a, id: b },
            other => panic!("there is no tally of kind {other}"),
        }
    }
}

/// Clicks as a source gives them.
pub fn click_rows(clicks: &[Click]) -> Rows {
    let column = |part: fn(&Click) -> i64| clicks.iter().map(part);
    let keys = Int64Array::from_iter_values(column(|click| click.key));
    let ids = Int64Array::from_iter_values(column(|click| click.id));
    let times = TimestampMillisecondArray::from_iter_values(column(|click| click.time));
    Rows::inserts(batch([
        ("key", Arc::new(keys) as ArrayRef),
        ("id", Arc::new(ids)),
        ("at", Arc::new(times)),
    ]))
}

/// What the rows in front of the sink say.
pub fn tallies_of(rows: &Rows) -> Vec<Tally> {
    let columns: Vec<&Int64Array> = rows
        .batch
        .columns()
        .iter()
        .map(|column| column.as_primitive::<Int64Type>())
        .collect();
    let row = |index: usize| std::array::from_fn(|column| columns[column].value(index));
    (0..rows.len())
        .map(|index| Tally::from_row(row(index)))
        .collect()
}

/// How often each key was counted, by the operator's table. `answer`: asks the store for what is not in
/// memory. `None`: that state is no longer kept.
pub fn counts_in(
    table: &Table,
    at: At,
    mut answer: impl FnMut(Ask) -> Option<Answer>,
) -> Option<BTreeMap<i64, i64>> {
    let mut counts = BTreeMap::new();
    for namespace in table.namespaces_at(at, i64::MIN).ok()? {
        let range = match table.ask_range(at, [namespace], None, usize::MAX) {
            Some(ask) => match answer(Ask::Range(ask))? {
                Answer::Range(range) => range,
                Answer::Keys(_) => unreachable!("a range was asked for"),
            },
            None => StoredRange::default(),
        };
        table.for_each_in(at, namespace, None, &range, |_, value| {
            let [key, count] = bytes_to_numbers(value);
            counts.insert(key, count);
        });
    }
    Some(counts)
}

/// The counting table among an operator's tables.
pub fn counts_table(name: &str) -> bool {
    name == COUNTS
}

pub fn operators() -> CustomOperators {
    CustomOperators::default()
        .with(OPERATOR, |_, _| Ok(Box::new(TallyClicks::default())))
        .with(SPILLING, |_, _| Ok(Box::new(TallyClicks::default())))
        .spilling(SPILLING)
}

pub fn task_graph(shape: &Shape) -> TaskGraph {
    let column = |name: &str, kind| Column {
        name: name.to_owned(),
        kind,
        nullable: false,
    };
    let clicks = vec![
        column("key", ColumnType::BigInt),
        column("id", ColumnType::BigInt),
        column("at", ColumnType::Timestamp(3)),
    ];
    let tallies: Vec<Column> = ["kind", "key", "a", "b"]
        .into_iter()
        .map(|name| column(name, ColumnType::BigInt))
        .collect();
    let source = SourceSpec::Topic(TopicSource {
        topic: shape.clicks.clone(),
        format: Format::Json,
        schema: clicks.clone(),
        watermark: Some(WatermarkSpec {
            column: "at".to_owned(),
            delay: Span(DELAY),
        }),
        startup: StartupMode::Earliest,
        startup_timestamp_ms: None,
        startup_offsets: BTreeMap::new(),
        bounded: BoundedMode::default(),
        isolation: Isolation::ReadCommitted,
        idle_timeout: None,
        bad_records: BadRecords::default(),
    });
    let operator = OperatorSpec::Custom(Custom {
        id: OPERATOR.to_owned(),
        inputs: vec!["clicks".to_owned()],
        name: match shape.spills {
            true => SPILLING.to_owned(),
            false => OPERATOR.to_owned(),
        },
        keys: vec![NamedExpression {
            name: "key".to_owned(),
            expr: Expression::column("key"),
        }],
        schema: tallies.clone(),
        config: serde_json::Value::Null,
    });
    let sink = SinkSpec::Topic(TopicSink {
        input: OPERATOR.to_owned(),
        topic: shape.tallies.clone(),
        format: Format::Json,
        key: Vec::new(),
        partitioner: Partitioner::default(),
        delivery: Delivery::ExactlyOnce,
    });
    TaskGraph {
        stages: vec![
            Stage {
                id: SOURCES,
                parallelism: shape.sources,
                source: Some(PlannedSource {
                    name: "clicks".to_owned(),
                    spec: source,
                    columns: clicks.clone(),
                }),
                operators: Vec::new(),
                sink: None,
            },
            Stage {
                id: TALLIES,
                parallelism: shape.operators,
                source: None,
                operators: vec![PlannedOperator {
                    spec: operator,
                    inputs: vec![clicks.clone()],
                    output: tallies.clone(),
                    time_column: Some("at".to_owned()),
                    input_mode: ChangelogMode::Append,
                    output_mode: ChangelogMode::Append,
                }],
                sink: Some(PlannedSink {
                    name: "tallies".to_owned(),
                    spec: sink,
                    columns: tallies,
                    mode: ChangelogMode::Append,
                }),
            },
        ],
        edges: vec![Edge {
            from: SOURCES,
            to: TALLIES,
            input: 0,
            route: Route::Hash {
                keys: vec![Expression::column("key")],
            },
            columns: clicks,
        }],
        key_groups: KEY_GROUPS,
    }
}

/// The same with other ids, which no stage of an earlier division has.
pub fn renumbered(mut graph: TaskGraph, first: StageId) -> TaskGraph {
    let later = |id: &mut StageId| id.0 += first.0;
    graph
        .stages
        .iter_mut()
        .for_each(|stage| later(&mut stage.id));
    for edge in &mut graph.edges {
        later(&mut edge.from);
        later(&mut edge.to);
    }
    graph
}

/// Whether a task of such a graph counts clicks, in whichever division.
pub fn counts(graph: &TaskGraph, task: TaskId) -> bool {
    graph.stage(task.stage).source.is_none()
}

/// The same as its user would have drawn it; nothing here looks at it again.
pub fn job_graph() -> JobGraph {
    JobGraph::default()
}

#[derive(Debug, Default)]
struct TallyClicks {
    /// Of the window that is closing: up to where it has come out.
    after: Option<Vec<u8>>,
}

impl Operator for TallyClicks {
    fn prepare(
        &mut self,
        call: Call<'_>,
        range: Option<StoredRange>,
        context: &mut Context<'_>,
    ) -> Result<Option<Wanted>, OperatorError> {
        Ok(match call {
            Call::Rows(_, rows) => unknown_clicks(rows, context),
            Call::Watermark(watermark) => self.close(watermark, range, context),
            Call::Seal => None,
        })
    }

    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let keys = rows.batch.column(0).as_primitive::<Int64Type>().values();
        let ids = rows.batch.column(1).as_primitive::<Int64Type>().values();
        let times = rows.batch.column(2);
        let times = times.as_primitive::<TimestampMillisecondType>().values();
        let watermark = context.watermark().0;
        let mut tallies = Vec::with_capacity(rows.len());
        for ((key, id), time) in keys.iter().zip(ids).zip(times) {
            let end = window_end(*time);
            let count = add_one(context.table(COUNTS), 0, *key);
            tallies.push(Tally::Running {
                key: *key,
                count,
                id: *id,
            });
            if end <= watermark {
                tallies.push(Tally::Late {
                    key: *key,
                    end,
                    id: *id,
                });
            } else {
                add_one(context.table(WINDOWS), end, *key);
            }
        }
        context.emit(tally_rows(&tallies));
        Ok(())
    }
}

impl TallyClicks {
    /// Lets windows out, as far as is possible without the store.
    fn close(
        &mut self,
        watermark: Timestamp,
        mut range: Option<StoredRange>,
        context: &mut Context<'_>,
    ) -> Option<Wanted> {
        loop {
            let windows = context.table(WINDOWS);
            let end = windows.namespaces().next()?;
            if end > watermark.0 {
                return None;
            }
            let after = self.after.as_deref();
            let ask = windows.ask_range(At::Live, [end], after, FIRE_BYTES);
            if let (Some(ask), None) = (ask, &range) {
                return Some(Wanted {
                    table: WINDOWS,
                    ask: Ask::Range(ask),
                });
            }
            let range = range.take().unwrap_or_default();
            let mut tallies = Vec::new();
            windows.for_each_in(At::Live, end, after, &range, |_, value| {
                let [key, count] = bytes_to_numbers(value);
                tallies.push(Tally::Window { key, end, count });
            });
            match range.until {
                Until::Key(last) => self.after = Some(last),
                Until::End => {
                    self.after = None;
                    windows.clear_namespace(end);
                }
            }
            // The table has no order of its own.
            tallies.sort_unstable();
            context.emit(tally_rows(&tallies));
        }
    }
}

/// What of the tables these rows need and memory does not have.
fn unknown_clicks(rows: &Rows, context: &mut Context<'_>) -> Option<Wanted> {
    let keys = rows.batch.column(0).as_primitive::<Int64Type>().values();
    let times = rows.batch.column(2);
    let times = times.as_primitive::<TimestampMillisecondType>().values();
    let counts: Vec<_> = keys.iter().map(|key| (0, bigint_key(*key))).collect();
    let windows = keys.iter().zip(times);
    let windows = windows.map(|(key, time)| (window_end(*time), bigint_key(*key)));
    let wanted = [(COUNTS, counts), (WINDOWS, windows.collect())];
    wanted.into_iter().find_map(|(table, keys)| {
        let keys = keys.iter().map(|(namespace, key)| (*namespace, &key[..]));
        let unknown = context.table(table).unknown(keys);
        (!unknown.is_empty()).then_some(Wanted {
            table,
            ask: Ask::Keys(unknown),
        })
    })
}

fn add_one(table: &mut Table, namespace: i64, key: i64) -> i64 {
    let kept = bigint_key(key);
    let before = table.get(namespace, &kept).map_or(0, |value| {
        let [_, count] = bytes_to_numbers(value);
        count
    });
    let count = before + 1;
    table.put(namespace, &kept, &numbers_to_bytes([key, count]));
    count
}

fn tally_rows(tallies: &[Tally]) -> Rows {
    let column = |index: usize| -> ArrayRef {
        let values = tallies.iter().map(|tally| tally.to_row()[index]);
        Arc::new(Int64Array::from_iter_values(values))
    };
    Rows::inserts(batch([
        ("kind", column(0)),
        ("key", column(1)),
        ("a", column(2)),
        ("b", column(3)),
    ]))
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    let columns = columns
        .into_iter()
        .map(|(name, values)| (name, values, false));
    RecordBatch::try_from_iter_with_nullable(columns).expect("the columns are equally long")
}

/// Where the window of a time ends; the end is not part of it.
fn window_end(time: i64) -> i64 {
    (time.div_euclid(WINDOW) + 1) * WINDOW
}

fn numbers_to_bytes<const N: usize>(numbers: [i64; N]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

fn bytes_to_numbers<const N: usize>(bytes: &[u8]) -> [i64; N] {
    let (numbers, rest) = bytes.as_chunks::<8>();
    assert!(
        numbers.len() == N && rest.is_empty(),
        "{bytes:?} is no {N} numbers"
    );
    std::array::from_fn(|index| i64::from_le_bytes(numbers[index]))
}

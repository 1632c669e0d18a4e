//! Golden queries: a `.sql` file is a test, run in several ways, each against the same expected output.
//!
//! A query reads `'$input_dir/NAME.json'` and writes `'$output_path'` with the connector `single_file`. Run as
//! it is written, it shows the file connectors; all other ways put topics in their places, with each input
//! dealt over four partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::client::Client;
use common::error::ErrorCode;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::process::PATIENCE;
use crate::topics::all_values;

const PARTITIONS: usize = 4;
const OUTPUT: &str = "output";
const JOB: &str = "golden";
/// Queries whose few keys happen to be all of one task, whatever runs: `pickup` and `dropoff`. That they are is
/// checked as well.
const KEYS_OF_ONE_TASK: [&str; 1] = ["hourly_by_event_type"];
/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How a query is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As written, from file to file.
    Files,
    /// From topics whose end is known.
    Topics,
    /// Half the input; an epoch is completed with data in every stateful operator; the worker is killed and
    /// comes back with its directory; the other half.
    Restored,
    /// Two tasks of everything that is keyed, on two workers.
    Parallel,
}

pub const WAYS: [Way; 4] = [Way::Files, Way::Topics, Way::Restored, Way::Parallel];

/// A query with its inputs and what should come out.
#[derive(Clone, Debug)]
pub struct Golden {
    pub name: String,
    sql: String,
    inputs: PathBuf,
    expected: PathBuf,
}

impl Golden {
    /// The query in this file; `expected` holds `NAME.json` or `NAME.jsonl`.
    pub fn read(query: &Path, inputs: &Path, expected: &Path) -> Result<Golden> {
        let name = query.file_stem().context("a query has a name")?;
        let name = name.to_string_lossy().into_owned();
        let outputs =
            ["json", "jsonl"].map(|extension| expected.join(format!("{name}.{extension}")));
        Ok(Golden {
            sql: std::fs::read_to_string(query)?,
            inputs: inputs.to_owned(),
            expected: outputs
                .into_iter()
                .find(|path| path.is_file())
                .with_context(|| format!("there is no expected output of {name}"))?,
            name,
        })
    }

    /// Fails, with the rows that are missing and those that should not be, if another output comes out.
    pub fn run(&self, way: Way) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let found = match way {
            Way::Files => runtime.block_on(self.run_on_files())?,
            Way::Topics | Way::Restored | Way::Parallel => {
                runtime.block_on(self.run_on_topics(way))?
            }
        };
        let expected = lines(&self.expected)?;
        compare(&result(&expected)?, &result(&found)?)
    }

    async fn run_on_files(&self) -> Result<Vec<Value>> {
        let cluster = Cluster::start(1)?;
        let client = cluster.client()?;
        let directory = tempfile::tempdir()?;
        let output = directory.path().join("output.json");
        let sql = self
            .sql
            .replace("$input_dir", &self.inputs.display().to_string())
            .replace("$output_path", &output.display().to_string());
        client.create_job(JOB, &sql).await?;
        until_state(&client, "FINISHED").await?;
        lines(&output)
    }

    async fn run_on_topics(&self, way: Way) -> Result<Vec<Value>> {
        let workers = if way == Way::Parallel { 2 } else { 1 };
        let mut cluster = Cluster::start(workers)?;
        let client = cluster.client()?;
        let rewritten = over_topics(&self.sql, way == Way::Topics)?;
        let mut inputs = BTreeMap::new();
        for topic in &rewritten.inputs {
            client
                .create_topic(topic, u32::try_from(PARTITIONS)?)
                .await?;
            let lines = lines(&self.inputs.join(format!("{topic}.json")))?;
            inputs.insert(topic.clone(), deal(&lines, rewritten.keys.get(topic)));
        }
        client
            .create_topic(OUTPUT, u32::try_from(PARTITIONS)?)
            .await?;
        let first_part = |dealt: &Vec<Value>| match way {
            Way::Restored => dealt.len() / 2,
            Way::Files | Way::Topics | Way::Parallel => dealt.len(),
        };
        for (topic, partitions) in &inputs {
            for (partition, values) in partitions.iter().enumerate() {
                produce(&client, topic, partition, &values[..first_part(values)]).await?;
            }
        }
        let job = json!({
            "name": JOB, "sql": rewritten.sql, "checkpoint_interval_ms": 100, "parallelism": workers,
        });
        let _: Value = client.post("/v1/jobs", &job).await?;
        if way == Way::Topics {
            until_state(&client, "FINISHED").await?;
            return all_values(&client, OUTPUT).await;
        }
        if way == Way::Restored {
            let read = total(&inputs, first_part);
            let epoch = until_read(&client, &read).await?;
            let epoch = until_every_operator_has_state(&client, epoch).await?;
            cluster.kill_worker(0)?;
            cluster.restart_worker(0)?;
            for (topic, partitions) in &inputs {
                for (partition, values) in partitions.iter().enumerate() {
                    produce(&client, topic, partition, &values[first_part(values)..]).await?;
                }
            }
            until_restored(&client, epoch).await?;
        }
        until_read(&client, &total(&inputs, Vec::len)).await?;
        if way == Way::Parallel {
            let all_on_one_task = KEYS_OF_ONE_TASK.contains(&self.name.as_str());
            until_every_task_has_rows(&client, all_on_one_task).await?;
        }
        let _: Value = client
            .post(&format!("/v1/jobs/{JOB}/stop?drain=true"), &json!({}))
            .await?;
        until_state(&client, "FINISHED").await?;
        all_values(&client, OUTPUT).await
    }
}

/// A query whose files have become topics.
#[derive(Debug)]
struct OverTopics {
    sql: String,
    inputs: Vec<String>,
    /// Topic → the column its changes are of, where rows change.
    keys: BTreeMap<String, String>,
}

/// Puts topics in the places of files: only what `WITH (…)` says is touched.
fn over_topics(sql: &str, bounded: bool) -> Result<OverTopics> {
    let mut rewritten = OverTopics {
        sql: String::new(),
        inputs: Vec::new(),
        keys: BTreeMap::new(),
    };
    let mut rest = sql;
    while let Some(start) = rest.find("WITH (") {
        let (before, options) = rest.split_at(start);
        let (options, after) = options.split_once(')').context("WITH ( has no end")?;
        let options = options.trim_start_matches("WITH (").split(',');
        let mut kept = Vec::new();
        for option in options.map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').context("an option has no value")?;
            let value = value.trim().trim_matches('\'');
            match name.trim() {
                "connector" => {
                    ensure!(value == "single_file", "a golden query uses single_file");
                    kept.push("connector = 'topic'".to_owned());
                }
                "path" if value == "$output_path" => kept.push(format!("topic = '{OUTPUT}'")),
                "path" => {
                    let topic = value
                        .trim_start_matches("$input_dir/")
                        .trim_end_matches(".json");
                    kept.push(format!("topic = '{topic}'"));
                    if bounded {
                        kept.push("'scan.bounded.mode' = 'latest'".to_owned());
                    }
                    if !rewritten.inputs.iter().any(|known| known == topic) {
                        rewritten.inputs.push(topic.to_owned());
                    }
                    if let Some(key) = primary_key(before) {
                        rewritten.keys.insert(topic.to_owned(), key);
                    }
                }
                "type" => {}
                _ => kept.push(option.to_owned()),
            }
        }
        rewritten.sql += &format!("{before}WITH ({})", kept.join(", "));
        rest = after;
    }
    rewritten.sql += rest;
    Ok(rewritten)
}

/// The column that the last table of this text declares to be its primary key.
fn primary_key(text: &str) -> Option<String> {
    let table = &text[text.rfind("CREATE TABLE")?..];
    let column = &table[..table.find("PRIMARY KEY")?];
    let column = column.rsplit(['(', ',']).next()?;
    column.split_whitespace().next().map(str::to_owned)
}

/// Deals lines over the partitions: in turn, or by key, so that the changes of one row keep their order.
fn deal(lines: &[Value], key: Option<&String>) -> Vec<Vec<Value>> {
    let mut partitions = vec![Vec::new(); PARTITIONS];
    for (index, line) in lines.iter().enumerate() {
        let of_key = key.and_then(|key| {
            let row = [&line["after"], &line["before"], line];
            let row = row.into_iter().find(|row| row.get(key).is_some())?;
            Some(row[key].to_string())
        });
        let partition = of_key.map_or(index, |key| key.bytes().map(usize::from).sum());
        partitions[partition % PARTITIONS].push(line.clone());
    }
    partitions
}

/// How many records each topic has in each partition.
fn total(
    inputs: &BTreeMap<String, Vec<Vec<Value>>>,
    of: impl Fn(&Vec<Value>) -> usize,
) -> BTreeMap<String, Vec<usize>> {
    inputs
        .iter()
        .map(|(topic, partitions)| (topic.clone(), partitions.iter().map(&of).collect()))
        .collect()
}

async fn produce(client: &Client, topic: &str, partition: usize, values: &[Value]) -> Result<()> {
    for chunk in values.chunks(1_000) {
        let records: Vec<Value> = chunk
            .iter()
            .map(|value| json!({"value": value, "partition": partition}))
            .collect();
        let path = format!("/v1/topics/{topic}/records");
        let _: Value = client.post(&path, &json!({"records": records})).await?;
    }
    Ok(())
}

/// Waits until a completed epoch covers all of this; answers the epoch.
async fn until_read(client: &Client, topics: &BTreeMap<String, Vec<usize>>) -> Result<u64> {
    wait(&format!("no epoch covers {topics:?}"), async || {
        let Ok(job) = client.job(JOB).await else {
            return Ok(None);
        };
        let Ok(offsets) = client
            .get::<Value>(&format!("/v1/jobs/{JOB}/offsets"))
            .await
        else {
            return Ok(None);
        };
        let sources = job["graph"]["sources"].as_object().context("sources")?;
        for (name, source) in sources {
            let topic = source["topic"].as_str().context("topic")?;
            for (partition, records) in topics[topic].iter().enumerate() {
                let position = &offsets["sources"][name][partition.to_string()];
                if position.as_u64().unwrap_or(0) < u64::try_from(*records)? {
                    return Ok(None);
                }
            }
        }
        Ok(offsets["epoch"].as_u64())
    })
    .await
}

/// Waits for a completed epoch, not older than this one, at which every stateful operator has something; answers it.
async fn until_every_operator_has_state(client: &Client, epoch: u64) -> Result<u64> {
    let what = "no epoch in the middle of the input has state in every operator";
    wait(what, async || {
        let job = client.job(JOB).await?;
        let newest = job["last_checkpoint"]["epoch"].as_u64().context("epoch")?;
        ensure!(newest >= epoch, "epoch {epoch} is no longer complete");
        for operator in job["graph"]["operators"].as_array().context("operators")? {
            let has_something = match is_stateful(operator) {
                // Its windows close under the watermark that brought their rows: it has state between two
                // barriers only, and that it has had windows is what can be seen.
                true if is_closed_at_once(operator) => rows_into(&job, operator)? > 0,
                true => has_state(client, operator, newest).await?,
                false => true,
            };
            if !has_something {
                return Ok(None);
            }
        }
        Ok(Some(newest))
    })
    .await
}

/// Whether an operator has state at exactly this epoch, as long as it is kept.
async fn has_state(client: &Client, operator: &Value, epoch: u64) -> Result<bool> {
    let id = operator["id"].as_str().context("id")?;
    let path = format!("/v1/jobs/{JOB}/operators/{id}/state?limit=1&epoch={epoch}");
    match client.get::<Value>(&path).await {
        Ok(state) => {
            ensure!(state["epoch"] == epoch, "asked for epoch {epoch}: {state}");
            let entries = state["entries"].as_array().context("entries")?;
            Ok(!entries.is_empty())
        }
        // Newer ones have been completed since; the caller asks for one of those.
        Err(error) if error.code() == Some(ErrorCode::EpochGone) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_stateful(operator: &Value) -> bool {
    operator["type"]
        .as_str()
        .is_some_and(|kind| kind.contains("aggregate"))
}

/// Whether an operator puts results of adjacent windows into the same windows again.
fn is_closed_at_once(operator: &Value) -> bool {
    operator["time"].is_string() && operator["window"]["type"] == "tumbling"
}

/// How many rows the tasks of the stage that an operator is in have taken.
fn rows_into(job: &Value, operator: &Value) -> Result<u64> {
    let tasks = stage_of(job, operator)?["tasks"].as_array();
    let rows = tasks.context("tasks")?.iter().map(|task| &task["rows_in"]);
    Ok(rows.filter_map(Value::as_u64).sum())
}

fn stage_of<'a>(job: &'a Value, operator: &Value) -> Result<&'a Value> {
    let stages = job["stages"].as_array().context("stages")?;
    let has_it = |stage: &&Value| {
        let names = stage["operators"].as_array();
        names.is_some_and(|names| names.contains(&operator["id"]))
    };
    stages
        .iter()
        .find(has_it)
        .context("an operator has a stage")
}

/// Waits until the job has come back from an epoch that is not older than this.
async fn until_restored(client: &Client, epoch: u64) -> Result<()> {
    wait("the job is not restored", async || {
        let Ok(job) = client.job(JOB).await else {
            return Ok(None);
        };
        let Some(restart) = job["restarts"].get(0) else {
            return Ok(None);
        };
        let resumed = restart["resumed_from"].as_u64();
        ensure!(
            resumed >= Some(epoch),
            "the job began again from {resumed:?}, not from epoch {epoch}"
        );
        Ok((job["state"] == "RUNNING").then_some(()))
    })
    .await
}

/// Waits until every task of every keyed operator has taken rows, on two workers.
async fn until_every_task_has_rows(client: &Client, all_on_one_task: bool) -> Result<()> {
    wait("a keyed task got no row", async || {
        let job = client.job(JOB).await?;
        let mut workers = BTreeSet::new();
        for stage in job["stages"].as_array().context("stages")? {
            for task in stage["tasks"].as_array().context("tasks")? {
                workers.insert(task["worker"].as_u64());
            }
        }
        ensure!(workers.len() == 2, "the tasks run on {workers:?}");
        for operator in job["graph"]["operators"].as_array().context("operators")? {
            let keys = operator["keys"].as_array().map_or(0, Vec::len);
            if !is_stateful(operator) {
                continue;
            }
            let tasks = stage_of(&job, operator)?["tasks"].as_array();
            let tasks = tasks.context("tasks")?;
            // One group over all rows is one task's.
            let wanted = if keys > 0 { 2 } else { 1 };
            ensure!(tasks.len() == wanted, "{wanted} tasks of {operator}");
            let idle = tasks.iter().filter(|task| task["rows_in"] == 0).count();
            match all_on_one_task && keys > 0 {
                true => ensure!(idle > 0, "every task of {operator} has rows: expect it"),
                false if idle > 0 => return Ok(None),
                false => {}
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn until_state(client: &Client, state: &str) -> Result<()> {
    wait(&format!("the job is not {state}"), async || {
        let Ok(job) = client.job(JOB).await else {
            return Ok(None);
        };
        ensure!(
            job["state"] != "FAILED",
            "the job failed: {}",
            job["reason"]
        );
        Ok((job["state"] == state).then_some(()))
    })
    .await
}

async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let waiting = async {
        loop {
            if let Some(seen) = look().await? {
                return Ok(seen);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(seen) => seen,
        Err(_) => bail!("{what}, after {PATIENCE:?}"),
    }
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// Row → how often it is there, once every change has been applied.
fn result(lines: &[Value]) -> Result<BTreeMap<String, i64>> {
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    let mut add = |row: &Value, times: i64| {
        let count = rows.entry(rounded(row).to_string()).or_default();
        *count += times;
    };
    for line in lines {
        match line["op"].as_str() {
            None => add(line, 1),
            Some("c" | "r") => add(&line["after"], 1),
            Some("d") => add(&line["before"], -1),
            Some("u") => {
                add(&line["before"], -1);
                add(&line["after"], 1);
            }
            Some(other) => bail!("no change is called {other}: {line}"),
        }
    }
    rows.retain(|_, count| *count != 0);
    Ok(rows)
}

/// Sums of floating point numbers depend on their order; twelve digits of them do not.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            json!(format!("{number:.11e}").parse::<f64>().unwrap_or(f64::NAN))
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), rounded(value)))
            .collect(),
        Value::Array(items) => items.iter().map(rounded).collect(),
        other => other.clone(),
    }
}

fn compare(expected: &BTreeMap<String, i64>, found: &BTreeMap<String, i64>) -> Result<()> {
    ensure!(!expected.is_empty(), "nothing is expected");
    let differs = |a: &BTreeMap<String, i64>, b: &BTreeMap<String, i64>| {
        a.iter()
            .filter(|(row, count)| b.get(*row) != Some(count))
            .map(|(row, count)| format!("{count} × {row}"))
            .collect::<Vec<String>>()
    };
    let missing = differs(expected, found);
    let extra = differs(found, expected);
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "{} rows are missing: {:#?}\n{} rows should not be: {:#?}",
        missing.len(),
        missing.iter().take(5).collect::<Vec<_>>(),
        extra.len(),
        extra.iter().take(5).collect::<Vec<_>>(),
    );
    Ok(())
}

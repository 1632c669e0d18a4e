//! A cluster in one process, a real job on a shop's clicks, its results as they come.
//!
//! A coordinator and two workers start on loopback. One job writes a generated clickstream to a topic;
//! two others count carts and revenue per ten seconds, and revenue per product, from it, exactly once.
//! Everything goes through topics and REST, as a program of one's own would. `--once` ends after a finite
//! input and checks the results against its own computation over the same records.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use common::client::Client;
use common::config::coordinator::CoordinatorConfig;
use common::config::worker::WorkerConfig;
use serde_json::{Value, json};

const PARTITIONS: u32 = 4;
const REFRESH: Duration = Duration::from_millis(500);
/// Results that are right are there long before this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of the table of windows that are shown.
const SHOWN: usize = 12;

/// Starts an embedded cluster and runs a job on a shop's clicks.
#[derive(Debug, Parser)]
struct Options {
    /// End after a finite input; fail if the results differ from an independent computation.
    #[arg(long)]
    once: bool,
    /// Clicks to generate with --once.
    #[arg(long, default_value_t = 200_000)]
    rows: u64,
    /// Clicks per second without --once.
    #[arg(long, default_value_t = 2_000)]
    rate: u64,
    /// Run on these clicks instead: one JSON object per line with session, action, product, price,
    /// quantity and ts.
    #[arg(long, value_name = "FILE.ndjson")]
    input: Option<PathBuf>,
    /// Seed of the generated clicks.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let directory = tempfile::Builder::new().prefix("millstream-").tempdir()?;
    let config = CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        data_dir: directory.path().join("coordinator"),
        ..CoordinatorConfig::defaults()
    };
    let coordinator = coordinator::node::Node::start(config)?;
    let workers = (1..=2)
        .map(|number| {
            let config = WorkerConfig {
                coordinator: coordinator.address().to_owned(),
                listen: ([127, 0, 0, 1], 0).into(),
                data_dir: directory.path().join(format!("worker{number}")),
                ..WorkerConfig::defaults()
            };
            worker::node::Node::start(config)
        })
        .collect::<Result<Vec<_>, _>>()?;
    println!(
        "A cluster is up: a coordinator at {}",
        coordinator.address()
    );
    for worker in &workers {
        println!("                 and a worker at {}", worker.address());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run(&options, coordinator.address()));
    for worker in workers {
        worker.stop();
    }
    coordinator.stop();
    outcome
}

async fn run(options: &Options, address: &str) -> Result<()> {
    let cluster = Client::connect(address)?;
    cluster.create_topic("clicks", PARTITIONS).await?;
    let finite = options.once || options.input.is_some();
    match &options.input {
        Some(file) => produce(&cluster, file).await?,
        None => generate(&cluster, options).await?,
    }
    let bound = if finite { "latest" } else { "unbounded" };
    cluster.create_job("windows", &windows_sql(bound)).await?;
    cluster.create_job("products", &products_sql()).await?;
    let mut shown = Shown::default();
    if finite {
        watch_until_finished(&cluster, &mut shown).await?;
        let expected = expect(&cluster).await?;
        let arriving = async {
            while !shown.agrees(&expected) {
                tokio::time::sleep(REFRESH).await;
                shown.update(&cluster).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let arrived = tokio::time::timeout(PATIENCE, arriving).await;
        arrived.context("the products are not what an independent computation gives")??;
        print!("{}", shown.table());
        check(&cluster, &shown, &expected).await?;
    } else {
        tokio::select! {
            outcome = watch(&cluster, address, &mut shown) => outcome?,
            signal = tokio::signal::ctrl_c() => signal?,
        }
    }
    if finite && !options.once {
        print_way_on(&cluster, address).await?;
        tokio::signal::ctrl_c().await?;
    }
    Ok(())
}

/// Writes generated clicks to the topic, with a job of its own.
async fn generate(cluster: &Client, options: &Options) -> Result<()> {
    let amount = match options.once {
        true => format!("rows = '{}'", options.rows),
        false => format!("rate = '{}'", options.rate),
    };
    let sql = format!(
        "CREATE TABLE shop WITH (
             connector = 'generator', generator = 'clickstream', seed = '{}', {amount}
         );
         CREATE TABLE clicks WITH (connector = 'topic', topic = 'clicks', format = 'json');
         INSERT INTO clicks
         SELECT session, action, product, price, quantity, ts FROM shop;",
        options.seed
    );
    cluster.create_job("clicks", &sql).await?;
    if options.once {
        println!("Writing {} clicks to the topic \"clicks\" …", options.rows);
        wait_until_finished(cluster, "clicks").await?;
    }
    Ok(())
}

async fn produce(cluster: &Client, file: &PathBuf) -> Result<()> {
    const LINES_PER_REQUEST: usize = 10_000;
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (index, chunk) in lines.chunks(LINES_PER_REQUEST).enumerate() {
        cluster
            .produce_ndjson("clicks", chunk.concat(), None)
            .await?;
        progress("writing", (index + 1) * LINES_PER_REQUEST, lines.len());
    }
    println!();
    Ok(())
}

/// Both jobs read the same topic; `bound` says whether the end of it is the end of the job.
fn clicks_table(bound: &str) -> String {
    format!(
        "CREATE TABLE clicks (
             session BIGINT, action VARCHAR, product BIGINT, price DOUBLE, quantity BIGINT,
             ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
         ) WITH (
             connector = 'topic', topic = 'clicks', format = 'json', 'scan.bounded.mode' = '{bound}'
         );"
    )
}

/// Carts and revenue per ten seconds of event time.
fn windows_sql(bound: &str) -> String {
    clicks_table(bound)
        + "CREATE TABLE windows WITH (connector = 'topic', topic = 'windows', format = 'json');
           INSERT INTO windows
           SELECT window_start, window_end, count(*) AS clicks,
                  count(distinct session) FILTER (WHERE action = 'add_to_cart') AS carts,
                  count(distinct session) FILTER (WHERE action = 'purchase') AS bought,
                  sum(price * quantity) FILTER (WHERE action = 'purchase') AS revenue
           FROM TUMBLE(clicks, ts, INTERVAL '10' SECOND)
           GROUP BY window_start, window_end;"
}

/// What each product has brought in so far; runs for ever, so its state can be asked for.
fn products_sql() -> String {
    clicks_table("unbounded")
        + "CREATE TABLE products (product BIGINT PRIMARY KEY, sold BIGINT, revenue DOUBLE)
               WITH (connector = 'topic', topic = 'products', format = 'json');
           INSERT INTO products
           SELECT product, sum(quantity) AS sold, sum(price * quantity) AS revenue
           FROM clicks WHERE action = 'purchase' GROUP BY product;"
}

/// What has come out so far.
#[derive(Debug, Default)]
struct Shown {
    /// By the window's start.
    windows: BTreeMap<String, Value>,
    products: BTreeMap<i64, Value>,
    offsets: BTreeMap<(&'static str, u32), i64>,
}

impl Shown {
    /// Reads what was committed since the last time.
    async fn update(&mut self, cluster: &Client) -> Result<()> {
        for topic in ["windows", "products"] {
            let description: Value = cluster.get(&format!("/v1/topics/{topic}")).await?;
            let partitions = description["partitions"].as_array().map_or(0, Vec::len);
            for partition in 0..u32::try_from(partitions)? {
                self.update_partition(cluster, topic, partition).await?;
            }
        }
        Ok(())
    }

    async fn update_partition(
        &mut self,
        cluster: &Client,
        topic: &'static str,
        partition: u32,
    ) -> Result<()> {
        loop {
            let offset = self.offsets.entry((topic, partition)).or_insert(0);
            let fetched = cluster.fetch(topic, partition, *offset, 10_000, 0).await?;
            if fetched.next_offset == *offset {
                return Ok(());
            }
            *offset = fetched.next_offset;
            for value in fetched
                .records
                .into_iter()
                .filter_map(|record| record.value)
            {
                if topic == "windows" {
                    let start = value["window_start"]
                        .as_str()
                        .context("a window has a start")?;
                    let again = self.windows.insert(start.to_owned(), value.clone());
                    ensure!(again.is_none(), "the window of {start} came out twice");
                } else if let Some(product) = value["product"].as_i64() {
                    self.products.insert(product, value);
                }
            }
        }
    }

    /// Whether every product is at its last value; until then changes are still on their way.
    fn agrees(&self, expected: &Expected) -> bool {
        expected.products.iter().all(|(product, (sold, revenue))| {
            self.products.get(product).is_some_and(|shown| {
                shown["sold"] == json!(sold)
                    && close(shown["revenue"].as_f64().unwrap_or(0.0), *revenue)
            })
        })
    }

    fn table(&self) -> String {
        let mut text = format!(
            "\n{:<20} {:>8} {:>7} {:>8} {:>10} {:>12}\n",
            "ten seconds from", "clicks", "carts", "bought", "abandoned", "revenue"
        );
        for (start, window) in self.windows.iter().rev().take(SHOWN).rev() {
            let number = |name: &str| window[name].as_i64().unwrap_or(0);
            text += &format!(
                "{:<20} {:>8} {:>7} {:>8} {:>10} {:>12.2}\n",
                start,
                number("clicks"),
                number("carts"),
                number("bought"),
                (number("carts") - number("bought")).max(0),
                window["revenue"].as_f64().unwrap_or(0.0),
            );
        }
        text
    }
}

async fn watch(cluster: &Client, address: &str, shown: &mut Shown) -> Result<()> {
    let mut ticks = 0_u64;
    loop {
        tokio::time::sleep(REFRESH).await;
        let job = cluster.job("shop").await?;
        ensure!(
            job["state"] != "FAILED",
            "the job has failed: {}",
            job["reason"]
        );
        if job["state"] == "RUNNING" {
            shown.update(cluster).await?;
        }
        ticks += 1;
        if std::io::stdout().is_terminal() || ticks.is_multiple_of(20) {
            print!("{}{}", clear(), shown.table());
            println!(
                "\nproducts sold: {}    job: {}",
                shown.products.len(),
                job["state"]
            );
            print_way_on(cluster, address).await?;
        }
    }
}

fn clear() -> &'static str {
    if std::io::stdout().is_terminal() {
        "\x1b[2J\x1b[H"
    } else {
        ""
    }
}

async fn watch_until_finished(cluster: &Client, shown: &mut Shown) -> Result<()> {
    loop {
        let description = cluster.job("windows").await?;
        match description["state"].as_str() {
            Some("FINISHED") => return shown.update(cluster).await,
            Some("FAILED") => bail!("the job has failed: {}", description["reason"]),
            _ => {}
        }
        shown.update(cluster).await?;
        progress("windows", shown.windows.len(), 0);
        tokio::time::sleep(REFRESH).await;
    }
}

async fn wait_until_finished(cluster: &Client, job: &str) -> Result<()> {
    loop {
        let description = cluster.job(job).await?;
        match description["state"].as_str() {
            Some("FINISHED") => return Ok(()),
            Some("FAILED") => bail!("the job has failed: {}", description["reason"]),
            _ => tokio::time::sleep(REFRESH).await,
        }
    }
}

/// A bar where there is a terminal and an end; `total` 0: no end is known.
fn progress(what: &str, done: usize, total: usize) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    match (done.min(total) * 40).checked_div(total) {
        None => print!("\r{what}: {done}   "),
        Some(filled) => {
            print!(
                "\r{what} [{}{}] ",
                "#".repeat(filled),
                ".".repeat(40 - filled)
            );
        }
    }
    // A bar that does not show is no reason to stop.
    std::io::stdout().flush().unwrap_or_default();
}

async fn print_way_on(cluster: &Client, address: &str) -> Result<()> {
    println!("\nGo on by hand (everything there is: {address}/docs):");
    println!("  curl '{address}/v1/jobs/windows'");
    println!("  curl '{address}/v1/topics/windows/partitions/0/records?offset=earliest'");
    if let Some(operator) = product_operator(cluster).await? {
        println!("  curl '{address}/v1/jobs/products/operators/{operator}/state?key=7'");
    }
    println!("Ctrl-C ends it.");
    Ok(())
}

/// The id of the operator that keeps the products.
async fn product_operator(cluster: &Client) -> Result<Option<String>> {
    let job = cluster.job("products").await?;
    let operators = job["graph"]["operators"].as_array();
    let aggregate = operators
        .into_iter()
        .flatten()
        .find(|o| o["type"] == "aggregate");
    Ok(aggregate.and_then(|o| o["id"].as_str()).map(str::to_owned))
}

/// What should come out, computed from the records of the topic without the cluster's operators.
#[derive(Debug, Default)]
struct Expected {
    /// By ten seconds since 1970.
    windows: BTreeMap<i64, Window>,
    /// Product → sold, revenue.
    products: BTreeMap<i64, (i64, f64)>,
}

async fn expect(cluster: &Client) -> Result<Expected> {
    let mut expected = Expected::default();
    for partition in 0..PARTITIONS {
        let mut offset = 0;
        loop {
            let fetched = cluster
                .fetch("clicks", partition, offset, 10_000, 0)
                .await?;
            if fetched.next_offset == offset {
                break;
            }
            offset = fetched.next_offset;
            for click in fetched
                .records
                .into_iter()
                .filter_map(|record| record.value)
            {
                expected.count(&click)?;
            }
        }
    }
    ensure!(!expected.windows.is_empty(), "no clicks were written");
    Ok(expected)
}

/// Compares everything, and asks for the state of one key.
async fn check(cluster: &Client, shown: &Shown, expected: &Expected) -> Result<()> {
    ensure!(
        expected.windows.len() == shown.windows.len(),
        "{} windows came out, there are {}",
        shown.windows.len(),
        expected.windows.len()
    );
    for (window, (start, expected)) in shown.windows.values().zip(&expected.windows) {
        let same = window["clicks"] == json!(expected.clicks)
            && window["carts"] == json!(expected.carts.len())
            && window["bought"] == json!(expected.bought.len())
            && close(window["revenue"].as_f64().unwrap_or(0.0), expected.revenue);
        ensure!(
            same,
            "the window {start} is {window}, and should be {expected:?}"
        );
    }
    println!(
        "\nChecked: {} windows and {} products are what an independent computation gives.",
        expected.windows.len(),
        expected.products.len()
    );
    let operator = product_operator(cluster)
        .await?
        .context("the job keeps its products")?;
    let (product, (sold, _)) = expected
        .products
        .first_key_value()
        .context("nothing was sold")?;
    let state = cluster
        .state("products", &operator, &json!(product))
        .await?;
    let entry = &state["entries"][0];
    println!(
        "The state of product {product}, read over HTTP at epoch {}: {entry}",
        state["epoch"]
    );
    ensure!(
        entry["value"]["sold"] == json!(sold),
        "its state differs from {sold}: {state}"
    );
    Ok(())
}

#[derive(Debug, Default)]
struct Window {
    clicks: u64,
    carts: BTreeSet<i64>,
    bought: BTreeSet<i64>,
    revenue: f64,
}

impl Expected {
    fn count(&mut self, click: &Value) -> Result<()> {
        let text = click["ts"].as_str().context("a click has a time")?;
        let at = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")?;
        let window = self
            .windows
            .entry(at.and_utc().timestamp().div_euclid(10))
            .or_default();
        let session = click["session"].as_i64().context("a click has a session")?;
        window.clicks += 1;
        match click["action"].as_str() {
            Some("add_to_cart") => {
                window.carts.insert(session);
            }
            Some("purchase") => {
                let (price, quantity) = (click["price"].as_f64(), click["quantity"].as_i64());
                let (price, quantity) = price.zip(quantity).context("a purchase has a price")?;
                #[expect(clippy::cast_precision_loss, reason = "quantities are small")]
                let revenue = price * quantity as f64;
                window.bought.insert(session);
                window.revenue += revenue;
                let product = click["product"]
                    .as_i64()
                    .context("a purchase has a product")?;
                let sold = self.products.entry(product).or_default();
                *sold = (sold.0 + quantity, sold.1 + revenue);
            }
            _ => {}
        }
        Ok(())
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

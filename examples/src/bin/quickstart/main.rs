//! A cluster in one process, a real job on a shop's clicks, its results as they come.
//!
//! A coordinator and two workers start on loopback. One job writes a generated clickstream to a topic; two
//! others make of it, exactly once, what became of carts in every minute, and the revenue of each product.
//! Everything goes through topics and REST, as a program of one's own would. `--once` ends after a finite
//! input and checks the results against its own computation over the same records.

mod clicks;
mod shown;
mod expected;
mod terminal;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use common::client::Client;
use common::config::coordinator::CoordinatorConfig;
use common::config::worker::WorkerConfig;
use common::shutdown::stop_within;
use common::time::{Span, SystemClock};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use expected::Expected;
use shown::Shown;
use terminal::{Bar, grouped, in_place, is_terminal, say};

const PARTITIONS: u32 = 4;
const REFRESH: Duration = Duration::from_millis(500);
/// Results that are right are there long before this.
const PATIENCE: Duration = Duration::from_secs(60);
/// A cluster that does not stop is left behind after this.
const STOP_PATIENCE: Span = Span::from_secs(10);

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
    /// quantity and ts, mostly in the order of ts.
    #[arg(long, value_name = "FILE.ndjson")]
    input: Option<PathBuf>,
    /// Seed of the generated clicks.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

fn main() -> ExitCode {
    match start(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has gone; there is nobody to tell.
        Err(error) if is_closed_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn start(options: &Options) -> Result<()> {
    let clicks = options.input.as_deref().map(clicks::read).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // From here on a signal no longer kills: what was started is stopped, and its directory removed.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let directory = tempfile::Builder::new().prefix("millstream-").tempdir()?;
    let (coordinator, workers) = start_cluster(directory.path())?;
    let address = coordinator.address().to_owned();
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(options, clicks, &address) => outcome,
            () = signals.wait() => match options.once {
                true => bail!("stopped before the results were checked"),
                false => Ok(()),
            },
        }
    });
    stop_within(STOP_PATIENCE, move || {
        for worker in workers {
            worker.stop();
        }
        coordinator.stop();
    })?;
    outcome
}

/// What Ctrl-C and a service manager send.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn start_cluster(directory: &Path) -> Result<(coordinator::node::Node, Vec<worker::node::Node>)> {
    let config = CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        data_dir: directory.join("coordinator"),
        ..CoordinatorConfig::defaults()
    };
    let coordinator = coordinator::node::Node::start(config)?;
    let workers = (1..=2)
        .map(|number| {
            let config = WorkerConfig {
                coordinators: vec![coordinator.address().to_owned()],
                listen: ([127, 0, 0, 1], 0).into(),
                data_dir: directory.join(format!("worker{number}")),
                ..WorkerConfig::defaults()
            };
            worker::node::Node::start(config)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((coordinator, workers))
}

/// Ends by itself only with `--once`.
async fn run(options: &Options, clicks: Option<Vec<Vec<u8>>>, address: &str) -> Result<()> {
    say(&format!("A cluster is up: {address}\n"))?;
    let cluster = Client::connect(address)?;
    cluster.create_topic("clicks", PARTITIONS).await?;
    let finite = options.once || clicks.is_some();
    let written = match &clicks {
        Some(clicks) => clicks.len() as u64,
        None => options.rows,
    };
    match clicks {
        Some(clicks) => produce(&cluster, &clicks).await?,
        None => generate(&cluster, options).await?,
    }
    let bound = if finite { "latest" } else { "unbounded" };
    cluster.create_job("windows", &windows_sql(bound)).await?;
    cluster.create_job("products", &products_sql()).await?;
    let mut shown = Shown::default();
    if !finite {
        return watch(&cluster, address, &mut shown).await;
    }
    watch_until_finished(&cluster, &mut shown, written).await?;
    let expected = Expected::compute(&cluster).await?;
    let arriving = async {
        while !expected.has_arrived(&shown) {
            check_runs(&cluster, "products").await?;
            tokio::time::sleep(REFRESH).await;
            shown.update(&cluster).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let arrived = tokio::time::timeout(PATIENCE, arriving).await;
    arrived.context("the products are not what an independent computation gives")??;
    say(&shown.table())?;
    expected.check(&cluster, &shown, written).await?;
    if !options.once {
        say(&way_on(&cluster, address).await?)?;
        std::future::pending::<()>().await;
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
        say(&format!(
            "Writing {} clicks to the topic \"clicks\" …\n",
            grouped(options.rows)
        ))?;
        follow(cluster, "clicks", "written", options.rows, async || Ok(())).await?;
    }
    Ok(())
}

async fn produce(cluster: &Client, clicks: &[Vec<u8>]) -> Result<()> {
    const LINES_PER_REQUEST: usize = 1_000;
    let mut bar = Bar::new("written", clicks.len() as u64);
    for (index, chunk) in clicks.chunks(LINES_PER_REQUEST).enumerate() {
        cluster
            .produce_ndjson("clicks", chunk.join(&b'\n'), None)
            .await?;
        bar.show(((index + 1) * LINES_PER_REQUEST) as u64, None)?;
    }
    Ok(bar.end()?)
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

/// What became of the carts, and the revenue, of the last minute of event time, every ten seconds: first what
/// each session did in the minute, then how many sessions did what.
fn windows_sql(bound: &str) -> String {
    clicks_table(bound)
        + "CREATE VIEW sessions AS
           SELECT window_start, window_end, session, count(*) AS clicks,
                  count(*) FILTER (WHERE action = 'add_to_cart') AS added,
                  count(*) FILTER (WHERE action = 'purchase') AS purchases,
                  sum(price * quantity) FILTER (WHERE action = 'purchase') AS revenue
           FROM HOP(clicks, ts, INTERVAL '10' SECOND, INTERVAL '60' SECOND)
           GROUP BY window_start, window_end, session;
           CREATE TABLE windows WITH (connector = 'topic', topic = 'windows', format = 'json');
           INSERT INTO windows
           SELECT window_start, window_end, sum(clicks) AS clicks,
                  count(*) FILTER (WHERE added > 0) AS carts,
                  count(*) FILTER (WHERE added > 0 AND purchases = 0) AS abandoned,
                  count(*) FILTER (WHERE purchases > 0) AS bought,
                  sum(revenue) AS revenue
           FROM sessions GROUP BY window_start, window_end;"
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

async fn watch(cluster: &Client, address: &str, shown: &mut Shown) -> Result<()> {
    let mut windows_said = 0;
    loop {
        tokio::time::sleep(REFRESH).await;
        let mut rates = format!(
            "{:<10} {:>14} {:>12} {:>16} {:>12}\n",
            "job", "records/s in", "in all", "records/s out", "in all"
        );
        for job in ["clicks", "windows", "products"] {
            let description = check_runs(cluster, job).await?;
            rates += &rates_of(job, &description);
        }
        shown.update(cluster).await?;
        if is_terminal() || shown.windows.len() > windows_said {
            windows_said = shown.windows.len();
            let first = match shown.windows.is_empty() {
                true => {
                    "(the first minute begins to show after fifteen seconds: clicks may be five late)\n"
                }
                false => "",
            };
            let best = best_seller(cluster, shown).await?;
            let table = format!("{}{first}\n{rates}\n{best}", shown.table());
            let way_on = way_on(cluster, address).await?;
            say(&format!("{}{way_on}", in_place(&table)))?;
        }
    }
}

/// What goes in and out of a job.
fn rates_of(job: &str, description: &Value) -> String {
    let rate = |name: &str| grouped(description[name].as_f64().unwrap_or(0.0).round() as u64);
    let rows = |name: &str| grouped(description[name].as_u64().unwrap_or(0));
    format!(
        "{job:<10} {:>14} {:>12} {:>16} {:>12}\n",
        rate("rows_in_per_second"),
        rows("rows_in"),
        rate("rows_out_per_second"),
        rows("rows_out"),
    )
}

/// The product that has brought in most: as its topic says, and as the state of the job that counts it.
async fn best_seller(cluster: &Client, shown: &Shown) -> Result<String> {
    let (Some((product, row)), Some(operator)) =
        (shown.best_seller(), product_operator(cluster).await?)
    else {
        return Ok(String::new());
    };
    // Between two generations there is nobody to ask.
    let said = match cluster.state("products", &operator, &json!(product)).await {
        Ok(state) => {
            let value = &state["entries"][0]["value"];
            format!(
                "its state over HTTP at epoch {}: {} sold, {:.2}",
                state["epoch"],
                value["sold"],
                value["revenue"].as_f64().unwrap_or(0.0)
            )
        }
        Err(error) => format!("its state: {error}"),
    };
    Ok(format!(
        "{} products sold, best of them {product}: {} sold, {:.2}\n  {said}\n",
        shown.products.len(),
        row["sold"],
        row["revenue"].as_f64().unwrap_or(0.0)
    ))
}

/// Both jobs read the whole input; results show while they do.
async fn watch_until_finished(cluster: &Client, shown: &mut Shown, clicks: u64) -> Result<()> {
    let begun = SystemClock::shared();
    let start = begun.tick();
    follow(cluster, "windows", "counted", clicks, async || {
        shown.update(cluster).await
    })
    .await?;
    let took = begun.tick().since(start);
    shown.update(cluster).await?;
    let seconds = took.as_duration().as_secs_f64().max(0.001);
    let rate = |count: usize| grouped((count as f64 / seconds).round() as u64);
    say(&format!(
        "{} clicks in, {} results out, in {seconds:.1} s: {} clicks/s, {} results/s\n",
        grouped(clicks),
        grouped(shown.windows.len() as u64),
        rate(usize::try_from(clicks)?),
        rate(shown.windows.len()),
    ))?;
    Ok(())
}

/// Shows how far a job has come of so many rows, until it is finished.
async fn follow(
    cluster: &Client,
    job: &str,
    what: &'static str,
    rows: u64,
    mut meanwhile: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let mut bar = Bar::new(what, rows);
    loop {
        let description = check_runs(cluster, job).await?;
        let rate = description["rows_in_per_second"].as_f64();
        bar.show(description["rows_in"].as_u64().unwrap_or(0), rate)?;
        if description["state"] == "FINISHED" {
            return Ok(bar.end()?);
        }
        meanwhile().await?;
        tokio::time::sleep(REFRESH).await;
    }
}

async fn check_runs(cluster: &Client, job: &str) -> Result<Value> {
    let description = cluster.job(job).await?;
    ensure!(
        description["state"] != "FAILED",
        "the job \"{job}\" has failed: {}",
        description["reason"]
    );
    Ok(description)
}

async fn way_on(cluster: &Client, address: &str) -> Result<String> {
    let mut text = format!(
        "\nGo on by hand (everything there is: {address}/docs):
  curl '{address}/v1/jobs/windows'
  curl '{address}/v1/topics/windows/partitions/0/records?offset=earliest'\n"
    );
    if let Some(operator) = product_operator(cluster).await? {
        text += &format!("  curl '{address}/v1/jobs/products/operators/{operator}/state?key=7'\n");
    }
    Ok(text + "Ctrl-C ends it.\n")
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

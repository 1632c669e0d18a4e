//! The log against plain files and a bare web server, and how many records a second come in over REST.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench log`
//!
//! Append: a partition's log and a plain file, the same bytes and the same number of bytes per fdatasync.
//! Fetch: whole batches from a worker over loopback, and the same bytes from the same file through a handler
//! that does nothing but read it, both in a process of their own and asked for as much at a time.
//! REST: records of 100 bytes in requests of 10,000, from four clients. What was stored is counted each time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use common::client::Client;
use common::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
use common::log_batch::{LogBatch, LogBatchBuilder, LogBatches};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::protocol::topic::TopicConfig;
use common::seglog::fs::FsStorage;
use common::time::{Span, Timestamp};
use common::transport::client::Transport;
use integration_tests::cluster::Cluster;
use integration_tests::load::{RECORD_BYTES, RECORDS_AT_ONCE, check_stored, saturate};
use integration_tests::measure::{Stopwatch, machine, runtime};
use integration_tests::process::Process;
use serde_json::Value;
use worker::log::partition_log::PartitionLog;
use worker::partition::reconcile::JobFacts;

const RECORDS_PER_BATCH: usize = 600;
/// Batches made durable together: about a megabyte.
const BATCHES_PER_SYNC: usize = 16;
const SYNCS: usize = 64;
const ROUNDS: usize = 4;
const FETCH_BYTES: u32 = 4 << 20;

#[derive(Debug, Parser)]
struct Options {
    /// Records sent over REST, in millions.
    #[arg(long, default_value_t = 4)]
    millions: usize,
    /// Serves this file and nothing else: the bare server of the comparison.
    #[arg(long, hide = true)]
    serve: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(file) = options.serve {
        return serve(&file);
    }
    println!("{}", machine());
    append()?;
    let runtime = runtime()?;
    let cluster = Cluster::start(1)?;
    let client = cluster.client()?;
    runtime.block_on(produce(&client, options.millions * 1_000_000))?;
    fetch(&runtime, &cluster, &client)
}

fn batch() -> LogBatch {
    let mut builder = LogBatchBuilder::new();
    let value = [b'x'; RECORD_BYTES];
    for _ in 0..RECORDS_PER_BATCH {
        builder.push(Timestamp(1), None, Some(&value), &[]);
    }
    builder.build()
}

fn append() -> Result<()> {
    let batch = batch();
    let (mut ours, mut plain) = (0.0, 0.0);
    let megabytes = (batch.bytes().len() * BATCHES_PER_SYNC * SYNCS) as f64 / 1e6;
    for _ in 0..ROUNDS {
        let directory = tempfile::tempdir()?;
        let storage = FsStorage::create(directory.path())?;
        let mut log = PartitionLog::open(storage, None, &TopicConfig::default(), Timestamp(1))?;
        let started = Stopwatch::start();
        for _ in 0..SYNCS {
            for _ in 0..BATCHES_PER_SYNC {
                log.append(&batch, LeaderEpoch(1), &JobFacts::default(), Timestamp(1))?;
            }
            log.sync()?;
        }
        ours += megabytes / started.elapsed().as_secs_f64();
        let records = SYNCS * BATCHES_PER_SYNC * RECORDS_PER_BATCH;
        ensure!(
            log.durable_offset() == Offset(i64::try_from(records)?),
            "records are missing"
        );

        let directory = tempfile::tempdir()?;
        let mut file = std::fs::File::create(directory.path().join("plain"))?;
        let started = Stopwatch::start();
        for _ in 0..SYNCS {
            for _ in 0..BATCHES_PER_SYNC {
                file.write_all(batch.bytes())?;
            }
            file.sync_data()?;
        }
        plain += megabytes / started.elapsed().as_secs_f64();
    }
    let rounds = ROUNDS as f64;
    println!(
        "append: log {:.0} MB/s, plain file {:.0} MB/s, ratio {:.2}",
        ours / rounds,
        plain / rounds,
        ours / plain
    );
    Ok(())
}

async fn produce(client: &Client, records: usize) -> Result<()> {
    client.create_topic("records", 4).await?;
    let requests = records / RECORDS_AT_ONCE;
    let rate = saturate(client, "records", requests).await?;
    println!(
        "REST: {rate:.2} M records of {RECORD_BYTES} bytes a second, acknowledged after fsync"
    );
    check_stored(client, "records", (requests * RECORDS_AT_ONCE) as u64).await?;
    Ok(())
}

/// Reads partition 0 of what `produce` wrote.
fn fetch(runtime: &tokio::runtime::Runtime, cluster: &Cluster, client: &Client) -> Result<()> {
    let topic: Value = runtime.block_on(client.get("/v1/topics/records"))?;
    let id: TopicId = serde_json::from_value(topic["id"].clone())?;
    let transport = Transport::start("bench")?;
    let partition = TopicPartition {
        topic: id,
        partition: PartitionId(0),
    };
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("segment");
    let mut file = std::fs::File::create(&copy)?;
    let mut records = 0;
    runtime.block_on(fetch_all(
        &transport,
        cluster.worker(0),
        partition,
        |batches| {
            for batch in LogBatches::new(batches.clone()) {
                records += u64::from(batch?.header().record_count);
            }
            file.write_all(&batches)?;
            Ok(())
        },
    ))?;
    let end = u64::try_from(runtime.block_on(end_of(client))?)?;
    ensure!(records == end, "{records} of {end} records were fetched");
    let bytes = file.metadata()?.len();
    let mut server = Process::start(
        "bare server",
        &std::env::current_exe()?,
        &["--serve".to_owned(), copy.display().to_string()],
    )?;
    let address = server.ready()?;
    let (mut ours, mut bare) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let started = Stopwatch::start();
        let mut read = 0;
        runtime.block_on(fetch_all(
            &transport,
            cluster.worker(0),
            partition,
            |batches| {
                read += batches.len() as u64;
                Ok(())
            },
        ))?;
        ensure!(read == bytes, "{read} of {bytes} bytes were fetched");
        ours += bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
        let started = Stopwatch::start();
        let read = runtime.block_on(download(&address))?;
        ensure!(read == bytes, "{read} of {bytes} bytes were served");
        bare += bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    }
    let rounds = ROUNDS as f64;
    println!(
        "fetch: worker {:.0} MB/s, bare handler {:.0} MB/s, ratio {:.2} ({} MB)",
        ours / rounds,
        bare / rounds,
        ours / bare,
        bytes / 1_000_000
    );
    Ok(())
}

async fn end_of(client: &Client) -> Result<i64> {
    let page: Value = client
        .get("/v1/topics/records/partitions/0/records?offset=latest")
        .await?;
    page["end_offset"].as_i64().context("end_offset")
}

async fn fetch_all(
    transport: &Transport,
    worker: &str,
    partition: TopicPartition,
    mut take: impl FnMut(Bytes) -> Result<()>,
) -> Result<()> {
    let mut offset = Offset(0);
    loop {
        let request = FetchBatches {
            partition,
            offset,
            max_bytes: FETCH_BYTES,
            wait: Span(0),
            isolation: Isolation::ReadCommitted,
        };
        let fetched: FetchedBatches = transport
            .call::<FetchBatches>(worker, &request, Span::from_secs(60))
            .await?;
        if fetched.next_offset == offset {
            return Ok(());
        }
        offset = fetched.next_offset;
        take(fetched.batches)?;
    }
}

async fn download(address: &str) -> Result<u64> {
    let http = reqwest::Client::new();
    let mut offset = 0;
    loop {
        let part = http.get(format!("{address}/{offset}")).send().await?;
        let part = part.bytes().await?;
        if part.is_empty() {
            return Ok(offset);
        }
        offset += part.len() as u64;
    }
}

/// The bare server: reads the file and sends what it read.
fn serve(path: &Path) -> Result<()> {
    let file = Arc::new(std::fs::File::open(path)?);
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(move || {
            let file = Arc::clone(&file);
            let part = move |offset: web::Path<u64>| {
                let file = Arc::clone(&file);
                async move {
                    let read = web::block(move || {
                        use std::os::unix::fs::FileExt;
                        let length = file.metadata()?.len();
                        let left = length.saturating_sub(*offset).min(u64::from(FETCH_BYTES));
                        let mut part = vec![0; usize::try_from(left).expect("at most 4 MiB")];
                        file.read_exact_at(&mut part, *offset)?;
                        Ok::<_, std::io::Error>(part)
                    });
                    HttpResponse::Ok().body(
                        read.await
                            .expect("the thread lives")
                            .expect("the file is there"),
                    )
                }
            };
            App::new().route("/{offset}", web::get().to(part))
        });
        let server = server.workers(2).bind(("127.0.0.1", 0))?;
        println!("bare server ready at http://{}", server.addrs()[0]);
        server.run().await?;
        Ok(())
    })
}

//! A live tail while its topic and its worker change.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};
use integration_tests::cluster::Cluster;
use integration_tests::process::PATIENCE;
use serde_json::{Value, json};

/// The lines of an endless answer.
struct Tail {
    lines: BufReader<TcpStream>,
}

impl Tail {
    fn open(node: &str, path: &str) -> Result<Tail> {
        let host = node.strip_prefix("http://").context("a plain address")?;
        let mut connection = TcpStream::connect(host)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        write!(connection, "GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")?;
        let mut tail = Tail {
            lines: BufReader::new(connection),
        };
        // The first comment says that the stream has begun.
        tail.line_with(":")?;
        while tail.next()?.context("the stream begins")? != ":" {}
        Ok(tail)
    }

    /// `None`: the answer has ended.
    fn next(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line)?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    fn line_with(&mut self, text: &str) -> Result<String> {
        loop {
            let line = self.next()?.context("the stream has ended")?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }
}

#[test]
fn a_live_tail_follows_added_partitions_and_ends_with_its_worker() {
    // A stop that waited for the tail would take as long as this, which is longer than the patience.
    let mut cluster = Cluster::start_with(1, &["--shutdown-timeout", "600s"]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = cluster.client().unwrap();
    let produce = |partition: u32, value: &str| -> Result<()> {
        let records = json!({"records": [{"partition": partition, "value": value}]});
        let path = "/v1/topics/clicks/records";
        runtime.block_on(client.post::<Value>(path, &records))?;
        Ok(())
    };
    runtime.block_on(client.create_topic("clicks", 1)).unwrap();
    let worker = cluster.worker(0).to_owned();
    let mut direct = Tail::open(&worker, "/v1/topics/clicks/stream").unwrap();
    let path = "/v1/topics/clicks/stream?from=earliest";
    let mut forwarded = Tail::open(cluster.coordinator(), path).unwrap();
    produce(0, "first").unwrap();
    for tail in [&mut direct, &mut forwarded] {
        tail.line_with("first").unwrap();
    }
    let more = json!({"partitions": 2});
    runtime
        .block_on(client.patch::<Value>("/v1/topics/clicks", &more))
        .unwrap();
    produce(1, "second").unwrap();
    for tail in [&mut direct, &mut forwarded] {
        let line = tail.line_with("second").unwrap();
        assert!(line.contains("\"partition\":1"), "{line}");
    }
    let status = cluster.worker_process(0).unwrap().terminate().unwrap();
    assert!(status.success(), "{status}");
    // A last, empty chunk: the connection itself may stay.
    let ended = |tail: &mut Tail| -> Result<()> {
        while tail.next()?.context("the answer is cut off")? != "0" {}
        Ok(())
    };
    ended(&mut direct).unwrap();
    ended(&mut forwarded).unwrap();
}

//! What has come out so far, as a reader of the topics sees it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use serde_json::Value;

/// Rows of the table of windows that are shown.
const ROWS: usize = 12;

#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// By the window's start.
    pub(crate) windows: BTreeMap<String, Value>,
    pub(crate) products: BTreeMap<i64, Value>,
    offsets: BTreeMap<(&'static str, u32), i64>,
}

impl Shown {
    /// Reads what was committed since the last time.
    pub(crate) async fn update(&mut self, cluster: &Client) -> Result<()> {
        for topic in ["windows", "products"] {
            let description: Value = cluster.get(&format!("/v1/topics/{topic}")).await?;
            let partitions = description["partitions"].as_array().map_or(0, Vec::len);
            for partition in 0..u32::try_from(partitions)? {
                let offset = self.offsets.entry((topic, partition)).or_insert(0);
                let (windows, products) = (&mut self.windows, &mut self.products);
                read(cluster, topic, partition, offset, |value| {
                    if topic == "windows" {
                        let start = value["window_start"].as_str();
                        let start = start.context("a window has a start")?.to_owned();
                        let again = windows.insert(start, value);
                        ensure!(again.is_none(), "a window came out twice: {again:?}");
                    } else if let Some(product) = value["product"].as_i64() {
                        products.insert(product, value);
                    }
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n{:<20} {:>8} {:>7} {:>8} {:>10} {:>12}\n",
            "ten seconds from", "clicks", "carts", "bought", "abandoned", "revenue"
        );
        for (start, window) in self.windows.iter().rev().take(ROWS).rev() {
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

/// Reads a partition from `offset` to its end.
pub(crate) async fn read(
    cluster: &Client,
    topic: &str,
    partition: u32,
    offset: &mut i64,
    mut each: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    loop {
        let fetched = cluster.fetch(topic, partition, *offset, 10_000, 0).await?;
        if fetched.next_offset == *offset {
            return Ok(());
        }
        *offset = fetched.next_offset;
        let values = fetched
            .records
            .into_iter()
            .filter_map(|record| record.value);
        values.into_iter().try_for_each(&mut each)?;
    }
}

//! What has come out so far, as a reader of the topics sees it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use serde_json::Value;

use crate::terminal::grouped;

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

    /// What has brought in most.
    pub(crate) fn best_seller(&self) -> Option<(i64, &Value)> {
        let revenue = |row: &Value| row["revenue"].as_f64().unwrap_or(0.0);
        let best = |a: &(&i64, &Value), b: &(&i64, &Value)| revenue(a.1).total_cmp(&revenue(b.1));
        let best = self.products.iter().max_by(best);
        best.map(|(product, row)| (*product, row))
    }

    /// One row per minute that has ended, the newest last. Abandoned are carts that were filled in it and not
    /// bought in it.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "\n{:<20} {:>9} {:>8} {:>8} {:>10} {:>5} {:>13}\n",
            "the minute up to", "clicks", "carts", "bought", "abandoned", "%", "revenue"
        );
        for window in self.windows.values().rev().take(ROWS).rev() {
            let number = |name: &str| window[name].as_u64().unwrap_or(0);
            let share = (100 * number("abandoned")).checked_div(number("carts"));
            text += &format!(
                "{:<20} {:>9} {:>8} {:>8} {:>10} {:>5} {:>13.2}\n",
                window["window_end"].as_str().unwrap_or_default(),
                grouped(number("clicks")),
                grouped(number("carts")),
                grouped(number("bought")),
                grouped(number("abandoned")),
                share.map(|share| share.to_string()).unwrap_or_default(),
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

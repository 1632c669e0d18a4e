//! What should come out, computed from the records of the topic without the cluster's operators.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use common::client::Client;
use serde_json::{Value, json};

use crate::PARTITIONS;
use crate::clicks::Click;
use crate::shown::{Shown, read};
use crate::terminal::say;

#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// By ten seconds since 1970.
    windows: BTreeMap<i64, Window>,
    /// Product → sold, revenue.
    products: BTreeMap<i64, (i64, f64)>,
}

#[derive(Debug, Default)]
struct Window {
    clicks: u64,
    carts: BTreeSet<i64>,
    bought: BTreeSet<i64>,
    revenue: f64,
}

impl Expected {
    pub(crate) async fn compute(cluster: &Client) -> Result<Expected> {
        let mut expected = Expected::default();
        for partition in 0..PARTITIONS {
            read(cluster, "clicks", partition, &mut 0, |click| {
                expected.count(&Click::of(&click)?);
                Ok(())
            })
            .await?;
        }
        Ok(expected)
    }

    fn count(&mut self, click: &Click) {
        let second = click.at.and_utc().timestamp();
        let window = self.windows.entry(second.div_euclid(10)).or_default();
        window.clicks += 1;
        match (
            click.action.as_str(),
            click.product,
            click.price,
            click.quantity,
        ) {
            ("add_to_cart", ..) => {
                window.carts.insert(click.session);
            }
            ("purchase", Some(product), Some(price), Some(quantity)) => {
                #[expect(clippy::cast_precision_loss, reason = "quantities are small")]
                let revenue = price * quantity as f64;
                window.bought.insert(click.session);
                window.revenue += revenue;
                let sold = self.products.entry(product).or_default();
                *sold = (sold.0 + quantity, sold.1 + revenue);
            }
            _ => {}
        }
    }

    /// Whether every product is at its last value; until then changes are still on their way.
    pub(crate) fn has_arrived(&self, shown: &Shown) -> bool {
        self.products.iter().all(|(product, (sold, revenue))| {
            shown.products.get(product).is_some_and(|shown| {
                shown["sold"] == json!(sold)
                    && close(shown["revenue"].as_f64().unwrap_or(0.0), *revenue)
            })
        })
    }

    /// Compares everything, and asks for the state of one key. `written`: how many clicks there should be.
    pub(crate) async fn check(&self, cluster: &Client, shown: &Shown, written: u64) -> Result<()> {
        let found = self.clicks();
        ensure!(
            found == written,
            "{written} clicks were written, the topic has {found}"
        );
        let windows = match late_clicks(cluster).await? {
            0 => self.check_windows(shown)?,
            late => self.check_total(shown, late)?,
        };
        say(&format!(
            "\nChecked: {windows} and {} products are what an independent computation gives.\n",
            self.products.len()
        ))?;
        let Some((product, (sold, _))) = self.products.first_key_value() else {
            return Ok(());
        };
        let operator = crate::product_operator(cluster)
            .await?
            .context("the job keeps its products")?;
        let state = cluster
            .state("products", &operator, &json!(product))
            .await?;
        let entry = &state["entries"][0];
        say(&format!(
            "The state of product {product}, read over HTTP at epoch {}: {entry}\n",
            state["epoch"]
        ))?;
        ensure!(
            entry["value"]["sold"] == json!(sold),
            "its state differs from {sold}: {state}"
        );
        Ok(())
    }

    fn clicks(&self) -> u64 {
        self.windows.values().map(|window| window.clicks).sum()
    }

    fn check_windows(&self, shown: &Shown) -> Result<String> {
        ensure!(
            self.windows.len() == shown.windows.len(),
            "{} windows came out, there are {}",
            shown.windows.len(),
            self.windows.len()
        );
        for (window, (start, expected)) in shown.windows.values().zip(&self.windows) {
            let same = window["clicks"] == json!(expected.clicks)
                && window["carts"] == json!(expected.carts.len())
                && window["bought"] == json!(expected.bought.len())
                && close(window["revenue"].as_f64().unwrap_or(0.0), expected.revenue);
            ensure!(
                same,
                "the window {start} is {window}, and should be {expected:?}"
            );
        }
        Ok(format!("{} windows", self.windows.len()))
    }

    /// Which clicks are late depends on what was read before them: only that none is lost is sure.
    fn check_total(&self, shown: &Shown, late: u64) -> Result<String> {
        let counted = |window: &Value| window["clicks"].as_u64().unwrap_or(0);
        let found: u64 = shown.windows.values().map(counted).sum();
        let expected = self.clicks();
        ensure!(
            found + late == expected,
            "{found} clicks are in windows and {late} were late, of {expected}"
        );
        say(&format!(
            "\n{late} clicks were more than 5 seconds late: they are in no window, but in the topic \
             \"windows.dead-letters\".\n"
        ))?;
        Ok(format!("the number of {expected} clicks"))
    }
}

async fn late_clicks(cluster: &Client) -> Result<u64> {
    let job = cluster.job("windows").await?;
    job["late_rows"]
        .as_u64()
        .context("a job says how many rows were late")
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

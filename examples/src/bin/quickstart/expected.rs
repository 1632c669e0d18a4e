//! What should come out, computed from the records of the topic without the cluster's operators.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use common::client::Client;
use serde_json::{Value, json};

use crate::PARTITIONS;
use crate::clicks::Click;
use crate::shown::{Shown, read};
use crate::terminal::say;

#[derive(Debug, Default)]
pub(crate) struct Expected {
    clicks: u64,
    /// By their start, in tens of seconds since 1970.
    windows: BTreeMap<i64, Window>,
    /// Product → sold, revenue.
    products: BTreeMap<i64, (i64, f64)>,
    /// A click came more than five seconds after a later one: it may miss some of its windows, or all.
    has_late_ones: bool,
}

/// Each click is in as many windows: they are a minute long, and one begins every ten seconds.
const WINDOWS_PER_CLICK: i64 = 6;
/// What the watermark of the clicks' table allows.
const MOST_LATE_SECONDS: i64 = 5;

/// What happened in a minute.
#[derive(Debug, Default)]
struct Window {
    clicks: u64,
    /// Sessions that put something into their cart, and those that bought.
    carts: BTreeSet<i64>,
    bought: BTreeSet<i64>,
    revenue: f64,
}

impl Expected {
    pub(crate) async fn compute(cluster: &Client) -> Result<Expected> {
        let mut expected = Expected::default();
        for partition in 0..PARTITIONS {
            let mut newest = None;
            read(cluster, "clicks", partition, &mut 0, |click| {
                let click = Click::of(&click)?;
                newest = newest.max(Some(click.at));
                let behind = newest.map(|newest| newest - click.at);
                let allowed = TimeDelta::seconds(MOST_LATE_SECONDS);
                expected.has_late_ones |= behind > Some(allowed);
                expected.count(&click);
                Ok(())
            })
            .await?;
        }
        Ok(expected)
    }

    fn count(&mut self, click: &Click) {
        self.clicks += 1;
        let purchase = Purchase::of(click);
        let last = click.at.and_utc().timestamp().div_euclid(10);
        for start in last - WINDOWS_PER_CLICK + 1..=last {
            let window = self.windows.entry(start).or_default();
            window.clicks += 1;
            if click.action == "add_to_cart" {
                window.carts.insert(click.session);
            }
            if let Some(purchase) = purchase {
                window.bought.insert(click.session);
                window.revenue += purchase.revenue;
            }
        }
        if let Some(purchase) = purchase {
            let sold = self.products.entry(purchase.product).or_default();
            *sold = (sold.0 + purchase.quantity, sold.1 + purchase.revenue);
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
        let found = self.clicks;
        ensure!(
            found == written,
            "{written} clicks were written, the topic has {found}"
        );
        let late = late_clicks(cluster).await?;
        let windows = match self.has_late_ones {
            false => {
                ensure!(late == 0, "{late} clicks were called late, and none was");
                self.check_windows(shown)?
            }
            true => self.check_total(shown, late)?,
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
                && window["abandoned"]
                    == json!(expected.carts.difference(&expected.bought).count())
                && window["bought"] == json!(expected.bought.len())
                && close(window["revenue"].as_f64().unwrap_or(0.0), expected.revenue);
            ensure!(
                same,
                "the window {start} is {window}, and should be {expected:?}"
            );
        }
        Ok(format!("{} windows", self.windows.len()))
    }

    /// Which clicks are late for which windows depends on what was read before them: only that each is in a
    /// window or was called late, and in none twice, is sure.
    fn check_total(&self, shown: &Shown, late: u64) -> Result<String> {
        let counted = |window: &Value| window["clicks"].as_u64().unwrap_or(0);
        let found: u64 = shown.windows.values().map(counted).sum();
        let in_time = self.clicks.saturating_sub(late);
        let most = in_time * WINDOWS_PER_CLICK.unsigned_abs();
        ensure!(
            (in_time..=most).contains(&found),
            "{found} clicks are in windows and {late} were late, of {}",
            self.clicks
        );
        say(&format!(
            "\n{late} clicks were so late that they are in no window, but in the topic \
             \"windows.dead-letters\".\n"
        ))?;
        Ok(format!("the number of {} clicks", self.clicks))
    }
}

/// What a click sold, if it did.
#[derive(Clone, Copy, Debug)]
struct Purchase {
    product: i64,
    quantity: i64,
    revenue: f64,
}

impl Purchase {
    fn of(click: &Click) -> Option<Purchase> {
        let (product, price, quantity) = (click.product?, click.price?, click.quantity?);
        #[expect(clippy::cast_precision_loss, reason = "quantities are small")]
        let revenue = price * quantity as f64;
        (click.action == "purchase").then_some(Purchase {
            product,
            quantity,
            revenue,
        })
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

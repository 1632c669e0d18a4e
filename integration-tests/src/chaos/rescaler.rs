//! Has jobs divided into more or fewer tasks again and again, while processes are killed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::client::ClientError;
use common::error::ErrorCode;
use common::random::{Random, below, seeded};
use serde_json::{Value, json};

use super::jobs::{JOBS, PARALLELISM};
use super::nodes::{Nodes, may_pass};
use super::progress::Progress;

/// Between two wishes, at least and at most.
const PAUSE_MS: (u64, u64) = (1_000, 6_000);
const LOOK: Duration = Duration::from_millis(100);
/// What has not come about by then is wished otherwise.
const PATIENCE_LOOKS: u32 = 300;

/// Goes on until the input ends; answers how many changes did not come about in time. Blocks.
pub fn rescale(seed: u64, addresses: &[String], progress: &Arc<Progress>) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let nodes = Nodes::new(addresses)?;
        let mut random = seeded(seed, 4_000);
        let mut overtaken = 0;
        let mut wanted = [PARALLELISM; JOBS.len()];
        while !progress.input_ends() {
            let pause = PAUSE_MS.0 + below(&mut random, PAUSE_MS.1 - PAUSE_MS.0);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let which = usize::from(below(&mut random, 2) == 1);
            // Another one than before.
            let others = u64::from(PARALLELISM) - 1;
            let step = 1 + u32::try_from(below(&mut random, others)).expect("it is small");
            wanted[which] = (wanted[which] - 1 + step) % PARALLELISM + 1;
            let came_about = change(&nodes, &mut random, JOBS[which], wanted[which], progress);
            match came_about.await? {
                true => progress.has_rescaled(),
                false => overtaken += 1,
            }
        }
        Ok(overtaken)
    })
}

/// Whether it came about in time.
async fn change(
    nodes: &Nodes,
    random: &mut Random,
    job: &str,
    parallelism: u32,
    progress: &Progress,
) -> Result<bool> {
    let wish = json!({ "parallelism": parallelism });
    let path = format!("/v1/jobs/{job}/rescale");
    let mut accepted = false;
    for _ in 0..PATIENCE_LOOKS {
        if progress.input_ends() {
            return Ok(false);
        }
        let client = nodes.any(random);
        let answered = match accepted {
            false => client.post::<Value>(&path, &wish).await,
            true => client.job(job).await,
        };
        match answered {
            Ok(described) => {
                // A change that was given up is gone; then it is wished again.
                let none_under_way = described.get("rescaling").is_none();
                if none_under_way && described["parallelism"] == parallelism {
                    return Ok(true);
                }
                accepted = !none_under_way;
            }
            // Another coordinator has just done what this one was asked for, and lost the answer.
            Err(error) if is_divided_meanwhile(&error) => {}
            Err(error) => ensure!(may_pass(&error), "rescaling {job}: {error}"),
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(false)
}

/// Of all conflicts this one only: the others are mistakes.
fn is_divided_meanwhile(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::Conflict)
        && error
            .to_string()
            .contains("was divided into tasks in another way meanwhile")
}

//! What the endpoints of jobs share: finding a job by its name, and describing it.

use std::sync::Arc;

use actix_web::web;

use common::error::{ErrorCode, Problem};
use common::ids::JobName;
use common::protocol::job::CreateJob;

use super::State;
use crate::controller::topics::nearest;
use crate::job::creation;
use crate::job::describe::JobDescription;
use crate::metadata::jobs::JobRow;
use crate::planner::{PlanContext, PlannedJob};

pub(super) fn find(state: &State, name: &str) -> Result<Arc<JobRow>, Problem> {
    state.controller.view().read(|metadata| {
        let known = name.parse::<JobName>().ok();
        let found = known.and_then(|name| metadata.job_named(&name).cloned());
        found.ok_or_else(|| {
            let names = metadata.jobs_by_name().map(|row| row.name.as_str());
            unknown_job(name, names)
        })
    })
}

/// What a definition is in the cluster as it is now, with what of it that depends on. Off the arbiters: it may take long.
pub(super) async fn plan(
    state: &State,
    spec: CreateJob,
) -> Result<(CreateJob, PlanContext, PlannedJob), Problem> {
    let context = state
        .controller
        .view()
        .read(|metadata| creation::plan_context(metadata, Some(&spec.name)));
    let planning = web::block(move || {
        let planned = creation::plan(&spec, &context)?;
        Ok((spec, context, planned))
    });
    planning
        .await
        .map_err(|_| Problem::new(ErrorCode::ShuttingDown, "the coordinator is stopping"))?
}

/// The job as it is now. Its tasks are told of as far as they have been heard of.
pub(super) async fn describe(state: &State, row: &JobRow) -> JobDescription {
    // A job that has just been created may have no actor yet, and nothing has been heard of it.
    let observed = state.jobs.observe(row.id).await.unwrap_or_default();
    JobDescription::of(row, &observed)
}

fn unknown_job<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Problem {
    let problem = Problem::new(ErrorCode::UnknownJob, format!("there is no job \"{name}\""));
    match nearest(name, names) {
        Some(known) => problem.hint(format!("Did you mean \"{known}\"?")),
        None => problem.hint("GET /v1/jobs lists those there are."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_job_is_answered_with_the_nearest_name() {
        let names = ["bids-per-auction", "fraud"];
        let problem = unknown_job("bids-per-acution", names.into_iter());
        assert_eq!(problem.code, ErrorCode::UnknownJob);
        assert_eq!(problem.hint, "Did you mean \"bids-per-auction\"?");
        let problem = unknown_job("zzz", names.into_iter());
        assert_eq!(problem.hint, "GET /v1/jobs lists those there are.");
    }
}

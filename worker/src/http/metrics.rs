//! Prometheus text.

use std::sync::PoisonError;

use actix_web::HttpResponse;
use actix_web::web::Data;
use common::error::Problem;
use futures_util::future::join_all;

use super::{Composed, Routes, parts};
use crate::metrics::{PartitionLabels, PartitionNumbers, TaskLabels};

pub async fn metrics(composed: Data<Composed>) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let partitions = partitions(&routes).await;
    let load = *routes.load.lock().unwrap_or_else(PoisonError::into_inner);
    let image = routes.image.borrow().clone();
    let tasks: Vec<_> = routes
        .reports
        .all()
        .into_iter()
        .map(|report| {
            let job = image.jobs.get(&report.job);
            let labels = TaskLabels {
                job: job.map_or_else(|| report.job.to_string(), |job| job.name.to_string()),
                task: report.task.to_string(),
            };
            (labels, report.metrics)
        })
        .collect();
    let text = routes.metrics.text(&load, &partitions, &tasks);
    Ok(HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(text))
}

/// Of the partitions led here; one that is being closed is left out.
async fn partitions(routes: &Routes) -> Vec<PartitionNumbers> {
    let image = routes.image.borrow().clone();
    let numbers = routes.partitions.all().into_iter().map(|(id, handle)| {
        let topic = image
            .topics
            .get(&id.topic)
            .map(|topic| topic.name.to_string());
        async move {
            let offsets = handle.offsets(None).await.ok()?;
            Some(PartitionNumbers {
                labels: PartitionLabels {
                    topic: topic?,
                    partition: id.partition.0,
                },
                start: offsets.log_start_offset.0,
                end: offsets.committed_offset.0,
                stable: offsets.last_stable_offset.0,
            })
        }
    });
    join_all(numbers).await.into_iter().flatten().collect()
}

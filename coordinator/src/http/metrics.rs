//! Prometheus text.

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::gate::Gate;

#[utoipa::path(
    get,
    path = "/metrics",
    tag = "health",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
pub(crate) async fn metrics(gate: Data<Gate>) -> HttpResponse {
    let group = gate.group.status();
    let view = gate.group.view();
    let reign = gate.reign.borrow().clone();
    let rebalance = reign.map(|state| state.rebalance.status());
    let text = view.read(|metadata| gate.metrics.text(metadata, &group, rebalance.as_ref()));
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(text)
}

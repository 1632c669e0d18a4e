//! Prometheus text.

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::State;

#[utoipa::path(
    get,
    path = "/metrics",
    tag = "health",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
pub(crate) async fn metrics(state: Data<State>) -> HttpResponse {
    let text = state
        .controller
        .view()
        .read(|metadata| state.metrics.text(metadata));
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(text)
}

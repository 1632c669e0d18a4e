//! What all of it is: `/openapi.json` for programs, `/docs` for people. Neither needs a network.

use actix_web::HttpResponse;
use actix_web::web::Json;
use utoipa::OpenApi;

use super::Api;

const PAGE: &str = include_str!("docs.html");

pub(crate) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}

pub(crate) async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body(PAGE)
}

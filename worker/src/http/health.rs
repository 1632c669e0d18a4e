//! Alive, and ready for work.

use actix_web::{HttpResponse, web};

use super::Composed;

pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({"status": "live"}))
}

pub async fn ready(composed: web::Data<Composed>) -> HttpResponse {
    match composed.get() {
        Some(_) => HttpResponse::Ok().json(serde_json::json!({"status": "ready"})),
        None => HttpResponse::ServiceUnavailable().json(serde_json::json!({"status": "starting"})),
    }
}

//! What a worker says of itself to probes: it lives, and whether to send it questions.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::presence::Standing;
use super::telemetry::Telemetry;
use crate::front::wants_text;
use crate::seam::WallClock;
use crate::wall::rfc3339;

const CLOSED: &str = "starting or draining";
const NO_BACKEND: &str = "the backend does not answer";

/// Alive as long as it answers: what a restart cannot heal is no reason for one. The same page as the worker in Python has.
pub(super) async fn health(State(told): State<Telemetry>, headers: HeaderMap) -> Response {
    if wants_text(&headers) {
        return "ok".into_response();
    }
    let (closed, answers, standing) = state(&told);
    let healthy = !closed && answers;
    let known = matches!(standing, Standing::None | Standing::Known);
    let page = json!({
        "status": if healthy && known { "ok" } else { "degraded" },
        "healthy": healthy,
        "service": "worker",
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": rfc3339(WallClock::System.now()),
        "checks": {
            "backend": if answers { "ok" } else { NO_BACKEND },
            "admission": if closed { CLOSED } else { "ok" },
            "registry": standing.to_string(),
        },
    });
    Json(page).into_response()
}

/// A registry that is away keeps nobody who knows the way from asking.
pub(super) async fn ready(State(told): State<Telemetry>) -> impl IntoResponse {
    match state(&told) {
        (true, _, _) => (StatusCode::SERVICE_UNAVAILABLE, CLOSED),
        (false, false, _) => (StatusCode::SERVICE_UNAVAILABLE, NO_BACKEND),
        (false, true, _) => (StatusCode::OK, "ready"),
    }
}

/// Whether nobody is let in, whether the backend answers, and what the registry knows.
fn state(told: &Telemetry) -> (bool, bool, Standing) {
    let answers = *told.backend_readiness().borrow();
    (told.is_closed(), answers, told.standing())
}

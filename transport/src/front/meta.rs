//! What can be asked about the gateway itself: its models, its health, its figures.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::auth::Caller;
use super::error::{self, ApiError};
use super::{Shared, admit, exposition, head};
use crate::exchange::{Chat, Checks, Model};
use crate::trace::Trace;

type Front<C> = State<Arc<Shared<C>>>;
type Answer = Result<Json<Value>, ApiError>;

/// `GET /v1/models`: those that the caller may use.
pub(super) async fn models<C: Chat>(State(shared): Front<C>, headers: HeaderMap) -> Answer {
    list(&shared, &headers, plain).await
}

/// `GET /api/v1/models`: the same with provider and prices.
pub(super) async fn priced_models<C: Chat>(State(shared): Front<C>, headers: HeaderMap) -> Answer {
    list(&shared, &headers, priced).await
}

/// `GET /v1/models/{id}`
pub(super) async fn model<C: Chat>(
    State(shared): Front<C>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Answer {
    one(&shared, name, &headers, plain).await
}

/// `GET /api/v1/models/{id}`
pub(super) async fn priced_model<C: Chat>(
    State(shared): Front<C>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Answer {
    one(&shared, name, &headers, priced).await
}

/// `GET /health`: 200 while the process lives. Restarting a gateway heals no replica, so what is wrong is said and
/// does not fail the probe.
pub(super) async fn health<C: Chat>(State(shared): Front<C>, headers: HeaderMap) -> Response {
    told_health(|| shared.chat.checks(), &headers)
}

/// `GET /health`.
pub(super) fn told_health(checks: impl FnOnce() -> Checks, headers: &HeaderMap) -> Response {
    if wants_text(headers) {
        return "ok".into_response();
    }
    let checks = checks();
    let healthy = checks.parts.iter().all(|(_, healthy, _)| *healthy);
    let parts: Map<String, Value> = checks
        .parts
        .into_iter()
        .map(|(name, healthy, detail)| (name, json!({"healthy": healthy, "detail": detail})))
        .collect();
    Json(json!({
        "status": if healthy { "healthy" } else { "degraded" },
        "healthy": healthy,
        "service": "pointsman",
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": unix_seconds(),
        "checks": parts,
    }))
    .into_response()
}

/// `GET /ready`: whether to send requests here.
pub(super) async fn ready<C: Chat>(State(shared): Front<C>, headers: HeaderMap) -> Response {
    told_ready(&shared.chat.checks(), &headers)
}

/// `GET /ready`.
pub(super) fn told_ready(checks: &Checks, headers: &HeaderMap) -> Response {
    let status = if checks.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if checks.ready { "ready" } else { "not ready" };
    let reasons = reasons(checks);
    if wants_text(headers) {
        let lines = if checks.ready { word.to_owned() } else { reasons.join("\n") };
        return (status, lines).into_response();
    }
    (status, Json(json!({"status": word, "ready": checks.ready, "reasons": reasons})))
        .into_response()
}

/// `GET /metrics`
pub(super) async fn metrics<C: Chat>(State(shared): Front<C>) -> Response {
    let streams = exposition::text(shared.streams.registry(), &shared.chat.metrics());
    let text = shared.meters.exposition(&streams);
    ([(CONTENT_TYPE, HeaderValue::from_static(exposition::CONTENT_TYPE))], text).into_response()
}

async fn caller<C: Chat>(shared: &Shared<C>, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let bearer = head::bearer(headers)?;
    Ok(shared.auth.authenticate(bearer.as_deref(), None, &Trace::default()).await?)
}

async fn list<C: Chat>(
    shared: &Shared<C>,
    headers: &HeaderMap,
    show: fn(&Model) -> Value,
) -> Answer {
    let caller = caller(shared, headers).await?;
    let models = shared.chat.models();
    let shown: Vec<Value> =
        models.iter().filter(|model| caller.may_use(&model.name)).map(show).collect();
    Ok(Json(json!({"object": "list", "data": shown})))
}

async fn one<C: Chat>(
    shared: &Shared<C>,
    name: Result<Path<String>, PathRejection>,
    headers: &HeaderMap,
    show: fn(&Model) -> Value,
) -> Answer {
    let caller = caller(shared, headers).await?;
    let Path(name) = name.map_err(|_| {
        let words =
            "The model's name in the path is not UTF-8. Encode it as UTF-8 with percent signs.";
        error::invalid("invalid_value", words).param("model")
    })?;
    let models = shared.chat.models();
    admit::find(&models, &name, &caller).map(|model| Json(show(model)))
}

fn plain(model: &Model) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.provider,
    })
}

/// Prices are USD per 1,000,000 tokens.
fn priced(model: &Model) -> Value {
    let mut shown = plain(model);
    shown["provider"] = json!(model.provider);
    if let Some((input, output)) = model.price {
        shown["input_price"] = json!(input);
        shown["output_price"] = json!(output);
    }
    shown
}

/// What stands in the way, where something does.
fn reasons(checks: &Checks) -> Vec<String> {
    if checks.ready {
        return Vec::new();
    }
    let mut all: Vec<String> = checks
        .parts
        .iter()
        .filter(|(_, healthy, _)| !healthy)
        .map(|(name, _, detail)| format!("{name}: {detail}"))
        .collect();
    if all.is_empty() {
        all.push("starting or draining".to_owned());
    }
    all
}

/// Only who names plain text and no JSON: `*/*` gets the JSON that the contract states.
pub(crate) fn wants_text(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    accept.contains("text/plain") && !accept.contains("json")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

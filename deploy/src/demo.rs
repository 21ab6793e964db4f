//! A replica to try things with: OpenAI-compatible, without a model, without weights, with every known way to fail.
//!
//! The gateway's own first run needs replicas, and so do its tests and whoever wants to see a failover with their own
//! eyes. A real small model would need a download and seconds per answer; a canned answer would show neither cadence nor
//! usage. So this writes sentences about itself and the prompt, one token at a time, at a real model's pace. What it
//! writes depends on the prompt and the seed alone; what fails depends on the seed and how many requests came before.
//!
//! It knows nothing of the control plane.

mod args;
mod embeddings;
mod faults;
mod pace;
mod text;
mod wire;

use core::future::Future;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use args::{DemoReplicaArgs, parse_duration};

/// How a demo replica behaves. The default is a healthy one.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The models it serves. Asked for another, it answers 404 `model_not_found`.
    pub models: Vec<String>,
    /// To the first token.
    pub ttft: Duration,
    /// From one token to the next.
    pub gap: Duration,
    /// How many tokens an answer has, unless the request wants fewer.
    pub tokens: u64,
    /// The share of requests answered with 500, 0 to 1.
    pub fail_rate: f64,
    /// The connection breaks after this many tokens.
    pub die_after: Option<u64>,
    /// With `die_after`: the process exits instead, as after SIGKILL.
    pub exit_on_death: bool,
    /// The share of requests that are accepted and never answered.
    pub hang_rate: f64,
    /// A stream stalls for good after this many tokens.
    pub stall_after: Option<u64>,
    /// The share of requests answered with 200 and garbage.
    pub garbage_rate: f64,
    /// The share of requests whose answer turns into an error object half-way.
    pub error_in_stream_rate: f64,
    /// Usage is never reported.
    pub no_usage: bool,
    /// A stream ends without `[DONE]`, and without a reason to finish.
    pub no_done: bool,
    /// Every request for an answer gets this status.
    pub status: Option<u16>,
    /// The key that callers must present; else 401.
    pub key: Option<String>,
    /// What chance is drawn from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            models: vec!["demo".to_owned()],
            ttft: Duration::from_millis(50),
            gap: Duration::from_millis(10),
            tokens: 64,
            fail_rate: 0.0,
            die_after: None,
            exit_on_death: false,
            hang_rate: 0.0,
            stall_after: None,
            garbage_rate: 0.0,
            error_in_stream_rate: 0.0,
            no_usage: false,
            no_done: false,
            status: None,
            key: None,
            seed: 0,
        }
    }
}

/// Serves until `shutdown` resolves; running answers then have [`GRACE`] to finish.
///
/// # Errors
/// What the socket's accept loop reports.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stop, mut stopped) = watch::channel(false);
    let listener = listener.tap_io(|socket| {
        // Tokens are small and each must leave at once. Failing to say so costs latency only.
        let _ = socket.set_nodelay(true);
    });
    let server = axum::serve(listener, router(options)).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let expired = async move {
        shutdown.await;
        let _ = stop.send(true);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = expired => Ok(()),
    }
}

/// How long running answers may go on after a shutdown. A replica made to hang or stall would otherwise never end.
pub const GRACE: Duration = Duration::from_secs(2);

/// One replica's state: how it behaves, and how many requests it has had.
struct Replica {
    options: Options,
    requests: AtomicU64,
    started: u64,
}

impl Replica {
    /// The number of a new request, from 0.
    fn number(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.options.key else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.and_then(|given| given.strip_prefix("Bearer ")) == Some(key)
    }

    /// What forbids any answer: the key, the forced status, the model.
    fn refuses(&self, headers: &HeaderMap, model: Option<&str>) -> Option<Response> {
        if !self.admits(headers) {
            let message = "Incorrect API key provided";
            let code = Some("invalid_api_key");
            return Some(refusal(StatusCode::UNAUTHORIZED, message, "invalid_request_error", code));
        }
        if let Some(status) = self.options.status {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Some(refusal(status, "this status was asked for", "demo_error", None));
        }
        let Some(model) = model else {
            let message = "you must provide a model parameter";
            return Some(bad_request(message));
        };
        if !self.options.models.iter().any(|known| known == model) {
            let message = format!("The model `{model}` does not exist");
            let code = Some("model_not_found");
            return Some(refusal(StatusCode::NOT_FOUND, &message, "invalid_request_error", code));
        }
        None
    }
}

fn router(options: Options) -> Router {
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let replica = Arc::new(Replica { options, requests: AtomicU64::new(0), started });
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embed))
        .route("/v1/models", get(models))
        .route("/health", get(|| async { "ok" }))
        .fallback(|| async {
            refusal(StatusCode::NOT_FOUND, "no such path", "invalid_request_error", None)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(replica)
}

/// The largest request accepted: above a long context window's text, below what would hurt a laptop.
const BODY_BYTES_MAX: usize = 32 << 20;

async fn chat(State(replica): State<Arc<Replica>>, headers: HeaderMap, body: Bytes) -> Response {
    let ask = match wire::ChatAsk::read(&body) {
        Ok(ask) => ask,
        Err(why) => return bad_request(&why),
    };
    if let Some(refusal) = replica.refuses(&headers, ask.model.as_deref()) {
        return refusal;
    }
    let number = replica.number();
    match faults::draw(&replica.options, number) {
        faults::Fate::Hang => core::future::pending().await,
        faults::Fate::Fail => {
            let message = "the demo replica was told to fail";
            refusal(StatusCode::INTERNAL_SERVER_ERROR, message, "server_error", None)
        }
        faults::Fate::Garbage => faults::garbage(ask.streams()),
        faults::Fate::Answer { error_at } => {
            let answer =
                wire::ChatAnswer::new(&replica.options, &ask, &body, number, replica.started);
            pace::answer(replica.options.clone(), ask, answer, error_at).await
        }
    }
}

async fn embed(State(replica): State<Arc<Replica>>, headers: HeaderMap, body: Bytes) -> Response {
    let ask = match embeddings::Ask::read(&body) {
        Ok(ask) => ask,
        Err(why) => return bad_request(&why),
    };
    if let Some(refusal) = replica.refuses(&headers, ask.model.as_deref()) {
        return refusal;
    }
    tokio::time::sleep(replica.options.ttft).await;
    Json(ask.answer(transport::tokens::estimate_prompt(&body), replica.options.no_usage))
        .into_response()
}

async fn models(State(replica): State<Arc<Replica>>, headers: HeaderMap) -> Response {
    if !replica.admits(&headers) {
        let message = "Incorrect API key provided";
        let code = Some("invalid_api_key");
        return refusal(StatusCode::UNAUTHORIZED, message, "invalid_request_error", code);
    }
    let entry = |id: &String| json!({"id": id, "object": "model", "created": replica.started, "owned_by": "pointsman-demo"});
    let data: Vec<_> = replica.options.models.iter().map(entry).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

fn bad_request(message: &str) -> Response {
    refusal(StatusCode::BAD_REQUEST, message, "invalid_request_error", None)
}

/// An error as OpenAI words it.
fn refusal(status: StatusCode, message: &str, kind: &str, code: Option<&str>) -> Response {
    let error = json!({"message": message, "type": kind, "param": null, "code": code});
    (status, Json(json!({"error": error}))).into_response()
}

#[cfg(test)]
mod tests;

//! Which path is which.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};

use super::answer::{ATTEMPTS, REPLICA, REQUEST_ID, answer};
use super::{Shared, error, meta, resumable, sessions, unknown};
use crate::exchange::{Chat, Operation};

/// All routes, each answer stamped with its ids.
pub(super) fn router<C: Chat>(shared: Arc<Shared<C>>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::<C>))
        .route("/api/v1/chat/completions", post(stored_chat::<C>))
        .route("/api/v1/sessions", get(sessions::list::<C>))
        .route("/api/v1/sessions/{id}", get(sessions::one::<C>).delete(sessions::clear::<C>))
        .route("/api/v1/sessions/{id}/messages", get(sessions::messages::<C>))
        .route("/history", get(sessions::history::<C>))
        .route("/v1/embeddings", post(embed::<C>))
        .route("/api/v1/embeddings", post(embed::<C>))
        .route("/v1/streams/{id}", get(resumable::resume::<C>))
        .route("/v1/models", get(meta::models::<C>))
        .route("/api/v1/models", get(meta::priced_models::<C>))
        // Names of models may hold slashes.
        .route("/v1/models/{*name}", get(meta::model::<C>))
        .route("/api/v1/models/{*name}", get(meta::priced_model::<C>))
        .route("/health", get(meta::health::<C>))
        .route("/ready", get(meta::ready::<C>))
        .route("/metrics", get(meta::metrics::<C>))
        .fallback(unknown::unknown)
        .method_not_allowed_fallback(unknown::wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), stamp::<C>))
        .with_state(shared)
}

/// Only what can be asked about the gateway itself, its figures where it is `measured`: for a port that clients do not reach.
pub(super) fn meta_router<C: Chat>(shared: Arc<Shared<C>>, measured: bool) -> Router {
    let mut router = Router::new()
        .route("/health", get(meta::health::<C>))
        .route("/ready", get(meta::ready::<C>));
    if measured {
        router = router.route("/metrics", get(meta::metrics::<C>));
    }
    router.fallback(unknown::unknown).with_state(shared)
}

async fn chat<C: Chat>(State(shared): State<Arc<Shared<C>>>, request: Request) -> Response {
    answer(shared, (Operation::ChatCompletions, false), request).await
}

async fn stored_chat<C: Chat>(State(shared): State<Arc<Shared<C>>>, request: Request) -> Response {
    answer(shared, (Operation::ChatCompletions, true), request).await
}

async fn embed<C: Chat>(State(shared): State<Arc<Shared<C>>>, request: Request) -> Response {
    answer(shared, (Operation::Embeddings, false), request).await
}

/// Every answer carries an id, a replica and a number of attempts; and a bug in a handler is a 500 of the same shape,
/// not a connection that just closes.
async fn stamp<C: Chat>(
    State(shared): State<Arc<Shared<C>>>,
    request: Request,
    next: Next,
) -> Response {
    let outcome = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = outcome.unwrap_or_else(|_| {
        let words =
            "The gateway met a bug of its own. Try again, and tell its operator the x-request-id.";
        error::new(StatusCode::INTERNAL_SERVER_ERROR, error::SERVER, "internal_error", words)
            .into_response()
    });
    let headers = response.headers_mut();
    if !headers.contains_key(&REQUEST_ID) {
        let id = HeaderValue::from_str(&shared.ids.mint());
        headers.insert(REQUEST_ID, id.unwrap_or(HeaderValue::from_static("none")));
    }
    headers.entry(REPLICA).or_insert(HeaderValue::from_static("none"));
    headers.entry(ATTEMPTS).or_insert(HeaderValue::from_static("0"));
    response
}

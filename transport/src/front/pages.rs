//! `/health`, `/ready` and `/metrics` of a role without a front, in the words of those that have one.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::{exposition, meta, unknown};
use crate::exchange::Checks;

/// Whoever has something to tell.
pub(crate) trait Page: Send + Sync + 'static {
    /// How it is.
    fn checks(&self) -> Checks;
    /// Its figures, in the text format.
    fn metrics(&self) -> String;
}

/// The pages; that of the figures where it is `measured`.
pub(crate) fn pages<P: Page>(page: Arc<P>, measured: bool) -> Router {
    let mut router =
        Router::new().route("/health", get(health::<P>)).route("/ready", get(ready::<P>));
    if measured {
        router = router.route("/metrics", get(metrics::<P>));
    }
    router.fallback(unknown::unknown).with_state(page)
}

async fn health<P: Page>(State(page): State<Arc<P>>, headers: HeaderMap) -> Response {
    meta::told_health(|| page.checks(), &headers)
}

async fn ready<P: Page>(State(page): State<Arc<P>>, headers: HeaderMap) -> Response {
    meta::told_ready(&page.checks(), &headers)
}

async fn metrics<P: Page>(State(page): State<Arc<P>>) -> Response {
    ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], page.metrics()).into_response()
}

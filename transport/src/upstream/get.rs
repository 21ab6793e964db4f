//! Plain calls of an HTTP API: a service registry, a metrics page.

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, Request, Uri};
use http_body_util::Full;

use super::connect::Client;
use super::failed::{self, Failed};
use super::target::Target;
use super::{Limits, bare_request, whole};

/// What was answered, with a status of success.
#[derive(Clone, Debug)]
pub struct Got {
    /// Its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

impl Client {
    /// Gets `path` (with its query) below `target`. `limits.whole_answer` bounds the wait for the head, `deadline` all of it,
    /// `answer_bytes_max` the body.
    ///
    /// # Errors
    /// [`Failed`], with what the endpoint said where it refused.
    pub async fn get(&self, target: &Target, path: &str, limits: Limits) -> Result<Got, Failed> {
        self.fetch(target, target.base_url.join(path), limits).await
    }

    /// The page at `/metrics` of the server that `target` is on, as inference servers have one.
    ///
    /// # Errors
    /// [`Failed`], above all where there is none.
    pub(crate) async fn figures(&self, target: &Target, limits: Limits) -> Result<Bytes, Failed> {
        let got = self.fetch(target, target.base_url.at("/metrics"), limits).await?;
        Ok(got.body)
    }

    /// Puts `body` at `path` below `target`. Limits as for [`Client::get`].
    pub(crate) async fn put(
        &self,
        target: &Target,
        path: &str,
        body: Bytes,
        limits: Limits,
    ) -> Result<Got, Failed> {
        let uri = target.base_url.join(path);
        let request = bare_request(target, Method::PUT, uri, body, HeaderMap::new())?;
        self.perform(target, request, limits).await
    }

    pub(super) async fn fetch(
        &self,
        target: &Target,
        uri: Result<Uri, http::Error>,
        limits: Limits,
    ) -> Result<Got, Failed> {
        let request = bare_request(target, Method::GET, uri, Bytes::new(), HeaderMap::new())?;
        self.perform(target, request, limits).await
    }

    async fn perform(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
        limits: Limits,
    ) -> Result<Got, Failed> {
        let response = self.exchange(target, request, limits.whole_answer, &limits).await?;
        if !response.status().is_success() {
            return Err(failed::refused(response, limits.deadline).await);
        }
        let (head, body) = response.into_parts();
        let body = whole::collect(body, &limits).await?;
        Ok(Got { headers: head.headers, body })
    }
}

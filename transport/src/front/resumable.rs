//! Resumable streams over HTTP: how one is asked for, and how it is resumed.
//!
//! A header asks, not a field of the body: SDKs can set it once for a client, it reaches no replica, and a request stays the
//! same request whether or not its stream may be resumed. An answer that does not stream has no use for it.
//!
//! `GET /v1/streams/{id}` is what a browser's `EventSource` and its kind do by themselves: the same address again, with
//! `Last-Event-ID`. Where both that header and the query's `last_event_id` come, the header counts, because those clients
//! repeat the query they began with.
//!
//! **At the edge** the chat role keeps a stream, because a gateway's death is to cost its client nothing: there the events are
//! numbered, and here they pass as they are. A stream that is neither here nor in a shared log is asked for there. A chat role
//! of an earlier version keeps none; then the place that was found here is taken.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use control::id::RequestId;
use control::plane::Outcome;
use control::units::Usage;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tokio::sync::mpsc::Receiver;

use super::answer::{REQUEST_ID, be_events};
use super::error::{self, ApiError};
use super::record::Record;
use super::rpc::Called;
use super::{Shared, head, refusal, stream};
use crate::exchange::{Call, Chat, Part, Rest, ResumeCall, Why};
use crate::redis::StoreError;
use crate::streams::{
    Coming, Full, Last, Missed, Next, Place, Reach, Reader, Scribe, Streams, Used, Whose,
};
use crate::trace::Trace;
use crate::upstream::{Failed, STREAM_ID, Secret};

/// Asks for a resumable stream; in the answer, says where it can be resumed.
pub(super) const RESUMABLE: &str = "x-pointsman-resumable";

/// Longer than any id that is given out.
const ID_MAX: usize = 96;

/// When to ask again where something is about to change.
const SOON: Duration = Duration::from_secs(1);

/// A place for a call's stream, where its client wants one.
pub(super) struct OwnPlace {
    place: Place,
    whose: Whose,
}

/// Finds a place, before anything is spent.
pub(super) fn place(
    streams: &Arc<Streams>,
    parts: &Parts,
    call: &mut Call,
) -> Result<Option<OwnPlace>, ApiError> {
    let wanted = match head::single(&parts.headers, RESUMABLE)? {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("true") => true,
        Some(word) if word.eq_ignore_ascii_case("false") => false,
        Some(_) => {
            let words = format!("The header '{RESUMABLE}' must be true or false.");
            return Err(error::invalid("invalid_header", words).param(RESUMABLE));
        }
    };
    if !(wanted && call.stream) {
        return Ok(None);
    }
    // A gateway shows its caller's key here, where none is known: all its callers would be one, who may read every stream. It
    // keeps the stream itself, as before a role that keeps none.
    let is_called = parts.extensions.get::<Called>().is_some();
    let shows_key = call.principal.key.is_none() && head::bearer(&parts.headers)?.is_some();
    if is_called && shows_key && call.behalf.is_none() {
        return Ok(None);
    }
    if let Some(behalf) = &mut call.behalf {
        behalf.resumable = true;
        // Without a place here, only a chat role of an earlier version leaves the stream unkept.
        let place = streams.reserve().ok();
        return Ok(place.map(|place| OwnPlace { place, whose: Whose::from(&call.principal) }));
    }
    let place = streams.reserve().map_err(|Full| {
        let words = format!(
            "As many resumable streams run here as may. Try again shortly, or send the request without '{RESUMABLE}'."
        );
        error::new(StatusCode::SERVICE_UNAVAILABLE, error::SERVER, "streams_full", words)
            .retry_after(SOON)
    })?;
    Ok(Some(OwnPlace { place, whose: Whose::from(&call.principal) }))
}

/// Names a stream that the chat role keeps: every gateway asks there.
pub(super) fn name_kept(response: &mut Response, id: &str) {
    name(response, id, Reach::AnyGateway);
}

/// The same of one that is opened here. Returns where its bill is to be put.
pub(super) fn name_opened(response: &mut Response, id: &str) -> Bill {
    name_kept(response, id);
    let bill = Bill::default();
    response.extensions_mut().insert(bill.clone());
    bill
}

fn name(response: &mut Response, id: &str, reach: Reach) {
    let where_to = match reach {
        Reach::AnyGateway => "any-gateway",
        Reach::ThisGateway => "this-gateway",
    };
    let headers = response.headers_mut();
    headers.insert(RESUMABLE, HeaderValue::from_static(where_to));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(STREAM_ID, id);
    }
}

impl OwnPlace {
    /// Puts an answer's stream there. Returns when it is known where it can be resumed.
    pub(super) async fn open(
        self,
        request: RequestId,
        parts: Receiver<Part>,
        record: Record,
    ) -> Opened {
        let bill = Bill::default();
        let scribe = Box::new(Telling(record, bill.clone(), None));
        let mut reader = self.place.open(request, self.whose, parts, scribe);
        let reach = reader.reach().await;
        Opened { reader, reach, bill, behind: None }
    }
}

/// A stream with its reader, as it begins or goes on.
pub(super) struct Opened {
    reader: Reader,
    reach: Reach,
    bill: Bill,
    /// At the edge, of a stream that is read from the shared log.
    behind: Option<Behind>,
}

/// What a stream came to, known when its last event is written: for whoever tells it in other words than events.
#[derive(Clone, Debug, Default)]
pub(super) struct Bill(Arc<OnceLock<Usage>>);

impl Bill {
    /// Once: a stream ends once.
    pub(super) fn set(&self, usage: Usage) {
        let _ = self.0.set(usage);
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.0.get().copied()
    }
}

impl Opened {
    /// Becomes a response's body, and is named in its head.
    pub(super) fn answer(self, response: &mut Response) {
        name(response, self.reader.id(), self.reach);
        response.extensions_mut().insert(self.bill);
        let events = unfold(Some(Source::Log(self.reader, self.behind)), next);
        *response.body_mut() = Body::from_stream(events);
    }
}

/// Asks who runs a stream for the rest of it, from the last event that a reader of the shared log was given.
type Behind = Box<dyn FnOnce(u64, Coming) -> BoxFuture<'static, Result<Rest, Why>> + Send>;

fn behind<C: Chat>(shared: Arc<Shared<C>>, id: &str, key: Option<Secret>) -> Behind {
    let id = id.to_owned();
    Box::new(move |after, coming| {
        let call = ResumeCall { id, after, key, coming };
        async move { shared.chat.resume(call).await }.boxed()
    })
}

/// Where a reader's events come from.
enum Source {
    Log(Reader, Option<Behind>),
    Kept(BoxStream<'static, Result<Bytes, Failed>>),
}

/// What comes next, and from where what follows it.
async fn next(source: Option<Source>) -> Option<(Result<Bytes, Infallible>, Option<Source>)> {
    let (bytes, source) = match source? {
        Source::Log(mut reader, behind) => match reader.next().await {
            Next::Bytes(bytes) => (bytes, Some(Source::Log(reader, behind))),
            Next::Over => return None,
            cut @ (Next::TakenOver | Next::Gone(_)) => (last_words(&cut), None),
            cut @ (Next::Lost | Next::Unreachable) => go_on(cut, &reader, behind).await?,
        },
        Source::Kept(mut events) => (told(events.next().await?), Some(Source::Kept(events))),
    };
    Some((Ok(bytes), source))
}

/// The log is silent, which is no proof: who runs the stream may not reach it. They have all of it, and are asked before anybody
/// is told that they are gone.
async fn go_on(
    cut: Next,
    reader: &Reader,
    behind: Option<Behind>,
) -> Option<(Bytes, Option<Source>)> {
    let asked = match reader.place().zip(behind) {
        Some(((after, reader), behind)) => {
            // A log that cannot be read from here may be read by others.
            let kept_here = cut == Next::Lost;
            behind(after, Coming { kept_here, reader }).await
        }
        None => Ok(Rest::Unknown),
    };
    match asked {
        Ok(Rest::Events(mut events)) => {
            tracing::info!("a stream whose log is silent goes on from who runs it");
            Some((told(events.next().await?), Some(Source::Kept(events))))
        }
        Ok(Rest::Complete) => None,
        Ok(Rest::Unknown | Rest::Away) => Some((last_words(&cut), None)),
        Err(why) => Some((said(&refusal::of_why(why, 0)), None)),
    }
}

/// Why a reader is cut off. Without an id: it is no event of the stream, and whoever resumes resumes from the last that was.
fn last_words(cut: &Next) -> Bytes {
    let server = |status, code, words: String| error::new(status, error::SERVER, code, words);
    let error = match cut {
        Next::TakenOver => {
            let words = "Another connection has resumed this stream; it goes on there.";
            error::new(StatusCode::CONFLICT, error::INVALID, "stream_taken_over", words)
        }
        Next::Gone(first) => server(
            StatusCode::GONE,
            "stream_events_gone",
            format!("This connection was too slow: events before {first} are no longer kept."),
        ),
        Next::Unreachable => server(
            StatusCode::SERVICE_UNAVAILABLE,
            "stream_log_unavailable",
            "The log of streams does not answer. Resume from the last id that arrived, shortly.".to_owned(),
        ),
        Next::Bytes(_) | Next::Over | Next::Lost => server(
            StatusCode::BAD_GATEWAY,
            "stream_gateway_lost",
            "The process that ran this answer gives no sign of life. What arrived is all that is known of it; send the request \
             again."
                .to_owned(),
        ),
    };
    said(&error)
}

fn said(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error.line()))
}

/// Writes the request's log line and the stream's last event.
struct Telling(Record, Bill, Option<Used>);

impl Scribe for Telling {
    fn used(&self) -> Option<Used> {
        self.2
    }

    fn end(&mut self, last: &Last) -> Option<String> {
        let unfinished = |status, code, words: &'static str| {
            // The record ends as that of a client that left, with what was generated.
            error::new(status, error::SERVER, code, words)
        };
        let told = match last {
            Last::End(end) | Last::Unrecorded(end) => Some(end),
            Last::Lost | Last::Abandoned | Last::Stopped => None,
        };
        let whole = told.is_some_and(|end| end.outcome == Outcome::Completed);
        let usage = told.map(|end| end.usage);
        let usage = usage.or_else(|| self.0.tally.as_ref().map(|tally| tally.usage()));
        self.2 = usage.map(|usage| Used { usage, whole });
        if let Last::End(end) = last {
            self.1.set(end.usage);
        }
        let error = match last {
            Last::End(end) => stream::ended(&mut self.0, end)?,
            Last::Unrecorded(end) => stream::unrecorded(&mut self.0, end),
            Last::Lost => stream::lost(&mut self.0),
            Last::Abandoned if control::planted!(GivenUpEndsClean) => return None,
            Last::Abandoned => unfinished(
                StatusCode::REQUEST_TIMEOUT,
                "stream_abandoned",
                "No client came back within the grace time, so the answer was cancelled here and charged as far as it was \
                 generated. Send the request again.",
            ),
            Last::Stopped => unfinished(
                StatusCode::SERVICE_UNAVAILABLE,
                "gateway_stopping",
                "The gateway stopped before the answer was whole; it was charged as far as it was generated. Send the \
                 request again.",
            ),
        };
        Some(error.line())
    }
}

/// `GET /v1/streams/{id}`
pub(super) async fn resume<C: Chat>(
    State(shared): State<Arc<Shared<C>>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
    coming: Option<Extension<Coming>>,
) -> Response {
    let coming = coming.map(|Extension(coming)| coming).unwrap_or_default();
    match resumed(&shared, &id, (&headers, uri.query()), coming).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn resumed<C: Chat>(
    shared: &Arc<Shared<C>>,
    id: &str,
    (headers, query): (&HeaderMap, Option<&str>),
    coming: Coming,
) -> Result<Response, ApiError> {
    let bearer = head::bearer(headers)?;
    let caller = shared.auth.authenticate(bearer.as_deref(), None, &Trace::default()).await?;
    let after = last_event_id(headers, query)?;
    if !is_id(id) {
        return Err(unknown());
    }
    let whose = Whose::from(&caller.principal);
    let mut response = Response::new(Body::empty());
    // What `explain` knows it by.
    let request_id = id.split_once('.').map_or(id, |(request, _)| request);
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let mut found = shared.streams.find(id, whose, after, coming).await;
    let key = || bearer.as_deref().and_then(|key| Secret::new(key).ok());
    // The log that gateways share may be behind the chat role that fills it.
    if shared.edge && !matches!(found, Ok(_) | Err(Missed::Complete)) {
        let call = ResumeCall { id: id.to_owned(), after, key: key(), coming };
        let rest =
            shared.chat.resume(call).await.inspect_err(|_| shared.streams.refused_elsewhere());
        match rest.map_err(|why| refusal::of_why(why, 0))? {
            Rest::Events(events) => {
                shared.streams.passed_on();
                tracing::info!(request_id, after, here = false, "stream resumed");
                be_events(&mut response);
                name_kept(&mut response, id);
                *response.body_mut() = passed_on(events);
                return Ok(response);
            }
            Rest::Complete => found = Err(Missed::Complete),
            Rest::Away => found = Err(Missed::Away(StoreError::Away("a chat role".to_owned()))),
            Rest::Unknown => {}
        }
    }
    // Who looks for the one that keeps it asks everybody.
    if !(coming.kept_here && matches!(found, Err(Missed::Unknown))) {
        shared.streams.resumed(&found);
    }
    match found {
        Ok(mut reader) => {
            tracing::info!(request_id, after, here = reader.is_here(), "stream resumed");
            be_events(&mut response);
            let reach = reader.reach().await;
            let is_logged = shared.edge && !reader.is_here();
            let behind = is_logged.then(|| behind(Arc::clone(shared), id, key()));
            Opened { reader, reach, bill: Bill::default(), behind }.answer(&mut response);
        }
        // What tells an `EventSource` not to come again.
        Err(Missed::Complete) => *response.status_mut() = StatusCode::NO_CONTENT,
        Err(why) => return Err(missed(&why, after)),
    }
    Ok(response)
}

/// Whether a stream could be called that.
pub(super) fn is_id(id: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    id.len() <= ID_MAX && id.bytes().all(known)
}

/// Events from where the stream is kept. Where whoever keeps it falls silent, the client is told as everywhere.
fn passed_on(events: BoxStream<'static, Result<Bytes, Failed>>) -> Body {
    Body::from_stream(events.map(|next| Ok::<_, Infallible>(told(next))))
}

fn told(next: Result<Bytes, Failed>) -> Bytes {
    next.unwrap_or_else(|failed| {
        tracing::debug!("a stream that is kept elsewhere broke off: {failed}");
        last_words(&Next::Lost)
    })
}

/// The last event the client has; 0 where it has none.
fn last_event_id(headers: &HeaderMap, query: Option<&str>) -> Result<u64, ApiError> {
    let in_query = query
        .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("last_event_id=")));
    let Some(text) = head::single(headers, "last-event-id")?.or(in_query) else { return Ok(0) };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id < u64::MAX).ok_or_else(|| {
        let words = "Last-Event-ID must be the id of an event of this stream, a whole number. Send the last one that \
                     arrived, or none to get the stream from its beginning.";
        error::invalid("invalid_last_event_id", words).param("last_event_id")
    })
}

pub(super) fn unknown() -> ApiError {
    let words = "There is no such stream for this API key. A resumable stream is known by its x-pointsman-stream-id until \
                 some time after its end; send the request again.";
    error::new(StatusCode::NOT_FOUND, error::INVALID, "stream_not_found", words)
}

fn missed(why: &Missed, after: u64) -> ApiError {
    match why {
        Missed::Unknown | Missed::Complete => unknown(),
        Missed::Beyond { head } => {
            let words = format!(
                "The stream has {head} events, and Last-Event-ID says {after}. Resume from an id that arrived; if {after} \
                 did, the gateway that sent it could not write it to the log that gateways share: send the request again."
            );
            error::invalid("last_event_id_beyond", words).param("last_event_id")
        }
        Missed::Gone { first } => {
            let words = format!(
                "Events {} to {} of the stream are no longer kept; those from {first} on are. Resume from {} to get them, \
                 or send the request again.",
                after.saturating_add(1),
                first.saturating_sub(1),
                first.saturating_sub(1),
            );
            error::new(StatusCode::GONE, error::INVALID, "stream_events_gone", words)
                .param("last_event_id")
        }
        Missed::Away(_) => {
            let words = "The log of streams, or a role that may keep this one, does not answer, so nobody can tell whether it \
                         is there. Try again.";
            let code = "stream_log_unavailable";
            error::new(StatusCode::SERVICE_UNAVAILABLE, error::SERVER, code, words)
                .retry_after(SOON)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn after(header: Option<&'static str>, query: Option<&str>) -> Result<u64, &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("last-event-id", HeaderValue::from_static(value));
        }
        last_event_id(&headers, query).map_err(|error| error.code)
    }

    #[test]
    fn the_header_counts_before_the_query() {
        assert_eq!(after(None, None), Ok(0));
        assert_eq!(after(None, Some("x=1&last_event_id=7")), Ok(7));
        assert_eq!(after(Some("9"), Some("last_event_id=7")), Ok(9));
    }

    #[test]
    fn what_is_no_id_of_an_event_is_refused() {
        for bad in ["x", "-1", "+1", "1.5", "99999999999999999999", "18446744073709551615"] {
            assert_eq!(after(Some(bad), None), Err("invalid_last_event_id"), "{bad}");
        }
        assert_eq!(after(None, Some("last_event_id=")), Err("invalid_last_event_id"));
    }
}

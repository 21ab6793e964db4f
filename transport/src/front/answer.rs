//! One chat completion or embedding, from its head to its answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::error::ApiError;
use super::record::Record;
use super::resumable::{self, OwnPlace};
use super::rpc::{self, Called};
use super::stream::Events;
use super::{Shared, admit, head, refusal};
use crate::exchange::{Chat, Operation, Reply, ReplyBody};
use crate::trace::{Span, key};
use crate::upstream::SESSION_ID;

/// The plane's id of the request, or a local one.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Name of the replica that answered; `none` where none did.
pub(super) const REPLICA: HeaderName = HeaderName::from_static("x-pointsman-replica");
/// Attempts made until the answer began.
pub(super) const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");

/// Answers; `is_stored` has the session kept. Whenever this future or the body it returns is dropped, the client has gone and the exchange ends.
pub(super) async fn answer<C: Chat>(
    shared: Arc<Shared<C>>,
    (operation, is_stored): (Operation, bool),
    request: Request,
) -> Response {
    let (parts, content) = request.into_parts();
    let span = span(&shared, operation, &parts);
    let mut record = Record::begin(Arc::clone(&shared.meters), shared.ids.mint(), span);
    let mut call =
        match admit::admit(&shared, (operation, is_stored), &parts, content, &mut record).await {
            Ok(call) => call,
            Err(error) => return refuse(error, record),
        };
    let place = match resumable::place(&shared.streams, &parts, &mut call) {
        Ok(place) => place,
        Err(error) => return refuse(error, record),
    };
    match shared.chat.exchange(call).await {
        Ok(reply) => accept(reply, record, place).await,
        Err(refused) => {
            if let Some(id) = refused.request {
                record.request = id.to_string();
            }
            record.attempts = refused.attempts;
            refuse(refusal::of_why(refused.why, refused.attempts), record)
        }
    }
}

/// What the request is in a trace: named after the gateway's work where it comes from outside, after the call where it
/// comes by gRPC to where the work of the chat role is done, so that the two roles' spans of one trace are not called the same.
fn span<C>(shared: &Shared<C>, operation: Operation, parts: &Parts) -> Span {
    let called = parts.extensions.get::<Called>().copied();
    let (name, asked) = match (operation, called.is_some() && !shared.edge) {
        (Operation::ChatCompletions, false) => ("gateway.chat_completion", "chat"),
        (Operation::ChatCompletions, true) => ("chat.stream_chat", "chat"),
        (Operation::Embeddings, false) => ("gateway.embeddings", "embeddings"),
        (Operation::Embeddings, true) => ("chat.embed", "embeddings"),
    };
    let mut span = shared.tracer.serve(name, head::incoming(&parts.headers));
    if !span.is_read() {
        return span;
    }
    span.set(key::OPERATION, asked);
    if let Some(Called(method)) = called {
        span.set(key::RPC_SYSTEM, "grpc");
        span.set(key::RPC_SERVICE, rpc::SERVICE);
        span.set(key::RPC_METHOD, method);
    } else {
        span.set(key::HTTP_METHOD, "POST");
        // A route of this router, which has no parameters: nothing of a caller's own making.
        span.set(key::HTTP_ROUTE, parts.uri.path().to_owned());
    }
    span
}

fn refuse(error: ApiError, mut record: Record) -> Response {
    record.refused(error.status.as_u16(), error.code);
    let mut response = error.into_response();
    name(&mut response, &record);
    response
}

async fn accept(reply: Reply, mut record: Record, place: Option<OwnPlace>) -> Response {
    record.request = reply.request.to_string();
    record.replica = Some(reply.replica).filter(|name| !name.is_empty());
    record.attempts = reply.attempts;
    record.provider(reply.provider);
    let session = reply.session.and_then(|id| HeaderValue::from_str(&id).ok());
    let mut response = match reply.body {
        ReplyBody::Whole { bytes, end } => {
            record.ended(200, &end);
            let mut response = Response::new(Body::from(bytes));
            let kind = HeaderValue::from_str(&reply.content_type)
                .unwrap_or(HeaderValue::from_static("application/json"));
            response.headers_mut().insert(CONTENT_TYPE, kind);
            name(&mut response, &record);
            response
        }
        ReplyBody::Stream { parts, tally } => {
            record.tally = Some(tally);
            let mut response = Response::new(Body::empty());
            name(&mut response, &record);
            be_events(&mut response);
            match (place, reply.kept) {
                (Some(place), None) => {
                    place.open(reply.request, parts, record).await.answer(&mut response);
                }
                (_, kept) => {
                    let bill = kept.map(|id| resumable::name_opened(&mut response, &id));
                    *response.body_mut() = Body::new(Events::new(parts, record, bill));
                }
            }
            response
        }
    };
    response.headers_mut().extend(session.map(|id| (SESSION_ID, id)));
    response
}

/// Says that the body is a stream of events.
pub(super) fn be_events(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Tells nginx not to hold tokens back.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
}

fn name(response: &mut Response, record: &Record) {
    let headers = response.headers_mut();
    let value =
        |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"));
    headers.insert(REQUEST_ID, value(&record.request));
    headers.insert(REPLICA, value(record.replica.as_deref().unwrap_or("none")));
    headers.insert(ATTEMPTS, HeaderValue::from(record.attempts));
}

//! The rest of a resumable stream, as a call.

use std::collections::VecDeque;

use axum::body::{Body, BodyDataStream};
use futures_util::stream::{BoxStream, StreamExt, unfold};
use http::{Response as HttpResponse, StatusCode, Uri};
use proto::chat::v1::{
    AwaitStreamRequest, AwaitStreamResponse, ResumeStreamRequest, ResumeStreamResponse,
};
use tonic::{Request, Response, Status};

use super::{pieces, status};
use crate::convert;
use crate::exchange::{Chat, Resumed};
use crate::front::error::ApiError;
use crate::front::{Shared, head, resumable};
use crate::sse;
use crate::streams::{Coming, Used, Whose};
use crate::trace::Trace;

/// Where HTTP is asked for it.
pub(super) fn path(asked: &ResumeStreamRequest) -> Result<Uri, Status> {
    let unknown = || status::of_error(&resumable::unknown());
    let id = &asked.stream_id;
    if id.is_empty() || !resumable::is_id(id) {
        return Err(unknown());
    }
    let path = format!("/v1/streams/{id}?last_event_id={}", asked.last_event_id);
    path.parse().map_err(|_| unknown())
}

/// How whoever asks comes.
pub(super) fn coming(asked: &ResumeStreamRequest) -> Coming {
    Coming { kept_here: asked.kept_here, reader: asked.reader.into() }
}

/// Waits for a stream's end.
pub(super) async fn awaited<C: Chat>(
    shared: &Shared<C>,
    request: Request<AwaitStreamRequest>,
) -> Result<Response<AwaitStreamResponse>, Status> {
    let refuse = |error: ApiError| status::of_error(&error);
    let bearer = head::bearer(request.metadata().as_ref()).map_err(refuse)?;
    let caller = shared.auth.authenticate(bearer.as_deref(), None, &Trace::default());
    let caller = caller.await.map_err(|error| refuse(error.into()))?;
    let whose = Whose::from(&caller.principal);
    let over = shared.streams.awaited(&request.get_ref().stream_id, whose).await;
    let used = over.map_err(|_| refuse(resumable::unknown()))?;
    let Used { usage, whole } = used.ok_or_else(pieces::lost)?;
    let usage = Some(convert::usage_said(usage, 0));
    Ok(Response::new(AwaitStreamResponse { usage, whole }))
}

/// What HTTP answered, in messages. The first comes at once: it says whether there are more.
pub(super) async fn of(
    response: HttpResponse<Body>,
) -> Result<BoxStream<'static, Result<ResumeStreamResponse, Status>>, Status> {
    if !response.status().is_success() {
        return Err(status::of_response(response).await);
    }
    let complete = response.status() == StatusCode::NO_CONTENT;
    let first = ResumeStreamResponse { complete, events: Vec::new() };
    let rest = Rest {
        body: response.into_body().into_data_stream(),
        events: sse::Parser::default(),
        ready: VecDeque::from([Ok(first)]),
        over: complete,
    };
    Ok(unfold(rest, async |mut rest| Some((rest.next().await?, rest))).boxed())
}

struct Rest {
    body: BodyDataStream,
    events: sse::Parser,
    ready: VecDeque<Result<ResumeStreamResponse, Status>>,
    over: bool,
}

impl Rest {
    async fn next(&mut self) -> Option<Result<ResumeStreamResponse, Status>> {
        loop {
            if let Some(said) = self.ready.pop_front() {
                return Some(said);
            }
            if self.over {
                return None;
            }
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.events.insert(bytes);
                    self.drain();
                }
                Some(Err(_)) => {
                    self.over = true;
                    return Some(Err(pieces::lost()));
                }
                None => self.over = true,
            }
        }
    }

    /// What has come, as one message. A word on where else the stream can be resumed is for clients of this process: who asks
    /// from another gets it from here as long as it runs.
    fn drain(&mut self) {
        let mut events = Vec::new();
        loop {
            match self.events.poll_event() {
                Ok(Some(event)) => {
                    if event.data.is_some() || Resumed::read(&event.raw).is_some() {
                        events.extend_from_slice(&event.raw);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.over = true;
                    self.ready.push_back(Err(Status::internal(error.to_string())));
                    break;
                }
            }
        }
        if !events.is_empty() {
            self.ready.push_front(Ok(ResumeStreamResponse { complete: false, events }));
        }
    }
}

//! Streams that the chat role keeps: they outlive the gateway that they were opened at.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt, unfold};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use proto::chat::v1::{AwaitStreamRequest, ResumeStreamRequest, ResumeStreamResponse};
use tokio::time::Instant;
use tonic::transport::Channel;

use control::outcome::Failure;

use super::{chat, grpc, refusal};
use crate::convert;
use crate::exchange::{Rest, ResumeCall};
use crate::streams::{Coming, Used};
use crate::upstream::failed::Failed;
use crate::upstream::{Limits, Secret};

/// No answer takes longer: as long as the most patient client waits. What ends it sooner is decided where it is kept.
const RUNS_FOR: Duration = Duration::from_secs(86_400);

/// Whether an event is the last of an answer that is whole.
pub(super) fn is_done(event: &[u8]) -> bool {
    event.trim_ascii_end().ends_with(b"data: [DONE]")
}

/// Asks for the rest of a stream. `limits` are those of the question; the answer may take as long as the stream does.
pub(super) async fn resume(
    channel: &Channel,
    mut headers: HeaderMap,
    call: ResumeCall,
    limits: &Limits,
) -> Result<Rest, Failed> {
    let ResumeCall { id: stream_id, after: last_event_id, key, coming } = call;
    headers.extend(key.map(|key| (AUTHORIZATION, key.bearer())));
    let limits = Limits { deadline: Instant::now() + RUNS_FOR, ..*limits };
    let Coming { kept_here, reader } = coming;
    let reader = u32::try_from(reader).unwrap_or(u32::MAX);
    let ask = ResumeStreamRequest { stream_id, last_event_id, kept_here, reader };
    let request = grpc::request(headers, ask, &limits);
    let asked = chat::service(channel, &limits).resume_stream(request).await;
    let mut said = asked.map_err(|status| refusal::of_chat(&status, false, &limits))?.into_inner();
    let first = said.message().await;
    let first = first.map_err(|status| refusal::of_chat(&status, false, &limits))?;
    let none = || Failed::new(Failure::Truncated, "an answer without a message");
    let ResumeStreamResponse { complete, events } = first.ok_or_else(none)?;
    if complete {
        return Ok(Rest::Complete);
    }
    let rest = unfold(Some(said), move |said| async move {
        let mut said = said?;
        match said.message().await {
            Ok(Some(next)) => Some((Ok(Bytes::from(next.events)), Some(said))),
            Ok(None) => None,
            Err(status) => Some((Err(refusal::of_chat(&status, true, &limits)), None)),
        }
    });
    let first = futures_util::stream::iter((!events.is_empty()).then(|| Ok(events.into())));
    Ok(Rest::Events(first.chain(rest).boxed()))
}

/// Waits until a stream is over, and returns what it came to.
pub(super) async fn over(
    channel: &Channel,
    mut headers: HeaderMap,
    (stream_id, key): (String, Option<Secret>),
    limits: &Limits,
) -> Result<Used, Failed> {
    headers.extend(key.map(|key| (AUTHORIZATION, key.bearer())));
    let request = grpc::request(headers, AwaitStreamRequest { stream_id }, limits);
    let said = chat::service(channel, limits).await_stream(request).await;
    let said = said.map_err(|status| refusal::of_chat(&status, false, limits))?.into_inner();
    let usage = said.usage.as_ref().and_then(convert::usage);
    let (usage, _) = usage.ok_or_else(|| Failed::new(Failure::Garbage, "an end without usage"))?;
    Ok(Used { usage, whole: said.whole })
}

//! Calls to the chat role: a worker's calls, with whom they are for.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use proto::chat::v1::chat_service_client::ChatServiceClient;
use proto::chat::v1::{
    Begun, ClearSessionRequest, EmbedRequest, EmbedResponse, GetHistoryRequest,
    GetSessionMessagesRequest, GetSessionRequest, ListModelsRequest, ListSessionsRequest,
    Resumable, StreamChatRequest, StreamChatResponse,
};
use proto::inference::v1::{
    DescribeResponse, StreamInferenceRequest, StreamInferenceResponse as Chunk,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Streaming};

use super::{grpc, refusal};
use crate::convert;
use crate::exchange::{Behalf, Resumed, SessionAnswer, SessionAsk};
use crate::upstream::Limits;
use crate::upstream::failed::Failed;

/// The pieces of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pieces: Streaming<StreamChatResponse>,
    /// It is a turn of a stored session.
    stored: bool,
    /// It was to be kept there.
    resumable: bool,
    /// Who answers there, once that is told.
    pub begun: Option<Begun>,
    /// It went on at another replica, with the piece that came last: still to be told.
    pub resumed: Option<Resumed>,
    /// The event that the piece that came last is the last of, as it is kept there.
    pub event: Bytes,
}

impl Answer {
    /// What the stream is called, where it is kept there as it was asked for.
    pub fn stream_id(&self) -> Option<&str> {
        let id = self.begun.as_ref().map(|begun| &*begun.stream_id);
        id.filter(|id| self.resumable && !id.is_empty())
    }

    /// The next one; `None` at a clean end. Cancel-safe.
    pub async fn next(&mut self, begun: bool, limits: &Limits) -> Result<Option<Chunk>, Failed> {
        let piece = self.pieces.message().await;
        let piece = piece.map_err(|status| refusal::of_chat(&status, begun, limits))?;
        let Some(piece) = piece else { return Ok(None) };
        let StreamChatResponse { begun, chunk, resumed, event } = piece;
        self.resumed = resumed.map(convert::resumed).or(self.resumed.take());
        self.event = if self.resumable { event.into() } else { Bytes::new() };
        self.begun = begun.or_else(|| self.begun.take());
        let session = self.begun.as_ref().map_or("", |begun| &begun.session_id);
        if self.stored && session.is_empty() {
            // It passed over a field that it does not know: the answer is given without what was said before, and not kept.
            return Err(refusal::of_older(
                "the chat role is of an older version, which keeps no sessions: its operator must upgrade it",
            ));
        }
        Ok(Some(chunk.unwrap_or_default()))
    }
}

pub(super) fn service(channel: &Channel, limits: &Limits) -> ChatServiceClient<Channel> {
    ChatServiceClient::new(channel.clone())
        .max_decoding_message_size(limits.answer_bytes_max)
        .max_encoding_message_size(usize::MAX)
}

/// The headers of a call, and what of its caller stands in the message: session and user.
fn shown(headers: &mut HeaderMap, behalf: Option<Box<Behalf>>) -> (String, String) {
    let behalf = behalf.map(|behalf| *behalf).unwrap_or_default();
    let Behalf { key, session, user, idempotency_key, .. } = behalf;
    let idempotency_key = idempotency_key.filter(|_| !control::planted!(KeyNotPassedOn));
    let idempotency_key = idempotency_key.and_then(|key| HeaderValue::from_str(&key).ok());
    headers.extend(idempotency_key.map(|key| (HeaderName::from_static("idempotency-key"), key)));
    headers.extend(key.map(|key| (AUTHORIZATION, key.bearer())));
    (session.unwrap_or_default(), user.unwrap_or_default())
}

/// Asks for embeddings: the answer's body, and who answers there.
pub(super) async fn embed(
    channel: &Channel,
    mut headers: HeaderMap,
    body: Bytes,
    behalf: Option<Box<Behalf>>,
    limits: &Limits,
) -> Result<EmbedResponse, Failed> {
    let (session_id, user_id) = shown(&mut headers, behalf);
    let question = EmbedRequest { body: body.into(), session_id, user_id };
    let request = grpc::request(headers, question, limits);
    let said = service(channel, limits).embed(request).await;
    said.map(Response::into_inner).map_err(|status| match status.code() == Code::Unimplemented {
        true => refusal::of_older(
            "the chat role is of an older version, which carries no embeddings: its operator must upgrade it",
        ),
        false => refusal::of_chat(&status, false, limits),
    })
}

/// Asks for a turn.
pub(super) async fn ask(
    channel: &Channel,
    mut headers: HeaderMap,
    question: StreamInferenceRequest,
    (behalf, whole): (Option<Box<Behalf>>, bool),
    limits: &Limits,
) -> Result<Answer, Failed> {
    let StreamInferenceRequest { model, messages, parameters, .. } = question;
    let stored = behalf.as_ref().is_some_and(|behalf| behalf.stored);
    let resumable = behalf.as_ref().filter(|behalf| behalf.resumable && !whole);
    let resumable = resumable.map(|behalf| Resumable { usage_event: behalf.usage_event });
    let (session_id, user_id) = shown(&mut headers, behalf);
    let question = StreamChatRequest {
        model,
        messages,
        parameters,
        session_id,
        user_id,
        whole,
        stored,
        resumable,
    };
    let request = grpc::request(headers, question, limits);
    let asked = service(channel, limits).stream_chat(request).await;
    let pieces = asked.map_err(|status| refusal::of_chat(&status, false, limits))?.into_inner();
    let resumable = resumable.is_some();
    Ok(Answer { pieces, stored, resumable, begun: None, resumed: None, event: Bytes::new() })
}

/// Asks which models may be asked. It continues nobody's streams: who continues them is decided there.
pub(super) async fn models(
    channel: &Channel,
    headers: HeaderMap,
    limits: &Limits,
) -> Result<DescribeResponse, Failed> {
    let request = grpc::request(headers, ListModelsRequest {}, limits);
    let said = service(channel, limits).list_models(request).await.map(Response::into_inner);
    let said = said.map_err(|status| refusal::of_chat(&status, false, limits))?;
    let models = said.models.into_iter().map(|model| model.name).collect();
    Ok(DescribeResponse { models, ..DescribeResponse::default() })
}

/// Asks about stored sessions.
pub(super) async fn sessions(
    channel: &Channel,
    mut headers: HeaderMap,
    (ask, behalf): (SessionAsk, Behalf),
    limits: &Limits,
) -> Result<SessionAnswer, Failed> {
    headers.extend(behalf.key.map(|key| (AUTHORIZATION, key.bearer())));
    let user_id = behalf.user.unwrap_or_default();
    let mut service = service(channel, limits);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let said = match ask {
        SessionAsk::Get(session_id) => {
            let ask = GetSessionRequest { session_id, user_id };
            let said = service.get_session(grpc::request(headers, ask, limits)).await;
            said.map(|said| convert::session_answer(said.into_inner()))
        }
        SessionAsk::List(part) => {
            let (page, page_size) = (small(part.page), small(part.size));
            let ask = ListSessionsRequest { user_id, page, page_size };
            let said = service.list_sessions(grpc::request(headers, ask, limits)).await;
            said.map(|said| convert::sessions_answer(said.into_inner()))
        }
        SessionAsk::Messages(session_id, part) => {
            let (page, page_size) = (small(part.page), small(part.size));
            let ask = GetSessionMessagesRequest { session_id, page, page_size, user_id };
            let said = service.get_session_messages(grpc::request(headers, ask, limits)).await;
            said.map(|said| convert::messages_answer(said.into_inner()))
        }
        ask @ (SessionAsk::Clear(_) | SessionAsk::Purge(_)) => {
            let purge = matches!(ask, SessionAsk::Purge(_));
            let (SessionAsk::Clear(session_id) | SessionAsk::Purge(session_id)) = ask else {
                unreachable!("just matched")
            };
            let ask = ClearSessionRequest { session_id, user_id, purge };
            let said = service.clear_session(grpc::request(headers, ask, limits)).await;
            said.map(|_| SessionAnswer::Done)
        }
        SessionAsk::History => {
            let ask = GetHistoryRequest { user_id };
            let said = service.get_history(grpc::request(headers, ask, limits)).await;
            said.map(|said| convert::history_answer(said.into_inner()))
        }
    };
    said.map_err(|status| refusal::of_chat(&status, false, limits))
}

//! The two calls of the wire, over either transport; or those of the chat role, which are much the same.

use http::HeaderMap;
use proto::inference::v1::{
    CallMethod, DescribeRequest, DescribeResponse, StreamInferenceResponse as Chunk,
};
use tonic::Streaming;

use super::line::{Line, Road};
use super::{Asking, chat, grpc, quic, refusal};
use crate::upstream::Limits;
use crate::upstream::failed::Failed;
use crate::worker::Direct;

/// The chunks of an answer. Dropping them cancels the call.
#[derive(Debug)]
pub(super) enum Chunks {
    Grpc(Box<Streaming<Chunk>>),
    Quic(Box<quic::Answer>),
    Chat(Box<chat::Answer>),
    /// Of no worker: the server itself is asked from here.
    Direct(Box<Direct>),
}

impl Chunks {
    /// The next one; `None` at a clean end. `begun`: one had come before. Cancel-safe.
    pub async fn next(&mut self, begun: bool, limits: &Limits) -> Result<Option<Chunk>, Failed> {
        match self {
            Self::Grpc(chunks) => {
                chunks.message().await.map_err(|status| refusal::of(&status, begun, limits))
            }
            Self::Quic(answer) => answer.next(begun, limits).await,
            Self::Chat(answer) => answer.next(begun, limits).await,
            Self::Direct(answer) => {
                answer.next().await.map_err(|status| refusal::of_server(&status, begun, limits))
            }
        }
    }
}

/// Asks for an answer.
pub(super) async fn stream(line: &Line, asking: Asking, limits: &Limits) -> Result<Chunks, Failed> {
    let Asking { headers, question, behalf, whole } = asking;
    match line.road() {
        Road::Grpc(channel) => {
            let request = grpc::request(headers, question, limits);
            let asked = grpc::service(channel, limits).stream_inference(request).await;
            let answer = asked.map_err(|status| refusal::of(&status, false, limits))?;
            Ok(Chunks::Grpc(Box::new(answer.into_inner())))
        }
        Road::Quic(road) => {
            let method = CallMethod::StreamInference;
            let answer = quic::ask(road, method, &headers, &question, limits).await?;
            Ok(Chunks::Quic(Box::new(answer)))
        }
        Road::Chat(channel) => {
            let answer = chat::ask(channel, headers, question, (behalf, whole), limits).await?;
            Ok(Chunks::Chat(Box::new(answer)))
        }
    }
}

/// Asks a worker about itself.
pub(super) async fn describe(
    line: &Line,
    headers: HeaderMap,
    limits: &Limits,
) -> Result<DescribeResponse, Failed> {
    let question = DescribeRequest {};
    match line.road() {
        Road::Grpc(channel) => {
            let request = grpc::request(headers, question, limits);
            let said = grpc::service(channel, limits).describe(request).await;
            said.map(tonic::Response::into_inner)
                .map_err(|status| refusal::of(&status, false, limits))
        }
        Road::Quic(road) => {
            let method = CallMethod::Describe;
            let mut answer = quic::ask(road, method, &headers, &question, limits).await?;
            let said = answer.next(false, limits).await?;
            said.ok_or_else(|| quic::broke_off(true, "an answer without a message"))
        }
        Road::Chat(channel) => chat::models(channel, headers, limits).await,
    }
}

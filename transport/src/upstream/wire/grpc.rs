//! Calls over gRPC.

use http::HeaderMap;
use proto::inference::v1::inference_service_client::InferenceServiceClient;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Extensions, Request};

use crate::upstream::Limits;

pub(super) fn service(channel: &Channel, limits: &Limits) -> InferenceServiceClient<Channel> {
    InferenceServiceClient::new(channel.clone())
        .max_decoding_message_size(limits.answer_bytes_max)
        .max_encoding_message_size(usize::MAX)
}

/// A request with its metadata, and how long we wait.
pub(super) fn request<T>(headers: HeaderMap, message: T, limits: &Limits) -> Request<T> {
    let metadata = MetadataMap::from_headers(headers);
    let mut request = Request::from_parts(metadata, Extensions::default(), message);
    request.set_timeout(limits.deadline.saturating_duration_since(Instant::now()));
    request
}

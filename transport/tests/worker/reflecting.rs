//! What every port for gRPC has beside its service: health by the service's name, and reflection that lists it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use transport::config::Role;

use crate::world::{LONG, Worker, World};

/// Asserts both of the port at `addr`, which serves this one service of ours and says that it is well.
pub async fn tells_of_itself(addr: SocketAddr, service: &str) {
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    for name in [service, ""] {
        let began = Instant::now();
        while health(&channel, name).await != Ok(ServingStatus::Serving as i32) {
            assert!(began.elapsed() < LONG, "{name:?} never serves");
            sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(health(&channel, "pointsman.Other").await, Err(Code::NotFound));
    let names = listed(&channel).await;
    assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
    assert!(names.iter().any(|name| name == "grpc.health.v1.Health"), "{names:?}");
    let described = reflected(&channel, MessageRequest::FileContainingSymbol(service.to_owned()));
    let MessageResponse::FileDescriptorResponse(files) = described.await else { panic!("no file") };
    assert!(!files.file_descriptor_proto.is_empty(), "{service} is not described");
}

async fn health(channel: &Channel, service: &str) -> Result<i32, Code> {
    let asked = HealthCheckRequest { service: service.to_owned() };
    let said = HealthClient::new(channel.clone()).check(asked).await;
    said.map(|said| said.into_inner().status).map_err(|status| status.code())
}

async fn listed(channel: &Channel) -> Vec<String> {
    match reflected(channel, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => {
            list.service.into_iter().map(|service| service.name).collect()
        }
        MessageResponse::FileDescriptorResponse(_)
        | MessageResponse::AllExtensionNumbersResponse(_)
        | MessageResponse::ErrorResponse(_) => panic!("no list"),
    }
}

async fn reflected(channel: &Channel, message: MessageRequest) -> MessageResponse {
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = futures_util::stream::iter([ask]);
    let said = ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await;
    said.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn a_chat_roles_port_and_the_token_port_tell_of_themselves() {
    let worker = Worker::echo(Duration::ZERO);
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}, quota: {{addr: '127.0.0.1:0'}}}}\n\
         models: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}",
        worker.url()
    );
    let chat = World::playing(Role::Chat, &text).await;
    let (rpc, quota) = (chat.rpc.unwrap(), chat.quota.unwrap());
    tells_of_itself(rpc, "pointsman.chat.v1.ChatService").await;
    tells_of_itself(rpc, "pointsman.quota.v1.QuotaService").await;
    tells_of_itself(quota, "pointsman.quota.v1.QuotaService").await;
}

//! The gateway role passes sessions on to the chat role, which alone keeps them.

use std::time::Duration;

use proto::chat::v1::chat_service_client::ChatServiceClient;
use proto::chat::v1::{
    ClearSessionRequest, GetHistoryRequest, GetSessionMessagesRequest, GetSessionRequest,
    ListSessionsRequest, StreamChatRequest,
};
use proto::inference::v1::{Message, message::Content};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request};
use transport::config::Role;

use crate::world::{Replica, Site, contents, dir, keys};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_the_gateway_role_sessions_are_what_they_are_at_the_chat_role() {
    let (replica, homes) = (Replica::new().await, [dir(), dir()]);
    let text =
        format!("models: {{m: {{endpoints: [{{url: 'http://{}'}}]}}}}\n{}", replica.addr, keys());
    let chat = Site::playing(Role::Chat, homes[0].path(), &text).await;
    let text = format!("chats: [{{url: 'chat://{}', name: c0}}]\n{}", chat.rpc.unwrap(), keys());
    let edge = Site::playing(Role::Gateway, homes[1].path(), &text).await;
    let first = edge.turn("ann", None, "one", json!({})).await;
    let session = first.session();
    assert_eq!(first.header("x-pointsman-replica"), "c0");
    let second = edge.turn("ann", Some(&session), "two", json!({"stream": true})).await;
    assert_eq!(second.session(), session);
    assert!(second.is_done());
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 3);
    let kept = edge.messages("ann", &session).await;
    assert_eq!(contents(&kept), ["one", "re: one", "two", "re: two"]);
    let path = format!("/api/v1/sessions/{session}");
    assert_eq!(edge.get("ann", &path).await.body, chat.get("ann", &path).await.body);
    assert_eq!(edge.get("ann", "/api/v1/sessions").await.json()["total"], 1);
    assert_eq!(edge.get("app", "/history?user_id=ann").await.json()[3]["text"], "re: two");
    let refused = edge.get("bob", &path).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (404, "session_not_found"));
    let refused = edge.turn("bob", Some(&session), "x", json!({})).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (404, "session_not_found"));
    assert_eq!(edge.delete("ann", &path).await.json()["cleared"], true);
    assert_eq!(edge.get("ann", &path).await.json()["token_count"], 0);
    let broken = edge.turn("ann", Some(&session), "break it", json!({"stream": true})).await;
    assert!(!broken.is_done());
    chat.has("ann", &session, 6).await;
    assert_eq!(edge.messages("ann", &session).await[5]["status"], "broken");
    assert!(!homes[1].path().join("sessions").exists(), "the gateway role keeps nothing");
    edge.close().await;
    chat.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_role_that_hangs_costs_a_share_of_the_time_and_no_answer() {
    let (replica, homes) = (Replica::new().await, [dir(), dir()]);
    let text =
        format!("models: {{m: {{endpoints: [{{url: 'http://{}'}}]}}}}\n{}", replica.addr, keys());
    let chat = Site::playing(Role::Chat, homes[0].path(), &text).await;
    let session = chat.turn("ann", None, "one", json!({})).await.session();
    // The first by name takes connections, as a stopped process does, and says nothing.
    let hung = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = hung.local_addr().unwrap();
    let _hung = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(hung.accept().await.unwrap());
        }
    }));
    let chats = format!(
        "chats: [{{url: 'chat://{at}', name: a0}}, {{url: 'chat://{}', name: c0}}]\n",
        chat.rpc.unwrap()
    );
    let edge = Site::playing(Role::Gateway, homes[1].path(), &(chats + &keys())).await;
    for path in ["/api/v1/sessions".to_owned(), format!("/api/v1/sessions/{session}")] {
        let began = Instant::now();
        let answer = edge.get("ann", &path).await;
        let took = began.elapsed();
        assert_eq!(answer.status, 200, "{path} after {took:?}: {}", answer.text());
        assert!(took < Duration::from_secs(4), "{path} took {took:?}");
    }
    edge.close().await;
    chat.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_asked_for_over_grpc_too() {
    let (replica, home) = (Replica::new().await, dir());
    let text =
        format!("models: {{m: {{endpoints: [{{url: 'http://{}'}}]}}}}\n{}", replica.addr, keys());
    let chat = Site::playing(Role::Chat, home.path(), &text).await;
    let mut client =
        ChatServiceClient::connect(format!("http://{}", chat.rpc.unwrap())).await.unwrap();
    let content = Some(Content::Text("hi".to_owned()));
    let message = Message { role: "user".to_owned(), content, ..Message::default() };
    let turn = |session: &str| StreamChatRequest {
        model: "m".to_owned(),
        messages: vec![message.clone()],
        session_id: session.to_owned(),
        stored: true,
        ..StreamChatRequest::default()
    };
    let mut stream = client.stream_chat(shown(turn(""))).await.unwrap().into_inner();
    let mut session = String::new();
    while let Some(piece) = stream.message().await.unwrap() {
        session = piece.begun.map_or(session, |begun| begun.session_id);
    }
    let mut stream = client.stream_chat(shown(turn(&session))).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let user_id = String::new();
    let get = GetSessionRequest { session_id: session.clone(), user_id: user_id.clone() };
    let told = client.get_session(shown(get.clone())).await.unwrap().into_inner().session.unwrap();
    assert_eq!((told.message_count, &*told.user_id, told.active), (4, "ann", true));
    let list = ListSessionsRequest::default();
    assert_eq!(client.list_sessions(shown(list)).await.unwrap().into_inner().sessions, [told]);
    let part = GetSessionMessagesRequest {
        session_id: session.clone(),
        page: 2,
        page_size: 3,
        user_id: user_id.clone(),
    };
    let part = client.get_session_messages(shown(part)).await.unwrap().into_inner();
    assert_eq!((part.total, part.messages.len(), part.messages[0].index), (4, 1, 3));
    assert_eq!(part.messages[0].message_json, r#"{"role":"assistant","content":"re: hi"}"#);
    let many = GetSessionMessagesRequest {
        session_id: session.clone(),
        page: 1,
        page_size: 101,
        user_id: user_id.clone(),
    };
    assert_eq!(
        client.get_session_messages(shown(many)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let lines = client
        .get_history(shown(GetHistoryRequest { user_id: user_id.clone() }))
        .await
        .unwrap()
        .into_inner()
        .lines;
    assert_eq!(lines.len(), 4);
    let clear = ClearSessionRequest { session_id: session.clone(), user_id, purge: true };
    client.clear_session(shown(clear)).await.unwrap();
    assert_eq!(client.get_session(shown(get)).await.unwrap_err().code(), Code::NotFound);
    drop(client);
    chat.close().await;
}

fn shown<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer KEY-ann".parse().unwrap());
    request
}

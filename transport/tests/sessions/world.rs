//! Gateways over one replica that says what it is told, and remembers what it was asked.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use transport::config::{Env, Flags, Role, parse};
use transport::front::{Front, Limits, Listener, RpcDoor, Server, Settings};
use transport::gateway::Gateway;
use transport::worker::Incoming;

/// Nothing here takes this long unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// A replica. What it answers is what the last message says, behind `re: `; some words make it do otherwise.
pub struct Replica {
    pub addr: SocketAddr,
    told: Arc<Told>,
    _served: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Told {
    bodies: Mutex<Vec<Value>>,
    /// Messages to answer with, before anything else.
    script: Mutex<Vec<Value>>,
}

impl Replica {
    pub async fn new() -> Self {
        let told = Arc::<Told>::default();
        let routes = Router::new()
            .route("/v1/chat/completions", post(answer))
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&told));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { addr, told, _served: AbortOnDropHandle::new(served) }
    }

    /// What it was asked last.
    pub fn asked(&self) -> Value {
        self.told.bodies.lock().unwrap().last().unwrap().clone()
    }

    pub fn times(&self) -> usize {
        self.told.bodies.lock().unwrap().len()
    }

    /// Waits until it was asked so often.
    pub async fn is_asked(&self, times: usize) {
        let began = Instant::now();
        while self.times() < times {
            assert!(began.elapsed() < LONG, "it was asked {} times", self.times());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Answers with this message next.
    pub fn will_say(&self, message: Value) {
        self.told.script.lock().unwrap().insert(0, message);
    }
}

async fn answer(State(told): State<Arc<Told>>, body: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap();
    told.bodies.lock().unwrap().push(asked.clone());
    let last = asked["messages"].as_array().unwrap().last().unwrap().clone();
    let text = last["content"].as_str().unwrap_or("").to_owned();
    if text.starts_with("slow") {
        sleep(Duration::from_millis(400)).await;
    }
    let scripted = told.script.lock().unwrap().pop();
    let plain = json!({"role": "assistant", "content": format!("re: {text}")});
    let message = scripted.unwrap_or(plain);
    if asked["stream"] == json!(true) {
        return stream(&message, &text);
    }
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    let answer = json!({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage});
    let body = Body::from(answer.to_string());
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

/// Piece by piece, a character each.
fn stream(message: &Value, text: &str) -> Response {
    let event = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        let chunk = json!({"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let mut events = vec![event(json!({"role": "assistant", "content": ""}), Value::Null)];
    for letter in message["content"].as_str().unwrap_or("").chars() {
        events.push(event(json!({"content": letter.to_string()}), Value::Null));
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let mut call = call.clone();
        call["index"] = json!(0);
        events.push(event(json!({"tool_calls": [call]}), Value::Null));
    }
    let (breaks, dawdles) = (text.starts_with("break"), text.starts_with("dawdle"));
    // Before the end of the stream, behind that of the answer.
    let hesitates = text.starts_with("hesitate");
    if !breaks {
        events.push(event(json!({}), json!("stop")));
        events.push("data: [DONE]\n\n".to_owned());
    }
    let pieces = futures_util::stream::iter(events).then(move |event| async move {
        if dawdles {
            sleep(Duration::from_millis(20)).await;
        }
        if hesitates && event.contains("[DONE]") {
            sleep(Duration::from_secs(1)).await;
        }
        Ok::<_, std::io::Error>(Bytes::from(event))
    });
    // What was written goes out before the connection breaks.
    let cut = futures_util::stream::iter(breaks.then_some(())).then(async |()| {
        sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("broke"))
    });
    let body = Body::from_stream(pieces.chain(cut));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

/// A gateway with its front. Dropped, it is gone; its directory stays for the next.
pub struct Site {
    pub addr: SocketAddr,
    pub rpc: Option<SocketAddr>,
    gateway: Arc<Gateway>,
    stop: CancellationToken,
    served: Vec<AbortOnDropHandle<()>>,
}

/// Keys by user: `KEY-<user>` is one's of the default tenant, `KEY-app` speaks for all of them, `KEY-other` is another tenant's.
pub fn keys() -> String {
    let key = |name: &str, more: &str| {
        let hash: String =
            Sha256::digest(format!("KEY-{name}")).iter().map(|b| format!("{b:02x}")).collect();
        format!("{{name: {name}, hash: 'sha256:{hash}'{more}}}")
    };
    format!(
        "tenants: {{acme: {{}}}}\nkeys: [{}, {}, {}, {}]\n",
        key("ann", ", user: ann"),
        key("bob", ", user: bob"),
        key("app", ""),
        key("other", ", user: ann, tenant: acme"),
    )
}

impl Site {
    /// Everything in one process, before a replica.
    pub async fn new(dir: &Path, replica: &Replica, more: &str) -> Self {
        let text =
            format!("models: {{m: {{endpoints: [{{url: 'http://{}'}}]}}}}\n{more}", replica.addr);
        Self::playing(Role::All, dir, &text).await
    }

    pub async fn playing(role: Role, dir: &Path, text: &str) -> Self {
        // A file names `data` once.
        let data = match text.contains("dir: DIR") {
            true => String::new(),
            false => format!("data: {{dir: {}}}\n", dir.display()),
        };
        let text = text.replace("dir: DIR", &format!("dir: {}", dir.display()));
        let text = format!("version: 1\n{data}{text}");
        let flags = Flags { role, ..Flags::default() };
        let loaded = parse("p.yaml", text.as_bytes(), &flags, &Env::default()).unwrap();
        let gateway = Gateway::start(&loaded.config).unwrap();
        let settings = Settings { edge: role == Role::Gateway, ..Settings::default() };
        let front = Front::with(Arc::new(gateway.chat()), gateway.accounts(), settings);
        gateway.health().set_serving(true);
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = Server::new(Limits::default(), front.meters()).listen(listener);
        let (router, stopped) = (front.router(), stop.clone());
        let mut served = vec![AbortOnDropHandle::new(tokio::spawn(async move {
            server.serve(router, stopped.cancelled_owned(), Duration::ZERO).await;
        }))];
        let mut rpc = None;
        if role == Role::Chat {
            let incoming = Incoming::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            rpc = Some(incoming.local_addr().unwrap());
            let stopped = stop.clone();
            served.push(AbortOnDropHandle::new(tokio::spawn(async move {
                let door = RpcDoor::plain(incoming);
                front.serve_rpc(door, stopped.cancelled_owned(), Duration::ZERO).await.unwrap();
            })));
        }
        if role == Role::Gateway {
            let began = Instant::now();
            while gateway.catalog().models().is_empty() {
                assert!(began.elapsed() < LONG, "the chat role does not say what it serves");
                gateway.discover().await;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Self { addr, rpc, gateway, stop, served }
    }

    /// Ends it in order, so that another can take its directory.
    pub async fn close(mut self) {
        self.stop.cancel();
        for served in self.served.drain(..) {
            let _ = served.await;
        }
        let gateway = Arc::clone(&self.gateway);
        drop(self);
        assert!(gateway.turns_written().await, "turns are left");
        // Where Redis is away, the last words are lost, as in production.
        let _ = gateway.all_told().await;
        tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap().unwrap();
    }

    /// A turn of `user`'s.
    pub async fn turn(&self, user: &str, session: Option<&str>, text: &str, more: Value) -> Answer {
        self.say(user, session, json!([{"role": "user", "content": text}]), more).await
    }

    /// The same with any messages.
    pub async fn say(
        &self,
        user: &str,
        session: Option<&str>,
        messages: Value,
        more: Value,
    ) -> Answer {
        let mut body = json!({"model": "m", "messages": messages});
        if let Some(session) = session {
            body["session_id"] = json!(session);
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.post(user, "/api/v1/chat/completions", body.to_string(), &[]).await
    }

    pub async fn post(
        &self,
        user: &str,
        path: &str,
        body: String,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.ask(Method::POST, user, path, body, headers).await
    }

    pub async fn get(&self, user: &str, path: &str) -> Answer {
        self.ask(Method::GET, user, path, String::new(), &[]).await
    }

    pub async fn delete(&self, user: &str, path: &str) -> Answer {
        self.ask(Method::DELETE, user, path, String::new(), &[]).await
    }

    async fn ask(
        &self,
        method: Method,
        user: &str,
        path: &str,
        body: String,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr))
            .header("authorization", format!("Bearer KEY-{user}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client().request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    /// The messages of a session, all of them.
    pub async fn messages(&self, user: &str, session: &str) -> Vec<Value> {
        let mut all = Vec::new();
        for page in 1.. {
            let path = format!("/api/v1/sessions/{session}/messages?page={page}&page_size=50");
            let answer = self.get(user, &path).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let part = answer.json()["data"].as_array().unwrap().clone();
            if part.is_empty() {
                break;
            }
            all.extend(part);
        }
        all
    }

    /// Waits until a session has so many messages.
    pub async fn has(&self, user: &str, session: &str, count: u64) {
        let began = Instant::now();
        loop {
            let told = self.get(user, &format!("/api/v1/sessions/{session}")).await.json();
            if told["message_count"] == json!(count) {
                return;
            }
            assert!(began.elapsed() < LONG, "{count} messages are not there: {told}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

pub fn dir() -> TempDir {
    TempDir::new().unwrap()
}

pub fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("-", |value| value.to_str().unwrap())
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The session's name, which head and body agree on.
    pub fn session(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        let named = match self.header("content-type") {
            "text/event-stream" => self.events()[0]["session_id"].clone(),
            _ => self.json()["session_id"].clone(),
        };
        assert_eq!(named, json!(self.header("x-session-id")));
        self.header("x-session-id").to_owned()
    }

    pub fn events(&self) -> Vec<Value> {
        let data = self.text().split("\n\n").filter_map(|block| block.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    pub fn is_done(&self) -> bool {
        self.text().ends_with("data: [DONE]\n\n")
    }
}

/// What was said, without what stands around it.
pub fn contents(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|entry| entry["message"]["content"].as_str().unwrap_or("")).collect()
}

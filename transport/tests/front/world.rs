//! A server with a scripted chat role behind it, and clients to ask it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use control::id::{AccountId, Digest, Minted, Principal, RequestId, SessionKey};
use control::plane::Outcome;
use control::units::{Tokens, Usage};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transport::exchange::{
    Call, Chat, Checks, End, Model, Part, Refused, Reply, ReplyBody, Tally, Why,
};
use transport::front::{
    AuthError, Authenticate, Caller, Drained, Front, Judged, Limits, Listener, Meters, Server,
    Settings,
};
use transport::streams::Streams;
use transport::trace::Trace;
use transport::upstream::UpstreamError;

/// The plane's id of every scripted request.
pub const ID: RequestId = RequestId(Minted { incarnation: 1, counter: 0xbeef });
pub const KEY: &str = "sk-very-secret-key";
pub const HELLO: &str =
    r#"{"model":"demo","messages":[{"role":"user","content":"tell me a secret"}]}"#;
pub const ANSWER: &str = r#"{"id":"x","choices":[],"usage":{"prompt_tokens":3}}"#;

/// What the chat role does with a call.
pub enum Act {
    Whole(&'static str),
    Stream(mpsc::Receiver<Part>),
    Refuse(Why),
    /// Never answers; the sender is dropped together with the exchange.
    Hang(oneshot::Sender<()>),
    Panic,
}

type Play = dyn Fn(&Call) -> Act + Send + Sync;

pub struct Scripted {
    play: Box<Play>,
    pub calls: Mutex<Vec<Call>>,
    pub checks: Mutex<Checks>,
}

impl Chat for Scripted {
    async fn exchange(&self, call: Call) -> Result<Reply, Refused> {
        let act = (self.play)(&call);
        let stream = call.stream;
        self.calls.lock().unwrap().push(call);
        let reply = |body| Reply {
            request: ID,
            replica: "replica-b".to_owned(),
            provider: "scripted".to_owned(),
            attempts: 2,
            content_type: if stream { "text/event-stream" } else { "application/json" }.to_owned(),
            body,
            session: None,
            kept: None,
        };
        match act {
            Act::Whole(text) => Ok(reply(ReplyBody::Whole {
                bytes: Bytes::from_static(text.as_bytes()),
                end: end(Outcome::Completed),
            })),
            Act::Stream(parts) => {
                let tally = Tally::new(Tokens::ZERO);
                Ok(reply(ReplyBody::Stream { parts, tally }))
            }
            Act::Refuse(why) => Err(Refused { request: Some(ID), attempts: 3, why }),
            Act::Hang(held) => {
                std::future::pending::<()>().await;
                drop(held);
                unreachable!("pending never resolves")
            }
            Act::Panic => panic!("a bug, on purpose"),
        }
    }

    fn models(&self) -> Vec<Model> {
        let model = |name: &str, provider: &str, price| Model {
            name: name.to_owned(),
            provider: provider.to_owned(),
            created: 1_700_000_000,
            price,
        };
        vec![
            model("demo", "pointsman", None),
            model("gpt-4o-mini", "openai", Some((0.15, 0.6))),
            model("meta/llama-3", "pointsman", None),
        ]
    }

    fn checks(&self) -> Checks {
        self.checks.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        "# HELP pointsman_picks_total Picks.\n# TYPE pointsman_picks_total counter\npointsman_picks_total 7\n"
            .to_owned()
    }
}

/// An end with 3 + 4 tokens.
pub fn end(outcome: Outcome) -> End {
    End {
        outcome,
        detail: None,
        usage: Usage { prompt: Tokens(3), completion: Tokens(4) },
        first_token: Some(Duration::from_millis(12)),
        resumed: None,
        error: None,
    }
}

/// What a replica says that refuses a request.
pub fn said(status: u16, body: &'static str) -> Box<UpstreamError> {
    let (body, content_type) = (Bytes::from_static(body.as_bytes()), None);
    Box::new(UpstreamError { status, body, content_type, verdict: None })
}

/// Two tenants; `KEY` may do everything, `sk-demo-only` only the model `demo`, nobody may speak for `mallory`.
struct Keys;

impl Authenticate for Keys {
    fn authenticate(&self, bearer: Option<&str>, user_id: Option<&str>, _: &Trace) -> Judged {
        Judged::now(judge(bearer, user_id))
    }

    fn session_key(&self, principal: &Principal, name: &str) -> SessionKey {
        let text = format!("{} {name}", principal.tenant);
        SessionKey(u64::from_be_bytes(Sha256::digest(text)[..8].try_into().unwrap()))
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        Digest(u128::from_be_bytes(Sha256::digest(bytes)[..16].try_into().unwrap()))
    }
}

fn judge(bearer: Option<&str>, user_id: Option<&str>) -> Result<Caller, AuthError> {
    let models: Option<Arc<[String]>> = match bearer {
        None => return Err(AuthError::KeyMissing),
        Some(KEY) => None,
        Some("sk-demo-only") => Some(Arc::from(["demo".to_owned()])),
        Some("sk-other-tenant") => None,
        Some("sk-old") => return Err(AuthError::KeyExpired),
        Some(_) => return Err(AuthError::KeyUnknown),
    };
    if user_id == Some("mallory") {
        return Err(AuthError::UserForbidden);
    }
    let user = user_id.map(|name| AccountId(u64::try_from(name.len()).unwrap()));
    let tenant = AccountId(if bearer == Some("sk-other-tenant") { 7 } else { 1 });
    let principal = Principal { tenant, user, key: Some(AccountId(2)) };
    let owner_name = Arc::from(user_id.unwrap_or("key/k"));
    Ok(Caller { principal, models, tenant_name: Arc::from("acme"), owner_name })
}

pub struct World {
    pub addr: SocketAddr,
    pub chat: Arc<Scripted>,
    pub meters: Arc<Meters>,
    pub stop: CancellationToken,
    pub served: JoinHandle<Drained>,
}

impl World {
    /// A server on a free port.
    pub fn new(play: impl Fn(&Call) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Limits::default(), Duration::from_secs(5), None, play)
    }

    /// A server that keeps resumable streams there.
    pub fn keeping(
        streams: Arc<Streams>,
        play: impl Fn(&Call) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::built(Limits::default(), Duration::from_secs(5), None, streams, play)
    }

    pub fn with(
        limits: Limits,
        grace: Duration,
        tls: Option<Arc<rustls::ServerConfig>>,
        play: impl Fn(&Call) -> Act + Send + Sync + 'static,
    ) -> Self {
        let streams = Streams::new(transport::streams::Limits::default());
        Self::built(limits, grace, tls, streams, play)
    }

    fn built(
        limits: Limits,
        grace: Duration,
        tls: Option<Arc<rustls::ServerConfig>>,
        streams: Arc<Streams>,
        play: impl Fn(&Call) -> Act + Send + Sync + 'static,
    ) -> Self {
        let chat = Arc::new(Scripted {
            play: Box::new(play),
            calls: Mutex::default(),
            checks: Mutex::new(Checks { ready: true, parts: Vec::new() }),
        });
        let chat_of_front = Arc::clone(&chat);
        let settings = Settings { limits: limits.clone(), streams, ..Settings::default() };
        let front = Front::with(chat_of_front, Arc::new(Keys), settings);
        let mut listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        if let Some(tls) = tls {
            listener = listener.with_tls(tls);
        }
        let addr = listener.local_addr().unwrap();
        let (meters, stop) = (front.meters(), CancellationToken::new());
        let server = Server::new(limits, front.meters()).listen(listener);
        let (router, stopped) = (front.router(), stop.clone());
        let served =
            tokio::spawn(
                async move { server.serve(router, stopped.cancelled_owned(), grace).await },
            );
        Self { addr, chat, meters, stop, served }
    }

    /// Asks with the good key.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = request(Method::POST, self.url(path)).header("authorization", bearer());
        send(request.body(Full::new(body.into())).unwrap()).await
    }

    pub async fn get(&self, path: &str, accept: &str) -> Answer {
        let request = request(Method::GET, self.url(path))
            .header("authorization", bearer())
            .header("accept", accept);
        send(request.body(Full::default()).unwrap()).await
    }

    pub fn url(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.addr).parse().unwrap()
    }

    pub fn last_call(&self) -> Call {
        self.chat.calls.lock().unwrap().last().unwrap().clone()
    }

    /// Writes bytes as they are, and hands the socket back.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).await.unwrap();
        socket.write_all(bytes.as_ref()).await.unwrap();
        socket
    }

    /// Waits until no answer is under way: the residue after everything must be none.
    pub async fn quiet(&self) {
        for _ in 0..200 {
            if self.meters.requests_in_flight() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} requests are still in flight", self.meters.requests_in_flight());
    }
}

pub fn bearer() -> String {
    format!("Bearer {KEY}")
}

pub fn request(method: Method, url: Uri) -> http::request::Builder {
    Request::builder().method(method).uri(url)
}

pub fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub async fn send(request: Request<Full<Bytes>>) -> Answer {
    let response = client().request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
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

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("-", |value| value.to_str().unwrap())
    }

    /// Asserts OpenAI's shape and hands out the error.
    pub fn error(&self) -> serde_json::Value {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error: {json}"));
        for field in ["message", "type", "code", "param"] {
            assert!(error.contains_key(field), "{field} is missing: {json}");
        }
        assert!(!error["message"].as_str().unwrap().is_empty());
        json["error"].clone()
    }

    pub fn code(&self) -> String {
        self.error()["code"].as_str().unwrap().to_owned()
    }
}

/// Everything until the server closes, or a failure after `time`.
pub async fn read_all(socket: &mut TcpStream, time: Duration) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match tokio::time::timeout(time, socket.read_to_end(&mut bytes)).await {
        // A reset is an end, too.
        Ok(_) => Some(bytes),
        Err(_) => None,
    }
}

/// A stream whose parts the test sends by itself.
pub fn script() -> (mpsc::Sender<Part>, impl Fn(&Call) -> Act + Send + Sync + 'static) {
    let (parts, receiver) = mpsc::channel(16);
    let receiver = Mutex::new(Some(receiver));
    (parts, move |_: &Call| Act::Stream(receiver.lock().unwrap().take().unwrap()))
}

pub fn streaming(body: &str) -> String {
    body.replacen('{', r#"{"stream":true,"#, 1)
}

//! Workers that can be killed, and gateways in front of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming as Body;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proto::inference::v1::inference_service_client::InferenceServiceClient;
use proto::inference::v1::message::Content;
use proto::inference::v1::{
    DescribeRequest, DescribeResponse, Message, Parameters, StreamInferenceRequest,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use transport::config::{Env, Flags, GrpcTls, Role, parse};
use transport::front::{Front, Limits, Listener, RpcDoor, Server, Settings as FrontSettings};
use transport::gateway::Gateway;
use transport::quic::Identity;
use transport::trace::Tracer;
use transport::worker::{
    Backend, Doors, Drained, Echo, Incoming, QuicDoor, Settings, Telemetry, serve, serve_telling,
};

pub const SECOND: Duration = Duration::from_secs(1);
/// Nothing here takes this long unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// A worker with a runtime of its own, so that it can vanish with all its connections.
pub struct Worker {
    pub addr: SocketAddr,
    /// Where it is over QUIC, with its fingerprint behind a `#`.
    quic: String,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<Drained>>,
    runtime: Option<Runtime>,
}

impl Worker {
    pub fn new(backend: Backend) -> Self {
        Self::with(backend, 64, 5 * SECOND)
    }

    pub fn echo(delay: Duration) -> Self {
        Self::new(Backend::Echo(Echo { delay }))
    }

    /// For the model `m`.
    pub fn with(backend: Backend, concurrency: u32, grace: Duration) -> Self {
        Self::telling(Telemetry::new("m", Tracer::default()), backend, concurrency, grace)
    }

    /// The same, with figures and spans that a test reads.
    pub fn telling(
        telemetry: Telemetry,
        backend: Backend,
        concurrency: u32,
        grace: Duration,
    ) -> Self {
        let settings = Settings { model: "m".to_owned(), backend, concurrency, grace };
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let own = Identity::made().unwrap();
        let pin = own.pin();
        let (tell, told) = std::sync::mpsc::channel();
        let mut worker = Self::running(stop, async move |grpc| {
            let door = QuicDoor::bind(([127, 0, 0, 1], 0).into(), &own, None).unwrap();
            tell.send(door.local_addr().unwrap()).unwrap();
            let doors = Doors { grpc, quic: Some(door) };
            serve_telling(telemetry, doors, settings, stopped).await.unwrap()
        });
        worker.quic = format!("quic://{}#{pin}", told.recv().unwrap());
        worker
    }

    /// One that echoes at once, at this address.
    pub fn at(addr: SocketAddr) -> Self {
        let backend = Backend::Echo(Echo::default());
        let settings = Settings { model: "m".to_owned(), backend, concurrency: 64, grace: SECOND };
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        Self::running_at(addr, stop, async |incoming| {
            serve(incoming, settings, stopped).await.unwrap()
        })
    }

    /// Whatever serves on a free port, on a runtime of its own.
    pub fn running<F>(
        stop: CancellationToken,
        play: impl FnOnce(Incoming) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Drained> + Send,
    {
        Self::running_at(([127, 0, 0, 1], 0).into(), stop, play)
    }

    fn running_at<F>(
        addr: SocketAddr,
        stop: CancellationToken,
        play: impl FnOnce(Incoming) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Drained> + Send,
    {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let served = runtime.spawn(async move {
            let incoming = Incoming::bind(addr).await.unwrap();
            tell.send(incoming.local_addr().unwrap()).unwrap();
            play(incoming).await
        });
        let addr = told.recv().unwrap();
        Self { addr, quic: String::new(), stop, served: Some(served), runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("grpc://{}", self.addr)
    }

    /// Its address over QUIC, as [`World::before`] takes it.
    pub fn over_quic(&self) -> String {
        assert!(!self.quic.is_empty(), "this one speaks gRPC alone");
        self.quic.clone()
    }

    pub async fn client(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.addr)).unwrap().connect().await.unwrap()
    }

    pub async fn described(&self) -> DescribeResponse {
        self.client().await.describe(DescribeRequest {}).await.unwrap().into_inner()
    }

    pub async fn running_now(&self) -> u32 {
        self.described().await.load.unwrap().running
    }

    /// Waits until so many answers run.
    pub async fn runs(&self, count: u32) {
        self.runs_within(count, LONG).await;
    }

    pub async fn runs_within(&self, count: u32, time: Duration) {
        let began = Instant::now();
        while self.running_now().await != count {
            assert!(began.elapsed() < time, "never {count} at once");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// No goodbye: every socket closes at once.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn order_to_stop(&self) {
        self.stop.cancel();
    }

    pub async fn stopped(&mut self) -> Drained {
        timeout(LONG, self.served.take().unwrap()).await.unwrap().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills the one of two that answers, as soon as it does. Returns the other's name.
pub async fn kill_whoever_is_asked(workers: &mut [Worker; 2]) -> String {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LONG, "nobody was asked");
        for (at, worker) in workers.iter_mut().enumerate() {
            if worker.running_now().await == 1 {
                worker.kill();
                return format!("w{}", 1 - at);
            }
        }
    }
}

/// A question of a user, on the wire.
pub fn question(text: &str, parameters: Parameters) -> StreamInferenceRequest {
    let content = Some(Content::Text(text.to_owned()));
    StreamInferenceRequest {
        model: "m".to_owned(),
        messages: vec![Message { role: "user".to_owned(), content, ..Message::default() }],
        parameters: Some(parameters),
        ..StreamInferenceRequest::default()
    }
}

/// A text of so many words.
pub fn words(count: usize) -> String {
    (0..count).map(|word| format!("w{word} ")).collect()
}

/// A gateway with its HTTP front.
pub struct World {
    addr: SocketAddr,
    /// Where it is over gRPC, where it has a port for that.
    pub rpc: Option<SocketAddr>,
    /// Where its ledger is alone, where it has a port for that.
    pub quota: Option<SocketAddr>,
    _served: [AbortOnDropHandle<()>; 2],
    pub gateway: Arc<Gateway>,
    home: TempDir,
    text: String,
}

async fn door(addr: Option<SocketAddr>, tls: Option<&GrpcTls>) -> Option<(RpcDoor, SocketAddr)> {
    let bound = Incoming::bind(addr?).await.unwrap();
    let addr = bound.local_addr().unwrap();
    let door = match tls {
        None => RpcDoor::plain(bound),
        Some(tls) => RpcDoor::with_tls(bound, tls).unwrap(),
    };
    Some((door, addr))
}

impl World {
    /// In front of these endpoints of the model `m`, each named after its place (`w0`, `w1`). Behind a `#` is the
    /// fingerprint that is pinned.
    pub async fn before(urls: &[String], more: &str) -> Self {
        Self::of(&endpoints(urls, more)).await
    }

    pub async fn of(text: &str) -> Self {
        Self::playing(Role::All, text).await
    }

    /// The same as one role of several.
    pub async fn playing(role: Role, text: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pm-").tempdir().unwrap();
        Self::at(home, role, text).await
    }

    /// The same gateway, after an orderly end.
    pub async fn restarted(self) -> Self {
        let Self { _served: served, gateway, home, text, .. } = self;
        drop(served);
        gateway.stop().unwrap();
        drop(gateway);
        Self::at(home, Role::All, &text).await
    }

    /// One whose requests have spans, before endpoints as [`World::before`] takes them.
    pub async fn traced(tracer: Tracer, urls: &[String], more: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pm-").tempdir().unwrap();
        Self::tracing_at(home, Role::All, &endpoints(urls, more), (tracer, Env::default())).await
    }

    /// One of several roles that share the Redis on this port.
    pub async fn sharing(role: Role, redis: u16, text: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pm-").tempdir().unwrap();
        let env = [("REDIS_ADDR", format!("127.0.0.1:{redis}"))].into_iter().collect();
        Self::tracing_at(home, role, text, (Tracer::default(), env)).await
    }

    async fn at(home: TempDir, role: Role, told: &str) -> Self {
        Self::tracing_at(home, role, told, (Tracer::default(), Env::default())).await
    }

    async fn tracing_at(
        home: TempDir,
        role: Role,
        told: &str,
        (tracer, env): (Tracer, Env),
    ) -> Self {
        let data = home.path().join("data");
        let text = format!("version: 1\ndata: {{dir: '{}'}}\n{told}", data.display());
        let flags = Flags { role, ..Flags::default() };
        let loaded = parse("test.yaml", text.as_bytes(), &flags, &env);
        let config = loaded.unwrap_or_else(|errors| panic!("{errors}")).config;
        let gateway = Gateway::start(&config).unwrap();
        gateway.health().set_serving(true);
        gateway.discover().await;
        let limits = Limits::default();
        let (chat, accounts) = (Arc::new(gateway.chat()), gateway.auth());
        let (streams, edge) = (gateway.streams(), role == Role::Gateway);
        let settings =
            FrontSettings { limits: limits.clone(), streams, tracer, edge, till: gateway.till() };
        let front = Front::with(chat, accounts, settings);
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::new(limits, front.meters()).listen(listener);
        let router = front.router();
        let served = tokio::spawn(async move {
            server.serve(router, std::future::pending(), Duration::ZERO).await;
        });
        let tls = config.server.grpc_tls.as_ref();
        let (incoming, rpc) = door(config.server.grpc_addr, tls).await.unzip();
        let (counter, quota) = door(config.server.quota_addr, tls).await.unzip();
        let over_grpc = tokio::spawn(async move {
            let grpc = async {
                let Some(door) = incoming else { return };
                front.serve_rpc(door, std::future::pending(), Duration::ZERO).await.unwrap();
            };
            let quota = async {
                let Some(door) = counter else { return };
                front.serve_quota(door, std::future::pending(), Duration::ZERO).await.unwrap();
            };
            tokio::join!(grpc, quota);
        });
        let (_served, text) = ([served, over_grpc].map(AbortOnDropHandle::new), told.to_owned());
        Self { home, gateway, addr, rpc, quota, _served, text }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Asks, and returns with the head.
    pub async fn begin(&self, path: &str, body: &Value) -> http::Response<Body> {
        self.begin_with(path, body, &[]).await
    }

    pub async fn begin_with(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> http::Response<Body> {
        let request = Request::post(format!("http://{}{path}", self.addr))
            .header("content-type", "application/json");
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Full::from(body.to_string())).unwrap();
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        timeout(LONG, client.request(request)).await.unwrap().unwrap()
    }

    pub async fn ask(&self, text: &str, more: Value) -> Answer {
        self.ask_with(text, more, &[]).await
    }

    pub async fn ask_with(&self, text: &str, more: Value, headers: &[(&str, &str)]) -> Answer {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Answer::of(self.begin_with("/v1/chat/completions", &body, headers).await).await
    }

    pub async fn get(&self, path: &str) -> String {
        self.get_with(path, &[]).await.text
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        Answer::of(self.get_begun(path, headers).await).await
    }

    /// The same, with the head alone.
    pub async fn get_begun(&self, path: &str, headers: &[(&str, &str)]) -> http::Response<Body> {
        let request = Request::get(format!("http://{}{path}", self.addr));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        client.request(request.body(Full::default()).unwrap()).await.unwrap()
    }
}

/// A configuration with these endpoints of the model `m`.
fn endpoints(urls: &[String], more: &str) -> String {
    let endpoint = |(at, url): (usize, &String)| match url.split_once('#') {
        Some((url, pin)) => format!("{{url: '{url}', name: w{at}, tls: {{pin: '{pin}'}}}}"),
        None => format!("{{url: '{url}', name: w{at}}}"),
    };
    let endpoints: Vec<_> = urls.iter().enumerate().map(endpoint).collect();
    format!("models: {{m: {{endpoints: [{}]}}}}\n{more}", endpoints.join(", "))
}

/// A stream's question.
pub fn streamed(text: &str) -> Value {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": text}]})
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(response: http::Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let body = timeout(LONG, body.collect()).await.unwrap().unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Self { status: head.status, headers: head.headers, text }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("-", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The events of a stream, `[DONE]` left out.
    pub fn events(&self) -> Vec<Value> {
        let blocks = self.text.split("\n\n").filter(|block| !block.is_empty());
        let data =
            blocks.map(|block| block.strip_prefix("data: ").unwrap_or_else(|| panic!("{block}")));
        let told = data.filter(|data| *data != "[DONE]");
        told.map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    pub fn is_done(&self) -> bool {
        self.text.ends_with("data: [DONE]\n\n")
    }

    /// The text of a stream.
    pub fn told(&self) -> String {
        let events = self.events();
        let texts =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        texts.collect()
    }
}

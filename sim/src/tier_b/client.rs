//! A client: hyper's HTTP/1.1, whole and streamed answers, retries, and a patience that ends.
//!
//! What it tells the checkers is what a user could know: a whole answer, an error in words, or nothing (a timeout or a
//! broken connection), which is *unknown* and never "failed".

mod blocks;
mod kept;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::blocks::Blocks;
use super::plan::{Operation, TierBPlan};
use super::replica::MODEL;
use super::stage::Stage;
use super::tenancy::Refused;
use super::wire::Sockets;

/// The port gateways listen on.
pub(super) const PORT: u16 = 8_080;

/// Does this client's part of the plan.
pub(super) async fn run(stage: Arc<Stage>, client: u8) -> turmoil::Result {
    let began = Instant::now();
    let sockets = Sockets::new(&stage, &super::plan::client(client));
    let gateways = usize::from(stage.plan.machines());
    let kept = Arc::new((0..gateways).map(|_| Mutex::new(None)).collect::<Vec<Kept>>());
    for (number, operation) in stage.plan.operations.iter().enumerate() {
        if operation.client != client {
            continue;
        }
        sleep_until(began + Duration::from_millis(operation.at_ms)).await;
        let asker = Asker {
            stage: Arc::clone(&stage),
            sockets: sockets.clone(),
            kept: Arc::clone(&kept),
            operation: operation.clone(),
            number,
        };
        tokio::spawn(asker.run());
    }
    std::future::pending().await
}

type Kept = Mutex<Option<(SendRequest<Full<Bytes>>, Instant)>>;

/// How long an idle connection is used again: what is older may be dead without a word.
const KEPT_MAX: Duration = Duration::from_secs(2);

/// How a try ended, as far as the client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// All of it, with a clean end.
    Whole,
    /// A status that is none of success.
    Refused(u16),
    /// An error in words in the middle of a stream, or an end that is not clean.
    Broken,
    /// The client left, as it meant to.
    Left,
    /// Nothing that says how it ended.
    Unknown,
}

struct Asker {
    stage: Arc<Stage>,
    sockets: Sockets,
    kept: Arc<Vec<Kept>>,
    operation: Operation,
    number: usize,
}

impl Asker {
    async fn run(self) {
        for attempt in 0..=self.operation.retries {
            let ticket = self.begin();
            let seen = match &self.operation.keeping {
                Some(keeping) => timeout(kept::PATIENCE, self.ask_kept(ticket, keeping)).await,
                None => {
                    let patience = Duration::from_millis(self.operation.timeout_ms);
                    timeout(patience, self.ask(ticket)).await
                }
            };
            let seen = seen.unwrap_or(Seen::Unknown);
            let now = self.stage.now();
            let is_over = matches!(seen, Seen::Whole | Seen::Left | Seen::Refused(400..=428));
            // The quiet at the end is for fresh requests alone.
            let is_late = !self.operation.must_succeed
                && now > Duration::from_millis(self.stage.plan.heal_ms());
            let is_last = is_over || is_late || attempt == self.operation.retries;
            self.stage.scene().checks.saw(now, ticket, seen, is_last);
            self.stage.word(format!(
                "client {} operation {} {seen:?}",
                self.operation.client, self.number
            ));
            if is_last {
                return;
            }
            // Who is asked to come back later does; the gateway says a second or two.
            let is_shed = matches!(seen, Seen::Refused(429 | 503)) && self.operation.must_succeed;
            let pause = if is_shed { 1_000 } else { 50 << attempt };
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn begin(&self) -> usize {
        let now = self.stage.now();
        self.stage.scene().checks.begins(now, self.number)
    }

    async fn ask(&self, ticket: usize) -> Seen {
        let Some((mut sender, is_fresh)) = self.connection().await else { return Seen::Unknown };
        let sent = sender.send_request(self.request(ticket)).await;
        let response = match sent {
            Ok(response) => response,
            // An idle connection that was just closed: the request never left.
            Err(error) if error.is_canceled() && !is_fresh => {
                let Some((again, _)) = self.connect().await else { return Seen::Unknown };
                sender = again;
                let Ok(response) = sender.send_request(self.request(ticket)).await else {
                    return Seen::Unknown;
                };
                response
            }
            Err(_) => return Seen::Unknown,
        };
        let seen = self.read(ticket, response).await;
        if matches!(seen, Seen::Whole | Seen::Refused(_)) && sender.is_ready() {
            let gateway = usize::from(self.operation.gateway);
            *self.kept[gateway].lock().await = Some((sender, Instant::now()));
        }
        seen
    }

    async fn connection(&self) -> Option<(SendRequest<Full<Bytes>>, bool)> {
        let kept = self.kept[usize::from(self.operation.gateway)].lock().await.take();
        match kept {
            Some((sender, since)) if sender.is_ready() && since.elapsed() < KEPT_MAX => {
                Some((sender, false))
            }
            Some(_) | None => self.connect().await,
        }
    }

    async fn connect(&self) -> Option<(SendRequest<Full<Bytes>>, bool)> {
        self.connect_to(self.operation.gateway).await.map(|sender| (sender, true))
    }

    async fn connect_to(&self, gateway: u8) -> Option<SendRequest<Full<Bytes>>> {
        let name = super::plan::gateway(gateway);
        let wire = self.sockets.connect(&name, PORT).await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(wire)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }

    fn request(&self, ticket: usize) -> Request<Full<Bytes>> {
        let operation = &self.operation;
        let content = prompt(&self.stage.plan, self.number);
        let mut body = json!({
            "model": MODEL, "stream": operation.stream,
            "messages": [{"role": "user", "content": content}],
        });
        if operation.stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        if let Some(max) = operation.max_tokens {
            body["max_tokens"] = max.into();
        }
        let mut request = Request::post("/v1/chat/completions")
            .header("host", "gateway")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", key(self.tenants(), operation.tenant)));
        // The one header that goes on to the replica: it tells which try its work is for.
        let trace = format!("00-{:032x}-{:016x}-01", ticket + 1, ticket + 1);
        request = request.header("traceparent", trace);
        if let Some(session) = operation.session {
            request = request.header("x-session-id", format!("session-{session}"));
        }
        if operation.keyed {
            request = request.header("idempotency-key", format!("operation-{}", self.number));
        }
        if operation.keeping.is_some() {
            request = request.header("x-pointsman-resumable", "true");
        }
        request.body(Full::new(Bytes::from(body.to_string()))).expect("the parts are sound")
    }

    /// Notes how the gateway calls the request, and who answers.
    fn name(&self, ticket: usize, response: &Response<Incoming>) {
        let id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        let id = id.unwrap_or_default().to_owned();
        // A door names the chat role that answers.
        let by = response.headers().get("x-pointsman-replica").and_then(|by| by.to_str().ok());
        let house = by.and_then(|by| by.strip_prefix("gateway-")?.parse().ok());
        self.stage.scene().checks.named(ticket, id, house);
    }

    async fn read(&self, ticket: usize, response: Response<Incoming>) -> Seen {
        self.name(ticket, &response);
        let status = response.status().as_u16();
        let is_stream = response
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if status != 200 {
            let Ok(body) = response.into_body().collect().await else { return Seen::Unknown };
            self.explain(status, &body.to_bytes());
            return Seen::Refused(status);
        }
        if is_stream {
            self.read_stream(ticket, response).await
        } else {
            self.read_whole(ticket, response).await
        }
    }

    fn tenants(&self) -> u8 {
        self.stage.plan.tenants_of(self.operation.gateway)
    }

    /// What was refused is said in the trace, where a failure is looked into.
    fn explain(&self, status: u16, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or("?");
        self.stage.word(format!("operation {} refused: {status} {code}", self.number));
        self.told(&body["error"]);
    }

    /// Why it got nothing, or no more.
    fn told(&self, error: &Value) {
        let now = self.stage.now();
        let (gateway, tenant) = (self.tenants(), self.operation.tenant);
        let code = error["code"].as_str().unwrap_or_default();
        let message = error["message"].as_str().unwrap_or_default();
        let refused = Refused { gateway, tenant, code, message };
        self.stage.scene().checks.refused(now, &refused);
    }

    async fn read_whole(&self, ticket: usize, response: Response<Incoming>) -> Seen {
        let Ok(body) = response.into_body().collect().await else { return Seen::Unknown };
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let text = body["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        let usage = body["usage"]["total_tokens"].as_u64();
        let now = self.stage.now();
        let mut scene = self.stage.scene();
        text.split_whitespace().for_each(|token| scene.checks.token(now, ticket, token));
        scene.checks.clean_end(now, ticket, usage);
        Seen::Whole
    }

    async fn read_stream(&self, ticket: usize, response: Response<Incoming>) -> Seen {
        let mut body = response.into_body();
        let (mut blocks, mut heard) = (Blocks::default(), Heard::default());
        loop {
            let frame = match body.frame().await {
                None => return heard.end(),
                Some(Err(_)) => return Seen::Unknown,
                Some(Ok(frame)) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            blocks.push(&data);
            for event in blocks.by_ref() {
                self.event(ticket, event.trim(), &mut heard);
            }
            if self.operation.leaves_after.is_some_and(|after| heard.tokens > after) {
                return Seen::Left;
            }
        }
    }

    fn event(&self, ticket: usize, event: &str, heard: &mut Heard) {
        let now = self.stage.now();
        let Some(data) = event.strip_prefix("data: ") else {
            if let Some(after) = seam(event) {
                self.stage.scene().checks.seam(now, ticket, after);
            }
            return;
        };
        if data == "[DONE]" {
            heard.is_done = true;
            return self.stage.scene().checks.clean_end(now, ticket, heard.usage);
        }
        let Ok(value) = serde_json::from_str::<Value>(data) else {
            return self.stage.scene().checks.nonsense(now, ticket, data);
        };
        if let Some(error) = value.get("error") {
            heard.is_error = true;
            self.told(error);
        }
        heard.usage = value["usage"]["total_tokens"].as_u64().or(heard.usage);
        if let Some(completion) = value["usage"]["completion_tokens"].as_u64() {
            self.stage.scene().checks.billed(now, ticket, completion);
        }
        if let Some(token) = value["choices"][0]["delta"]["content"].as_str() {
            heard.tokens += 1;
            self.stage.scene().checks.token(now, ticket, token.trim());
        }
    }
}

/// What an operation's user says.
pub(super) fn prompt(plan: &TierBPlan, number: usize) -> String {
    let operation = &plan.operations[number];
    let words = vec!["word"; operation.prompt as usize].join(" ");
    // A worker's answer depends on this text alone: no two operations have the same.
    let whose = if plan.has_workers() { format!("operation={number} ") } else { String::new() };
    format!("{whose}wants={} {words}", operation.wants)
}

/// A comment between two replicas' parts of a stream.
fn seam(event: &str) -> Option<u64> {
    let (after, _) = event.strip_prefix(": resumed after ")?.split_once(' ')?;
    after.parse().ok()
}

/// What a stream has said so far.
#[derive(Default)]
struct Heard {
    tokens: u32,
    usage: Option<u64>,
    is_done: bool,
    is_error: bool,
}

impl Heard {
    fn end(&self) -> Seen {
        if self.is_done { Seen::Whole } else { Seen::Broken }
    }
}

/// The API key of a tenant.
pub(super) fn key(gateway: u8, tenant: Option<u8>) -> String {
    let tenant = super::gateway::tenant(gateway, tenant);
    format!("key-of-{tenant}")
}

//! A client that is as plain and as fast as one can be: hyper, kept-alive connections, no retries of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Error};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use transport::tokens::{estimate, estimate_prompt};

/// Nothing that the tests ask for takes this long, unless it hangs.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What to ask, and how to behave.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub key: Option<String>,
    pub stream: bool,
    pub tokens: u64,
    pub session: Option<String>,
    pub idempotency: Option<String>,
    /// Leave the stream after so many pieces.
    pub leave_after: Option<usize>,
    /// Told how many pieces have arrived, while they do.
    pub heard: Arc<AtomicUsize>,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// 0 where not even a head came.
    pub status: u16,
    pub request: Option<String>,
    pub replica: Option<String>,
    pub attempts: u32,
    /// The code of an error, before or inside an answer.
    pub error: Option<String>,
    /// Prompt and completion, as reported.
    pub usage: Option<(u64, u64)>,
    /// The prompt by the gateway's own count.
    pub prompt: u64,
    /// Pieces of text that arrived, and their tokens by the gateway's own count.
    pub pieces: usize,
    pub received: u64,
    /// The answer came to its proper end.
    pub whole: bool,
    /// The client left on purpose.
    pub left: bool,
    /// The connection broke.
    pub broken: Option<String>,
}

impl Answer {
    /// Begun, and ended without an end or a reason: what no gateway may do.
    pub fn is_silent(&self) -> bool {
        let told = self.whole || self.left || self.error.is_some() || self.broken.is_some();
        self.status == 200 && !told
    }

    /// Nothing of an answer came, and the gateway did not say why either, or said that it is its own fault.
    pub fn is_refused(&self) -> bool {
        self.status != 200
    }

    /// What was used, where the whole answer came.
    pub fn used(&self) -> Option<u64> {
        self.usage.filter(|_| self.whole).map(|(prompt, completion)| prompt + completion)
    }
}

/// Connections to one gateway.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Client {
    pub fn new(port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Self { http, url: format!("http://127.0.0.1:{port}/v1/chat/completions") }
    }

    pub async fn ask(&self, ask: &Ask) -> Answer {
        let mut answer = Answer::default();
        let asked = self.exchange(ask, &mut answer);
        match tokio::time::timeout(ANSWER_MAX, asked).await {
            Err(_) => panic!("no end after {ANSWER_MAX:?}: {ask:?}, {answer:?}"),
            Ok(Err(error)) => answer.broken = Some(format!("{error:?}")),
            Ok(Ok(())) => {}
        }
        answer
    }

    async fn exchange(
        &self,
        ask: &Ask,
        answer: &mut Answer,
    ) -> Result<(), Box<dyn core::error::Error + Send + Sync>> {
        let body = body(ask);
        answer.prompt = estimate_prompt(&body).0;
        let response = self.send(ask, body).await?;
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(str::to_owned)
        };
        answer.status = response.status().as_u16();
        answer.request = text("x-request-id");
        answer.replica = text("x-pointsman-replica");
        answer.attempts = text("x-pointsman-attempts").and_then(|n| n.parse().ok()).unwrap_or(0);
        let events = is_events(response.headers());
        let body = response.into_body();
        if events {
            return Ok(read_events(ask, body, answer).await?);
        }
        let said: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        answer.take(&said);
        answer.whole = answer.status == 200 && said["choices"][0]["finish_reason"].is_string();
        Ok(())
    }

    async fn send(&self, ask: &Ask, body: Vec<u8>) -> Result<http::Response<Incoming>, Error> {
        let mut request = Request::post(&self.url).header("content-type", "application/json");
        let headers = [
            ("authorization", ask.key.as_ref().map(|key| format!("Bearer {key}"))),
            ("x-session-id", ask.session.clone()),
            ("idempotency-key", ask.idempotency.clone()),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("a sound request");
        self.http.request(request).await
    }
}

fn body(ask: &Ask) -> Vec<u8> {
    let mut body = json!({
        "model": "demo",
        "max_tokens": ask.tokens,
        "messages": [{"role": "user", "content": "Tell me about trains and points, please."}],
    });
    if ask.stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    }
    body.to_string().into_bytes()
}

fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

async fn read_events(
    ask: &Ask,
    mut body: Incoming,
    answer: &mut Answer,
) -> Result<(), hyper::Error> {
    let mut held: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        held.extend_from_slice(&data);
        while let Some(end) = held.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = held.drain(..end + 2).collect();
            answer.take_event(&event);
            ask.heard.store(answer.pieces, Ordering::Relaxed);
            if ask.leave_after.is_some_and(|pieces| answer.pieces >= pieces) {
                answer.left = true;
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Answer {
    fn take_event(&mut self, event: &[u8]) {
        let text = String::from_utf8_lossy(event);
        let Some(data) = text.trim().strip_prefix("data: ") else { return };
        if data == "[DONE]" {
            self.whole = self.error.is_none();
            return;
        }
        self.take(&serde_json::from_str(data).unwrap_or_else(|_| json!({"error": {"code": data}})));
    }

    /// What an object of the API says: an error, a piece, usage.
    fn take(&mut self, said: &Value) {
        if let Some(error) = said.get("error") {
            let words = error["code"].as_str().or(error["message"].as_str()).unwrap_or("an error");
            self.error = Some(words.to_owned());
        }
        let piece = said["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty());
        if let Some(piece) = piece {
            self.pieces += 1;
            self.received += estimate(piece).0.max(1);
        }
        let count = |name: &str| said["usage"][name].as_u64();
        self.usage = count("prompt_tokens").zip(count("completion_tokens")).or(self.usage);
    }
}

//! A model replica: OpenAI's API over HTTP/1.1, and every way of not speaking it.
//!
//! Its tokens are `t<answer>.<number>`: the answer's own number and the token's, from 0. Whoever reads them sees at once
//! what is missing, what came twice, and what was sewn together from two answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::check::Work;
use super::plan::Mode;
use super::stage::Stage;
use super::wire::{Sockets, Wire};

/// The port replicas listen on.
pub(super) const PORT: u16 = 8_000;
/// The model they serve.
pub(super) const MODEL: &str = "m";

/// Serves until the host goes down.
pub(super) async fn serve(stage: Arc<Stage>, replica: u8) -> turmoil::Result {
    let name = super::plan::replica(replica);
    let door = Sockets::new(&stage, &name).listen(PORT).await?;
    loop {
        let wire = door.next().await?;
        let from = wire.peer();
        tokio::spawn(converse(Arc::clone(&stage), (replica, from), wire));
    }
}

/// `who`: the replica, and the gateway it speaks with.
async fn converse(stage: Arc<Stage>, who: (u8, u8), wire: Wire) {
    let service = service_fn(|request| answer(Arc::clone(&stage), who, request));
    let mut http = http1::Builder::new();
    http.auto_date_header(false).timer(TokioTimer::new()).header_read_timeout(IDLE);
    // Whatever ends a connection is the other side's business.
    let _ = http.serve_connection(TokioIo::new(wire), service).await;
}

/// As common model servers have it.
const IDLE: Duration = Duration::from_secs(5);

type Reply = http_body_util::combinators::BoxBody<Bytes, Broken>;

/// Ends a connection in the middle of an answer.
#[derive(Clone, Copy, Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the replica breaks off")
    }
}

impl std::error::Error for Broken {}

async fn answer(
    stage: Arc<Stage>,
    (replica, gateway): (u8, u8),
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    if request.uri().path().ends_with("/models") {
        return Ok(whole(StatusCode::OK, &json!({"object": "list", "data": [{"id": MODEL}]})));
    }
    let id = header(&request, "x-request-id");
    let ticket = ticket_of(&header(&request, "traceparent"));
    let Ok(body) = request.into_body().collect().await.map(|body| body.to_bytes()) else {
        std::future::pending().await
    };
    let asked = Asked::read(&body);
    let mode = stage.scene().modes[usize::from(replica)];
    let now = stage.now();
    let nonce = {
        let mut scene = stage.scene();
        scene.nonces += 1;
        let nonce = scene.nonces;
        let Asked { prompt, tokens, .. } = asked;
        let work = Work { replica, gateway, request: id.clone(), ticket, prompt, tokens };
        scene.checks.asked(now, nonce, work);
        nonce
    };
    let speech = Speech { stage, id, nonce, asked, mode };
    match mode {
        Mode::Stalls => std::future::pending().await,
        Mode::Fails(status) => Ok(speech.failure(status)),
        Mode::Garbage => Ok(speech.garbage()),
        Mode::Healthy
        | Mode::Slow(_)
        | Mode::DiesAfter(_)
        | Mode::EndsAfter(_)
        | Mode::StallsAfter(_) => Ok(speech.begin().await),
    }
}

/// The client writes its number into the trace's id.
pub(super) fn ticket_of(traceparent: &str) -> Option<usize> {
    let number = usize::from_str_radix(traceparent.split('-').nth(1)?, 16).ok()?;
    number.checked_sub(1)
}

fn header(request: &Request<Incoming>, name: &str) -> String {
    let value = request.headers().get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn whole(status: StatusCode, body: &Value) -> Response<Reply> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    response(status, "application/json", body.boxed())
}

fn response(status: StatusCode, kind: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// What a request asks for.
struct Asked {
    stream: bool,
    usage: bool,
    prompt: u32,
    tokens: u32,
    is_cut: bool,
}

impl Asked {
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = body["messages"][0]["content"].as_str().unwrap_or_default();
        let words: BTreeMap<&str, u32> = text
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let wants = words.get("wants").copied().unwrap_or(1);
        let max = ["max_completion_tokens", "max_tokens"].iter().find_map(|key| body[key].as_u64());
        let max = max.map_or(u32::MAX, |max| u32::try_from(max).unwrap_or(u32::MAX));
        Self {
            stream: body["stream"] == true,
            usage: body["stream_options"]["include_usage"] == true,
            prompt: text.split(' ').count() as u32,
            tokens: wants.min(max),
            is_cut: max < wants,
        }
    }
}

/// One answer.
struct Speech {
    stage: Arc<Stage>,
    id: String,
    nonce: u64,
    asked: Asked,
    mode: Mode,
}

impl Speech {
    fn failure(&self, status: u16) -> Response<Reply> {
        let code = if status == 401 { "invalid_api_key" } else { "failed" };
        let error = json!({"error": {"message": "no", "type": "error", "code": code}});
        whole(StatusCode::from_u16(status).unwrap_or_default(), &error)
    }

    fn garbage(&self) -> Response<Reply> {
        let kind = if self.asked.stream { "text/event-stream" } else { "application/json" };
        let body =
            Full::new(Bytes::from_static(b"data: {\"choices\": [{\"del\n\ndata: [DONE]\n\n"));
        response(StatusCode::OK, kind, body.map_err(|never| match never {}).boxed())
    }

    fn times(&self) -> (Duration, Duration) {
        let slow = match self.mode {
            Mode::Slow(times) => u64::from(times),
            Mode::Healthy
            | Mode::Stalls
            | Mode::Garbage
            | Mode::DiesAfter(_)
            | Mode::EndsAfter(_)
            | Mode::StallsAfter(_)
            | Mode::Fails(_) => 1,
        };
        let knobs = &self.stage.plan.knobs;
        let time = |ms| Duration::from_millis(ms * slow);
        (time(knobs.first_ms), time(knobs.each_ms))
    }

    async fn begin(self) -> Response<Reply> {
        let (first, each) = self.times();
        if self.asked.stream {
            let pause = Box::pin(sleep(first));
            let kind = "text/event-stream";
            let tokens = Tokens { speech: self, each, pause, next: 0, step: Step::Tokens };
            return response(StatusCode::OK, kind, BodyExt::boxed(tokens));
        }
        sleep(first + each * self.asked.tokens).await;
        match self.mode {
            Mode::StallsAfter(_) => return std::future::pending().await,
            Mode::DiesAfter(_) | Mode::EndsAfter(_) => {
                return response(StatusCode::OK, "application/json", BodyExt::boxed(Breaks));
            }
            Mode::Healthy | Mode::Slow(_) | Mode::Stalls | Mode::Garbage | Mode::Fails(_) => {}
        }
        let text: Vec<String> = (0..self.asked.tokens).map(|seq| self.token(seq)).collect();
        let message = json!({"role": "assistant", "content": text.concat()});
        whole(
            StatusCode::OK,
            &json!({
                "id": "answer", "object": "chat.completion", "created": 1, "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": self.reason()}],
                "usage": self.usage(self.asked.tokens),
            }),
        )
    }

    fn token(&self, seq: u32) -> String {
        format!("t{}.{seq} ", self.nonce)
    }

    fn reason(&self) -> &'static str {
        if self.asked.is_cut { "length" } else { "stop" }
    }

    fn usage(&self, completion: u32) -> Value {
        let prompt = self.asked.prompt;
        let total = prompt + completion;
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total})
    }
}

/// What a body of ours comes up with.
type Polled = Poll<Option<Result<Frame<Bytes>, Broken>>>;

/// A body that breaks at once.
struct Breaks;

impl Body for Breaks {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
        Poll::Ready(Some(Err(Broken)))
    }
}

/// The body of a stream.
struct Tokens {
    speech: Speech,
    each: Duration,
    pause: Pin<Box<Sleep>>,
    next: u32,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Tokens,
    Usage,
    Done,
    Over,
}

impl Tokens {
    /// What the replica's mode does at this token instead of saying it.
    fn mishap(&self) -> Option<Polled> {
        match self.speech.mode {
            Mode::DiesAfter(after) if self.next >= after => Some(Poll::Ready(Some(Err(Broken)))),
            Mode::EndsAfter(after) if self.next >= after => Some(Poll::Ready(None)),
            // Nobody will wake it: it waits for its connection's end.
            Mode::StallsAfter(after) if self.next >= after => Some(Poll::Pending),
            Mode::Healthy
            | Mode::Slow(_)
            | Mode::Stalls
            | Mode::Garbage
            | Mode::DiesAfter(_)
            | Mode::EndsAfter(_)
            | Mode::StallsAfter(_)
            | Mode::Fails(_) => None,
        }
    }

    fn chunk(&mut self) -> Option<String> {
        let choice = |delta: Value, reason: Option<&str>| {
            json!({
                "id": "answer", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            })
        };
        let (value, step) = match self.step {
            Step::Tokens if self.next < self.speech.asked.tokens => {
                let text = self.speech.token(self.next);
                self.next += 1;
                (choice(json!({"content": text}), None), Step::Tokens)
            }
            Step::Tokens => (choice(json!({}), Some(self.speech.reason())), Step::Usage),
            Step::Usage if self.speech.asked.usage => {
                let usage = self.speech.usage(self.next);
                (json!({"id": "answer", "choices": [], "usage": usage}), Step::Done)
            }
            Step::Usage | Step::Done => {
                self.step = Step::Over;
                return Some("data: [DONE]\n\n".to_owned());
            }
            Step::Over => return None,
        };
        self.step = step;
        Some(format!("data: {value}\n\n"))
    }
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let tokens = self.get_mut();
        if tokens.step == Step::Tokens {
            ready!(tokens.pause.as_mut().poll(cx));
            if let Some(mishap) = tokens.mishap() {
                return mishap;
            }
            tokens.pause = Box::pin(sleep_until(Instant::now() + tokens.each));
            let stage = &tokens.speech.stage;
            let now = stage.now();
            stage.scene().checks.worked(now, tokens.speech.nonce);
        }
        Poll::Ready(tokens.chunk().map(|text| Ok(Frame::data(Bytes::from(text)))))
    }
}

impl Drop for Speech {
    fn drop(&mut self) {
        self.stage.scene().checks.rested(self.nonce);
    }
}

impl std::fmt::Debug for Speech {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "answer {} to {}", self.nonce, self.id)
    }
}

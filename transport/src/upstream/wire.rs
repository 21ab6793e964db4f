//! Calls to workers, and to the chat role: the same questions and the same ends, in the words of Pointsman's own wire.
//!
//! The caller's body is OpenAI's; it is taken apart into a question ([`question`]), and the chunks that come back are put
//! together as the events, or the one answer, that an OpenAI-compatible server would have sent. So everything behind this
//! module is one path, and clients cannot tell the difference.
//!
//! What is checked on the way: each chunk's place (`seq`), that nothing follows a choice's end, that no more tokens come
//! than were asked for, that a stream which ends well has said why. A worker that gets one of these wrong is not believed
//! in the rest either: `Garbage`, or `Truncated` where the end is missing.
//!
//! - **One connection per worker**, over HTTP/2 or QUIC, kept alive by pings, made again when it broke ([`line`]). All calls
//!   share it. Only [`chunks`] knows which of the two it is.
//! - **When a call has begun.** HTTP has a head that says so. Here the first chunk does: a refusal is an end without one.
//! - **Whole answers** are collected from chunks. So a silent worker is noticed by `first_token` for them too, and
//!   `whole_answer` has no meaning.
//! - **Statuses**: see `convert::failure`.

mod chat;
mod chunks;
pub(super) mod direct;
mod grpc;
mod kept;
mod line;
mod question;
mod quic;
mod refusal;
mod stream;
mod tally;
mod text;
mod whole;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use prost::Message as _;
use proto::inference::v1::{Resume, StreamInferenceRequest};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;

use control::outcome::{Failure, Stage};

use super::connect::Client;
use super::failed::Failed;
use super::models::{Described, ModelInfo};
use super::target::Target;
use super::whole::{Whole, judge};
use super::{Answer, Ask, Limits, Path, Secret, laid_over, late};
use crate::convert;
use crate::exchange::{Behalf, Rest, ResumeCall, SessionAnswer, SessionAsk};
use crate::streams::Used;
use crate::worker::REQUEST_BYTES_MAX;
pub(super) use line::Workers;
use line::{Line, Road};
pub(super) use stream::WireStream;

/// Where an answer's head names the stored session that it is a turn of.
pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

/// And what a stream is called that the chat role keeps.
pub(crate) const STREAM_ID: HeaderName = HeaderName::from_static("x-pointsman-stream-id");

/// How busy a worker says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Requests that wait there.
    pub queued: u32,
    /// Requests that run there.
    pub running: u32,
    /// The most that run there at once; 0 where it is not bounded.
    pub running_max: u32,
    /// Use of its key-value cache in thousandths, where it tells.
    pub kv_used_permille: Option<u32>,
    /// When it said so.
    pub at: Instant,
}

impl Client {
    /// What the worker at `target` said last of its load; `None` where it never did, or has not been asked for long.
    #[must_use]
    pub fn load(&self, target: &Target) -> Option<WorkerLoad> {
        target.base_url.is_worker().then(|| self.workers.load(target))?
    }

    /// Asks the chat role at `target` about stored sessions, on somebody's behalf.
    pub(crate) async fn sessions(
        &self,
        target: &Target,
        asked: (SessionAsk, Behalf),
        limits: Limits,
    ) -> Result<SessionAnswer, Failed> {
        let ask = move |channel: Channel, headers| async move {
            chat::sessions(&channel, headers, asked, &limits).await
        };
        self.of_chat(target, ask, limits).await
    }

    /// Asks the chat role at `target` for the rest of a stream, and returns when it has said what it knows.
    pub(crate) async fn resume(
        &self,
        target: &Target,
        call: ResumeCall,
        limits: Limits,
    ) -> Result<Rest, Failed> {
        let ask = move |channel: Channel, headers| async move {
            kept::resume(&channel, headers, call, &limits).await
        };
        self.of_chat(target, ask, limits).await
    }

    /// Waits until a stream that the chat role at `target` keeps is over, and returns what it came to.
    pub(crate) async fn awaited(
        &self,
        target: &Target,
        stream: (String, Option<Secret>),
        limits: Limits,
    ) -> Result<Used, Failed> {
        let ask = move |channel: Channel, headers| async move {
            kept::over(&channel, headers, stream, &limits).await
        };
        self.of_chat(target, ask, limits).await
    }

    /// A question to the chat role at `target`, which waits for the connection no longer than it may.
    async fn of_chat<T, F: Future<Output = Result<T, Failed>>>(
        &self,
        target: &Target,
        ask: impl FnOnce(Channel, HeaderMap) -> F,
        limits: Limits,
    ) -> Result<T, Failed> {
        let line = self.workers.line(target)?;
        let line::Road::Chat(channel) = line.road() else {
            return Err(Failed::new(Failure::Connect, "the endpoint is no chat role"));
        };
        let dialing = line.dial();
        let headers = headers(target, HeaderMap::new(), "");
        let due = Instant::now() + limits.connect;
        let mut asking = Box::pin(ask(channel.clone(), headers));
        let late = || Failed::new(Failure::Connect, "not in time");
        let said = match timeout_at(due, &mut asking).await {
            Ok(said) => said,
            Err(_) if line.is_up() => {
                timeout_at(limits.deadline, asking).await.map_err(|_| late())?
            }
            Err(_) => return Err(late()),
        };
        dialing.ended();
        said
    }
}

impl Client {
    /// How often the worker at `target` said of its load what cannot be.
    #[must_use]
    pub fn loads_refused(&self, target: &Target) -> u64 {
        if target.base_url.is_worker() { self.workers.loads_refused(target) } else { 0 }
    }

    /// The connection to another role, made when it is first used and again when it broke.
    pub(crate) fn to_role(&self, target: &Target) -> Result<Channel, Failed> {
        let line = self.workers.line(target)?;
        let channel = line.to_role().cloned();
        channel.ok_or_else(|| Failed::new(Failure::Connect, "no role is behind this URL"))
    }
}

/// Asks a worker: [`Client::call`] for targets that are one.
pub(super) async fn call(
    client: &Client,
    target: &Target,
    ask: Ask,
    limits: Limits,
) -> Result<Answer, Failed> {
    let began = Instant::now();
    let line = client.workers.line(target)?;
    if ask.path == Path::Embeddings {
        return embeddings(&line, target, ask, (began, limits)).await.map(Answer::Whole);
    }
    let question = asked(&ask)?;
    // The chat role looks for itself: it asks workers, or others.
    let bytes = question.encoded_len();
    if bytes > REQUEST_BYTES_MAX && !matches!(line.road(), Road::Chat(_)) {
        return Err(refusal::too_large(bytes, REQUEST_BYTES_MAX));
    }
    let envelope = text::Envelope::new(&ask.request_id, &question.model, client.wall.now());
    let tokens_max = question.parameters.as_ref().and_then(|said| said.max_tokens);
    let mut question = Some(question);
    let asking = || {
        let headers = headers(target, ask.headers.clone(), &ask.request_id);
        let question = question.take().map_or_else(|| asked(&ask), Ok)?;
        let (behalf, whole) = (ask.behalf.clone(), !ask.stream);
        Ok(stream::open(&line, Asking { headers, question, behalf, whole }, &limits))
    };
    let opened = opened(&line, asking, began, &limits).await?;
    let stream = told(&ask, (opened, Some(line.clone())), (envelope, tokens_max), began, &limits)?;
    if ask.stream {
        return Ok(Answer::Stream(Box::new(stream.into())));
    }
    whole::collect(stream).await.map(Answer::Whole)
}

/// What was begun as a stream of events, of the answer that its client has the beginning of.
fn told(
    ask: &Ask,
    (opened, line): (stream::Opened, Option<Line>),
    (mut envelope, tokens_max): (text::Envelope, Option<u32>),
    began: Instant,
    limits: &Limits,
) -> Result<WireStream, Failed> {
    let mut tally = tally::Tally::new(tokens_max);
    if let Some(resume) = &ask.resume {
        tally = tally.after(resume.seq);
        envelope = envelope.since(resume.origin.created);
    }
    let stream = WireStream::new(opened, line, envelope, tally, began, limits);
    if let Some(resume) = &ask.resume
        && stream.origin().is_none_or(|own| own.fingerprint != resume.origin.fingerprint)
    {
        return Err(Failed::new(Failure::Garbage, "the worker that goes on is of another model"));
    }
    Ok(stream)
}

/// Waits for the connection, and then for a first word, each as long as it may take.
async fn opened<T, F: Future<Output = Result<T, Failed>>>(
    line: &Line,
    mut asking: impl FnMut() -> Result<F, Failed>,
    began: Instant,
    limits: &Limits,
) -> Result<T, Failed> {
    let dialing = line.dial();
    // Boxed: what it takes to open a stream is large, and is over soon.
    let mut opening = Box::pin(async {
        match asking()?.await {
            // Nothing was sent: the connection that failed was begun for an earlier call, which gave it up.
            Err(failed) if failed.failure == Failure::Connect && dialing.was_given_up() => {
                asking()?.await
            }
            opened => opened,
        }
    });
    let opened = tokio::select! {
        biased;
        opened = &mut opening => opened,
        () = sleep_until(limits.deadline.min(began + limits.connect)) => {
            if !line.is_up() || limits.deadline <= began + limits.connect {
                return Err(late(began + limits.connect, limits.deadline, Failure::Connect));
            }
            tokio::select! {
                biased;
                opened = &mut opening => opened,
                () = sleep_until(limits.deadline.min(began + limits.first_token)) => {
                    let silent = Failure::Timeout(Stage::FirstToken);
                    return Err(late(began + limits.first_token, limits.deadline, silent));
                }
            }
        }
    };
    drop(opening);
    dialing.ended();
    opened
}

/// Embeddings: the chat role carries them as they are; a worker has none.
async fn embeddings(
    line: &Line,
    target: &Target,
    ask: Ask,
    (began, limits): (Instant, Limits),
) -> Result<Whole, Failed> {
    let Road::Chat(channel) = line.road() else {
        let words = "this model is reached over Pointsman's own wire, which has no embeddings: ask a model that an OpenAI-compatible server serves, and there";
        return Err(refusal::of_request(words, None));
    };
    let asking = || {
        let headers = headers(target, ask.headers.clone(), &ask.request_id);
        let (body, behalf) = (ask.body.clone(), ask.behalf.clone());
        Ok(chat::embed(channel, headers, body, behalf, &limits))
    };
    let answer = opened(line, asking, began, &limits).await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut whole = judge(answer.body.into(), ask.path, StatusCode::OK, &headers)?;
    whole.upstream_request_id = answer.begun.map(|begun| begun.request_id);
    Ok(whole)
}

/// All that a call for an answer carries.
struct Asking {
    headers: HeaderMap,
    question: StreamInferenceRequest,
    /// For whom, where the chat role is asked.
    behalf: Option<Box<Behalf>>,
    /// Whether it is asked to answer at once.
    whole: bool,
}

/// The question, with what is there of its answer.
fn asked(ask: &Ask) -> Result<StreamInferenceRequest, Failed> {
    let mut question = question::read(&ask.body, &ask.request_id)?;
    question.resume = ask.resume.as_deref().map(|resume| Resume {
        seq: resume.seq.0,
        token_ids: resume.token_ids.clone(),
        text: resume.text.clone(),
        fingerprint: resume.origin.fingerprint.clone(),
        tokens_min: (resume.least < resume.seq).then_some(resume.least.0),
    });
    Ok(question)
}

/// Asks a worker what it serves: [`Client::discover`] for targets that are one.
pub(super) async fn describe(
    client: &Client,
    target: &Target,
    limits: Limits,
) -> Result<Described, Failed> {
    let due = limits.deadline.min(Instant::now() + limits.whole_answer);
    let line = client.workers.line(target)?;
    let dialing = line.dial();
    let asking = Box::pin(chunks::describe(&line, headers(target, HeaderMap::new(), ""), &limits));
    let Ok(said) = timeout_at(due, asking).await else {
        let nobody =
            if line.is_up() { Failure::Timeout(Stage::FirstToken) } else { Failure::Connect };
        return Err(Failed::new(nobody, "not in time"));
    };
    dialing.ended();
    let said = said?;
    if let Some(load) = &said.load {
        line.tell(load);
    }
    let model = |id| ModelInfo { id, owned_by: None, context: None };
    let models = said.models.into_iter().map(model).collect();
    Ok(Described { models, fingerprint: convert::fingerprint(&said.fingerprint) })
}

/// What every call carries beside its question: key, id, trace.
fn headers(target: &Target, headers: HeaderMap, request_id: &str) -> HeaderMap {
    let mut headers = laid_over(headers, target);
    if let (Ok(id), false) = (HeaderValue::from_str(request_id), request_id.is_empty()) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    headers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::time::Duration;

    use super::*;
    use crate::upstream::Settings;

    #[tokio::test]
    async fn what_no_worker_takes_is_refused_before_anybody_is_called() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("grpc://{}", listener.local_addr().unwrap());
        let second = Duration::from_secs(1);
        let ask = |bytes: usize| Ask {
            resume: None,
            behalf: None,
            path: Path::ChatCompletions,
            body: format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#,
                "x".repeat(bytes)
            )
            .into(),
            stream: true,
            request_id: String::new(),
            headers: HeaderMap::new(),
        };
        let limits = || Limits {
            connect: second,
            first_token: second,
            between_tokens: second,
            whole_answer: second,
            deadline: Instant::now() + second,
            answer_bytes_max: 1 << 20,
        };
        let client = Client::new(&Settings::default()).unwrap();
        let target = Target::new(url.parse().unwrap());
        let refused = client.call(&target, ask(REQUEST_BYTES_MAX), limits()).await.unwrap_err();
        assert_eq!(refused.failure, Failure::ClientError(413));
        let said = refused.upstream.unwrap();
        assert_eq!(said.status, 413);
        assert!(String::from_utf8_lossy(&said.body).contains("33554432: send less"));
        assert!(listener.accept().is_err(), "nobody was called");
        // What is smaller goes out, and hangs on a listener that says nothing.
        let asked = client.call(&target, ask(REQUEST_BYTES_MAX - 1_024), limits()).await;
        assert_ne!(asked.unwrap_err().failure, Failure::ClientError(413));
        assert!(listener.accept().is_ok());
    }
}

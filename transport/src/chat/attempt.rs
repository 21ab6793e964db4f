//! One attempt, until its answer begins or it fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::outcome::Failure;
use control::plane::{Dispatch, Input};
use control::units::Usage;
use http::HeaderMap;

use super::Parts;
use crate::exchange::{Behalf, Call, Operation};
use crate::label::Label;
use crate::trace::Trace;
use crate::upstream::body::{CompletionMaxKey, Rewrite, rewrite};
use crate::upstream::{
    Answer, Ask, Event, EventKind, Failed, Limits, Path, Resume, SESSION_ID, STREAM_ID, Stream,
    Whole,
};

/// Bytes of a stream held back until its first token: a role announcement and some comments. More than that without a
/// token is not an answer.
const OPENING_MAX: usize = 64 << 10;

/// How an attempt begins.
pub(super) enum Begun {
    /// The whole answer is here.
    Whole(WholeAnswer),
    /// The first token is here; the plane knows.
    Stream(Box<Opened>),
}

/// An answer that came at once.
pub(super) struct WholeAnswer {
    pub body: Bytes,
    pub content_type: String,
    pub usage: Usage,
    pub estimated: bool,
    /// The stored session, where the chat role that answers keeps one.
    pub session: Option<Arc<str>>,
}

/// A stream whose first token has arrived.
pub(super) struct Opened {
    pub stream: Box<Stream>,
    pub content_type: String,
    /// Events up to and including the one with the first token.
    pub opening: Vec<Event>,
    /// Whether the client asked for the usage event, or only we did.
    pub usage_wanted: bool,
    /// The record that says so. Written before the client sees a byte, so that no crash can make it forget a client
    /// that got something.
    pub committed_at: u64,
    /// The stored session, where the chat role that answers keeps one.
    pub session: Option<Arc<str>>,
    /// What it is called, where the chat role that answers keeps it.
    pub kept: Option<Arc<str>>,
}

/// What an attempt needs.
pub(super) struct Run<'a> {
    chat: &'a Parts,
    call: &'a Call,
    dispatch: &'a Dispatch,
    trace: &'a Trace,
    resume: Option<Box<Resume>>,
}

impl<'a> Run<'a> {
    /// `trace` is what whoever is asked hears of it.
    pub fn new(chat: &'a Parts, call: &'a Call, dispatch: &'a Dispatch, trace: &'a Trace) -> Self {
        Self { chat, call, dispatch, trace, resume: None }
    }

    /// The same for an attempt that goes on with an answer.
    pub fn resuming(self, resume: Resume) -> Self {
        Self { resume: Some(Box::new(resume)), ..self }
    }

    pub async fn begin(&self) -> Result<Begun, Failed> {
        let catalog = self.chat.catalog.load_full();
        let endpoint = &self.dispatch.endpoint_name;
        let Some((target, model)) = catalog.target(endpoint, &self.call.model) else {
            return Err(Failed::of(Failure::Connect, "the endpoint has just left the catalog"));
        };
        let rewritten = rewrite(&self.call.body, &self.changes(model))
            .map_err(|error| Failed::of(Failure::ClientError(400), &error.to_string()))?;
        let attempt_max = catalog.route(endpoint).and_then(|route| route.attempt_max);
        let silence = target.base_url.is_worker().then(|| catalog.silence(&self.call.model));
        let limits = self.limits(attempt_max, silence.flatten());
        let url = &target.base_url;
        let to_worker = url.is_worker() && !url.is_chat();
        let ask = self.ask(rewritten.body, rewritten.usage_asked, to_worker);
        match self.chat.upstream.call(target, ask, limits).await? {
            Answer::Whole(whole) => Ok(Begun::Whole(self.whole(whole))),
            Answer::Stream(stream) => {
                let opened = self.opened(stream, rewritten.usage_asked).await?;
                Ok(Begun::Stream(Box::new(opened)))
            }
        }
    }

    fn changes(&self, model: Option<&'a str>) -> Rewrite<'a> {
        Rewrite {
            model,
            completion_max: self.dispatch.output_max,
            completion_max_key: CompletionMaxKey::default(),
            stream: self.call.stream && self.call.operation == Operation::ChatCompletions,
        }
    }

    /// A worker of ours hears what its log says of the call; nobody else is told of a session.
    fn ask(&self, body: Bytes, usage_event: bool, to_worker: bool) -> Ask {
        let mut headers = HeaderMap::new();
        self.trace.write(&mut headers);
        if to_worker {
            let session = self.call.session.as_ref().map(|session| session.key);
            Label { session, attempt: Some(self.dispatch.number) }.write(&mut headers);
        }
        let behalf = self.call.behalf.clone();
        let behalf = behalf.map(|behalf| Box::new(Behalf { usage_event, ..*behalf }));
        Ask {
            path: match self.call.operation {
                Operation::ChatCompletions => Path::ChatCompletions,
                Operation::Embeddings => Path::Embeddings,
            },
            body,
            stream: self.call.stream,
            request_id: self.dispatch.request.to_string(),
            headers,
            resume: self.resume.clone(),
            behalf,
        }
    }

    fn limits(&self, attempt_max: Option<Duration>, silence: Option<Duration>) -> Limits {
        let clock = self.chat.driver.clock();
        let now = clock.now();
        // An endpoint's own limit is for its silence: a stream that moves is bounded by the request's deadline.
        let first_token = self.dispatch.first_token_by.since(now);
        let shorter = attempt_max.into_iter().chain(silence).min();
        let first_token = shorter.map_or(first_token, |max| first_token.min(max));
        Limits {
            connect: self.dispatch.connect_by.since(now),
            first_token,
            between_tokens: self.dispatch.gap_max,
            whole_answer: first_token,
            deadline: clock.deadline(self.dispatch.deadline),
            answer_bytes_max: self.chat.answer_bytes_max,
        }
    }

    fn whole(&self, whole: Whole) -> WholeAnswer {
        let counted = Usage { prompt: self.call.prompt, completion: whole.estimated };
        WholeAnswer {
            content_type: content_type(&whole.headers),
            session: self.session(&whole.headers),
            body: whole.body,
            estimated: whole.usage.is_none(),
            usage: whole.usage.unwrap_or(counted),
        }
    }

    /// Reads up to the first token, and tells the plane: from here on the request is committed.
    async fn opened(&self, mut stream: Box<Stream>, usage_wanted: bool) -> Result<Opened, Failed> {
        let attempt = self.dispatch.attempt;
        self.chat.driver.submit(Input::AttemptAccepted { attempt });
        let mut opening = Vec::new();
        let mut held = 0;
        loop {
            let ended = || Failed::of(Failure::Truncated, "the stream ended before a token");
            let event = stream.next().await.unwrap_or_else(|| Err(ended()))?;
            held += event.raw.len();
            let begins = !matches!(event.kind, EventKind::Opening | EventKind::Other);
            opening.push(event);
            if begins {
                break;
            }
            if held > OPENING_MAX {
                return Err(Failed::of(Failure::Garbage, "64 KiB of events without a token"));
            }
        }
        let committed_at = self.chat.driver.submit(Input::FirstToken { attempt });
        let content_type = content_type(stream.headers());
        let (session, kept) = (self.session(stream.headers()), self.kept(stream.headers()));
        Ok(Opened { stream, content_type, opening, usage_wanted, committed_at, session, kept })
    }

    /// Only a chat role is believed this.
    fn session(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let keeps = self.call.behalf.as_ref().is_some_and(|behalf| behalf.stored);
        let said = headers.get(SESSION_ID).filter(|_| keeps)?;
        said.to_str().ok().map(Arc::from)
    }

    /// And this, where it was asked for.
    fn kept(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let wanted = self.call.behalf.as_ref().is_some_and(|behalf| behalf.resumable);
        headers.get(STREAM_ID).filter(|_| wanted)?.to_str().ok().map(Arc::from)
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or("application/json").to_owned()
}

//! From a parsed request to its answer: the seam between the fronts and the chat role.
//!
//! A front (HTTP now; WebSocket and gRPC later) parses and authenticates, then hands a [`Call`] to a [`Chat`] and
//! forwards the [`Reply`]. `Chat` has two implementations: in process, and later over the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use control::id::{Principal, RequestId};
use control::outcome::Failure;
use control::plane::{Idempotency, Outcome, Refusal, Session};
use control::units::{Tokens, Usage};
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use crate::sessions::{HistoryLine, MessageInfo, Owner, PageOf, Paged, SessionError, SessionInfo};
use crate::streams::Coming;
use crate::trace::Trace;
use crate::upstream::{Failed, Secret, UpstreamError};

/// Which of the OpenAI endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/embeddings`
    Embeddings,
}

/// A parsed and authenticated request.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked.
    pub operation: Operation,
    /// The public model name, known to the catalog.
    pub model: String,
    /// Who asks and who pays.
    pub principal: Principal,
    /// Stickiness.
    pub session: Option<Session>,
    /// What that session is called among all that share a Redis, where its client named it. A user's word: never logged.
    pub session_name: Option<Arc<str>>,
    /// The same of the user who pays, where it is one.
    pub user_name: Option<Arc<str>>,
    /// Idempotency key and body digest.
    pub idempotency: Option<Idempotency>,
    /// Estimated prompt tokens.
    pub prompt: Tokens,
    /// Most completion tokens over all choices; `Some(0)` for embeddings.
    pub output_max: Option<Tokens>,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// How long the client waits, where it says so (`x-request-timeout`, seconds).
    pub patience: Option<Duration>,
    /// The body as the client sent it.
    pub body: Bytes,
    /// Where in a trace it stands: what whoever is called hears of it.
    pub trace: Trace,
    /// Who asks in their own words, where another of our roles is to judge that again.
    pub behalf: Option<Box<Behalf>>,
    /// The stored session that it is a turn of.
    pub stored: Option<Box<Stored>>,
}

/// A session that is kept here.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its id.
    pub id: Arc<str>,
    /// It begins with this turn.
    pub is_new: bool,
    /// Whose it is.
    pub owner: Owner,
}

/// What the chat role is told of a gateway's caller. It knows the same keys and decides by itself.
#[derive(Clone, Debug, Default)]
pub struct Behalf {
    /// The key that was shown.
    pub key: Option<Secret>,
    /// The session's name.
    pub session: Option<String>,
    /// The user that the body names.
    pub user: Option<String>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// The session is to be kept there.
    pub stored: bool,
    /// The stream is to outlive the connection it is opened on.
    pub resumable: bool,
    /// One of its events is to tell the usage: its client asked for that.
    pub usage_event: bool,
}

/// A stream that is to be gone on with where it is kept: at another of our roles.
#[derive(Clone, Debug)]
pub struct ResumeCall {
    /// What it is called.
    pub id: String,
    /// The last event that the client has.
    pub after: u64,
    /// The key that was shown.
    pub key: Option<Secret>,
    /// How its client comes.
    pub coming: Coming,
}

/// What is known there of such a stream.
pub enum Rest {
    /// What follows, in whole events, to the last. An error: it broke off.
    Events(BoxStream<'static, Result<Bytes, Failed>>),
    /// Nothing follows.
    Complete,
    /// Nobody has it.
    Unknown,
    /// Nobody who could be asked has it.
    Away,
}

/// What is asked about stored sessions.
#[derive(Clone, Debug)]
pub struct SessionCall {
    /// Who asks.
    pub owner: Owner,
    /// What.
    pub ask: SessionAsk,
    /// Who asks in their own words, where another of our roles is to answer.
    pub behalf: Option<Box<Behalf>>,
}

/// One question about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAsk {
    /// How a session is.
    Get(String),
    /// Which sessions there are, the last used first.
    List(PageOf),
    /// What was said in one, oldest first.
    Messages(String, PageOf),
    /// The next turn begins without what was said so far.
    Clear(String),
    /// The session is to be forgotten.
    Purge(String),
    /// What was said last, in whichever session.
    History,
}

/// An answer about sessions.
#[derive(Clone, Debug)]
pub enum SessionAnswer {
    /// To [`SessionAsk::Get`].
    One(SessionInfo),
    /// To [`SessionAsk::List`].
    List(Paged<SessionInfo>),
    /// To [`SessionAsk::Messages`].
    Messages(Paged<MessageInfo>),
    /// It is done.
    Done,
    /// To [`SessionAsk::History`].
    History(Vec<HistoryLine>),
}

/// What the front sends back.
#[derive(Debug)]
pub struct Reply {
    /// The request's id, printed as `x-request-id`.
    pub request: RequestId,
    /// Name of the replica that answers (`x-pointsman-replica`); none where a stored answer is replayed.
    pub replica: String,
    /// Who provides that replica, for the metrics.
    pub provider: String,
    /// Attempts made until this answer (`x-pointsman-attempts`).
    pub attempts: u32,
    /// Content type of the answer, as upstream sent it.
    pub content_type: String,
    /// The answer.
    pub body: ReplyBody,
    /// The stored session that it is a turn of.
    pub session: Option<Arc<str>>,
    /// What a stream is called that another of our roles keeps: its bytes are numbered events already.
    pub kept: Option<Arc<str>>,
}

/// An answer's body.
#[derive(Debug)]
pub enum ReplyBody {
    /// All of it: its settlement is already written.
    Whole {
        /// The body, as upstream wrote it.
        bytes: Bytes,
        /// How it ended, for the log line and the metrics.
        end: End,
    },
    /// A stream. Dropping the receiver means that the client went away.
    Stream {
        /// Its parts, in order.
        parts: mpsc::Receiver<Part>,
        /// What has been delivered so far, for a client that goes away before the end.
        tally: Arc<Tally>,
    },
}

/// Tokens of a stream that runs, by our own count.
#[derive(Debug, Default)]
pub struct Tally {
    prompt: Tokens,
    produced: AtomicU64,
}

impl Tally {
    /// Nothing delivered yet.
    #[must_use]
    pub fn new(prompt: Tokens) -> Arc<Self> {
        Arc::new(Self { prompt, produced: AtomicU64::new(0) })
    }

    /// So many completion tokens in all.
    pub fn set(&self, produced: Tokens) {
        self.produced.store(produced.0, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn usage(&self) -> Usage {
        let completion = Tokens(self.produced.load(Ordering::Relaxed));
        Usage { prompt: self.prompt, completion }
    }
}

/// A part of a streamed answer.
#[derive(Debug)]
pub enum Part {
    /// Bytes of server-sent events, as upstream wrote them.
    Bytes(Bytes),
    /// The stream is over. On [`Outcome::Completed`] the `[DONE]` has been among the bytes; on all others the front
    /// writes an error event and ends without `[DONE]`.
    End(End),
    /// The stream is over, and its settlement could not be written to the journal: the front says so and ends without
    /// `[DONE]`.
    Unrecorded(End),
}

/// A seam in a stream: there it broke off, and another replica went on.
///
/// Over HTTP it is a comment, which clients pass over; our own roles tell it each other as a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// So many tokens had been delivered: the place of the first that followed.
    pub from: Tokens,
    /// The name of the replica that went on.
    pub replica: String,
}

impl Resumed {
    /// As a comment of the stream. A name that would be more than one line is left out.
    #[must_use]
    pub fn comment(&self) -> Bytes {
        let Self { from, replica } = self;
        let name = if replica.contains(char::is_control) { "another" } else { replica };
        format!(": resumed after {} tokens by {name}\n\n", from.0).into()
    }

    /// Reads such a comment; `None` for any other.
    #[must_use]
    pub fn read(comment: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(comment).ok()?.trim_end_matches(['\r', '\n']);
        let (from, replica) = text.strip_prefix(": resumed after ")?.split_once(" tokens by ")?;
        Some(Self { from: Tokens(from.parse().ok()?), replica: replica.to_owned() })
    }
}

/// How an answer ended, for the log line and the metrics.
#[derive(Clone, Debug)]
pub struct End {
    /// The plane's word.
    pub outcome: Outcome,
    /// Upstream's own error text of a broken stream, bounded, where there was one.
    pub detail: Option<String>,
    /// Tokens charged.
    pub usage: Usage,
    /// First token after so long.
    pub first_token: Option<Duration>,
    /// Of a stream that broke and went on: the replica that ended it, and how many attempts it took.
    pub resumed: Option<(String, u32)>,
    /// The chat role's error of a stream that it ended, as JSON: it is passed on as it stands.
    pub error: Option<Bytes>,
}

/// A request that was refused before anything was sent.
#[derive(Debug)]
pub struct Refused {
    /// Its id, where it got that far.
    pub request: Option<RequestId>,
    /// Attempts made.
    pub attempts: u32,
    /// Why.
    pub why: Why,
}

/// Why nothing was sent.
#[derive(Debug)]
pub enum Why {
    /// The plane refused.
    Plane(Refusal),
    /// Upstream refused the request itself ([`Failure::ClientError`]): its own words, passed on.
    Upstream {
        /// The failure, with its status.
        failure: Failure,
        /// What upstream said.
        said: Box<UpstreamError>,
    },
    /// The journal cannot take the request: disk full or failing (503).
    JournalUnavailable(String),
    /// The process is draining (503).
    Draining,
    /// The stored session cannot have this turn, or nothing can be said of it.
    Session(SessionError),
}

/// The chat role, as fronts see it.
pub trait Chat: Send + Sync + 'static {
    /// Answers a call, from admission to its last byte. Dropping the future means that the client went away.
    fn exchange(&self, call: Call) -> impl Future<Output = Result<Reply, Refused>> + Send;

    /// Answers a question about stored sessions. A chat role that keeps none says so.
    fn sessions(
        &self,
        call: SessionCall,
    ) -> impl Future<Output = Result<SessionAnswer, Why>> + Send {
        drop(call);
        async { Err(Why::Session(SessionError::Off)) }
    }

    /// Goes on with a stream that another of our roles keeps. A chat role that leaves none to others knows none.
    fn resume(&self, call: ResumeCall) -> impl Future<Output = Result<Rest, Why>> + Send {
        drop(call);
        async { Ok(Rest::Unknown) }
    }

    /// Public model names with who provides them, sorted by name.
    fn models(&self) -> Vec<Model>;

    /// The state of each part, for `/health` and `/ready`.
    fn checks(&self) -> Checks;

    /// The plane's own figures in the Prometheus text format, each family with `# HELP` and `# TYPE`.
    fn metrics(&self) -> String;
}

/// A model of the catalog.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Public name.
    pub name: String,
    /// Who provides it: a provider's name, or `pointsman` for own replicas.
    pub provider: String,
    /// Unix seconds since when it is known.
    pub created: u64,
    /// USD per 1,000,000 tokens, input and output, where configured.
    pub price: Option<(f64, f64)>,
}

/// What `/health` shows and `/ready` judges.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// False while starting or draining, or while something is missing that serving needs.
    pub ready: bool,
    /// One line per part: name, healthy, what a reader should know (which endpoint is ejected and why, which
    /// configuration was refused).
    pub parts: Vec<(String, bool, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seam_is_read_as_it_is_written_and_stays_one_line() {
        let seam = Resumed { from: Tokens(43), replica: "one-a tokens by b".to_owned() };
        assert_eq!(&seam.comment()[..], b": resumed after 43 tokens by one-a tokens by b\n\n");
        assert_eq!(Resumed::read(&seam.comment()), Some(seam));
        let odd = Resumed { from: Tokens(1), replica: "a\n\ndata: [DONE]".to_owned() };
        assert_eq!(&odd.comment()[..], b": resumed after 1 tokens by another\n\n");
        for other in [&b": keep-alive\n\n"[..], b": resumed after x tokens by a\n\n", b"\xff"] {
            assert_eq!(Resumed::read(other), None);
        }
    }
}

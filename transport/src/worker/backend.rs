//! Who writes the answers.

use core::str::FromStr;

use proto::inference::v1::{StreamInferenceRequest, StreamInferenceResponse};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Echo, Hash, OpenAi, writer};
use crate::label::Label;
use crate::trace::{Incoming, Trace};
use crate::upstream::{BadSecret, BadUrl, SetupError};

/// A model server, or what stands for one.
#[derive(Debug)]
pub enum Backend {
    /// Repeats the last user message.
    Echo(Echo),
    /// Writes tokens that depend on everything before them.
    Hash(Hash),
    /// Passes on to an OpenAI-compatible server.
    OpenAi(Box<OpenAi>),
}

/// Why a text names no backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not one of the known ones.
    #[error("write echo, hash, or openai:URL with the URL of an OpenAI-compatible server")]
    Unknown,
    /// Its URL.
    #[error("openai: {0}")]
    Url(#[from] BadUrl),
    /// It is a worker itself.
    #[error(
        "openai: the URL must begin with http:// or https://: a worker calls a model server, not a worker"
    )]
    Worker,
    /// Its key.
    #[error("{0}")]
    Key(#[from] BadSecret),
    /// The client that calls it cannot be set up.
    #[error("{0}")]
    Client(#[from] SetupError),
}

impl FromStr for Backend {
    type Err = BackendError;

    /// `echo`, `hash` or `openai:URL`, each as it is without further settings.
    fn from_str(text: &str) -> Result<Self, BackendError> {
        match (text, text.strip_prefix("openai:")) {
            ("echo", _) => Ok(Self::Echo(Echo::default())),
            ("hash", _) => Ok(Self::Hash(Hash::default())),
            (_, Some(url)) => Ok(Self::OpenAi(Box::new(OpenAi::new(url)?))),
            _ => Err(BackendError::Unknown),
        }
    }
}

/// Why a backend stops before its answer is whole.
#[derive(Debug)]
pub(super) enum Halt {
    /// Nobody listens any more.
    Gone,
    /// It failed, or refused.
    Failed(Status),
}

impl From<Status> for Halt {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// Chunks on their way to the caller; their places, load and fingerprint are filled in later. The channel is short, so a
/// slow caller slows the backend down.
#[derive(Debug)]
pub(super) struct Out(pub mpsc::Sender<Result<StreamInferenceResponse, Status>>);

impl Out {
    pub async fn say(&self, chunk: StreamInferenceResponse) -> Result<(), Halt> {
        self.0.send(Ok(chunk)).await.map_err(|_| Halt::Gone)
    }
}

/// What a caller says of a call beside its question.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// Of its trace.
    pub trace: Incoming,
    /// For the log.
    pub label: Label,
}

impl Caller {
    /// Takes what `header` has.
    pub fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str> + Copy) -> Self {
        Self { trace: Incoming::read(header), label: Label::read(header) }
    }
}

/// A question that the backend has agreed to answer.
pub(super) struct Job {
    pub ask: StreamInferenceRequest,
    /// What the caller said of the call.
    pub caller: Caller,
    /// Where in it the answer is written.
    pub trace: Trace,
    /// How long the caller waits, from now.
    pub patience: core::time::Duration,
}

impl Job {
    pub fn new(
        ask: StreamInferenceRequest,
        caller: Caller,
        patience: core::time::Duration,
    ) -> Self {
        Self { ask, caller, trace: Trace::default(), patience }
    }
}

impl Backend {
    /// As `Describe` names it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Echo(_) => "echo",
            Self::Hash(_) => "hash",
            Self::OpenAi(_) => "openai",
        }
    }

    /// Empty where it cannot continue an answer.
    pub(super) fn fingerprint(&self, model: &str) -> String {
        match self {
            Self::Echo(echo) => echo.fingerprint(model),
            Self::Hash(hash) => hash.fingerprint(model),
            Self::OpenAi(server) => server.fingerprint(model),
        }
    }

    /// Whether a continued answer is sampled as if it had not been interrupted, given the same seed.
    pub(super) fn resumes_seeded(&self) -> bool {
        match self {
            Self::Echo(_) | Self::Hash(_) => true,
            Self::OpenAi(_) => false,
        }
    }

    /// Writes the whole answer.
    pub(super) async fn answer(&self, job: Job, out: &Out) -> Result<(), Halt> {
        match self {
            Self::Echo(echo) => {
                writer::write(echo.begin(&job.ask)?, echo.delay, &job.ask, out).await
            }
            Self::Hash(hash) => {
                writer::write(hash.begin(&job.ask), hash.delay, &job.ask, out).await
            }
            Self::OpenAi(server) => server.answer(job, out).await,
        }
    }
}

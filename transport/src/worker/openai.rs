//! The backend that passes on to an OpenAI-compatible server: vLLM, SGLang, llama.cpp, a provider.

mod direct;
mod seam;

use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control::outcome::Failure;
use http::HeaderMap;
use proto::inference::v1::{StreamInferenceRequest, StreamInferenceResponse};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tonic::Status;

use super::backend::{BackendError, Halt, Job, Out};
use crate::convert;
use crate::seam::Network;
use crate::translate::{self, Reader};
use crate::upstream::{
    Answer, Ask, Client, EventKind, Failed, Limits, Path, Secret, Settings, Target,
};
pub(crate) use direct::Direct;
use seam::Seam;
pub(crate) use seam::is_continuable;

/// The server stands beside the worker: a connection takes no longer than this.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The caller has its own, shorter ideas of silence; this ends what nobody waits for any more.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// As for a gateway's own upstreams.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A server and how to ask it.
#[derive(Clone, Debug)]
pub struct OpenAi {
    pub(super) client: Client,
    pub(super) target: Target,
    /// Its own name for the model, where that differs.
    model: Option<String>,
    /// What it runs, where it continues the answers of others that run the same.
    revision: Option<String>,
    /// What a gateway that asks it itself wants: headers to pass on, and how long it waits.
    passed: HeaderMap,
    within: Option<Limits>,
    /// When it last said something of an answer, to any of this one's clones.
    spoke: Arc<Mutex<Option<Instant>>>,
}

impl OpenAi {
    /// A server at `url`, asked without a key, for the model under the worker's own name for it.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn new(url: &str) -> Result<Self, BackendError> {
        Self::over(url, &Network::Real)
    }

    /// The same over a network that may be a simulated one.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn over(url: &str, network: &Network) -> Result<Self, BackendError> {
        let target = Target::new(url.parse()?);
        if target.base_url.is_worker() {
            return Err(BackendError::Worker);
        }
        let client = Client::over(&Settings::default(), network)?;
        Ok(Self::at(client, target))
    }

    fn at(client: Client, target: Target) -> Self {
        let passed = HeaderMap::new();
        let spoke = Arc::default();
        Self { client, target, model: None, revision: None, passed, within: None, spoke }
    }

    /// Asks with a key.
    ///
    /// # Errors
    /// [`BackendError::Key`] where the key cannot be sent.
    pub fn with_key(mut self, key: &str) -> Result<Self, BackendError> {
        self.target.api_key = Some(Secret::new(key)?);
        Ok(self)
    }

    /// Asks for the model under another name.
    #[must_use]
    pub fn with_model(mut self, name: String) -> Self {
        self.model = Some(name);
        self
    }

    /// The server continues the last message of a conversation, the assistant's, where it is told to
    /// (`continue_final_message`), and runs what `revision` names: weights, tokenizer, chat template. Whoever says so answers for
    /// it: a server that does not would answer anew in the middle of an answer.
    #[must_use]
    pub fn continuing(mut self, revision: String) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Equal for two servers that continue each other's answers; empty where this one continues none. The worker in Python
    /// makes the same of the same.
    pub(super) fn fingerprint(&self, model: &str) -> String {
        self.revision.as_ref().map(|revision| continuing(model, revision)).unwrap_or_default()
    }

    /// Asks, and turns each event into chunks.
    pub(super) async fn answer(&self, mut job: Job, out: &Out) -> Result<(), Halt> {
        let mut seam = Seam::of(&mut job.ask)?;
        if seam.is_some() && Seam::is_at_the_end(&job.ask) {
            let finish_reason = "length".to_owned();
            return out.say(StreamInferenceResponse { finish_reason, ..Default::default() }).await;
        }
        let behind = seam.as_ref().and_then(|seam| seam.counted_by(&job.ask));
        let mut reader = Reader::new(behind.as_ref().or(job.ask.parameters.as_ref()));
        if self.counts(&job.ask) {
            reader = reader.counted();
        }
        let asked = self.asked(&job.ask, seam.is_some())?;
        let ask = self.ask(&job, asked);
        let limits = self.within.unwrap_or_else(|| limits(&job));
        // Boxed: a gateway's own call may lead here.
        let mut stream = match Box::pin(self.client.call(&self.target, ask, limits)).await {
            Ok(Answer::Stream(stream)) => stream,
            Ok(Answer::Whole(_)) => return Err(Status::internal("no stream came").into()),
            Err(failed) => return Err(refused(&failed, seam.is_some())),
        };
        // The last chunk of the answer waits for the bill, which comes behind it.
        let mut held: Option<StreamInferenceResponse> = None;
        while let Some(event) = stream.next().await {
            let event = event.map_err(|failed| refused(&failed, seam.is_some()))?;
            *self.spoke() = Some(Instant::now());
            match event.kind {
                EventKind::Done => break,
                EventKind::Other => continue,
                EventKind::Opening
                | EventKind::Tokens { .. }
                | EventKind::Finish
                | EventKind::Usage => {}
            }
            for chunk in reader.read(&event)? {
                for chunk in passed(seam.as_mut(), chunk, &reader)? {
                    let ends = !chunk.finish_reason.is_empty();
                    let ready = if ends { held.replace(chunk) } else { Some(chunk) };
                    if let Some(chunk) = ready {
                        out.say(chunk).await?;
                    }
                }
            }
        }
        let mut last = match held {
            Some(last) => last,
            None => {
                let end = reader.unsaid_end();
                let end = end.ok_or_else(|| Status::internal("the answer has no end"))?;
                let mut rest = passed(seam.as_mut(), end, &reader)?;
                let last = rest.pop().ok_or_else(|| Status::internal("the answer has no end"))?;
                for chunk in rest {
                    out.say(chunk).await?;
                }
                last
            }
        };
        last.usage = match &seam {
            Some(seam) => reader.usage().map(|told| seam.bill(told)),
            None => reader.usage(),
        };
        out.say(last).await
    }

    fn spoke(&self) -> MutexGuard<'_, Option<Instant>> {
        self.spoke.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server said something of an answer this short a time ago.
    pub(super) fn spoke_within(&self, time: Duration) -> bool {
        self.spoke().is_some_and(|at| at.elapsed() <= time)
    }

    /// Whether the server is asked to count the tokens as they come: what is before a seam is taken off what may still come.
    fn counts(&self, ask: &StreamInferenceRequest) -> bool {
        self.revision.is_some() && seam::is_continuable(ask.parameters.as_ref())
    }

    /// The body. What continues an answer is asked for as vLLM and SGLang take it.
    fn asked(&self, ask: &StreamInferenceRequest, goes_on: bool) -> Result<String, Status> {
        if !self.counts(ask) {
            return translate::body(ask, self.model.as_deref());
        }
        let name = self.model.as_deref().unwrap_or(&ask.model);
        let mut body = translate::writer(name, &ask.messages, ask.parameters.as_ref())?;
        body.raw("stream", "true");
        body.raw("stream_options", r#"{"include_usage":true,"continuous_usage_stats":true}"#);
        if goes_on {
            body.raw("continue_final_message", "true");
            body.raw("add_generation_prompt", "false");
        }
        Ok(body.end())
    }

    fn ask(&self, job: &Job, body: String) -> Ask {
        let mut headers = self.passed.clone();
        job.trace.write(&mut headers);
        Ask {
            resume: None,
            behalf: None,
            path: Path::ChatCompletions,
            body: body.into(),
            stream: true,
            request_id: job.ask.request_id.clone(),
            headers,
        }
    }
}

/// The mark of a server that serves `model` and runs what `revision` names.
pub(crate) fn continuing(model: &str, revision: &str) -> String {
    let digest = Sha256::new().chain_update("prefix-1\0").chain_update(model);
    let digest = digest.chain_update("\0").chain_update(revision).finalize();
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What can be said after another chunk; all of it, where nothing is continued.
fn passed(
    seam: Option<&mut Seam>,
    chunk: StreamInferenceResponse,
    reader: &Reader,
) -> Result<Vec<StreamInferenceResponse>, Status> {
    let Some(seam) = seam else { return Ok(vec![chunk]) };
    seam.judge(reader.usage())?;
    seam.pass(chunk)
}

fn refused(failed: &Failed, goes_on: bool) -> Halt {
    tracing::debug!("the backend failed: {failed}");
    if let Failure::ClientError(status) = failed.failure
        && goes_on
    {
        // The caller's question was good enough for whoever began.
        let words = format!("the backend does not take what continues an answer ({status})");
        return Status::failed_precondition(words).into();
    }
    // Who hears it in this process hears all of it.
    let mut status = convert::status(failed);
    status.set_source(Arc::new(failed.clone()));
    status.into()
}

fn limits(job: &Job) -> Limits {
    Limits {
        connect: CONNECT_WITHIN,
        first_token: SILENCE_MAX,
        between_tokens: SILENCE_MAX,
        whole_answer: SILENCE_MAX,
        deadline: Instant::now() + job.patience,
        answer_bytes_max: ANSWER_BYTES_MAX,
    }
}

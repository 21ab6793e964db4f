//! The backend that passes on to an OpenAI-compatible server: vLLM, SGLang, llama.cpp, a provider.

use core::time::Duration;

use http::HeaderMap;
use proto::inference::v1::StreamInferenceResponse;
use tokio::time::Instant;
use tonic::Status;

use super::backend::{BackendError, Halt, Job, Out};
use crate::convert;
use crate::seam::Network;
use crate::translate::{self, Reader};
use crate::upstream::{
    Answer, Ask, Client, EventKind, Failed, Limits, Path, Secret, Settings, Target,
};

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
        Ok(Self { client, target, model: None })
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

    /// Asks, and turns each event into chunks.
    pub(super) async fn answer(&self, job: Job, out: &Out) -> Result<(), Halt> {
        let mut reader = Reader::new(job.ask.parameters.as_ref());
        let mut stream = match self.client.call(&self.target, self.ask(&job)?, limits(&job)).await {
            Ok(Answer::Stream(stream)) => stream,
            Ok(Answer::Whole(_)) => return Err(Status::internal("no stream came").into()),
            Err(failed) => return Err(self.refused(&failed)),
        };
        // The last chunk of the answer waits for the bill, which comes behind it.
        let mut held: Option<StreamInferenceResponse> = None;
        while let Some(event) = stream.next().await {
            let event = event.map_err(|failed| self.refused(&failed))?;
            match event.kind {
                EventKind::Done => break,
                EventKind::Other => continue,
                EventKind::Opening
                | EventKind::Tokens { .. }
                | EventKind::Finish
                | EventKind::Usage => {}
            }
            for chunk in reader.read(&event)? {
                let ready =
                    if chunk.finish_reason.is_empty() { Some(chunk) } else { held.replace(chunk) };
                if let Some(chunk) = ready {
                    out.say(chunk).await?;
                }
            }
        }
        let mut last = match held {
            Some(last) => last,
            None => reader.unsaid_end().ok_or_else(|| Status::internal("the answer has no end"))?,
        };
        last.usage = reader.usage();
        out.say(last).await
    }

    fn ask(&self, job: &Job) -> Result<Ask, Status> {
        let mut headers = HeaderMap::new();
        job.trace.write(&mut headers);
        Ok(Ask {
            resume: None,
            behalf: None,
            path: Path::ChatCompletions,
            body: translate::body(&job.ask, self.model.as_deref())?.into(),
            stream: true,
            request_id: job.ask.request_id.clone(),
            headers,
        })
    }

    fn refused(&self, failed: &Failed) -> Halt {
        tracing::debug!("the backend failed: {failed}");
        convert::status(failed).into()
    }
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

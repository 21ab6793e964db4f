//! The same without a worker beside the server: a gateway asks, and hears of it what a worker would tell.

use std::collections::BTreeMap;

use http::HeaderMap;
use proto::inference::v1::{StreamInferenceRequest, StreamInferenceResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::super::backend::{Caller, Halt, Job, Out};
use super::{OpenAi, SILENCE_MAX};
use crate::upstream::{Client, Limits, Target};

/// Chunks that wait for their reader: a slow one slows the server down.
const CHUNKS_MAX: usize = 4;

/// An answer under way. Dropping it ends the call.
#[derive(Debug)]
pub(crate) struct Direct {
    chunks: mpsc::Receiver<Result<StreamInferenceResponse, Status>>,
    /// Said with the first chunk.
    fingerprint: Option<String>,
    /// Where the answer begins, and where each choice has got to.
    first: u64,
    next: BTreeMap<u32, u64>,
    _task: AbortOnDropHandle<()>,
}

impl Direct {
    /// Asks `target`, which [continues](Target::continues) answers. Silence is for whoever reads to judge.
    pub(crate) fn ask(
        client: Client,
        mut target: Target,
        (question, passed): (StreamInferenceRequest, HeaderMap),
        limits: &Limits,
    ) -> Self {
        // Asked as any server: what follows from this is done here.
        let fingerprint = target.continues.take().map(|mark| mark.to_string());
        let within = Limits {
            first_token: SILENCE_MAX,
            between_tokens: SILENCE_MAX,
            whole_answer: SILENCE_MAX,
            ..*limits
        };
        let server = OpenAi {
            revision: fingerprint.clone(),
            passed,
            within: Some(within),
            ..OpenAi::at(client, target)
        };
        let first = question.resume.as_ref().map_or(0, |resume| resume.seq);
        let patience = limits.deadline.saturating_duration_since(Instant::now());
        let job = Job::new(question, Caller::default(), patience);
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let out = Out(sender);
        let task = tokio::spawn(async move {
            if let Err(Halt::Failed(status)) = server.answer(job, &out).await {
                // Nobody listens any more, or hears it.
                let _ = out.0.send(Err(status)).await;
            }
        });
        let task = AbortOnDropHandle::new(task);
        Self { chunks, fingerprint, first, next: BTreeMap::new(), _task: task }
    }

    /// The next chunk, in its place; `None` at a clean end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<StreamInferenceResponse>, Status> {
        let Some(chunk) = self.chunks.recv().await else { return Ok(None) };
        let mut chunk = chunk?;
        let next = self.next.entry(chunk.choice).or_insert(self.first);
        chunk.seq = *next;
        *next += u64::from(chunk.token_count);
        chunk.fingerprint = self.fingerprint.take().unwrap_or_default();
        Ok(Some(chunk))
    }
}

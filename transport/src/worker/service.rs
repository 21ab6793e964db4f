//! `InferenceService`, as a worker serves it: over gRPC here, over QUIC by [`begin`](Service::begin) and
//! [`description`](Service::description).

use core::time::Duration;
use std::sync::Arc;

use proto::inference::v1::inference_service_server::InferenceService;
use proto::inference::v1::{DescribeRequest, DescribeResponse, Resume, StreamInferenceRequest};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::answer::Answer;
use super::backend::{Backend, Caller, Job};
use super::desk::Desk;
use super::record::Record;
use super::telemetry::Telemetry;
use super::witness::Begun;

pub(super) struct Service {
    model: String,
    backend: Arc<Backend>,
    fingerprint: String,
    desk: Arc<Desk>,
    telemetry: Telemetry,
}

impl Service {
    pub fn new(
        model: String,
        backend: Arc<Backend>,
        desk: Arc<Desk>,
        telemetry: Telemetry,
    ) -> Self {
        let fingerprint = backend.fingerprint(&model);
        Self { model, backend, fingerprint, desk, telemetry }
    }

    /// Begins to answer, however the question came.
    pub fn begin(&self, mut job: Job) -> Result<Answer, Status> {
        let caller = std::mem::take(&mut job.caller);
        let mut record = Record::begin(&self.telemetry, self.backend.name(), &job.ask, caller);
        job.trace = record.trace();
        let begun = self.answer(job);
        match begun {
            Ok(answer) => Ok(answer.recorded(record)),
            Err(status) => {
                record.end(Err(&status));
                Err(status)
            }
        }
    }

    fn answer(&self, mut job: Job) -> Result<Answer, Status> {
        self.check(&job.ask)?;
        let seat = self.desk.enter()?;
        job.patience = job.patience.min(ANSWER_MAX);
        let witness = self.telemetry.witness();
        let seen = witness.map(|witness| witness.begins(&Begun::of(&job)));
        let (backend, desk) = (Arc::clone(&self.backend), Arc::clone(&self.desk));
        Ok(Answer::start(backend, job, desk, (seat, seen), self.fingerprint.clone()))
    }

    /// What this worker says of itself.
    pub fn description(&self) -> DescribeResponse {
        DescribeResponse {
            models: vec![self.model.clone()],
            backend: self.backend.name().to_owned(),
            fingerprint: self.fingerprint.clone(),
            resumes_seeded: self.backend.resumes_seeded(),
            load: Some(self.desk.load()),
            draining: self.desk.is_draining(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Whether the question is one that this worker can be asked.
    fn check(&self, ask: &StreamInferenceRequest) -> Result<(), Status> {
        if ask.model != self.model {
            // The name came from the caller: it is not repeated.
            let words = format!("this worker serves the model {:?} and no other", self.model);
            return Err(Status::not_found(words));
        }
        if ask.messages.is_empty() {
            return Err(Status::invalid_argument("messages must not be empty"));
        }
        if ask.parameters.as_ref().is_some_and(|parameters| parameters.max_tokens == Some(0)) {
            return Err(Status::invalid_argument("max_tokens must be at least 1"));
        }
        ask.resume.as_ref().map_or(Ok(()), |resume| self.check_resume(resume))
    }

    fn check_resume(&self, resume: &Resume) -> Result<(), Status> {
        if self.fingerprint.is_empty() {
            let words = format!("the backend {} cannot continue an answer", self.backend.name());
            return Err(Status::failed_precondition(words));
        }
        if resume.fingerprint != self.fingerprint {
            return Err(Status::failed_precondition(format!(
                "the answer was begun by another kind of worker; this one's fingerprint is {}",
                self.fingerprint
            )));
        }
        let ids = resume.token_ids.len() as u64;
        if ids != 0 && ids != resume.seq {
            let words = format!("resume has {ids} token_ids and seq {}: they differ", resume.seq);
            return Err(Status::invalid_argument(words));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl InferenceService for Service {
    type StreamInferenceStream = Answer;

    async fn stream_inference(
        &self,
        request: Request<StreamInferenceRequest>,
    ) -> Result<Response<Answer>, Status> {
        let patience = patience(request.metadata())?.unwrap_or(ANSWER_MAX);
        let caller = Caller::read(|name| request.metadata().get(name)?.to_str().ok());
        self.begin(Job::new(request.into_inner(), caller, patience)).map(Response::new)
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.description()))
    }
}

/// No answer takes longer, whatever its caller says or leaves out: a seat comes back in the end.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(3_600);

/// How long the caller waits, where it says so: `grpc-timeout`, at most 8 digits and a unit.
pub(crate) fn patience(metadata: &MetadataMap) -> Result<Option<Duration>, Status> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let read = value.to_str().ok().and_then(timeout_of);
    let words = "grpc-timeout is at most 8 digits and one of H, M, S, m, u, n";
    read.map(Some).ok_or_else(|| Status::invalid_argument(words))
}

fn timeout_of(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_and_nonsense_is_none() {
        for (text, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("99999999n", 99_999_999),
        ] {
            assert_eq!(timeout_of(text).map(|time| time.as_nanos()), Some(nanos), "{text}");
        }
        for text in ["", "S", "1", "1x", "-1S", "1.5S", "123456789n", "\u{e9}", "1\u{e9}"] {
            assert_eq!(timeout_of(text), None, "{text}");
        }
    }
}

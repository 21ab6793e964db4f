//! One answer on its way to the caller: the backend's task at one end, gRPC at the other.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::Stream;
use proto::inference::v1::StreamInferenceResponse;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::backend::{Backend, Halt, Job, Out};
use super::desk::{Desk, Seat};
use super::record::Record;

/// Chunks between backend and connection: enough for a hiccup, few enough to mean backpressure.
const CHUNKS_MAX: usize = 32;
/// The caller hears of the load at least so often, also while the backend is silent.
const LOAD_EVERY: Duration = Duration::from_secs(1);

/// What an answer takes while the backend is at it: a seat, and a witness's attention.
pub(super) type Place = (Seat, Option<Box<dyn Send>>);

/// The chunks of one answer. Dropping it stops the backend.
pub struct Answer {
    chunks: mpsc::Receiver<Result<StreamInferenceResponse, Status>>,
    _task: AbortOnDropHandle<()>,
    desk: Arc<Desk>,
    load_due: Interval,
    /// Said with the first chunk.
    fingerprint: Option<String>,
    /// Where the answer begins, and where each choice has got to.
    first: u64,
    next: BTreeMap<u32, u64>,
    record: Option<Record>,
}

impl Answer {
    /// Starts the backend.
    pub(super) fn start(
        backend: Arc<Backend>,
        job: Job,
        desk: Arc<Desk>,
        place: Place,
        fingerprint: String,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let first = job.ask.resume.as_ref().map_or(0, |resume| resume.seq);
        let task = tokio::spawn(run(backend, job, Arc::clone(&desk), place, Out(sender)));
        let mut load_due = interval_at(Instant::now() + LOAD_EVERY, LOAD_EVERY);
        load_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            chunks,
            _task: AbortOnDropHandle::new(task),
            desk,
            load_due,
            fingerprint: Some(fingerprint),
            first,
            next: BTreeMap::new(),
            record: None,
        }
    }

    /// The same, with what is written down about it.
    pub(super) fn recorded(self, record: Record) -> Self {
        Self { record: Some(record), ..self }
    }

    /// Writes down what goes out. A load alone says nothing of the answer.
    fn note(&mut self, next: Option<&Result<StreamInferenceResponse, Status>>) {
        let Some(record) = &mut self.record else { return };
        match next {
            Some(Ok(chunk)) => record.saw(chunk),
            Some(Err(status)) => record.end(Err(status)),
            None => record.end(Ok(())),
        }
    }

    /// Fills in what the backend does not know: the place, the fingerprint, the load.
    fn stamp(&mut self, mut chunk: StreamInferenceResponse, due: bool) -> StreamInferenceResponse {
        let next = self.next.entry(chunk.choice).or_insert(self.first);
        chunk.seq = *next;
        *next += u64::from(chunk.token_count);
        let is_first = self.fingerprint.is_some();
        chunk.fingerprint = self.fingerprint.take().unwrap_or_default();
        if is_first || due || !chunk.finish_reason.is_empty() {
            chunk.load = Some(self.desk.load());
        }
        chunk
    }
}

impl Stream for Answer {
    type Item = Result<StreamInferenceResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = self.get_mut();
        let chunk = answer.chunks.poll_recv(cx);
        let due = !answer.chunks.is_closed() && answer.load_due.poll_tick(cx).is_ready();
        if let Poll::Ready(next) = &chunk {
            answer.note(next.as_ref());
        }
        match chunk {
            Poll::Ready(Some(Ok(chunk))) => Poll::Ready(Some(Ok(answer.stamp(chunk, due)))),
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending if due => {
                let load_only = answer.stamp(StreamInferenceResponse::default(), true);
                Poll::Ready(Some(Ok(load_only)))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Lets the backend write until it is done or must stop. The seat is given up with the last word.
async fn run(backend: Arc<Backend>, job: Job, desk: Arc<Desk>, place: Place, out: Out) {
    let deadline = tokio::time::sleep(job.patience);
    // Boxed: a backend's future is large, and most of an answer's life is spent waiting in it.
    let mut answer = Box::pin(backend.answer(job, &out));
    let ended = tokio::select! {
        biased;
        ended = &mut answer => ended,
        () = deadline => Err(Status::deadline_exceeded("the caller's deadline passed").into()),
        () = desk.is_cut() => {
            Err(Status::unavailable("this worker ends: the time to finish is over").into())
        }
    };
    drop(answer);
    drop(place);
    match ended {
        Ok(()) | Err(Halt::Gone) => {}
        // Where nobody listens, nobody needs to be told.
        Err(Halt::Failed(status)) => drop(out.0.send(Err(status)).await),
    }
}

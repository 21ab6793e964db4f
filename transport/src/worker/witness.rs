//! Whoever looks over a worker's shoulder.
//!
//! A proof that a cancel has reached the backend, or that nothing was asked too often, needs to know when an answer began
//! and when the backend let go of it. Callers cannot tell, and logs may not say. So a worker can be given a witness; in
//! production it has none. Rejected: a backend that counts, for it does not know who asks.

use core::fmt;

use super::backend::Job;
use crate::trace::Incoming;

/// Sees every answer that a worker begins.
pub trait Witness: fmt::Debug + Send + Sync + 'static {
    /// An answer begins. What is returned is dropped when the backend has stopped.
    fn begins(&self, begun: &Begun<'_>) -> Box<dyn Send>;
}

/// An answer that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun<'a> {
    /// The request's id, as its caller gave it; empty where none came.
    pub request_id: &'a str,
    /// The caller's `traceparent`.
    pub trace: Option<String>,
    /// The most tokens of the answer.
    pub tokens_max: Option<u32>,
    /// Where another worker's answer is continued: how many tokens it has.
    pub resumes_at: Option<u64>,
}

impl<'a> Begun<'a> {
    pub(super) fn of(job: &'a Job) -> Self {
        let trace = job.trace.outgoing();
        let parent = |said: &Incoming| {
            let mut headers = said.headers();
            headers.find(|(name, _)| *name == "traceparent").map(|(_, text)| text.to_owned())
        };
        Self {
            request_id: &job.ask.request_id,
            trace: trace.as_deref().and_then(parent),
            tokens_max: job.ask.parameters.as_ref().and_then(|said| said.max_tokens),
            resumes_at: job.ask.resume.as_ref().map(|resume| resume.seq),
        }
    }
}

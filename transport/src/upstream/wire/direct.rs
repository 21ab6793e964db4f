//! A server of the OpenAI API that continues answers, asked without a worker beside it.
//!
//! What such a server has said must be known token by token, and what it says behind a seam must be looked at, so a stream that
//! could be continued goes the way of a worker's: the backend that a worker would run runs here ([`Direct`]). All that could not
//! be continued (tools, formats, a seed, stop texts, several choices, answers that do not stream) is passed on as it is written.

use proto::inference::v1::StreamInferenceRequest;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use control::outcome::{Failure, Stage};

use super::chunks::Chunks;
use super::{asked, late, refusal, stream, text, told};
use crate::upstream::failed::Failed;
use crate::upstream::{Answer, Ask, Client, Limits, Path, Target};
use crate::worker::{Direct, is_continuable};

/// The question of a stream that could be continued; `None` for all others.
///
/// # Errors
/// Where one is to be continued that cannot be: it is not to be answered anew.
pub(in crate::upstream) fn question(
    target: &Target,
    ask: &Ask,
    limits: &Limits,
) -> Result<Option<StreamInferenceRequest>, Failed> {
    let streams = ask.stream && ask.path == Path::ChatCompletions && target.continues.is_some();
    // What cannot be read is for the server to refuse, in its own words.
    let question = if streams { asked(ask).ok() } else { None };
    let question = question.filter(|question| is_continuable(question.parameters.as_ref()));
    if question.is_none() && ask.resume.is_some() {
        let status = Status::failed_precondition("this answer cannot be continued here");
        return Err(refusal::of(&status, false, limits));
    }
    Ok(question)
}

/// Asks it.
pub(in crate::upstream) async fn call(
    client: &Client,
    target: &Target,
    question: StreamInferenceRequest,
    ask: &Ask,
    limits: Limits,
) -> Result<Answer, Failed> {
    let began = Instant::now();
    let envelope = text::Envelope::new(&ask.request_id, &question.model, client.wall.now());
    let tokens_max = question.parameters.as_ref().and_then(|said| said.max_tokens);
    let asking = (question, ask.headers.clone());
    let answer = Direct::ask(client.clone(), target.clone(), asking, &limits);
    let begun = stream::begun(Chunks::Direct(Box::new(answer)), &limits);
    let due = began + limits.first_token;
    let Ok(opened) = timeout_at(due.min(limits.deadline), begun).await else {
        return Err(late(due, limits.deadline, Failure::Timeout(Stage::FirstToken)));
    };
    let stream = told(ask, (opened?, None), (envelope, tokens_max), began, &limits)?;
    Ok(Answer::Stream(Box::new(stream.into())))
}

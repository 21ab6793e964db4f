//! An answer's cadence: when each piece leaves, and where it goes wrong.

use std::io;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::Options;
use super::wire::{ChatAnswer, ChatAsk, error_object};

/// Hands out `answer` at the replica's pace: as a stream, or whole once its last token would have been written.
pub(super) async fn answer(
    options: Options,
    ask: ChatAsk,
    answer: ChatAnswer,
    error_half_way: bool,
) -> Response {
    let wants_usage = ask.wants_usage() && !options.no_usage;
    let error_at = error_half_way.then_some(answer.tokens.len() / 2);
    let mut pace =
        Pace { step: Step::Role, started: Instant::now(), options, answer, error_at, wants_usage };
    if !ask.streams() {
        return pace.whole().await;
    }
    let blocks = stream::unfold(pace, |mut pace| async move {
        let block = pace.next().await?;
        Some((block, pace))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(blocks)).into_response()
}

struct Pace {
    options: Options,
    answer: ChatAnswer,
    step: Step,
    started: Instant,
    error_at: Option<usize>,
    wants_usage: bool,
}

/// What leaves next.
#[derive(Clone, Copy)]
enum Step {
    Role,
    Token(usize),
    Usage,
    Done,
    Over,
}

impl Pace {
    /// The next block of a stream, when it is due. An error breaks the connection.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let block = match self.step {
            Step::Role => {
                // A model says nothing before its first token is there, not even its role.
                sleep_until(self.started + self.options.ttft).await;
                self.step = Step::Token(0);
                event(&self.answer.chunk(&json!({"role": "assistant", "content": ""}), None))
            }
            Step::Token(at) if at < self.answer.tokens.len() => return self.token(at).await,
            Step::Token(_) if self.options.no_done => return None,
            Step::Token(_) => {
                self.step = if self.wants_usage { Step::Usage } else { Step::Done };
                event(&self.answer.last_chunk())
            }
            Step::Usage => {
                self.step = Step::Done;
                event(&self.answer.usage_chunk())
            }
            Step::Done => {
                self.step = Step::Over;
                Bytes::from_static(b"data: [DONE]\n\n")
            }
            Step::Over => return None,
        };
        Some(Ok(block))
    }

    async fn token(&mut self, at: usize) -> Option<io::Result<Bytes>> {
        let reached = |limit: Option<u64>| limit.is_some_and(|limit| at as u64 >= limit);
        if reached(self.options.die_after) {
            return Some(Err(die(self.options.exit_on_death).await));
        }
        if reached(self.options.stall_after) {
            core::future::pending::<()>().await;
        }
        if self.error_at == Some(at) {
            // What servers do when their engine fails: an error object, and then the usual end.
            self.step = Step::Done;
            return Some(Ok(event(&error_object())));
        }
        sleep_until(self.due(at)).await;
        self.step = Step::Token(at + 1);
        let delta = json!({"content": self.answer.tokens[at]});
        Some(Ok(event(&self.answer.chunk(&delta, None))))
    }

    /// Counted from the start, so that a late timer does not delay all that follows.
    fn due(&self, at: usize) -> Instant {
        let gaps = u32::try_from(at).unwrap_or(u32::MAX);
        self.started + self.options.ttft + self.options.gap.saturating_mul(gaps)
    }

    async fn whole(&mut self) -> Response {
        let length = self.answer.tokens.len();
        let stop = [self.options.die_after, self.options.stall_after].into_iter().flatten().min();
        let stop = stop.and_then(|stop| usize::try_from(stop).ok()).filter(|stop| *stop < length);
        sleep_until(self.due(stop.unwrap_or(length))).await;
        if stop.is_some() {
            if stop.map(|stop| stop as u64) != self.options.die_after {
                core::future::pending::<()>().await;
            }
            let exit = self.options.exit_on_death;
            let begun = stream::iter([Ok(Bytes::from_static(b"{\"id\":"))]);
            let broken = begun.chain(stream::once(async move { Err(die(exit).await) }));
            let kind = [(header::CONTENT_TYPE, "application/json")];
            return (kind, Body::from_stream(broken)).into_response();
        }
        if self.error_at.is_some() {
            return Json(error_object()).into_response();
        }
        Json(self.answer.whole(self.wants_usage)).into_response()
    }
}

/// Breaks the connection, or ends the process.
async fn die(exit: bool) -> io::Error {
    // What was written before must leave first: the server flushes when a body has nothing ready.
    tokio::task::yield_now().await;
    if exit {
        // 137 is what a shell reports of a process killed by SIGKILL.
        std::process::exit(137);
    }
    io::Error::other("the demo replica was told to die here")
}

fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

//! What a chat role elsewhere keeps, sessions and streams: asked for there, answered in its words.

use std::collections::BTreeSet;
use std::time::Duration;

use control::outcome::Failure;
use control::plane::ControlPlane;
use tokio::time::Instant;

use super::Parts;
use crate::catalog::{Catalog, Route};
use crate::exchange::{Rest, ResumeCall, SessionAnswer, SessionCall, Why};
use crate::sessions::SessionError;
use crate::streams::{Coming, Used};
use crate::upstream::{Limits, Secret};

/// A chat role asks its store, which answers in fractions of a second or says that it does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What one of several has of that, at most: one that hangs must leave time for those that do not.
const SHARE: Duration = Duration::from_secs(2);
/// To a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The same of a stream, which is looked for at one after another while its grace runs: to the first word of one of them, and
/// to that of whoever has it.
const STREAM_WITHIN: Duration = Duration::from_secs(2);
const STREAMS_WITHIN: Duration = Duration::from_secs(8);
/// No stream takes longer: as long as the most patient client waits.
const RUNS_FOR: Duration = Duration::from_secs(86_400);
/// A page of the longest messages that may be stored.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks one chat role after another, until one can be reached: those that share a store know the same sessions. Each has a
/// share of the time, and the last what is left of it.
pub(super) async fn asked(parts: &Parts, call: SessionCall) -> Result<SessionAnswer, Why> {
    let SessionCall { ask, behalf, .. } = call;
    let behalf = behalf.map(|behalf| *behalf).unwrap_or_default();
    let catalog = parts.catalog.load_full();
    let last = Instant::now() + ANSWER_WITHIN;
    let chats = likely_first(parts, &catalog);
    let share = SHARE.min(ANSWER_WITHIN / u32::try_from(chats.len().max(1)).unwrap_or(u32::MAX));
    for (at, (name, route)) in chats.iter().enumerate() {
        let until = if at + 1 == chats.len() { last } else { last.min(Instant::now() + share) };
        let asked = (ask.clone(), behalf.clone());
        let failed = match parts.upstream.sessions(&route.target, asked, limits(until)).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        // What it decided is decided; asking is harmless, so anything else is asked of the next.
        if let Some(said) = failed.upstream.filter(|said| said.verdict.is_some()) {
            return Err(Why::Upstream { failure: failed.failure, said });
        }
        tracing::debug!(instance_id = name, "not asked about sessions: {}", failed.failure);
    }
    Err(Why::Session(SessionError::Store("no chat role answers".to_owned())))
}

/// The chat roles by name, but last those that are known not to answer, or that an operator drains.
fn likely_first<'a>(parts: &Parts, catalog: &'a Catalog) -> Vec<(&'a str, &'a Route)> {
    let view = parts.driver.look(ControlPlane::view);
    let doubtful = view.endpoints.iter().filter(|known| known.draining || known.breaker.ejected());
    let doubtful: BTreeSet<&str> = doubtful.map(|known| &*known.name).collect();
    let chats = catalog.routes().filter(|(_, route)| route.target.base_url.is_chat());
    let mut chats: Vec<_> = chats.collect();
    chats.sort_by_key(|(name, _)| doubtful.contains(name));
    chats
}

/// Asks one chat role after another for the rest of a stream, until one has it: nobody else knows where it was opened. First
/// all of them for what they keep themselves: who reads the log that they share may be behind, and says so of nothing.
pub(super) async fn resumed(parts: &Parts, call: &ResumeCall) -> Result<Rest, Why> {
    let last = Instant::now() + STREAMS_WITHIN;
    let own = ResumeCall { coming: Coming { kept_here: true, ..call.coming }, ..call.clone() };
    let found = asked_for(parts, &own, last).await;
    let (Ok(Rest::Unknown | Rest::Away), false) = (&found, call.coming.kept_here) else {
        return found;
    };
    let logged = asked_for(parts, call, last).await?;
    // Who did not answer before may have it.
    let is_away = matches!((&found, &logged), (Ok(Rest::Away), Rest::Unknown));
    Ok(if is_away { Rest::Away } else { logged })
}

/// Asks all of them once.
async fn asked_for(parts: &Parts, call: &ResumeCall, last: Instant) -> Result<Rest, Why> {
    let catalog = parts.catalog.load_full();
    let chats = catalog.routes().filter(|(_, route)| route.target.base_url.is_chat());
    let (mut is_certain, mut refused) = (true, None);
    for (name, route) in chats {
        let limits = limits(last.min(Instant::now() + STREAM_WITHIN));
        let failed = match parts.upstream.resume(&route.target, call.clone(), limits).await {
            Ok(rest) => return Ok(rest),
            Err(failed) => failed,
        };
        let said = failed.upstream.filter(|said| said.verdict.is_some());
        match (failed.failure, said) {
            (Failure::ClientError(404), _) => {}
            // It may have read a log that is behind; or its keys. Who runs the stream says otherwise.
            (failure @ Failure::ClientError(400..=499), Some(said)) => {
                refused = refused.or(Some(Why::Upstream { failure, said }));
            }
            // One of a version that keeps none.
            (Failure::Status(501), _) => {}
            (failure, _) => {
                is_certain = false;
                tracing::debug!(instance_id = name, "not asked about a stream: {failure}");
            }
        }
    }
    match (is_certain, refused) {
        (false, _) => Ok(Rest::Away),
        (true, Some(why)) => Err(why),
        (true, None) => Ok(Rest::Unknown),
    }
}

/// Waits until a stream is over that the chat role called `name` keeps, and returns what it came to. `None` where that role
/// cannot say: it has gone, or is of a version without that call.
pub(super) async fn over(parts: &Parts, name: &str, id: &str, key: Option<Secret>) -> Option<Used> {
    let target = parts.catalog.load().route(name)?.target.clone();
    let limits = limits(Instant::now() + RUNS_FOR);
    let said = parts.upstream.awaited(&target, (id.to_owned(), key), limits).await;
    said.inspect_err(|failed| {
        tracing::debug!(instance_id = name, "not told of a stream's end: {failed}")
    })
    .ok()
}

fn limits(deadline: Instant) -> Limits {
    Limits {
        connect: CONNECT_WITHIN,
        first_token: ANSWER_WITHIN,
        between_tokens: ANSWER_WITHIN,
        whole_answer: ANSWER_WITHIN,
        deadline,
        answer_bytes_max: ANSWER_BYTES_MAX,
    }
}

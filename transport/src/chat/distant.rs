//! Sessions that a chat role elsewhere keeps: asked for there, answered in its words.

use std::time::Duration;

use tokio::time::Instant;

use super::Parts;
use crate::exchange::{SessionAnswer, SessionCall, Why};
use crate::sessions::SessionError;
use crate::upstream::Limits;

/// A chat role asks its store, which answers in fractions of a second or says that it does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// To a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A page of the longest messages that may be stored.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks one chat role after another, until one can be reached: those that share a store know the same sessions.
pub(super) async fn asked(parts: &Parts, call: SessionCall) -> Result<SessionAnswer, Why> {
    let SessionCall { ask, behalf, .. } = call;
    let behalf = behalf.map(|behalf| *behalf).unwrap_or_default();
    let catalog = parts.catalog.load_full();
    let now = Instant::now();
    let limits = Limits {
        connect: CONNECT_WITHIN,
        first_token: ANSWER_WITHIN,
        between_tokens: ANSWER_WITHIN,
        whole_answer: ANSWER_WITHIN,
        deadline: now + ANSWER_WITHIN,
        answer_bytes_max: ANSWER_BYTES_MAX,
    };
    let chats = catalog.routes().filter(|(_, route)| route.target.base_url.is_chat());
    for (name, route) in chats {
        let asked = (ask.clone(), behalf.clone());
        let failed = match parts.upstream.sessions(&route.target, asked, limits).await {
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

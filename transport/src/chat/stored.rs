//! The part of a request that is a turn of a stored session: its context before, its record behind.
//!
//! Where another process keeps sessions (the gateway role), nothing is read or written here: it is asked, and what it calls
//! the session is passed on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::plane::{Dispatch, Outcome};

use super::{Parts, Request};
use crate::exchange::{Call, Refused, SessionAnswer, SessionAsk, SessionCall, Why};
use crate::front::UNCONFIRMED;
use crate::sessions::{Said, SessionError, Turn};

/// Looks whether a call's session is there, and adds what it may bring to the estimate of the prompt.
pub(super) async fn expect(parts: &Parts, call: &mut Call) -> Result<(), Why> {
    let Some(stored) = call.stored.as_ref().filter(|_| call.behalf.is_none()) else {
        return Ok(());
    };
    let sessions = parts.sessions.as_ref().ok_or(Why::Session(SessionError::Off))?;
    if stored.is_new {
        return Ok(());
    }
    let context = sessions.expected(&stored.owner, &stored.id).await.map_err(Why::Session)?;
    call.prompt += context;
    Ok(())
}

/// Answers a question about sessions, here or where they are kept.
pub(super) async fn asked(parts: &Parts, call: SessionCall) -> Result<SessionAnswer, Why> {
    let Some(sessions) = &parts.sessions else {
        return super::distant::asked(parts, call).await;
    };
    let SessionCall { owner, ask, .. } = call;
    let answer = match ask {
        SessionAsk::Get(id) => sessions.get(&owner, &id).await.map(SessionAnswer::One),
        SessionAsk::List(page) => sessions.list(&owner, page).await.map(SessionAnswer::List),
        SessionAsk::Messages(id, page) => {
            sessions.messages(&owner, &id, page).await.map(SessionAnswer::Messages)
        }
        SessionAsk::Clear(id) => sessions.clear(&owner, &id).await.map(|()| SessionAnswer::Done),
        SessionAsk::Purge(id) => sessions.purge(&owner, &id).await.map(|()| SessionAnswer::Done),
        SessionAsk::History => sessions.history(&owner).await.map(SessionAnswer::History),
    };
    answer.map_err(Why::Session)
}

impl Request {
    /// The plane has given the turn: what is stored goes before what is asked. Once for all attempts.
    ///
    /// Another process may have a turn of the session, and that is not the replica's fault: what is waited here is added to
    /// the attempt's times. Waiting before the plane hears of the request was rejected: it would count neither the turns that
    /// wait nor their quota. The plane's own watchdog is of the request's deadline, which stays; only for a probe of a replica
    /// that comes back it looks at the first token, 5 s after the time that it gave.
    pub(super) async fn begin_turn(&mut self, dispatch: &mut Dispatch) -> Result<(), Refused> {
        let (Some(sessions), Some(stored)) = (&self.chat.sessions, &self.call.stored) else {
            return Ok(());
        };
        if self.turn.is_some() {
            return Ok(());
        }
        let clock = self.chat.driver.clock();
        let (deadline, dispatched) = (clock.deadline(dispatch.deadline), clock.now());
        let begun = Turn::begin(sessions, stored, &self.call.body, deadline).await;
        let (turn, body) = begun.map_err(|why| self.refused(Why::Session(why)))?;
        (self.turn, self.call.body) = (Some(turn), body);
        later(dispatch, self.chat.driver.clock().now().since(dispatched));
        Ok(())
    }

    /// Keeps a whole answer before it is sent. Returns it with the session's name in it, and that name.
    pub(super) async fn end_turn(
        &mut self,
        body: Bytes,
        elsewhere: Option<Arc<str>>,
        outcome: &Outcome,
    ) -> Result<(Bytes, Option<Arc<str>>), Refused> {
        let Some(turn) = self.turn.take() else {
            // A chat role has put it in already, in words that the wire has no field for.
            let named = elsewhere.as_ref().map_or_else(|| body.clone(), |id| named(&body, id));
            return Ok((named, elsewhere));
        };
        let id = Arc::clone(turn.id());
        let (message, all) = Said::whole(&body).map_or((None, false), |(m, all)| (Some(m), all));
        let whole = *outcome == Outcome::Completed && all;
        turn.end(message, whole).await.map_err(|why| self.refused(Why::Session(why)))?;
        Ok((named(&body, &id), Some(id)))
    }

    /// What the client is told that the session is called.
    pub(super) fn announced(&mut self, elsewhere: Option<Arc<str>>) -> Option<Arc<str>> {
        let Some(turn) = &mut self.turn else { return elsewhere };
        turn.announce();
        Some(Arc::clone(turn.id()))
    }
}

/// An attempt that begins so much later may answer so much later, though not after its request is over.
fn later(dispatch: &mut Dispatch, waited: Duration) {
    let last = dispatch.deadline;
    for by in [&mut dispatch.connect_by, &mut dispatch.first_token_by] {
        *by = (*by + waited).min(last);
    }
}

/// What a stream's client is told of its session, and what the session is told of the stream.
pub(super) struct Story {
    turn: Option<Turn>,
    said: Said,
    /// The session's name, until it is told.
    name: Option<Arc<str>>,
}

/// The error of a stream that is whole, and may not be kept.
fn unconfirmed() -> Bytes {
    let error = serde_json::json!({"error": {
        "message": UNCONFIRMED, "type": "server_error", "param": null, "code": "session_not_stored",
    }});
    error.to_string().into()
}

impl Story {
    pub fn new(turn: Option<Turn>, name: Option<Arc<str>>) -> Self {
        Self { turn, said: Said::default(), name }
    }

    /// An event on its way to the client: the first that is one has the session's name in it.
    pub fn pass(&mut self, raw: Bytes) -> Bytes {
        let Some(name) = &self.name else { return raw };
        let at = if raw.starts_with(b"data:") { Some(0) } else { find(&raw, b"\ndata:") };
        let Some(brace) = at.and_then(|at| Some(at + find(&raw[at..], b"{")?)) else { return raw };
        let told = named_at(&raw, brace, name);
        self.name = None;
        told
    }

    /// The client has it.
    pub fn delivered(&mut self, raw: &[u8]) {
        if self.turn.is_some() {
            self.said.add(raw);
        }
    }

    /// Keeps what a client that left was given: all of it, where that was the last of the message.
    pub async fn leave(&mut self) {
        let whole = self.said.is_finished();
        let _ = self.end(whole).await;
    }

    /// Keeps what was delivered. The error is what the client is told instead of a clean end.
    pub async fn end(&mut self, whole: bool) -> Result<(), Bytes> {
        let Some(turn) = self.turn.take() else { return Ok(()) };
        let (message, all) = self.said.message().map_or((None, false), |(m, all)| (Some(m), all));
        let kept = turn.end(message, whole && all).await;
        kept.map_err(|_| unconfirmed())
    }
}

/// A JSON object with the session's name as its first member.
fn named(body: &Bytes, id: &str) -> Bytes {
    find(body, b"{").map_or_else(|| body.clone(), |brace| named_at(body, brace, id))
}

fn named_at(body: &[u8], brace: usize, id: &str) -> Bytes {
    let (before, behind) = body.split_at(brace + 1);
    let comma = if behind.trim_ascii_start().starts_with(b"}") { "" } else { "," };
    // Ids are letters, digits and an underscore; those of another process may be anything.
    let id = serde_json::to_string(id).unwrap_or_default();
    let member = format!("\"session_id\":{id}{comma}");
    [before, member.as_bytes(), behind].concat().into()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_once_in_the_first_event_that_is_one() {
        let mut story = Story::new(None, Some("sess_1".into()));
        let comment = Bytes::from_static(b": wait\n\n");
        assert_eq!(story.pass(comment.clone()), comment);
        let event = Bytes::from_static(b"data: {\"id\":1}\n\n");
        assert_eq!(story.pass(event.clone()), "data: {\"session_id\":\"sess_1\",\"id\":1}\n\n");
        assert_eq!(story.pass(event.clone()), event);
    }

    #[test]
    fn a_whole_answer_is_named_too() {
        assert_eq!(named(&Bytes::from_static(b"{}"), "a"), "{\"session_id\":\"a\"}");
        assert_eq!(named(&Bytes::from_static(b"[1]"), "a"), "[1]");
    }
}

//! Stored sessions over HTTP: what there is, what was said, and what is to be sent no more.
//!
//! Whose sessions are meant is said by the key, or for keys that speak for several users by `user_id` in the query. What is
//! somebody else's is not there: the answers are the same to the letter.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use control::Wall;
use http::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::{self, ApiError, SERVER};
use super::{Shared, ask, head, refusal};
use crate::exchange::{Behalf, Chat, SessionAnswer, SessionAsk, SessionCall};
use crate::sessions::{MessageInfo, PAGE_DEFAULT, PAGE_MAX, PageOf, SessionError, SessionInfo};
use crate::trace::Trace;
use crate::upstream::Secret;
use crate::wall::rfc3339;

type Front<C> = State<Arc<Shared<C>>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// What is told where nobody knows whether a turn is kept; a stream tells it in place of its end.
pub(crate) const UNCONFIRMED: &str = "The answer may not have been stored in its session: the store did not confirm it. Look at GET \
     /api/v1/sessions/ID/messages before sending this turn again.";

/// When to ask again where a store does not answer, or a turn is under way.
const SOON: std::time::Duration = std::time::Duration::from_secs(1);

/// `GET /api/v1/sessions`
pub(super) async fn list<C: Chat>(
    State(shared): Front<C>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer<Value> {
    let page = page(&uri)?;
    let SessionAnswer::List(list) =
        asked(&shared, &headers, one_of(&uri, "user_id"), SessionAsk::List(page)).await?
    else {
        return Err(other_answer());
    };
    let data: Vec<Value> = list.items.iter().map(session).collect();
    Ok(Json(json!({
        "object": "list", "data": data, "page": page.page, "page_size": page.size, "total": list.total,
    })))
}

/// `GET /api/v1/sessions/{id}`
pub(super) async fn one<C: Chat>(
    State(shared): Front<C>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer<Value> {
    let SessionAnswer::One(info) =
        asked(&shared, &headers, one_of(&uri, "user_id"), SessionAsk::Get(id)).await?
    else {
        return Err(other_answer());
    };
    Ok(Json(session(&info)))
}

/// `DELETE /api/v1/sessions/{id}`: the context, or with `purge=true` all of it.
pub(super) async fn clear<C: Chat>(
    State(shared): Front<C>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer<Value> {
    let purge = match one_of(&uri, "purge").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            let words = "'purge' must be true or false.";
            return Err(error::invalid("invalid_value", words).param("purge"));
        }
    };
    let ask = if purge { SessionAsk::Purge(id.clone()) } else { SessionAsk::Clear(id.clone()) };
    asked(&shared, &headers, one_of(&uri, "user_id"), ask).await?;
    Ok(Json(json!({"id": id, "object": "session", "cleared": true, "deleted": purge})))
}

/// `GET /api/v1/sessions/{id}/messages`
pub(super) async fn messages<C: Chat>(
    State(shared): Front<C>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer<MessagePage> {
    let page = page(&uri)?;
    let SessionAnswer::Messages(list) =
        asked(&shared, &headers, one_of(&uri, "user_id"), SessionAsk::Messages(id, page)).await?
    else {
        return Err(other_answer());
    };
    Ok(Json(MessagePage {
        object: "list",
        data: list.items.into_iter().map(Message::from).collect(),
        page: page.page,
        page_size: page.size,
        total: list.total,
    }))
}

/// `GET /history`
pub(super) async fn history<C: Chat>(
    State(shared): Front<C>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer<Value> {
    let SessionAnswer::History(lines) =
        asked(&shared, &headers, one_of(&uri, "user_id"), SessionAsk::History).await?
    else {
        return Err(other_answer());
    };
    let line = |line: &crate::sessions::HistoryLine| json!({"role": line.role, "text": line.text});
    Ok(Json(lines.iter().map(line).collect()))
}

/// A page of messages, each as it was sent.
#[derive(Serialize)]
pub(super) struct MessagePage {
    object: &'static str,
    data: Vec<Message>,
    page: u64,
    page_size: u64,
    total: u64,
}

#[derive(Serialize)]
struct Message {
    index: u64,
    created_at: String,
    token_count: u64,
    /// `complete`, or `broken`.
    status: &'static str,
    /// Whether it may go upstream.
    in_context: bool,
    message: Box<RawValue>,
}

impl From<MessageInfo> for Message {
    fn from(info: MessageInfo) -> Self {
        Self {
            index: info.index,
            created_at: rfc3339(info.created),
            token_count: info.tokens,
            status: if info.is_whole { "complete" } else { "broken" },
            in_context: !info.is_cleared,
            message: info.message,
        }
    }
}

fn session(info: &SessionInfo) -> Value {
    let at = |wall: Wall| rfc3339(wall);
    json!({
        "id": info.id,
        "object": "session",
        "user_id": info.user_id,
        "message_count": info.message_count,
        "token_count": info.token_count,
        "created_at": at(info.created),
        "last_activity": at(info.last_activity),
        "status": if info.is_active { "active" } else { "idle" },
    })
}

/// Asks for whoever shows a key, and for one of its users where one is named.
pub(super) async fn asked<C: Chat>(
    shared: &Shared<C>,
    headers: &HeaderMap,
    user: Option<String>,
    ask: SessionAsk,
) -> Result<SessionAnswer, ApiError> {
    let bearer = head::bearer(headers)?;
    // A stranger is told so before anything else.
    let trace = Trace::default();
    shared.auth.authenticate(bearer.as_deref(), None, &trace).await?;
    if let Some(user) = &user {
        ask::check_user(user)?;
    }
    let caller = shared.auth.authenticate(bearer.as_deref(), user.as_deref(), &trace).await?;
    let behalf = shared.edge.then(|| {
        let key = bearer.as_deref().and_then(|key| Secret::new(key).ok());
        Box::new(Behalf { key, user, stored: true, ..Behalf::default() })
    });
    let call = SessionCall { owner: caller.owner(), ask, behalf };
    shared.chat.sessions(call).await.map_err(|why| refusal::of_why(why, 0))
}

/// Why there is no session, or no turn.
pub(super) fn refusal(refused: &SessionError) -> ApiError {
    let at_fault = |status, code, words: String| error::new(status, error::INVALID, code, words);
    let unavailable = |code, words: &'static str| {
        error::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, words)
    };
    match refused {
        SessionError::NotFound => {
            let words = "There is no session of this id, or it is another user's. Leave 'session_id' out to begin one.";
            at_fault(StatusCode::NOT_FOUND, "session_not_found", words.to_owned())
                .param("session_id")
        }
        SessionError::Full(what) => at_fault(
            StatusCode::CONFLICT,
            "session_full",
            format!("The session holds as many {what} as it may. Begin another: leave 'session_id' out."),
        )
        .should_retry(false),
        SessionError::TooMany(most) => at_fault(
            StatusCode::CONFLICT,
            "too_many_sessions",
            format!(
                "The user has {most} sessions, as many as may be. Go on with one of them, or remove one: DELETE \
                 /api/v1/sessions/ID?purge=true."
            ),
        )
        .should_retry(false),
        SessionError::TooManyMessages => {
            error::invalid("invalid_value", format!("{}.", upper(&refused.to_string()))).param("messages")
        }
        SessionError::Busy => at_fault(
            StatusCode::CONFLICT,
            "turn_conflict",
            "Other turns of this session are still being answered. Wait for them, then send this one again.".to_owned(),
        )
        .retry_after(SOON),
        SessionError::Off => {
            let words = "This process keeps no sessions. Ask /v1/chat/completions, with the whole conversation.";
            unavailable("sessions_off", words).should_retry(false)
        }
        SessionError::Store(_) => unavailable(
            "session_store_unavailable",
            "The store of sessions does not answer, so the turn can be neither continued nor kept. Try again shortly, or \
             ask /v1/chat/completions with the whole conversation.",
        )
        .retry_after(SOON),
        // It was answered and charged, and a repeat may be a second turn: no client should do that by itself.
        SessionError::Unconfirmed(_) => unavailable("session_not_stored", UNCONFIRMED).should_retry(false),
    }
}

pub(super) fn other_answer() -> ApiError {
    let words = "The store of sessions answered something else than was asked.";
    error::new(StatusCode::BAD_GATEWAY, SERVER, "session_answer_unknown", words)
}

fn upper(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Which part of a list, by `page` (from 1) and `page_size`.
fn page(uri: &Uri) -> Result<PageOf, ApiError> {
    let number = |name: &'static str, most: u64| {
        let Some(text) = one_of(uri, name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| out_of_range(name, most))
    };
    page_of(number("page", PAGES_MAX)?, number("page_size", PAGE_MAX)?)
}

/// As many as a number in the wire's messages can name.
const PAGES_MAX: u64 = u32::MAX as u64;

/// The same of numbers.
pub(super) fn page_of(page: Option<u64>, size: Option<u64>) -> Result<PageOf, ApiError> {
    let (page, size) = (page.unwrap_or(1), size.unwrap_or(PAGE_DEFAULT));
    if !(1..=PAGES_MAX).contains(&page) {
        return Err(out_of_range("page", PAGES_MAX));
    }
    if !(1..=PAGE_MAX).contains(&size) {
        return Err(out_of_range("page_size", PAGE_MAX));
    }
    Ok(PageOf { page, size })
}

fn out_of_range(name: &'static str, most: u64) -> ApiError {
    let words = format!("'{name}' must be a whole number from 1 to {most}.");
    error::invalid("invalid_value", words).param(name)
}

/// The first value of that name in the query; one that is empty is not there.
fn one_of(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value));
    values.next().filter(|value| !value.is_empty())
}

/// Percent signs and plus signs as they are meant in a query.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = text.get(at + 1..at + 3).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, pair) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (other, _) => {
                out.push(other);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_query_is_read_as_browsers_write_it() {
        let uri: Uri = "/x?user_id=%E4%BD%A0+%2B%41&b&c=%zz".parse().unwrap();
        assert_eq!(one_of(&uri, "user_id").unwrap(), "\u{4f60} +A");
        assert_eq!((one_of(&uri, "b"), one_of(&uri, "c").unwrap()), (None, "%zz".to_owned()));
    }

    #[test]
    fn pages_are_counted_from_one_and_bounded() {
        let of = |query: &str| page(&format!("/x?{query}").parse().unwrap());
        assert_eq!(of("").unwrap(), PageOf { page: 1, size: PAGE_DEFAULT });
        assert_eq!(of("page=3&page_size=100").unwrap(), PageOf { page: 3, size: 100 });
        for bad in ["page=0", "page=x", "page_size=101", "page_size=-1"] {
            assert_eq!(of(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}

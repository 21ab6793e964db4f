//! Stored sessions, as the wire tells of them.

use control::Wall;
use proto::chat::v1::{
    GetHistoryResponse, GetSessionMessagesResponse, GetSessionResponse, HistoryLine as LineSaid,
    ListSessionsResponse, Session as SessionSaid, StoredMessage,
};
use serde_json::value::RawValue;

use crate::exchange::SessionAnswer;
use crate::sessions::{HistoryLine, MessageInfo, Paged, SessionInfo};

/// One session.
pub(crate) fn session_answer(said: GetSessionResponse) -> SessionAnswer {
    SessionAnswer::One(session(said.session.unwrap_or_default()))
}

/// Some sessions.
pub(crate) fn sessions_answer(said: ListSessionsResponse) -> SessionAnswer {
    let items = said.sessions.into_iter().map(session).collect();
    SessionAnswer::List(Paged { items, total: said.total })
}

/// Some messages.
pub(crate) fn messages_answer(said: GetSessionMessagesResponse) -> SessionAnswer {
    let items = said.messages.into_iter().map(message).collect();
    SessionAnswer::Messages(Paged { items, total: said.total })
}

/// Some lines.
pub(crate) fn history_answer(said: GetHistoryResponse) -> SessionAnswer {
    let line = |line: LineSaid| HistoryLine::new(line.role, line.text);
    SessionAnswer::History(said.lines.into_iter().map(line).collect())
}

fn session(said: SessionSaid) -> SessionInfo {
    SessionInfo {
        id: said.id,
        user_id: said.user_id,
        message_count: said.message_count,
        token_count: said.token_count,
        created: Wall::from_millis(said.created_ms),
        last_activity: Wall::from_millis(said.last_activity_ms),
        is_active: said.active,
    }
}

fn message(said: StoredMessage) -> MessageInfo {
    MessageInfo {
        index: said.index,
        created: Wall::from_millis(said.created_ms),
        tokens: said.tokens,
        is_whole: !said.broken,
        is_cleared: said.cleared,
        // What is no JSON was not written by a chat role of ours.
        message: RawValue::from_string(said.message_json).unwrap_or_default(),
    }
}

/// The other way round.
pub(crate) fn session_said(session: &SessionInfo) -> SessionSaid {
    SessionSaid {
        id: session.id.clone(),
        user_id: session.user_id.clone(),
        message_count: session.message_count,
        token_count: session.token_count,
        created_ms: session.created.as_millis(),
        last_activity_ms: session.last_activity.as_millis(),
        active: session.is_active,
    }
}

/// The other way round.
pub(crate) fn message_said(message: &MessageInfo) -> StoredMessage {
    StoredMessage {
        index: message.index,
        created_ms: message.created.as_millis(),
        tokens: message.tokens,
        broken: !message.is_whole,
        cleared: message.is_cleared,
        message_json: message.message.get().to_owned(),
    }
}

/// The other way round.
pub(crate) fn line_said(line: &HistoryLine) -> LineSaid {
    LineSaid { role: line.role.clone(), text: line.text.clone() }
}

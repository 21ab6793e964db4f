//! Stored sessions in Redis, so that every process that shares it continues them.
//!
//! | key | what |
//! |---|---|
//! | `session:<id>` | a hash: whose it is, when it began and was last used, where its context begins |
//! | `session_messages:<id>` | a list of its messages, oldest first |
//! | `user_sessions:<user>` | a sorted set of a user's sessions, by their last use |
//! | `history:<user>` | a list of what was said last, newest first, 40 lines |
//! | `{session:<id>}:turn` | who answers a turn just now; gone by itself when he is |
//!
//! Here they are the record, so only the last of these expires. A script touches one key. What stands in a list is text
//! to this module: the sessions' own module writes and reads it.
//!
//! A connection of its own: a conversation of megabytes must not stand in the way of quota.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Value};

use super::client::{Caller, Settings, SettingsError};
use super::error::StoreError;
use super::script::Source;
use crate::seam::Network;

macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Source> = LazyLock::new(|| Source::new(include_str!($file)));
    };
}

script!(APPEND, "session_append.lua");
script!(CREATE, "session_create.lua");
script!(ENLIST, "session_enlist.lua");
script!(SET, "session_set.lua");
script!(HISTORY, "session_history.lua");
script!(HOLD, "session_hold.lua");
script!(UNLIST, "session_unlist.lua");

/// The sessions of all who share a Redis.
#[derive(Debug)]
pub struct SessionLog {
    caller: Caller,
}

impl SessionLog {
    /// Dials nothing yet.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings, network: Network) -> Result<Self, SettingsError> {
        Ok(Self { caller: Caller::new(settings, network)? })
    }

    /// The values of a session's fields; none at all where there is no such session.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fields<const N: usize>(
        &self,
        id: &str,
        names: [&str; N],
    ) -> Result<Option<[String; N]>, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(session_key(id)).arg(&names[..]);
        let answer = self.caller.command(&command).await?;
        let Value::Array(values) = answer else { return Err(garbled("fields")) };
        if values.iter().all(|value| *value == Value::Nil) {
            return Ok(None);
        }
        let values: Result<Vec<String>, _> = values.iter().map(text).collect();
        let foreign = || StoreError::Foreign("a session:* that no gateway wrote".into());
        let values = values.map_err(|_| foreign())?;
        values.try_into().map(Some).map_err(|_| foreign())
    }

    /// Makes a session, unless it is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create(&self, id: &str, fields: &[(&str, String)]) -> Result<(), StoreError> {
        self.caller
            .script_on(&CREATE, session_key(id), |command| with(command, fields))
            .await
            .map(drop)
    }

    /// Changes fields of a session. False where it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set(&self, id: &str, fields: &[(&str, String)]) -> Result<bool, StoreError> {
        let answer =
            self.caller.script_on(&SET, session_key(id), |command| with(command, fields)).await?;
        Ok(number(&answer)? == 1)
    }

    /// Appends messages behind the `before` that there were, once however often it is said. Where there are others now,
    /// nothing is written: returned is how many there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn append(
        &self,
        id: &str,
        before: u64,
        entries: &[String],
    ) -> Result<Option<u64>, StoreError> {
        let append = |command: &mut Cmd| {
            command.arg(before).arg(entries);
        };
        let answer = self.caller.script_on(&APPEND, messages_key(id), append).await?;
        if answer == Value::Nil { Ok(None) } else { number(&answer).map(Some) }
    }

    /// Messages by their places, both included; from the end where a place is below 0.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn messages(&self, id: &str, from: i64, to: i64) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("LRANGE");
        command.arg(messages_key(id)).arg(from).arg(to);
        texts(&self.caller.command(&command).await?)
    }

    /// Lists a session among a user's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn enlist(&self, user: &str, id: &str, active: u64) -> Result<(), StoreError> {
        let mut command = redis::cmd("ZADD");
        command.arg(user_key(user)).arg(active).arg(id);
        self.caller.command(&command).await.map(drop)
    }

    /// Lists a new session among a user's, where there are fewer than `most`. False where there are as many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn enlist_new(
        &self,
        user: &str,
        id: &str,
        active: u64,
        most: u64,
    ) -> Result<bool, StoreError> {
        let enlist = |command: &mut Cmd| {
            command.arg(id).arg(active).arg(most);
        };
        Ok(number(&self.caller.script_on(&ENLIST, user_key(user), enlist).await?)? == 1)
    }

    /// Takes ids that were listed before `before` (milliseconds since 1970) out of a user's list. Returns how many went.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unlist(&self, user: &str, ids: &[String], before: u64) -> Result<u64, StoreError> {
        let unlist = |command: &mut Cmd| {
            command.arg(before).arg(ids);
        };
        number(&self.caller.script_on(&UNLIST, user_key(user), unlist).await?)
    }

    /// A user's sessions, the last used first, and how many there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn listed(
        &self,
        user: &str,
        before: u64,
        count: u64,
    ) -> Result<(Vec<String>, u64), StoreError> {
        let mut part = redis::cmd("ZREVRANGE");
        let last = before.saturating_add(count).saturating_sub(1);
        part.arg(user_key(user)).arg(before.min(i64::MAX as u64)).arg(last.min(i64::MAX as u64));
        let mut total = redis::cmd("ZCARD");
        total.arg(user_key(user));
        let (part, total) = tokio::join!(self.caller.command(&part), self.caller.command(&total));
        let ids = if count == 0 { Vec::new() } else { texts(&part?)? };
        Ok((ids, number(&total?)?))
    }

    /// Forgets a session with its messages. In the list of its user's it is called `listed`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge(&self, user: &str, listed: &str, id: &str) -> Result<(), StoreError> {
        // The session itself last: what fails half way can be found, and purged again.
        self.caller.command(redis::cmd("DEL").arg(messages_key(id))).await?;
        let mut command = redis::cmd("ZREM");
        command.arg(user_key(user)).arg(listed);
        self.caller.command(&command).await?;
        self.caller.command(redis::cmd("DEL").arg(session_key(id))).await.map(drop)
    }

    /// Adds to what was said last; of all lines so many stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remember(
        &self,
        user: &str,
        lines: &[String],
        most: usize,
    ) -> Result<(), StoreError> {
        let add = |command: &mut Cmd| {
            command.arg(most).arg(lines);
        };
        self.caller.script_on(&HISTORY, format!("history:{user}"), add).await.map(drop)
    }

    /// What was said last, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remembered(&self, user: &str, most: usize) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("LRANGE");
        command.arg(format!("history:{user}")).arg(0).arg(most.saturating_sub(1));
        texts(&self.caller.command(&command).await?)
    }

    /// Removes one of the lines that were said last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, user: &str, line: &str) -> Result<(), StoreError> {
        let mut command = redis::cmd("LREM");
        command.arg(format!("history:{user}")).arg(0).arg(line);
        self.caller.command(&command).await.map(drop)
    }

    /// Takes the turn of a session for so long. False while somebody else has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take(&self, id: &str, who: &str, ttl: Duration) -> Result<bool, StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(turn_key(id)).arg(who).arg("NX").arg("PX").arg(millis(ttl));
        if self.caller.command(&command).await? != Value::Nil {
            return Ok(true);
        }
        // It may be ours: taken by a command whose answer was lost.
        self.hold(id, who, ttl).await
    }

    /// Keeps a turn for so long more; no time lets go of it. False where it is no longer held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold(&self, id: &str, who: &str, ttl: Duration) -> Result<bool, StoreError> {
        let held = |command: &mut Cmd| {
            command.arg(who).arg(millis(ttl));
        };
        Ok(number(&self.caller.script_on(&HOLD, turn_key(id), held).await?)? == 1)
    }
}

fn with(command: &mut Cmd, fields: &[(&str, String)]) {
    for (name, value) in fields {
        command.arg(*name).arg(value);
    }
}

fn session_key(id: &str) -> String {
    format!("session:{id}")
}

fn messages_key(id: &str) -> String {
    format!("session_messages:{id}")
}

fn user_key(user: &str) -> String {
    format!("user_sessions:{user}")
}

fn turn_key(id: &str) -> String {
    format!("{{session:{id}}}:turn")
}

fn texts(answer: &Value) -> Result<Vec<String>, StoreError> {
    let Value::Array(values) = answer else { return Err(garbled("a list")) };
    values.iter().map(text).collect()
}

fn text(value: &Value) -> Result<String, StoreError> {
    let Value::BulkString(bytes) = value else { return Err(garbled("a text")) };
    String::from_utf8(bytes.clone()).map_err(|_| garbled("a text in UTF-8"))
}

fn number(value: &Value) -> Result<u64, StoreError> {
    let Value::Int(number) = value else { return Err(garbled("a number")) };
    u64::try_from(*number).map_err(|_| garbled("a number from 0 on"))
}

/// Never what was answered: that may be somebody's message.
fn garbled(wanted: &str) -> StoreError {
    StoreError::Garbled(format!("not {wanted}, where sessions were asked for it"))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

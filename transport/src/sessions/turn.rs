//! One turn of a session: from the moment it may begin to the moment it is written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::units::Tokens;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::body::{Asked, line, said};
use super::hold::Held;
use super::record::{Entry, Head, HistoryLine, Owner, Totals};
use super::{STORE_PATIENCE, SessionError, Sessions, Store, kv};
use crate::exchange::Stored;

/// A turn that runs. Dropped before its end, it has left nothing behind.
pub(crate) struct Turn {
    sessions: Arc<Sessions>,
    owner: Owner,
    id: Arc<str>,
    /// What no other turn is called.
    name: String,
    /// Where the session is new and its client has not heard of it: it goes with a turn that leaves nothing.
    unheard: Option<Unheard>,
    /// What is stored before it.
    before: Totals,
    asked: Vec<Box<RawValue>>,
    held: Held,
}

/// How long the end of a turn is waited for.
const END_WAIT: Duration = kv::DISK_WAIT.saturating_add(STORE_PATIENCE);
/// How long between two tries to keep a turn.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest wait for it, as the plane's for turns of this process.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// Messages that are read at once, from the end backwards, until the window is full.
const READ_AT_ONCE: u64 = 64;
/// System messages that may open a session.
const OPENING_MAX: u64 = 8;

impl Turn {
    /// Begins a turn whose time has come, and puts what is stored before what is asked. Returns it with the body to send.
    pub async fn begin(
        sessions: &Arc<Sessions>,
        stored: &Stored,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<(Self, Bytes), SessionError> {
        let begun = Self::begun(sessions, stored, body, deadline).await;
        sessions.told(begun)
    }

    async fn begun(
        sessions: &Arc<Sessions>,
        stored: &Stored,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<(Self, Bytes), SessionError> {
        let until = deadline.min(Instant::now() + TURN_WAIT);
        let (owner, id) = (stored.owner.clone(), Arc::clone(&stored.id));
        let name = Sessions::mint()?;
        let held = Held::take(sessions, owner.scoped(&id), &name, until).await?;
        let asked = Asked::read(body)?;
        let limits = sessions.limits();
        let mut turn = Self {
            sessions: Arc::clone(sessions),
            owner,
            id,
            name,
            unheard: None,
            before: Totals::default(),
            asked: Vec::new(),
            held,
        };
        if stored.is_new {
            turn.create(limits.sessions_max).await?;
            turn.asked = asked.messages;
            return Ok((turn, body.clone()));
        }
        let (head, last) = sessions.found(&turn.owner, &turn.id).await?;
        if last.messages >= limits.messages_max {
            return Err(SessionError::Full("messages"));
        }
        if last.bytes >= limits.bytes_max {
            return Err(SessionError::Full("bytes"));
        }
        turn.before = last;
        let context = turn.context(&head, last, limits.tokens_max).await?;
        let body = asked.body(body, &context, limits.tokens_max);
        turn.asked = asked.messages;
        Ok((turn, body))
    }

    /// What may go upstream of what is stored: the end of it, as far as a window can reach, behind what opens it.
    async fn context(
        &self,
        head: &Head,
        last: Totals,
        max: Tokens,
    ) -> Result<Vec<Entry>, SessionError> {
        let first = head.cleared.messages;
        let mut from = last.messages;
        let mut entries: Vec<Entry> = Vec::new();
        while from > first {
            let next = from.saturating_sub(READ_AT_ONCE).max(first);
            let mut part = self.entries(next, from - next).await?;
            part.append(&mut entries);
            (entries, from) = (part, next);
            // What comes after the first of these fills the window already.
            let oldest = entries.first().map_or(0, |entry| entry.totals.tokens);
            if last.tokens.saturating_sub(oldest) > max.0 {
                break;
            }
        }
        if from > first {
            let opening = self.entries(first, OPENING_MAX.min(from - first)).await?;
            let system =
                |entry: &Entry| line(&entry.message).part == control::session::Part::System;
            let mut opening: Vec<Entry> = opening.into_iter().take_while(system).collect();
            opening.append(&mut entries);
            entries = opening;
        }
        Ok(entries)
    }

    async fn entries(&self, from: u64, count: u64) -> Result<Vec<Entry>, SessionError> {
        self.sessions.entries(&self.owner, &self.id, from, count).await
    }

    /// What the session is called.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Its client hears the session's name: from here on it stays.
    pub fn announce(&mut self) {
        if let Some(unheard) = &mut self.unheard {
            unheard.over = true;
        }
    }

    /// Has a new session be there before anything is spent on it.
    async fn create(&mut self, most: u64) -> Result<(), SessionError> {
        let now = self.sessions.wall.now().as_millis();
        let head = Head {
            tenant: self.owner.tenant.to_string(),
            user: self.owner.user.to_string(),
            created: now,
            active: now,
            cleared: Totals::default(),
        };
        let (sessions, owner) = (Arc::clone(&self.sessions), self.owner.clone());
        // What fails may have been done by half.
        let unheard = Unheard { sessions, owner, id: Arc::clone(&self.id), over: false };
        let unheard = self.unheard.insert(unheard);
        let created = match &self.sessions.store {
            Store::Embedded(store) => store.create(&self.id, &head, most).await,
            Store::Shared(store) => store.create(&self.id, &head, most).await,
        };
        unheard.over = matches!(created, Err(SessionError::TooMany(_)));
        created
    }

    /// Keeps the turn: what was asked, and what was answered. It is kept though nobody waits for it any more. What the store
    /// has not confirmed in time may be kept or not, and that is told; the next turn begins when it is known.
    pub async fn end(self, answer: Option<Box<RawValue>>, whole: bool) -> Result<(), SessionError> {
        let sessions = Arc::clone(&self.sessions);
        let kept = tokio::spawn(self.keep(answer, whole));
        match timeout_at(Instant::now() + END_WAIT, kept).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(_)) => Err(SessionError::Unconfirmed("its task broke".to_owned())),
            Err(_) => sessions.told(Err(SessionError::Unconfirmed(kv::slow()))),
        }
    }

    async fn keep(
        mut self,
        answer: Option<Box<RawValue>>,
        whole: bool,
    ) -> Result<(), SessionError> {
        self.announce();
        let mut entries = self.records(answer, whole);
        let lines = self.lines(&entries);
        let until = Instant::now() + STORE_PATIENCE;
        let kept = loop {
            match self.written(&entries, &lines).await {
                Ok(None) => break Ok(()),
                Ok(Some(last)) if Instant::now() < until => self.renumber(&mut entries, last),
                Ok(Some(_)) => {
                    let why = "others write to the session all the time".to_owned();
                    break Err(SessionError::Unconfirmed(why));
                }
                Err(SessionError::Store(_)) if Instant::now() < until => sleep(AGAIN).await,
                // A command without an answer may have been carried out.
                Err(SessionError::Store(why)) => break Err(SessionError::Unconfirmed(why)),
                Err(error) => break Err(error),
            }
        };
        let outcome = match (&kept, whole) {
            (Ok(()), true) => "whole",
            (Ok(()), false) => "broken",
            (Err(_), _) => "lost",
        };
        self.sessions.turns.get_or_create(&super::Ended { outcome }).inc();
        self.held.let_go().await;
        self.sessions.told(kept)
    }

    /// Nothing where the turn is written; the figures of the session where another came first.
    async fn written(
        &mut self,
        entries: &[Entry],
        lines: &[HistoryLine],
    ) -> Result<Option<Totals>, SessionError> {
        let active = self.sessions.wall.now().as_millis();
        let (owner, id) = (&self.owner, &*self.id);
        match &self.sessions.store {
            // Nobody else has the directory.
            Store::Embedded(store) => store.append(id, active, entries, lines).await.map(|()| None),
            Store::Shared(store) => {
                let place = (active, self.before.messages);
                store.append(owner, id, place, entries, lines).await
            }
        }
    }

    /// The lease was lost, and another process's turn came first: this one comes behind it. Its model has not seen that, but
    /// the totals go on from it, or they would be wrong for good.
    fn renumber(&mut self, entries: &mut [Entry], last: Totals) {
        let moved = |total: &mut u64, from: u64, to: u64| *total = *total - from + to;
        for Entry { totals, .. } in entries {
            moved(&mut totals.messages, self.before.messages, last.messages);
            moved(&mut totals.tokens, self.before.tokens, last.tokens);
            moved(&mut totals.bytes, self.before.bytes, last.bytes);
        }
        self.before = last;
    }

    fn records(&mut self, answer: Option<Box<RawValue>>, whole: bool) -> Vec<Entry> {
        let at = self.sessions.wall.now().as_millis();
        let mut totals = self.before;
        let asked = std::mem::take(&mut self.asked).into_iter().map(|message| (message, true));
        let all = asked.chain(answer.map(|message| (message, whole)));
        let record = |(message, whole): (Box<RawValue>, bool)| {
            totals.messages += 1;
            totals.tokens += line(&message).tokens.0;
            totals.bytes += message.get().len() as u64;
            Entry { turn: self.name.clone(), at, totals, whole, message }
        };
        all.map(record).collect()
    }

    fn lines(&self, entries: &[Entry]) -> Vec<HistoryLine> {
        let numbered = entries.iter().enumerate();
        let lines = numbered.filter_map(|(nth, entry)| {
            let (role, text) = said(&entry.message)?;
            let session = self.id.to_string();
            Some(HistoryLine { role, text, turn: format!("{}-{nth}", self.name), session })
        });
        lines.collect()
    }
}

/// A new session that nobody has heard of. Dropped before that is over, it is removed, as nobody could.
struct Unheard {
    sessions: Arc<Sessions>,
    owner: Owner,
    id: Arc<str>,
    over: bool,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.over {
            return;
        }
        let (sessions, owner, id) =
            (Arc::clone(&self.sessions), self.owner.clone(), Arc::clone(&self.id));
        runtime.spawn(async move {
            let _ = match &sessions.store {
                Store::Embedded(store) => store.purge(&owner, &id).await,
                Store::Shared(store) => store.purge(&owner, &id).await,
            };
        });
    }
}

//! Stored sessions: conversations that this side keeps, so that a client sends only what is new.
//!
//! **A turn is one record.** Its questions and its answer are written together, when it is over and before its client is
//! told so (`[DONE]`, or the body). So what was acknowledged is there after any crash, a turn that was cut by one has left
//! nothing behind, and its client, who saw no end, may ask again without the session having the question twice. Writing the
//! question first was rejected for that. An answer that broke off is kept as far as it was delivered, and marked.
//!
//! **Order** is the plane's ([`control::session`]): one turn of a session runs, some wait, the rest are told (409). The
//! context is read when the turn has come, not when its request arrives, and the next turn finds it only after this one was
//! written, which may be a moment after the plane has let the next one go: a guard in this process sees to that. Where
//! processes share a Redis a lease there does the same among them, held while the turn runs.
//!
//! **Where.** In Redis where one is named, else in the data directory. That is the record, not a cache: nothing in it
//! expires. `session.ttl` says after how long without a turn a session is shown as idle.
//!
//! **Whose.** A session is its tenant's and user's. For anybody else it is not there, which is said in the same words. Its
//! id is 128 random bits: nobody else could name it.
//!
//! No text of a message is in an error, a log line or a figure.

mod body;
mod embedded;
mod hold;
mod kv;
mod record;
mod said;
mod shared;
mod turn;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use control::Wall;
use control::units::Tokens;
use futures_util::{StreamExt, stream};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

pub use record::{HistoryLine, MessageInfo, Owner, PageOf, Paged, SessionInfo};
pub(crate) use said::Said;
pub(crate) use turn::Turn;

use crate::config;
use crate::health::Health;
use crate::redis::SessionLog;
use crate::seam::{Beside, WallClock, World};
use embedded::Embedded;
use hold::Held;
use kv::Kv;
use record::{Entry, Head, Totals};
use shared::Shared;

/// Most items of one page: a screen is less, and a page of the longest messages stays some megabytes.
pub const PAGE_MAX: u64 = 100;
/// What a page has where its size is not said.
pub const PAGE_DEFAULT: u64 = 20;
/// Lines of `history:<user>`, as the documents have it.
pub(crate) const HISTORY_MAX: usize = 40;
/// Sessions of a page that are looked at together: a page is one of many things that are asked of a store.
const LISTED_AT_ONCE: usize = 8;
/// Most new messages of one turn: as many as a client that brings an old conversation along may send at once.
const TURN_MESSAGES_MAX: usize = 1_000;
/// How long a store is tried again at the end of a turn. An answer has been paid for: one lost packet should not lose it.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// What a stop gives turns beyond that: what was cut has still to find out.
const MOMENT: Duration = Duration::from_millis(500);

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a prompt: what opens the session, the last messages that fit, and what is new.
    pub tokens_max: Tokens,
    /// Messages of a session. It takes no turn that would begin beyond.
    pub messages_max: u64,
    /// The same in bytes.
    pub bytes_max: u64,
    /// Sessions of one user.
    pub sessions_max: u64,
    /// Without a turn for so long, it is shown as idle.
    pub ttl: Duration,
}

impl From<&config::Session> for Limits {
    fn from(session: &config::Session) -> Self {
        Self {
            tokens_max: session.max_tokens,
            messages_max: u64::from(session.messages_max),
            bytes_max: session.bytes_max.0,
            sessions_max: u64::from(session.sessions_max),
            ttl: session.ttl,
        }
    }
}

/// Why there is no session, no turn, or no answer about one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// None of that id is this user's.
    #[error("there is no such session")]
    NotFound,
    /// It holds as much as it may.
    #[error("the session holds as much as it may ({0})")]
    Full(&'static str),
    /// Its user has as many as he may.
    #[error("the user has as many sessions as he may ({0})")]
    TooMany(u64),
    /// More new messages than a turn may bring.
    #[error("a turn may bring at most {TURN_MESSAGES_MAX} messages")]
    TooManyMessages,
    /// Another process answers a turn of it, and went on doing so.
    #[error("another turn of the session is being answered")]
    Busy,
    /// This process keeps none.
    #[error("this process keeps no sessions")]
    Off,
    /// The store does not do what it must.
    #[error("the store of sessions does not answer: {0}")]
    Store(String),
    /// The same at the end of a turn: nobody knows whether that is kept.
    #[error("the store of sessions has not confirmed the turn: {0}")]
    Unconfirmed(String),
}

impl SessionError {
    /// Its name in figures.
    const fn name(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Full(_) => "full",
            Self::TooMany(_) => "too_many",
            Self::TooManyMessages => "too_many_messages",
            Self::Busy => "busy",
            Self::Off => "off",
            Self::Store(_) => "store",
            Self::Unconfirmed(_) => "unconfirmed",
        }
    }
}

/// The sessions of this process, or of all that share a Redis.
pub struct Sessions {
    store: Store,
    limits: Mutex<Limits>,
    wall: WallClock,
    health: Arc<Health>,
    registry: Registry,
    turns: Family<Ended, Counter>,
    refused: Family<Refused, Counter>,
    /// One for each session with a turn that is not written yet.
    guards: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// How many turns are not written yet.
    unwritten: watch::Sender<usize>,
    /// The store did not answer the last time.
    unwell: AtomicBool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

enum Store {
    Embedded(Embedded),
    Shared(Shared),
}

/// What `/health` calls the store.
const PART: &str = "session store";

impl Sessions {
    /// Opens them, where the configuration says.
    ///
    /// # Errors
    /// [`SessionError::Store`].
    pub(crate) fn open(
        config: &config::Config,
        shared: Option<Arc<SessionLog>>,
        world: &World,
        health: &Arc<Health>,
    ) -> Result<Arc<Self>, SessionError> {
        let store = match shared {
            Some(log) => Store::Shared(Shared(log)),
            None => Store::Embedded(Embedded::new(kv_of(&world.beside, &config.data.dir)?)),
        };
        Ok(Self::over(store, Limits::from(&config.session), world.wall.clone(), health))
    }

    fn over(store: Store, limits: Limits, wall: WallClock, health: &Arc<Health>) -> Arc<Self> {
        let mut registry = Registry::default();
        let (turns, refused) = (Family::default(), Family::default());
        registry.register(
            "pointsman_session_turns",
            "Turns of stored sessions by how they were kept: whole, broken, lost",
            Clone::clone(&turns),
        );
        registry.register(
            "pointsman_session_refusals",
            "Asks for stored sessions that were refused, by reason",
            Clone::clone(&refused),
        );
        let sessions = Self {
            store,
            limits: Mutex::new(limits),
            wall,
            health: Arc::clone(health),
            registry,
            turns,
            refused,
            guards: Mutex::default(),
            unwritten: watch::Sender::default(),
            unwell: AtomicBool::new(true),
        };
        sessions.well(None);
        Arc::new(sessions)
    }

    /// Waits for the turns that are not written yet, as long as a store is tried and a moment more. False where some are left.
    pub(crate) async fn turns_written(&self) -> bool {
        let mut unwritten = self.unwritten.subscribe();
        let written = unwritten.wait_for(|turns| *turns == 0);
        matches!(timeout(STORE_PATIENCE + MOMENT, written).await, Ok(Ok(_)))
    }

    /// Lets go of the disk. What is asked from here on has no answer.
    pub(crate) fn close(&self) {
        if let Store::Embedded(store) = &self.store {
            store.close();
        }
    }

    /// Its figures.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes other limits, for turns that begin from here on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a new session: 128 random bits.
    ///
    /// # Errors
    /// [`SessionError::Store`] where the operating system has none.
    pub(crate) fn mint() -> Result<String, SessionError> {
        let mut bytes = [0_u8; 16];
        let none = |error: getrandom::Error| SessionError::Store(format!("no randomness: {error}"));
        getrandom::fill(&mut bytes).map_err(none)?;
        Ok(bytes.iter().fold(PREFIX.to_owned(), |id, byte| format!("{id}{byte:02x}")))
    }

    /// About how many tokens a turn of a session would have stored ones before it; the error where it is nobody's.
    pub(crate) async fn expected(&self, owner: &Owner, id: &str) -> Result<Tokens, SessionError> {
        let (head, last) = self.told(self.found(owner, id).await)?;
        let tokens = last.tokens.saturating_sub(head.cleared.tokens);
        Ok(Tokens(tokens).min(self.limits().tokens_max))
    }

    /// One session.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn get(&self, owner: &Owner, id: &str) -> Result<SessionInfo, SessionError> {
        let (head, last) = self.told(self.found(owner, id).await)?;
        Ok(self.info(id, &head, last))
    }

    /// A user's sessions, the last used first.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn list(
        &self,
        owner: &Owner,
        page: PageOf,
    ) -> Result<Paged<SessionInfo>, SessionError> {
        let (ids, total) = self.told(self.ids(owner, page.before(), page.size).await)?;
        let heads = ids.into_iter().map(|id| async move {
            let head = self.head(owner, &id).await;
            (id, head)
        });
        let mut heads = stream::iter(heads).buffered(LISTED_AT_ONCE);
        let (mut items, mut missing) = (Vec::new(), Vec::new());
        while let Some((id, head)) = heads.next().await {
            match self.told(head)? {
                Some((head, last)) if head.belongs_to(owner) => {
                    items.push(self.info(&id, &head, last));
                }
                Some(_) => {}
                // Purged this moment, or listed by a process that died before it made it.
                None => missing.push(id),
            }
        }
        let mut total = total;
        if let (Store::Shared(store), false) = (&self.store, missing.is_empty()) {
            let now = self.wall.now().as_millis();
            total -= self.told(store.unlist_ghosts(owner, missing, now).await)?.min(total);
        }
        Ok(Paged { items, total })
    }

    /// The messages of a session, oldest first.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn messages(
        &self,
        owner: &Owner,
        id: &str,
        page: PageOf,
    ) -> Result<Paged<MessageInfo>, SessionError> {
        let (head, last) = self.told(self.found(owner, id).await)?;
        // The one before tells what the first adds.
        let from = page.before();
        let first = from.saturating_sub(1);
        let count = page.size + (from - first);
        let entries = self.told(self.entries(owner, id, first, count).await)?;
        let mut before = 0;
        let mut items = Vec::new();
        for (index, entry) in (first..).zip(entries) {
            let tokens = entry.totals.tokens.saturating_sub(before);
            before = entry.totals.tokens;
            if index >= from {
                items.push(MessageInfo {
                    index,
                    created: Wall::from_millis(entry.at),
                    tokens,
                    is_whole: entry.whole,
                    is_cleared: index < head.cleared.messages,
                    message: entry.message,
                });
            }
        }
        Ok(Paged { items, total: last.messages })
    }

    /// Lets the next turn begin without what was said so far. The conversation stays.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn clear(&self, owner: &Owner, id: &str) -> Result<(), SessionError> {
        let (_, last) = self.told(self.found(owner, id).await)?;
        self.told(match &self.store {
            Store::Embedded(store) => store.clear(id, last).await,
            Store::Shared(store) => store.clear(owner, id, last).await,
        })
    }

    /// Forgets a session and all that was said in it. That is a turn of its own: one that ran beside it would write to what
    /// is gone.
    ///
    /// # Errors
    /// [`SessionError`]; [`SessionError::Busy`] while another turn runs.
    pub async fn purge(self: &Arc<Self>, owner: &Owner, id: &str) -> Result<(), SessionError> {
        self.told(self.found(owner, id).await)?;
        let (sessions, owner, id) = (Arc::clone(self), owner.clone(), id.to_owned());
        // To its end though nobody waits for it: what was purged by half, nobody else could purge meanwhile.
        let purged = tokio::spawn(async move {
            let (name, until) = (Self::mint()?, Instant::now() + STORE_PATIENCE);
            let mut held = Held::take(&sessions, owner.scoped(&id), &name, until).await?;
            let purged = match &sessions.store {
                Store::Embedded(store) => store.purge(&owner, &id).await,
                Store::Shared(store) => store.purge(&owner, &id).await,
            };
            held.let_go().await;
            purged
        });
        self.told(match timeout(kv::DISK_WAIT + STORE_PATIENCE, purged).await {
            Ok(Ok(purged)) => purged,
            Ok(Err(_)) => Err(SessionError::Store("its task broke".to_owned())),
            Err(_) => Err(SessionError::Store(kv::slow())),
        })
    }

    /// What a user and the models said last, oldest first.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn history(&self, owner: &Owner) -> Result<Vec<HistoryLine>, SessionError> {
        self.told(match &self.store {
            Store::Embedded(store) => store.history(owner).await,
            Store::Shared(store) => store.history(owner).await,
        })
    }

    fn info(&self, id: &str, head: &Head, last: Totals) -> SessionInfo {
        let now = self.wall.now().as_millis();
        let idle = Duration::from_millis(now.saturating_sub(head.active));
        SessionInfo {
            id: id.to_owned(),
            user_id: head.user.clone(),
            message_count: last.messages,
            token_count: last.tokens.saturating_sub(head.cleared.tokens),
            created: Wall::from_millis(head.created),
            last_activity: Wall::from_millis(head.active),
            is_active: idle < self.limits().ttl,
        }
    }

    async fn found(&self, owner: &Owner, id: &str) -> Result<(Head, Totals), SessionError> {
        // What was never minted is in no store, and need not be looked for.
        if !is_minted(id) {
            return Err(SessionError::NotFound);
        }
        let found = self.head(owner, id).await?;
        found.filter(|(head, _)| head.belongs_to(owner)).ok_or(SessionError::NotFound)
    }

    async fn head(&self, owner: &Owner, id: &str) -> Result<Option<(Head, Totals)>, SessionError> {
        match &self.store {
            Store::Embedded(store) => store.head(id).await,
            Store::Shared(store) => store.head(owner, id).await,
        }
    }

    async fn entries(
        &self,
        owner: &Owner,
        id: &str,
        from: u64,
        count: u64,
    ) -> Result<Vec<Entry>, SessionError> {
        match &self.store {
            Store::Embedded(store) => store.page(id, from, count).await,
            Store::Shared(store) => store.page(owner, id, from, count).await,
        }
    }

    async fn ids(
        &self,
        owner: &Owner,
        before: u64,
        count: u64,
    ) -> Result<(Vec<String>, u64), SessionError> {
        match &self.store {
            Store::Embedded(store) => store.list(owner, before, count).await,
            Store::Shared(store) => store.list(owner, before, count).await,
        }
    }

    /// Notes what became of an ask: in the figures, and of the store in `/health`.
    fn told<T>(&self, result: Result<T, SessionError>) -> Result<T, SessionError> {
        match &result {
            Ok(_) => self.well(None),
            Err(error) => {
                self.refused.get_or_create(&Refused { reason: error.name() }).inc();
                if let SessionError::Store(why) | SessionError::Unconfirmed(why) = error {
                    self.well(Some(why));
                }
            }
        }
        result
    }

    /// Whether the store works, or why it does not.
    fn well(&self, why: Option<&str>) {
        let unwell = why.is_some();
        if self.unwell.swap(unwell, Ordering::Relaxed) == unwell {
            return;
        }
        let said = match (why, &self.store) {
            (Some(why), _) => why.to_owned(),
            (None, Store::Embedded(_)) => "in the data directory".to_owned(),
            (None, Store::Shared(_)) => "in Redis".to_owned(),
        };
        match why {
            Some(why) => tracing::warn!("stored sessions cannot be used: {why}"),
            None => tracing::info!("stored sessions can be used"),
        }
        self.health.note(PART, Some((!unwell, said)));
    }

    /// The guard of a session: whoever has it locked has a turn there that is not written yet.
    fn guard(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        // Requests under way are bounded by the plane; what is left behind is swept when it is more than those.
        const SWEPT_FROM: usize = 1_024;
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = guards.get(key).and_then(Weak::upgrade) {
            return guard;
        }
        if guards.len() >= SWEPT_FROM {
            guards.retain(|_, guard| guard.strong_count() > 0);
        }
        let guard = Arc::default();
        guards.insert(key.to_owned(), Arc::downgrade(&guard));
        guard
    }
}

/// What every minted id begins with.
const PREFIX: &str = "sess_";

/// Whether an id has the form of those that are minted here.
fn is_minted(id: &str) -> bool {
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    id.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == 32 && rest.bytes().all(hex))
}

fn kv_of(beside: &Beside, dir: &Path) -> Result<Kv, SessionError> {
    if beside.has_files() { Kv::open(dir) } else { Ok(Kv::memory()) }
}

#[cfg(test)]
mod tests;

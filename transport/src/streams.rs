//! Streams that outlive their client's connection.
//!
//! A phone in a tunnel, a proxy that restarts, a laptop that wakes up on another network: the answer was paid for, the
//! model went on, and the client has half of it. A stream that was opened as *resumable* numbers its events and keeps them
//! in a bounded [log](log::Log); its client may come back within the grace time, to any gateway, say what it had last, and
//! get the rest. All other streams are cancelled the moment their client leaves, as before.
//!
//! **Where the decision is.** The plane does not know. What it would have to decide is a timer: whether a client that left
//! is gone. So the answer's parts, which the chat role hands to the front, do not go into the response's body but to a
//! [keeper](keeper), and it is the keeper's dropping them that says "the client has gone". Until then the attempt, its
//! reservation and its deadline are what they would be for a client that reads; the end settles once, as ever. A timer in
//! `control` was rejected: it would put a second, longer life of each request into the journal for no decision that any
//! other room depends on.
//!
//! **Written, then shown.** An event is in the log before anybody is sent it. With `data.redis` the log is in Redis too
//! ([`shipping`]), and an event is shown only once Redis has acknowledged it: what a client has seen, every gateway knows.
//! Events are shipped in groups, one command each: while one is on its way, the next gathers. A Redis that does not answer
//! holds an event back for one call's deadline; then the stream goes on for whoever is here, says so in a comment, and is
//! shipped after all when Redis is back.
//!
//! **One reader.** Who comes back takes over: the earlier reader's body ends with an error event. Readers are told apart by
//! an epoch that only grows, kept in Redis where gateways share one, so that of two readers on two gateways one wins.
//!
//! **Where it is kept.** In the process that runs the attempts: the gateway of `--role all`, the chat role behind a gateway
//! role, which is then no more than a pipe and may die (`front::resumable`).
//!
//! **When that process dies**, nobody writes on. A reader elsewhere is given all that was shown and then an error event,
//! some seconds after its last sign of life: never a clean end.

mod distant;
mod keeper;
mod kept;
mod log;
mod meters;
mod reader;
mod shipping;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::id::{AccountId, Principal, RequestId};
use control::units::Usage;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use kept::Reach;
pub use reader::{Next, Reader};

use crate::exchange::{End, Part};
use crate::health::Health;
use crate::redis::{StoreError, StreamLog};
use distant::Distant;
use keeper::Keeper;
use kept::{Claim, Kept};
use log::Bounds;
use meters::Meters;

/// What streams may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long an answer goes on without a client.
    pub grace: Duration,
    /// How long its log is kept after its end.
    pub kept: Duration,
    /// Streams kept at once, running and ended. An ended one makes room for a new one; 0 keeps none at all.
    pub streams_max: usize,
    /// Events kept of each. Those that were sent make room for those that come.
    pub entries_max: usize,
    /// And bytes, passed by one event at most. Times `streams_max`, what all of it may take.
    pub bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A tunnel, a lift, the restart of a proxy.
            grace: Duration::from_secs(15),
            // Long enough for a client that slept through the end to come back; no history.
            kept: Duration::from_secs(60),
            // Half a GiB together, when every one of them is full; an answer of 1,000 tokens takes some 250 KiB.
            streams_max: 512,
            entries_max: 8_192,
            bytes_max: 1 << 20,
        }
    }
}

/// Whose a stream is: the key it was opened with. Another key of the same tenant is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose {
    tenant: AccountId,
    key: Option<AccountId>,
}

impl From<&Principal> for Whose {
    fn from(principal: &Principal) -> Self {
        Self { tenant: principal.tenant, key: principal.key }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "{:016x}:{:016x}", self.tenant.0, key.0),
            None => write!(f, "{:016x}:-", self.tenant.0),
        }
    }
}

/// How a stream ended, for whoever writes its last event.
#[derive(Debug)]
pub enum Last {
    /// The answer is over.
    End(End),
    /// It is over, and its settlement could not be written.
    Unrecorded(End),
    /// The chat role went away without a word.
    Lost,
    /// No client came back within the grace time.
    Abandoned,
    /// The gateway stops.
    Stopped,
}

/// Writes a stream's last words, and the request's log line.
pub trait Scribe: Send + 'static {
    /// The error object that ends the stream, in JSON; `None` for a clean end.
    fn end(&mut self, last: &Last) -> Option<String>;

    /// What it came to, once it has ended. A scribe that counts nothing knows nothing.
    fn used(&self) -> Option<Used> {
        None
    }
}

/// As many streams run as may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Why a stream cannot be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// There is none, or none any more, or it is somebody else's.
    Unknown,
    /// It has fewer events than the client says it has.
    Beyond {
        /// The number of its last.
        head: u64,
    },
    /// What follows is no longer kept.
    Gone {
        /// The number of the first that is.
        first: u64,
    },
    /// The client has all of it.
    Complete,
    /// The store that could know does not answer.
    Away(StoreError),
}

/// How a reader comes back to a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coming {
    /// What a shared log says does not count: it may be behind.
    pub kept_here: bool,
    /// Which reader of that log it has been until now; 0 where it has been none.
    pub reader: u64,
}

/// What a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// As far as it was generated.
    pub usage: Usage,
    /// The answer is whole.
    pub whole: bool,
}

/// The streams of one gateway.
pub struct Streams {
    limits: Limits,
    /// This process among all that share a log.
    name: String,
    shared: Option<Arc<StreamLog>>,
    /// It answered when it was last asked: where it did not, nobody waits for it.
    answers: AtomicBool,
    /// Where the state of the shared log is told.
    health: Option<Arc<Health>>,
    shelf: Mutex<Shelf>,
    meters: Meters,
    stopping: CancellationToken,
}

/// More than a gateway opens in a second.
const DISPLACED_MAX: usize = 8_192;

/// What `/health` calls the shared log.
const PART: &str = "stream log";

#[derive(Default)]
struct Shelf {
    streams: BTreeMap<String, Arc<Kept>>,
    ended: VecDeque<(Instant, String)>,
    /// Places of streams that are being opened.
    promised: usize,
    /// Those that made room, which the shared log has still: the oldest first, at most [`DISPLACED_MAX`].
    displaced: VecDeque<String>,
}

impl Streams {
    /// Streams that this process alone knows of.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::over(limits, None, String::new(), None)
    }

    /// The same, where others ask this process for its streams: `life` tells them from those of the next.
    #[must_use]
    pub fn named(limits: Limits, life: u64) -> Arc<Self> {
        Self::over(limits, None, format!("{life:016x}"), None)
    }

    /// Streams that every gateway over this log can resume. `life` is a number that no other process, and no other life of
    /// this one, has: gateways mint the same request ids, and a stream must be one.
    #[must_use]
    pub fn shared(
        limits: Limits,
        log: Arc<StreamLog>,
        life: u64,
        health: Arc<Health>,
    ) -> Arc<Self> {
        Self::over(limits, Some(log), format!("{life:016x}"), Some(health))
    }

    fn over(
        limits: Limits,
        shared: Option<Arc<StreamLog>>,
        name: String,
        health: Option<Arc<Health>>,
    ) -> Arc<Self> {
        let (shelf, meters, stopping) = (Mutex::default(), Meters::new(), CancellationToken::new());
        let answers = AtomicBool::new(true);
        Arc::new(Self { limits, name, shared, answers, health, shelf, meters, stopping })
    }

    /// Figures about them.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        let shelf = self.shelf();
        let kept = shelf.streams.values();
        self.meters.levels(kept.len(), shelf.ended.len(), kept.map(|kept| kept.bytes()).sum());
        self.meters.registry()
    }

    /// A place for one more.
    ///
    /// # Errors
    /// [`Full`], where as many run as may be.
    pub fn reserve(self: &Arc<Self>) -> Result<Place, Full> {
        let mut shelf = self.shelf();
        shelf.expire(self.limits.kept);
        while shelf.streams.len() + shelf.promised >= self.limits.streams_max {
            let Some((_, oldest)) = shelf.ended.pop_front() else {
                self.meters.refused();
                return Err(Full);
            };
            shelf.streams.remove(&oldest);
            if self.shared.is_some() {
                // What is not told in time goes with its own time.
                if shelf.displaced.len() >= DISPLACED_MAX {
                    shelf.displaced.pop_front();
                }
                shelf.displaced.push_back(oldest);
            }
        }
        shelf.promised += 1;
        Ok(Place(Arc::clone(self)))
    }

    /// What follows the event `after` of a stream, for whom it belongs to. Whoever read it before is cut off.
    ///
    /// # Errors
    /// [`Missed`].
    pub async fn resume(&self, id: &str, whose: Whose, after: u64) -> Result<Reader, Missed> {
        let resumed = self.find(id, whose, after, Coming::default()).await;
        self.meters.resumed(&resumed);
        resumed
    }

    /// The same, uncounted: where it is not found, others may have it.
    pub(crate) async fn find(
        &self,
        id: &str,
        whose: Whose,
        after: u64,
        coming: Coming,
    ) -> Result<Reader, Missed> {
        match (self.kept(id), &self.shared) {
            (Some(kept), shared) => {
                Self::resume_here(kept, shared.as_ref(), whose, after, coming.reader).await
            }
            (None, Some(log)) if !coming.kept_here => {
                let kept = self.limits.kept.max(shipping::ORPHAN_TTL_MIN);
                let distant = Distant::attach(Arc::clone(log), id, whose, after, kept).await;
                distant.map(Reader::elsewhere)
            }
            (None, Some(_) | None) => Err(Missed::Unknown),
        }
    }

    /// Waits for the end of a stream that is kept here, and says what it came to; nothing where that is not known.
    ///
    /// # Errors
    /// [`Missed::Unknown`].
    pub(crate) async fn awaited(&self, id: &str, whose: Whose) -> Result<Option<Used>, Missed> {
        let kept = self.kept(id).filter(|kept| kept.whose() == whose);
        Ok(kept.ok_or(Missed::Unknown)?.over().await)
    }

    fn kept(&self, id: &str) -> Option<Arc<Kept>> {
        let mut shelf = self.shelf();
        shelf.expire(self.limits.kept);
        shelf.streams.get(id).cloned()
    }

    /// Counts what became of one.
    pub(crate) fn resumed(&self, resumed: &Result<Reader, Missed>) {
        self.meters.resumed(resumed);
    }

    /// One that the process which keeps it refused.
    pub(crate) fn refused_elsewhere(&self) {
        self.meters.refused_elsewhere();
    }

    /// And one that another process goes on with.
    pub(crate) fn passed_on(&self) {
        self.meters.passed_on();
    }

    async fn resume_here(
        kept: Arc<Kept>,
        shared: Option<&Arc<StreamLog>>,
        whose: Whose,
        after: u64,
        reader: u64,
    ) -> Result<Reader, Missed> {
        kept.may_resume(whose, after)?;
        // Where Redis does not answer, readers elsewhere cannot read either.
        let claimed = match shared {
            Some(log) => {
                let behind = kept.epoch().max(reader);
                log.claim(kept.id(), &whose.to_string(), None, behind).await.ok().flatten()
            }
            None => None,
        };
        let claim = claimed.map_or(Claim::After(reader), |claimed| Claim::Epoch(claimed.epoch));
        let after =
            if control::planted!(ResumeRepeatsLast) { after.saturating_sub(1) } else { after };
        Ok(Reader::here(kept, claim, after))
    }

    /// Lets go of what is over, and says that this process lives. Runs until it is dropped.
    pub async fn run(self: Arc<Self>) {
        // A reader elsewhere gives a gateway up after three of these without a sign.
        let mut tick = tokio::time::interval(distant::SIGN_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut well = None;
        loop {
            tick.tick().await;
            self.shelf().expire(self.limits.kept);
            if let Some(log) = &self.shared {
                let lives = log.live(&self.name, distant::SIGN_TTL).await;
                self.heard(&lives);
                self.say(&lives, &mut well);
                if lives.is_ok() {
                    self.forget_displaced(log).await;
                }
            }
        }
    }

    /// Has the shared log forget what made room here, as much as a tick has time for.
    async fn forget_displaced(&self, log: &StreamLog) {
        let until = Instant::now() + distant::SIGN_EVERY / 2;
        while Instant::now() < until {
            let Some(id) = self.shelf().displaced.pop_front() else { return };
            if log.forget(&id).await.is_err() {
                return;
            }
        }
    }

    /// What the shared log answered, or that it did not.
    fn heard<T>(&self, answer: &Result<T, StoreError>) {
        let answers = answer.as_ref().err().is_none_or(|error| !error.is_for_all());
        self.answers.store(answers, Ordering::Relaxed);
    }

    /// Says how the shared log is, where that has changed.
    fn say(&self, lives: &Result<(), StoreError>, well: &mut Option<bool>) {
        if well.replace(lives.is_ok()) == Some(lives.is_ok()) {
            return;
        }
        let state = match lives {
            Ok(()) => {
                tracing::info!("the log of streams answers");
                (true, "answers".to_owned())
            }
            Err(error) => {
                tracing::warn!("the log of streams does not answer: {error}");
                let words = "until it is back, streams can be resumed only where they run";
                (false, format!("{error}; {words}"))
            }
        };
        if let Some(health) = &self.health {
            health.note(PART, Some(state));
        }
    }

    /// Ends every stream that runs: the gateway stops. Returns when their last events are shipped, or after `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.stopping.cancel();
        let over = async {
            while !self.shelf().is_quiet() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(patience, over).await.is_err() {
            tracing::warn!("streams are still being written; their ends may be missing elsewhere");
        }
    }

    fn ended(&self, kept: &Kept) {
        let mut shelf = self.shelf();
        if shelf.streams.contains_key(kept.id()) {
            shelf.ended.push_back((Instant::now(), kept.id().to_owned()));
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn expire(&mut self, kept: Duration) {
        while let Some((at, id)) = self.ended.front()
            && at.elapsed() >= kept
        {
            self.streams.remove(id);
            self.ended.pop_front();
        }
    }

    fn is_quiet(&self) -> bool {
        self.streams.len() == self.ended.len()
    }
}

/// A place on the shelf. Dropped, it is free again.
pub struct Place(Arc<Streams>);

impl Place {
    /// Puts a stream there. Its client, who is here, is the first reader.
    #[must_use]
    pub fn open(
        self,
        request: RequestId,
        whose: Whose,
        parts: Receiver<Part>,
        scribe: Box<dyn Scribe>,
    ) -> Reader {
        let streams = Arc::clone(&self.0);
        let id = match &*streams.name {
            "" => request.to_string(),
            name => format!("{request}.{name}"),
        };
        let Limits { entries_max, bytes_max, .. } = streams.limits;
        let bounds = Bounds { entries_max, bytes_max };
        let awaits = streams.shared.is_some() && streams.answers.load(Ordering::Relaxed);
        let kept = Kept::new(id.clone(), whose, bounds, awaits);
        if streams.shared.is_some() && !awaits {
            streams.meters.cut_off();
        }
        streams.shelf().streams.insert(id, Arc::clone(&kept));
        streams.meters.opened();
        let reader = Reader::here(Arc::clone(&kept), Claim::After(0), 0);
        tokio::spawn(Keeper::new(streams, kept, parts, scribe).run());
        reader
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shelf().promised -= 1;
    }
}

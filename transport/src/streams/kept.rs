//! One stream on the shelf: its log, who reads it, and where it can be resumed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::log::{Bounds, Found, Log};
use super::{Missed, Used, Whose};

/// So long may a reader take nothing while the log is full, before it counts as gone: as long as HTTP waits for one.
const TAKES_NOTHING_MAX: Duration = Duration::from_secs(60);

/// Bytes handed to a reader at once: what a socket takes without waiting, usually.
const READ_BYTES: usize = 64 << 10;

/// Where a stream can be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On every gateway that shares the log.
    AnyGateway,
    /// On this one alone.
    ThisGateway,
}

/// Which reader somebody becomes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim {
    /// The next, also after the one that has this epoch elsewhere.
    After(u64),
    /// The one of this epoch.
    Epoch(u64),
}

/// A stream that is kept.
pub(super) struct Kept {
    id: String,
    whose: Whose,
    state: Mutex<State>,
    /// Rung for readers.
    news: watch::Sender<()>,
    /// Rung for the keeper.
    moves: Notify,
    /// Set when it is over: what it came to, where that is known.
    over: watch::Sender<Option<Option<Used>>>,
}

struct State {
    log: Log,
    /// Of the reader that counts, among all gateways.
    epoch: u64,
    /// Of the reader that counts, among those here; above all of them where it is elsewhere.
    ticket: u64,
    /// Whether it is here.
    attached: bool,
    /// Somebody has been told what the stream is called.
    announced: bool,
    /// Since when there is no room for more.
    full_since: Option<Instant>,
    /// When a reader was last heard of.
    seen: Instant,
    reach: Reach,
    /// Said beside the answer: kept by nobody, the last replaces the one before.
    aside: (u64, Bytes),
}

/// What a reader finds.
pub(super) enum Look {
    Found(Found),
    Aside(u64, Bytes),
    TakenOver,
}

impl Kept {
    pub fn new(id: String, whose: Whose, bounds: Bounds, shared: bool) -> Arc<Self> {
        let state = State {
            log: Log::new(bounds),
            epoch: 0,
            ticket: 0,
            attached: false,
            announced: false,
            full_since: None,
            seen: Instant::now(),
            reach: if shared { Reach::AnyGateway } else { Reach::ThisGateway },
            aside: (0, Bytes::new()),
        };
        let (news, _) = watch::channel(());
        let (moves, (over, _)) = (Notify::new(), watch::channel(None));
        Arc::new(Self { id, whose, state: Mutex::new(state), news, moves, over })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn whose(&self) -> Whose {
        self.whose
    }

    pub fn bytes(&self) -> usize {
        self.state().log.bytes()
    }

    pub fn reach(&self) -> Reach {
        self.state().reach
    }

    /// Of the last reader, wherever it is.
    pub fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// Its client knows what it is called: from here on it may come back.
    pub fn announce(&self) {
        self.state().announced = true;
    }

    /// Changes the log, and tells the readers.
    pub fn write<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let mut state = self.state();
        let done = change(&mut state.log);
        if state.log.is_full() {
            state.full_since.get_or_insert_with(Instant::now);
        }
        drop(state);
        self.news.send_replace(());
        done
    }

    /// Looks at the log, or changes what readers do not see.
    pub fn with<T>(&self, look: impl FnOnce(&mut Log) -> T) -> T {
        look(&mut self.state().log)
    }

    /// Says something to whoever reads now.
    pub fn say(&self, words: Bytes) {
        let mut state = self.state();
        state.aside = (state.aside.0 + 1, words);
        drop(state);
        self.news.send_replace(());
    }

    /// It is over. What was said first stands.
    pub fn end(&self, used: Option<Used>) {
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert(used);
            first
        });
    }

    /// Waits until it is over.
    pub async fn over(&self) -> Option<Used> {
        let mut over = self.over.subscribe();
        let over = over.wait_for(Option::is_some).await;
        over.ok().and_then(|over| over.flatten())
    }

    /// Where it can be resumed has changed.
    pub fn set_reach(&self, reach: Reach) {
        self.state().reach = reach;
        self.news.send_replace(());
    }

    /// A reader elsewhere, of this epoch, has read so far. It takes over from an earlier one here; and from one of the same
    /// epoch, which was given out here while nobody could be asked for one.
    pub fn seen_elsewhere(&self, epoch: u64, read: u64) {
        let mut state = self.state();
        if epoch < state.epoch {
            return;
        }
        state.epoch = epoch;
        state.ticket += 1;
        (state.attached, state.seen) = (false, Instant::now());
        state.log.sent(read);
        drop(state);
        self.news.send_replace(());
    }

    /// When a stream that nobody has read for so long is given up; `None` while its reader is here and takes what there is.
    pub fn gives_up_at(&self, grace: Duration) -> Option<Instant> {
        let state = self.state();
        match state.attached {
            false if control::planted!(GraceNeverEnds) => None,
            // Nobody could come back to it.
            false if !state.announced => Some(state.seen),
            false => Some(state.seen + grace),
            true => {
                let full_since = state.full_since.filter(|_| state.log.is_full())?;
                Some(state.seen.max(full_since) + TAKES_NOTHING_MAX + grace)
            }
        }
    }

    /// Resolves when a reader came, went or took something.
    pub async fn moved(&self) {
        self.moves.notified().await;
    }

    /// Whether what follows `after` can be had.
    pub fn may_resume(&self, whose: Whose, after: u64) -> Result<(), Missed> {
        if self.whose != whose && !control::planted!(StreamOfAnyone) {
            return Err(Missed::Unknown);
        }
        let state = self.state();
        let log = &state.log;
        if after > log.head() {
            return Err(Missed::Beyond { head: log.head() });
        }
        if after + 1 < log.first() {
            return Err(Missed::Gone { first: log.first() });
        }
        if log.is_end(after) { Err(Missed::Complete) } else { Ok(()) }
    }

    /// Becomes its reader, from behind this event on. What was said before is not for it. Returns its ticket, by which it looks
    /// and leaves.
    pub fn attach(&self, claim: Claim, after: u64) -> (u64, u64, watch::Receiver<()>) {
        let mut state = self.state();
        let epoch = match claim {
            Claim::After(epoch) => state.epoch.max(epoch) + 1,
            Claim::Epoch(epoch) => epoch,
        };
        // Somebody who claimed later has come first: then this reader is replaced already.
        let mut ticket = 0;
        if epoch >= state.epoch {
            state.ticket += 1;
            ticket = state.ticket;
            (state.epoch, state.attached, state.seen) = (epoch, true, Instant::now());
            state.log.rewind(after);
        }
        let (aside, _) = state.aside;
        drop(state);
        self.news.send_replace(());
        self.moves.notify_one();
        (ticket, aside, self.news.subscribe())
    }

    /// The reader of this ticket leaves.
    pub fn detach(&self, ticket: u64) {
        let mut state = self.state();
        if state.ticket == ticket {
            (state.attached, state.seen) = (false, Instant::now());
        }
        drop(state);
        self.moves.notify_one();
    }

    /// What the reader of this ticket finds behind `after`, who has heard `aside` last.
    pub fn look(&self, ticket: u64, after: u64, aside: u64) -> Look {
        let mut state = self.state();
        if state.ticket != ticket && !control::planted!(BothReadersStay) {
            return Look::TakenOver;
        }
        if state.aside.0 != aside {
            return Look::Aside(state.aside.0, state.aside.1.clone());
        }
        let found = state.log.read(after, READ_BYTES);
        if let Found::Events(_, last) = &found {
            let waited_for = state.log.is_full();
            state.log.sent(*last);
            (state.seen, state.announced) = (Instant::now(), true);
            state.full_since = state.log.is_full().then_some(state.seen);
            drop(state);
            if waited_for {
                self.moves.notify_one();
            }
        }
        Look::Found(found)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_counts_as_gone_after_a_minute_and_one_that_does_not() {
        let grace = Duration::from_secs(15);
        let whose = Whose { tenant: control::id::AccountId(1), key: None };
        let bounds = Bounds { entries_max: 2, bytes_max: 1_000 };
        let kept = Kept::new("req_1-1".to_owned(), whose, bounds, false);
        let (ticket, _, _news) = kept.attach(Claim::After(0), 0);
        kept.announce();
        // A long silence before is nobody's fault.
        tokio::time::advance(2 * TAKES_NOTHING_MAX).await;
        assert_eq!(kept.gives_up_at(grace), None);
        kept.write(|log| (0..2).for_each(|_| assert_ne!(log.push(b"data: x\n\n"), 0)));
        kept.write(|log| log.show(2));
        let since = Instant::now();
        assert_eq!(kept.gives_up_at(grace), Some(since + TAKES_NOTHING_MAX + grace));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(matches!(kept.look(ticket, 0, 0), Look::Found(Found::Events(_, 2))));
        assert_eq!(kept.gives_up_at(grace), Some(Instant::now() + TAKES_NOTHING_MAX + grace));
        // The next that is written finds room.
        assert!(kept.with(super::super::log::Log::has_room));
        assert_eq!(kept.gives_up_at(grace), None);
    }
}

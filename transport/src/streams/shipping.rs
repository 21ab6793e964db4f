//! The way of one stream's events into the log that gateways share.
//!
//! One command at a time: while it is on its way, events gather for the next, so that a fast stream costs fewer commands
//! than tokens and a slow one waits for one round trip. What a command may have done before its answer was lost is done
//! again without harm: events have their own numbers in the log too, and a number is written once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::kept::{Kept, Reach};
use super::meters::Meters;
use crate::redis::{Owned, Readers, Shipment, StoreError, StreamLog};

/// Events in one command: some 100 KiB, and well below a millisecond of the server's time.
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 256 << 10;

/// How often readers elsewhere are looked for, and how long after a failure the log is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the end of a stream is tried to be written.
const LAST_TRIES: u32 = 3;

/// What a stream whose gateway has died is kept for at least, so that its client finds what it was sent.
pub(super) const ORPHAN_TTL_MIN: Duration = Duration::from_secs(60);

const CUT_OFF: &[u8] = b": the log of streams does not answer; until it does, only this gateway can resume this one\n\n";
const BACK: &[u8] = b": the log of streams answers again; any gateway can resume this one\n\n";

pub(super) struct Shipping {
    log: Arc<StreamLog>,
    id: String,
    owned: Owned,
    /// How long it is kept after its end.
    ended: Duration,
    /// Events up to this one are in the shared log.
    shipped: u64,
    /// What was on its way failed, and is not tried again before.
    not_before: Option<Instant>,
    shipment: Option<BoxFuture<'static, Result<u64, StoreError>>>,
    look: Option<BoxFuture<'static, Result<Readers, StoreError>>>,
    tick: Interval,
    /// The last beat of a reader elsewhere.
    beat: u64,
}

/// Something has happened.
pub(super) enum Turn {
    Shipped(Result<u64, StoreError>),
    Looked(Result<Readers, StoreError>),
    Tick,
}

impl Shipping {
    pub fn new(
        log: Arc<StreamLog>,
        kept: &Kept,
        owner: String,
        grace: Duration,
        ended: Duration,
    ) -> Self {
        let ttl = (grace + ended).max(ORPHAN_TTL_MIN);
        let whose = kept.whose().to_string();
        let owned = Owned { owner, whose, running: true, epoch: 1, ttl };
        let mut tick = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            log,
            id: kept.id().to_owned(),
            owned,
            ended,
            shipped: 0,
            not_before: None,
            shipment: None,
            look: None,
            tick,
            beat: 0,
        }
    }

    /// Sends what is written and not shipped, unless something is on its way.
    pub fn start(&mut self, kept: &Kept) {
        let waits = self.not_before.is_some_and(|at| Instant::now() < at);
        if self.shipment.is_some() || waits {
            return;
        }
        let (head, first, is_open) = kept.with(|log| (log.head(), log.first(), log.is_open()));
        if head <= self.shipped {
            return;
        }
        let (from, events) = kept.with(|log| log.unshipped(self.shipped, EVENTS_MAX, BYTES_MAX));
        let shipment = Shipment {
            kept_from: first,
            from,
            is_end: !is_open && from + events.len() as u64 > head,
            // What is not kept here is not kept there.
            entries_max: head + 1 - first,
            ttl: self.owned.ttl.max(ORPHAN_TTL_MIN),
            events,
        };
        let (log, id, owned) = (Arc::clone(&self.log), self.id.clone(), self.owned(kept));
        let is_new = self.shipped == 0;
        self.shipment = Some(Box::pin(async move {
            // Both at once: a stream's first event waits for one round trip, too.
            let opened =
                async { if is_new { log.keep(&id, &owned).await.map(drop) } else { Ok(()) } };
            let (opened, shipped) = tokio::join!(opened, log.append(&id, &shipment));
            opened.and(shipped)
        }));
    }

    /// Waits for the next thing that happens. Cancel-safe.
    pub async fn turn(&mut self) -> Turn {
        let Self { shipment, look, tick, .. } = self;
        tokio::select! {
            biased;
            shipped = waiting(shipment) => Turn::Shipped(shipped),
            looked = waiting(look) => Turn::Looked(looked),
            _ = tick.tick() => Turn::Tick,
        }
    }

    pub fn handle(&mut self, turn: Turn, kept: &Kept, meters: &Meters) {
        match turn {
            Turn::Shipped(Ok(number)) => {
                (self.shipment, self.not_before) = (None, None);
                // Below what was acknowledged before, where that was lost: then it is sent again.
                self.shipped = number;
                let caught_up = kept.write(|log| {
                    log.show(number);
                    number >= log.head()
                });
                if caught_up && kept.reach() == Reach::ThisGateway {
                    kept.set_reach(Reach::AnyGateway);
                    kept.say(Bytes::from_static(BACK));
                    meters.reached();
                }
            }
            Turn::Shipped(Err(error)) => {
                self.shipment = None;
                self.not_before = Some(Instant::now() + LOOK_EVERY);
                self.cut_off(&error, kept, meters);
            }
            Turn::Looked(looked) => {
                self.look = None;
                match looked {
                    Ok(readers) => self.seen(&readers, kept),
                    Err(error) => {
                        tracing::debug!(stream = kept.id(), "no look at readers: {error}")
                    }
                }
            }
            Turn::Tick if self.look.is_none() => self.look = Some(self.looking(kept)),
            Turn::Tick => {}
        }
    }

    /// Ships the end, or gives up after a few tries.
    pub async fn finish(self, kept: &Kept, meters: &Meters) {
        if !self.ship_end(kept, meters).await {
            tracing::warn!(stream = kept.id(), "the log of streams misses the end of a stream");
        }
        if kept.reach() == Reach::ThisGateway {
            meters.reached();
        }
    }

    async fn ship_end(mut self, kept: &Kept, meters: &Meters) -> bool {
        (self.owned.running, self.owned.ttl) = (false, self.ended);
        for _ in 0..LAST_TRIES {
            while self.shipped < kept.with(|log| log.head()) {
                self.not_before = None;
                self.start(kept);
                let shipped = waiting(&mut self.shipment).await;
                let failed = shipped.is_err();
                self.handle(Turn::Shipped(shipped), kept, meters);
                if failed {
                    break;
                }
            }
            let done = self.shipped >= kept.with(|log| log.head());
            // What nobody can resume any more goes with its last events.
            if done && self.looking(kept).await.is_ok() {
                return true;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        false
    }

    /// Nobody is kept waiting by a log that does not answer.
    fn cut_off(&self, error: &StoreError, kept: &Kept, meters: &Meters) {
        // Said first: who sees what is in no log but this one has been told.
        if kept.reach() == Reach::AnyGateway {
            tracing::debug!(stream = kept.id(), "a stream is not in the log of streams: {error}");
            kept.set_reach(Reach::ThisGateway);
            kept.say(Bytes::from_static(CUT_OFF));
            meters.cut_off();
        }
        kept.write(|log| log.show(log.head()));
    }

    /// What is said of the stream now.
    fn owned(&self, kept: &Kept) -> Owned {
        Owned { epoch: kept.epoch().max(1), ..self.owned.clone() }
    }

    fn looking(&self, kept: &Kept) -> BoxFuture<'static, Result<Readers, StoreError>> {
        let (log, id, owned) = (Arc::clone(&self.log), self.id.clone(), self.owned(kept));
        Box::pin(async move {
            let (readers, touched) = tokio::join!(log.keep(&id, &owned), log.touch(&id, owned.ttl));
            touched.and(readers)
        })
    }

    fn seen(&mut self, readers: &Readers, kept: &Kept) {
        if readers.beat != self.beat {
            self.beat = readers.beat;
            kept.seen_elsewhere(readers.epoch, readers.read);
        }
    }
}

/// Waits for what is on its way, or for ever.
async fn waiting<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

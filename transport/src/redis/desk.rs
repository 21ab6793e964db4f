//! The desk between the plane and the shared ledger: takes asks, carries answers back, and says how it goes.
//!
//! The plane asks under its lock and must not wait, so asks lie in a bounded queue. One that finds it full is dropped: the
//! plane takes it for lost on the way and asks again, more slowly each time. Answers come back as inputs, in whatever
//! order they arrive; the `quota` room is made for that. An ask that cannot reach the store is said to have failed, so that
//! nobody waits for it: a Redis that died costs the first request no more than a refused connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use control::Wall;
use control::plane::Input;
use control::quota::StoreOp;
use control::shared::{Consult, Note};
use control::units::Tokens;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::untold::Untold;
use super::wave::{self, Wave};
use super::{Store, StoreError, spent};
use crate::driver::{Carrier, Driver};
use crate::health::Health;

/// Asks that may wait: a second's worth of a busy gateway, and some 2 MB at most.
const WAITING_MAX: usize = 4_096;

/// What `/health` calls it.
const PART: &str = "quota store";

/// The plane's side of the desk.
pub struct Counter {
    asks: mpsc::Sender<StoreOp>,
    slot: wave::desk::Slot,
    /// Where something is spent.
    spent: Option<spent::Slot>,
    dropped: Arc<AtomicU64>,
}

impl Carrier for Counter {
    fn carry(&self, op: StoreOp) {
        if self.asks.try_send(op).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn consult(&self, consult: Box<Consult>, name: Option<Arc<str>>) {
        self.slot.consult(consult, name);
    }

    fn note(&self, note: Box<Note>, name: Option<Arc<str>>) {
        self.slot.note(note, name);
    }

    fn spent(&self, user: Arc<str>, at: Wall, tokens: Tokens) {
        if let Some(slot) = &self.spent {
            slot.spent(user, at, tokens);
        }
    }
}

/// The store's side.
pub struct Desk {
    store: Arc<Store>,
    asks: mpsc::Receiver<StoreOp>,
    beside: wave::desk::Desk,
    spent: Option<spent::Desk>,
    untold: Arc<Untold>,
    dropped: Arc<AtomicU64>,
    in_flight_max: usize,
    report: Arc<Report>,
}

/// What was last said about the store, so that only what is new is said again.
struct Report {
    health: Arc<Health>,
    last: Mutex<Option<StoreError>>,
}

impl Desk {
    /// Both sides. At most `in_flight_max` asks are on their way at once. Where nobody here `spends`, `/health` says nothing
    /// of a ledger, and what users spent is told by whoever does.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        in_flight_max: usize,
        health: Arc<Health>,
        spends: bool,
    ) -> (Counter, Self) {
        let (sender, asks) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let wave = Wave::beside(&store);
        let untold = Arc::<Untold>::default();
        let (slot, beside) =
            wave::desk::Desk::new(wave, in_flight_max, Arc::clone(&health), Arc::clone(&untold));
        let (projected, spent) = spends
            .then(|| spent::Desk::new(&store, Arc::clone(&health), Arc::clone(&untold)))
            .unzip();
        let counter =
            Counter { asks: sender, slot, spent: projected, dropped: Arc::clone(&dropped) };
        if spends {
            health.note(PART, Some((true, "not asked yet".into())));
        }
        let report = Arc::new(Report { health, last: Mutex::new(None) });
        (counter, Self { store, asks, beside, spent, untold, dropped, in_flight_max, report })
    }

    /// What it has not told yet: notes and projections.
    #[must_use]
    pub fn untold(&self) -> Arc<Untold> {
        Arc::clone(&self.untold)
    }

    /// Carries until it is dropped, or the driver is gone.
    pub async fn run(self, driver: Arc<Driver>) {
        let Self { store, asks, beside, spent, untold: _, dropped, in_flight_max, report } = self;
        let ledger = Ledger { store, asks, dropped, in_flight_max, report };
        let project = async {
            if let Some(desk) = spent {
                desk.run().await;
            }
        };
        tokio::join!(ledger.run(Arc::clone(&driver)), beside.run(driver), project);
    }
}

/// The ledger's part of the desk.
struct Ledger {
    store: Arc<Store>,
    asks: mpsc::Receiver<StoreOp>,
    dropped: Arc<AtomicU64>,
    in_flight_max: usize,
    report: Arc<Report>,
}

impl Ledger {
    async fn run(mut self, driver: Arc<Driver>) {
        let mut under_way = JoinSet::new();
        while let Some(op) = self.asks.recv().await {
            while under_way.len() >= self.in_flight_max {
                under_way.join_next().await;
            }
            while under_way.try_join_next().is_some() {}
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(
                    dropped,
                    "more asks for the quota store than it takes: dropped, and asked again"
                );
            }
            let (store, report) = (Arc::clone(&self.store), Arc::clone(&self.report));
            let driver = Arc::clone(&driver);
            under_way.spawn(async move {
                let answer = match store.perform(&op).await {
                    // The connection that broke may have been the last thing of a server that is back already.
                    Err(StoreError::Broken(_)) => store.perform(&op).await,
                    other => other,
                };
                match answer {
                    Ok(answer) => {
                        report.answered();
                        driver.submit(Input::StoreAnswered(answer));
                    }
                    Err(error) => {
                        let away = error.is_for_all();
                        report.failed(error);
                        if away {
                            driver.submit(Input::StoreFailed { op: op.op });
                        }
                    }
                }
            });
        }
    }
}

impl Report {
    fn answered(&self) {
        self.health.store_asked("answered");
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.take().is_some() {
            tracing::info!("the quota store answers again");
        }
        self.health.note(PART, Some((true, "answers".into())));
    }

    fn failed(&self, error: StoreError) {
        self.health.store_asked(error.name());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() == Some(&error) {
            return;
        }
        if last.is_none() {
            tracing::warn!("the quota store does not answer: {error}");
        }
        let text = format!("{error}; until it is back, gateways spend what they drew ahead");
        self.health.note(PART, Some((false, text)));
        *last = Some(error);
    }
}

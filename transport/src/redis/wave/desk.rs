//! Carries consultations and notes between the plane and the store, and says how it goes.
//!
//! As with the ledger's desk the plane hands them over under its lock, so they lie in bounded queues. A consultation that
//! finds its queue full is lost, and the plane waits no longer for it than for a lost packet. A note is tried again while it
//! may still do good, for ten seconds; then it is dropped, and counted: what it would have told ends with its lease.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::plane::Input;
use control::shared::{Consult, Note, Noted};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Wave;
use crate::driver::Driver;
use crate::health::Health;
use crate::redis::error::StoreError;
use crate::redis::untold::{One, Untold};

/// Consultations, and notes, that may wait: a second's worth of a busy gateway, and some 2 MB at most.
const WAITING_MAX: usize = 4_096;

/// Notes under way at once. While the store is away they wait here for its return; those behind them in the queue.
const NOTES_MAX: usize = 256;

/// How long a note is tried: a restart takes seconds, and a lease some minutes.
const NOTE_PATIENCE: Duration = Duration::from_secs(10);

/// Waits before a note is tried again: the first, doubling up to the last.
const NOTE_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What concerns one key alone is said so often at most: whoever wrote one foreign key may have written a thousand.
const ODD_EVERY: Duration = Duration::from_secs(60);

/// What `/health` calls it.
const PART: &str = "shared limits";

/// What a session is called, where it has a name.
type Name = Option<Arc<str>>;

/// The plane's side.
pub(in crate::redis) struct Slot {
    consults: mpsc::Sender<(Box<Consult>, Name)>,
    notes: mpsc::Sender<(Box<Note>, Name, One)>,
    untold: Arc<Untold>,
    dropped: Arc<Dropped>,
}

/// What found its queue full.
#[derive(Default)]
struct Dropped {
    consults: AtomicU64,
    notes: AtomicU64,
}

impl Slot {
    pub fn consult(&self, consult: Box<Consult>, name: Name) {
        if self.consults.try_send((consult, name)).is_err() {
            self.dropped.consults.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn note(&self, note: Box<Note>, name: Name) {
        if self.notes.try_send((note, name, self.untold.one())).is_err() {
            self.dropped.notes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The store's side.
pub(in crate::redis) struct Desk {
    wave: Wave,
    consults: mpsc::Receiver<(Box<Consult>, Name)>,
    notes: mpsc::Receiver<(Box<Note>, Name, One)>,
    dropped: Arc<Dropped>,
    in_flight_max: usize,
    report: Arc<Report>,
}

impl Desk {
    /// Both sides. At most `in_flight_max` consultations are on their way at once.
    pub fn new(
        wave: Wave,
        in_flight_max: usize,
        health: Arc<Health>,
        untold: Arc<Untold>,
    ) -> (Slot, Self) {
        let (consults, asked) = mpsc::channel(WAITING_MAX);
        let (notes, noted) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::<Dropped>::default();
        let slot = Slot { consults, notes, untold, dropped: Arc::clone(&dropped) };
        health.note(PART, Some((true, "not asked yet".into())));
        let report = Arc::new(Report { health, away: Mutex::default(), odd: Mutex::default() });
        (slot, Self { wave, consults: asked, notes: noted, dropped, in_flight_max, report })
    }

    /// Carries until it is dropped, or the driver is gone.
    pub async fn run(self, driver: Arc<Driver>) {
        let Self { wave, consults, notes, dropped, in_flight_max, report } = self;
        let carrier = Arc::new(Carrier { wave, driver, report, dropped });
        tokio::join!(
            carry(consults, in_flight_max, |(consult, name)| {
                let carrier = Arc::clone(&carrier);
                async move { carrier.consult(&consult, name.as_deref()).await }
            }),
            carry(notes, NOTES_MAX, |(note, name, one)| {
                let carrier = Arc::clone(&carrier);
                async move {
                    carrier.note(&note, name.as_deref()).await;
                    drop(one);
                }
            }),
        );
    }
}

/// Performs what comes, at most so many at once.
async fn carry<T, F>(mut queue: mpsc::Receiver<T>, in_flight_max: usize, perform: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    while let Some(next) = queue.recv().await {
        while under_way.len() >= in_flight_max {
            under_way.join_next().await;
        }
        while under_way.try_join_next().is_some() {}
        under_way.spawn(perform(next));
    }
}

struct Carrier {
    wave: Wave,
    driver: Arc<Driver>,
    report: Arc<Report>,
    dropped: Arc<Dropped>,
}

impl Carrier {
    async fn consult(&self, consult: &Consult, name: Option<&str>) {
        self.say_dropped();
        let brought = self.wave.consult(consult, name).await;
        let is_away = self.report.heard(brought.parts);
        self.driver.submit(match is_away {
            true => Input::ConsultFailed { op: consult.op },
            false => Input::Consulted(Box::new(brought.consulted)),
        });
    }

    async fn note(&self, note: &Note, name: Option<&str>) {
        self.say_dropped();
        let part = part_of(&note.what);
        let until = Instant::now() + NOTE_PATIENCE;
        let (mut wait, longest) = NOTE_AGAIN;
        loop {
            let error = match self.wave.note(note, name).await {
                Ok(housed) => {
                    self.report.told(part, None);
                    if let Some(housed) = housed {
                        self.driver.submit(Input::Housed(Box::new(housed)));
                    }
                    return;
                }
                Err(error) => error,
            };
            let again = is_worth_again(&note.what, &error) && Instant::now() + wait < until;
            self.report.told(part, Some(error));
            if !again {
                return self.report.health.notes_dropped(part, 1);
            }
            sleep(wait).await;
            wait = wait.saturating_mul(2).min(longest);
        }
    }

    fn say_dropped(&self) {
        for (what, dropped) in [("consult", &self.dropped.consults), ("note", &self.dropped.notes)]
        {
            let count = dropped.swap(0, Ordering::Relaxed);
            if count > 0 {
                self.report.health.notes_dropped(what, count);
                tracing::warn!(
                    dropped = count,
                    "more for the shared store than it takes ({what}): dropped"
                );
            }
        }
    }
}

fn part_of(noted: &Noted) -> &'static str {
    match noted {
        Noted::Rates(_) => "rates",
        Noted::Key { .. } => "key",
        Noted::Home { .. } | Noted::Homeless { .. } => "home",
    }
}

/// Whether another try may help and do no harm: what was used is counted once, or not at all where nobody knows whether it
/// was.
fn is_worth_again(noted: &Noted, error: &StoreError) -> bool {
    match error {
        StoreError::Away(_)
        | StoreError::Busy(_)
        | StoreError::NotServing(_)
        | StoreError::Full(_) => true,
        StoreError::Unanswered(_) | StoreError::Broken(_) => !matches!(noted, Noted::Rates(_)),
        StoreError::TooLarge(..)
        | StoreError::Unrepresentable(_)
        | StoreError::Forbidden(_)
        | StoreError::Foreign(_)
        | StoreError::Garbled(_) => false,
    }
}

/// What was last said about the store, so that only what is new is said again.
struct Report {
    health: Arc<Health>,
    /// The parts that nobody answers for.
    away: Mutex<BTreeMap<&'static str, Away>>,
    odd: Mutex<Option<Instant>>,
}

/// A part that nobody answers for.
#[derive(Debug, PartialEq, Eq)]
struct Away {
    error: StoreError,
    /// Others answered when it did not: they say nothing of it. One that went away with the rest is back with any of them,
    /// as for the plane, which asks for it again only when a request needs it.
    alone: bool,
}

impl Report {
    /// A wave came back. True where nobody answered, and nobody would whoever asked next.
    fn heard(&self, parts: Vec<(&'static str, Option<StoreError>)>) -> bool {
        let answered = parts.iter().any(|(_, error)| error.is_none());
        let is_for_all =
            |error: &Option<StoreError>| error.as_ref().is_some_and(StoreError::is_for_all);
        let is_away = !parts.is_empty() && parts.iter().all(|(_, error)| is_for_all(error));
        for (part, error) in parts {
            self.hear(part, error, answered);
        }
        is_away
    }

    /// What became of a note: of the other parts that says nothing.
    fn told(&self, part: &'static str, error: Option<StoreError>) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = away.get(part).is_some_and(|away| away.alone);
        drop(away);
        self.hear(part, error, alone);
    }

    fn hear(&self, part: &'static str, error: Option<StoreError>, alone: bool) {
        let outcome = error.as_ref().map_or("answered", StoreError::name);
        self.health.shared_asked(part, outcome);
        match error {
            None => self.answered(part),
            Some(error) if error.is_for_all() => self.failed(part, Away { error, alone }),
            Some(error) => self.odd(part, &error),
        }
    }

    fn answered(&self, part: &'static str) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let before = away.len();
        away.retain(|other, away| away.alone && *other != part);
        if let Some((part, away)) = away.first_key_value() {
            return self.unwell(part, &away.error);
        }
        if before > 0 {
            tracing::info!("the shared store answers again: limits are held in common");
        }
        self.health.note(PART, Some((true, "answers".into())));
    }

    fn failed(&self, part: &'static str, failed: Away) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.get(part) == Some(&failed) {
            return;
        }
        if away.is_empty() {
            let error = &failed.error;
            tracing::warn!(
                "the shared store does not answer, each gateway limits for itself: {error}"
            );
        }
        self.unwell(part, &failed.error);
        away.insert(part, failed);
    }

    fn unwell(&self, part: &str, error: &StoreError) {
        let text = format!(
            "{part}: {error}; until it is back, each gateway limits rates and remembers keys and homes for itself"
        );
        self.health.note(PART, Some((false, text)));
    }

    fn odd(&self, part: &'static str, error: &StoreError) {
        let mut said = self.odd.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|said| said.elapsed() < ODD_EVERY) {
            return;
        }
        tracing::warn!(part, "the shared store cannot be used for a request: {error}");
        *said = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use control::shared::Noted;

    use super::*;

    fn report() -> Report {
        Report { health: Health::new(), away: Mutex::default(), odd: Mutex::default() }
    }

    fn away() -> Option<StoreError> {
        Some(StoreError::Away("gone".into()))
    }

    #[test]
    fn what_fails_for_one_ask_alone_is_not_the_stores_failure() {
        let odd = || Some(StoreError::Foreign("precious".into()));
        for (parts, is_away) in [
            (vec![("rates", away()), ("key", away())], true),
            (vec![("rates", away()), ("key", odd())], false),
            (vec![("rates", Some(StoreError::Busy(1)))], false),
            (vec![("rates", None), ("key", away())], false),
            (vec![], false),
        ] {
            assert_eq!(report().heard(parts.clone()), is_away, "{parts:?}");
        }
    }

    #[test]
    fn parts_that_went_away_together_are_back_with_any_of_them_and_one_alone_by_itself() {
        let report = report();
        let left = || report.away.lock().unwrap().keys().copied().collect::<Vec<_>>();
        report.heard(vec![("home", away()), ("key", away()), ("rates", away())]);
        assert_eq!(left(), ["home", "key", "rates"]);
        report.heard(vec![("rates", None)]);
        assert!(left().is_empty(), "nobody may come for a key or a home for hours");
        report.heard(vec![("rates", None), ("key", away())]);
        report.told("rates", None);
        assert_eq!(left(), ["key"], "it lies elsewhere, and is away there");
        report.told("key", None);
        assert!(left().is_empty());
    }

    #[test]
    fn what_was_used_is_not_told_twice_and_what_can_be_repeated_is() {
        let home = Noted::Homeless { session: control::id::SessionKey(1), believed: 1 };
        let rates = Noted::Rates(Vec::new());
        for (error, of_rates, of_home) in [
            (StoreError::Away(String::new()), true, true),
            (StoreError::NotServing(String::new()), true, true),
            (StoreError::Unanswered(200), false, true),
            (StoreError::Broken(String::new()), false, true),
            (StoreError::Foreign(String::new()), false, false),
        ] {
            assert_eq!(is_worth_again(&rates, &error), of_rates, "{error}");
            assert_eq!(is_worth_again(&home, &error), of_home, "{error}");
        }
    }
}

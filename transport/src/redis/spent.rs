//! What each user spent on each day, for others to read: `token:<user>:<yyyy-mm-dd>`, an integer that lives 48 hours.
//!
//! **A projection, never the authority.** Other programs read such a key; nobody here does. The ledger counts exactly, once,
//! and durably, by keyed hashes and in windows of its own; this key has a name in it that people know and costs a request
//! nothing. So it is told behind the request's back, once, and not again: whether a call without an answer was performed
//! nobody knows, and a count that is too low for a day does less harm than one that says somebody spent what they did not.
//! It may miss what was spent while Redis was away, what was waiting when the process ended or was killed, and what a
//! restart settles. Rejected: to write it in the ledger's own script, which touches one tenant's slot, and would pay for
//! this in every settlement; and to tell it again, which needs a memory of what was told in Redis.
//!
//! **Who.** A user as the request or its key names them, scoped like a session ([`scoped_name`](super::scoped_name)). A request
//! of no user's has no key here: its tenant's account is in the ledger. Settlements of services (`QuotaService`) are not
//! in it: they may be repeated, and the ledger's answer does not tell a repetition from the first.
//!
//! **When.** The day is that of this process's wall clock at the settlement, UTC, whenever Redis hears of it.
//!
//! A script touches one key, so a cluster takes them as they come; it sets the time to live with the first token, so no key
//! is left without one by a connection that broke. Sums of one user leave as one; those of a batch leave together.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use control::Wall;
use control::units::Tokens;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Store;
use super::client::Caller;
use super::error::StoreError;
use super::script::Source;
use super::untold::{One, Untold};
use crate::health::Health;

static ADD: LazyLock<Source> = LazyLock::new(|| Source::new(include_str!("spent_add.lua")));

/// How long a day's key lives after its first token.
const LIVES: Duration = Duration::from_secs(48 * 60 * 60);

/// What may wait: a second's worth of a busy gateway, and below 1 MB with names of usual length.
const WAITING_MAX: usize = 4_096;

/// What leaves together: some hundreds of microseconds of the server's time, so that no reservation waits longer behind it.
const BATCH_MAX: usize = 64;

/// What could not be told is said so often at most.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What one request spent.
struct Spent {
    user: Arc<str>,
    at: Wall,
    tokens: Tokens,
}

/// The plane's side: takes without waiting.
pub(super) struct Slot {
    spent: mpsc::Sender<(Spent, One)>,
    untold: Arc<Untold>,
    health: Arc<Health>,
}

impl Slot {
    pub fn spent(&self, user: Arc<str>, at: Wall, tokens: Tokens) {
        if self.spent.try_send((Spent { user, at, tokens }, self.untold.one())).is_err() {
            self.health.projections_dropped(1);
        }
    }
}

/// The store's side.
pub(super) struct Desk {
    caller: Arc<Caller>,
    spent: mpsc::Receiver<(Spent, One)>,
    health: Arc<Health>,
    said: Option<Instant>,
}

impl Desk {
    /// Both sides, on the ledger's connection.
    pub fn new(store: &Store, health: Arc<Health>, untold: Arc<Untold>) -> (Slot, Self) {
        let (sender, spent) = mpsc::channel(WAITING_MAX);
        let caller = Arc::clone(&store.beside);
        let slot = Slot { spent: sender, untold, health: Arc::clone(&health) };
        (slot, Self { caller, spent, health, said: None })
    }

    /// Tells until nobody spends any more. One batch at a time: what comes meanwhile is the next.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.spent.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let (batch, untold): (Vec<_>, Vec<One>) = batch.drain(..).unzip();
            let sums = sums(batch.into_iter());
            let told = sums
                .iter()
                .map(|(key, (tokens, count))| async { (self.add(key, *tokens).await, *count) });
            for (told, count) in futures_util::future::join_all(told).await {
                if let Err(error) = told {
                    self.health.projections_dropped(count);
                    self.say(&error);
                }
            }
            drop(untold);
        }
    }

    /// Has a deadline, like every call.
    async fn add(&self, key: &str, tokens: u64) -> Result<(), StoreError> {
        let add = |whole| {
            let mut command = ADD.command(whole);
            command.arg(1).arg(key).arg(tokens).arg(LIVES.as_secs());
            command
        };
        self.caller.script(add).await.map(drop)
    }

    /// Whoever wrote one foreign key may have written a thousand, and a Redis that is away is said to be by the ledger.
    fn say(&mut self, error: &StoreError) {
        if self.said.is_some_and(|said| said.elapsed() < SAID_EVERY) {
            return;
        }
        tracing::warn!(
            "users' tokens of the day (token:*) miss something; quota does not: {error}"
        );
        self.said = Some(Instant::now());
    }
}

/// Tokens by key, and of how many requests. No sum is more than Redis can count: it refuses that by itself.
fn sums(batch: impl Iterator<Item = Spent>) -> BTreeMap<String, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for Spent { user, at, tokens } in batch {
        let (sum, count): &mut (u64, u64) = sums.entry(spent_key(&user, at)).or_default();
        (*sum, *count) = (sum.saturating_add(tokens.0), *count + 1);
    }
    sums
}

/// The contract's key. `user` is scoped.
fn spent_key(user: &str, at: Wall) -> String {
    let (year, month, day) = at.date();
    format!("token:{user}:{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last millisecond of 2026-02-28, UTC.
    const LATE: Wall = Wall::from_millis(1_772_323_199_999);

    #[test]
    fn a_day_ends_at_midnight_and_sums_of_one_user_leave_as_one() {
        let spent =
            |user: &str, at, tokens| Spent { user: user.into(), at, tokens: Tokens(tokens) };
        let next = LATE + Duration::from_millis(1);
        let batch = [
            spent("ann", LATE, 5),
            spent("acme%:ann", LATE, 1),
            spent("ann", next, 7),
            spent("ann", LATE, 8),
        ];
        let found: Vec<_> = sums(batch.into_iter()).into_iter().collect();
        let sum = |key: &str, tokens, count| (key.to_owned(), (tokens, count));
        let expected = [
            sum("token:acme%:ann:2026-02-28", 1, 1),
            sum("token:ann:2026-02-28", 13, 2),
            sum("token:ann:2026-03-01", 7, 1),
        ];
        assert_eq!(found, expected);
    }
}

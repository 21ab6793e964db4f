//! Asks of one tenant that wait while another of that tenant is on its way leave together, as one call.
//!
//! **Why.** A call costs Redis' one core more than an ask does: the script is set up, what all asks have in common is read
//! and written, the run is looked up. Under load that is paid once for many; a hot tenant is where it counts.
//!
//! **How.** An ask whose tenant has no call on its way leaves at once, alone, in its caller's own task. Those that come
//! meanwhile wait; when the call has returned, as many as [`ASKS_MAX`] and [`BYTES_MAX`] allow leave as the next, and so on
//! until nobody waits. There is no timer: a batch is what came during one call. The script answers as the pure
//! [`Ledger`](control::quota::Ledger) does that performs the asks one after the other at one time, in the order in which
//! they came here; so two asks about one hold in one batch are no special case.
//!
//! **Bounds.** [`Settings::in_flight_max`](super::Settings) counts asks, those on their way and those that wait; the next is
//! [`StoreError::Busy`]. Each ask has the time of a call from when it came, and each call has that time again: an ask whose
//! time passed while it waited is told so ([`StoreError::Unanswered`]) and never sent. Each tenant has a line of its own and one call
//! on its way, so what stands in front of another tenant's ask at Redis is one batch of this one's at most.
//!
//! **Errors.** What a call failed with, each of its asks has failed with, and may have been performed or not, as always. Where one ask
//! may be to blame for all (data that is foreign to us under its keys, an end that a full server takes and one that it does not),
//! each is asked again alone, which is safe because asks are idempotent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::id::AccountId;
use control::quota::{HoldId, LedgerConfig, Reply};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::client::Caller;
use super::error::StoreError;
use super::reply::{self, Replies};
use super::script::{Call, Together, Words};

/// Asks that leave together: below a millisecond of Redis' time.
const ASKS_MAX: usize = 64;

/// And bytes of them: paths of three accounts with every limit there is, 64 times.
const BYTES_MAX: usize = 64 << 10;

/// The run, and what was replied.
pub(super) type Answer = Result<(String, Reply), StoreError>;

/// Sends the asks of all tenants.
#[derive(Debug)]
pub(super) struct Group {
    caller: Arc<Caller>,
    bounds: LedgerConfig,
    /// With a number that counts up it is part of the run of each book this process makes: one that is made again, because
    /// it was deleted, is another.
    token: String,
    tokens: AtomicU64,
    patience: Duration,
    asks_max: usize,
    asks: Semaphore,
    /// Who waits, by tenant. A tenant is in here while a call of it is on its way.
    lines: Mutex<BTreeMap<AccountId, VecDeque<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    ask: Words,
    answer: oneshot::Sender<Answer>,
}

impl Group {
    /// At most `asks_max` asks, each of which waits for `patience`. Dials nothing.
    pub fn new(
        caller: Arc<Caller>,
        bounds: LedgerConfig,
        token: String,
        (patience, asks_max): (Duration, usize),
    ) -> Self {
        let (tokens, asks, lines) = (AtomicU64::new(0), Semaphore::new(asks_max), Mutex::default());
        Self { caller, bounds, token, tokens, patience, asks_max, asks, lines }
    }

    /// Asks, at once or with those that wait as well.
    pub async fn ask(self: &Arc<Self>, tenant: AccountId, ask: Words) -> Answer {
        let Ok(_place) = self.asks.try_acquire() else {
            return Err(StoreError::Busy(self.asks_max));
        };
        let ask = match self.stand_in_line(tenant, ask) {
            Ok(ask) => ask,
            Err(answer) => {
                return match timeout(self.patience, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => Err(StoreError::Away("the task that asks has ended".into())),
                    Err(_) => Err(StoreError::Unanswered(self.patience.as_millis())),
                };
            }
        };
        // Whatever becomes of this future, those who wait are next.
        let _lead = Lead { group: self, tenant };
        let mut answers = self.call(tenant, &[ask]).await;
        answers.pop().unwrap_or_else(|| Err(StoreError::Garbled("no answer to one ask".into())))
    }

    /// The ask itself where nobody of its tenant is on the way, else what it waits for.
    fn stand_in_line(
        &self,
        tenant: AccountId,
        ask: Words,
    ) -> Result<Words, oneshot::Receiver<Answer>> {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&tenant) else {
            lines.insert(tenant, VecDeque::new());
            return Ok(ask);
        };
        let (answer, awaited) = oneshot::channel();
        line.push_back(Waiting { ask, answer });
        Err(awaited)
    }

    /// Those who leave together next. Where nobody waits any more, nothing, and the tenant's next ask leads.
    fn next(&self, tenant: AccountId) -> Vec<Waiting> {
        let mut lines = self.lines();
        let mut batch: Vec<Waiting> = Vec::new();
        let mut bytes = 0;
        if let Some(line) = lines.get_mut(&tenant) {
            while let Some(first) = line.front() {
                let more = first.ask.bytes();
                let is_full = batch.len() == ASKS_MAX || bytes + more > BYTES_MAX;
                if is_full && !batch.is_empty() {
                    break;
                }
                // Whose time has passed has gone, and is not asked for any more.
                if let Some(first) = line.pop_front().filter(|first| !first.answer.is_closed()) {
                    bytes += more;
                    batch.push(first);
                }
            }
        }
        if batch.is_empty() {
            lines.remove(&tenant);
        }
        batch
    }

    /// Asks for those who wait, until nobody does.
    async fn follow(self: Arc<Self>, mut rest: Rest) {
        loop {
            // Who was answered by the last call and asks at once comes along.
            yield_now().await;
            let batch = self.next(rest.tenant);
            if batch.is_empty() {
                rest.is_over = true;
                return;
            }
            let (asks, waiting): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|one| (one.ask, one.answer)).unzip();
            let answers = self.call(rest.tenant, &asks).await;
            for (waiting, answer) in waiting.into_iter().zip(answers) {
                // Who has stopped waiting asks again.
                let _ = waiting.send(answer);
            }
        }
    }

    /// One answer to each.
    async fn call(&self, tenant: AccountId, asks: &[Words]) -> Vec<Answer> {
        match self.call_once(tenant, asks).await {
            Ok(answers) => answers,
            Err(why @ (StoreError::Foreign(_) | StoreError::Garbled(_) | StoreError::Full(_)))
                if asks.len() > 1 =>
            {
                tracing::debug!(asks = asks.len(), "asked again, each alone: {why}");
                let mut answers = Vec::with_capacity(asks.len());
                for ask in asks {
                    let alone = self.call_once(tenant, std::slice::from_ref(ask)).await;
                    answers.extend(alone.unwrap_or_else(|why| vec![Err(why)]));
                }
                answers
            }
            Err(why) => vec![Err(why); asks.len()],
        }
    }

    async fn call_once(
        &self,
        tenant: AccountId,
        asks: &[Words],
    ) -> Result<Vec<Answer>, StoreError> {
        let token = format!("{}{:x}", self.token, self.tokens.fetch_add(1, Ordering::Relaxed));
        let together = Together { at: None, token: &token, bounds: &self.bounds };
        let (run, replies) = run(&self.caller, tenant, asks, &together).await?;
        let named = |reply: Result<_, _>| reply.map(|reply| (run.clone(), reply));
        Ok(replies.into_iter().map(named).collect())
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<AccountId, VecDeque<Waiting>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the script.
pub(super) async fn run(
    caller: &Caller,
    tenant: AccountId,
    asks: &[Words],
    together: &Together<'_>,
) -> Result<(String, Replies), StoreError> {
    let holds: Vec<HoldId> = asks.iter().map(|ask| ask.hold).collect();
    let call = Call::of(tenant, asks, together)?;
    reply::replies(caller.call(&call).await?, &holds)
}

/// The ask that left at once is on its way. When it has returned, or is given up, the others follow.
struct Lead<'a> {
    group: &'a Arc<Group>,
    tenant: AccountId,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut lines = self.group.lines();
        if lines.get(&self.tenant).is_none_or(VecDeque::is_empty) {
            lines.remove(&self.tenant);
            return;
        }
        drop(lines);
        let rest = Rest { group: Arc::clone(self.group), tenant: self.tenant, is_over: false };
        // Without a runtime nobody waits for long: the rest is dropped, and they are told.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(Arc::clone(self.group).follow(rest));
        }
    }
}

/// Those who follow. If their task is dropped, they are told, and the tenant's next ask leads.
struct Rest {
    group: Arc<Group>,
    tenant: AccountId,
    is_over: bool,
}

impl Drop for Rest {
    fn drop(&mut self) {
        if !self.is_over {
            let line = self.group.lines().remove(&self.tenant);
            // Their receivers wake only when nothing is locked.
            drop(line);
        }
    }
}

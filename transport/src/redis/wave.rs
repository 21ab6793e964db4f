//! What gateways share beside the ledger: rates, idempotency keys, sessions' homes. One wave of calls for each consultation.
//!
//! **What stands where.** Of each account and unit a bucket, `pointsman:rate:{<tenant>}:<account>:<unit>`; all of a tenant lie
//! in one slot, so that one script takes from all accounts of a path or from none. An idempotency key is
//! `chat:idempotent:<tenant>.<digest>`, a session's home `session_affinity:<id>` with its epoch beside it in the same slot.
//! Each lives as long as it says something, and a little longer; Redis itself sweeps up.
//!
//! **One wave.** The parts of a consultation lie in different slots, so they cannot be one script. They leave together, on
//! the connection that the ledger's ask takes too, and are answered together: one round trip, whatever is asked. Each part
//! is answered or not by itself; what has no answer the gateway decides alone.
//!
//! **Specification.** The pure store of `control::shared` decides the same: `tests/redis_wave.rs` gives both the same asks.
//! Rejected: one hash for all buckets of a tenant. Nothing would ever leave it but by a sweep of our own, and a tenant with
//! a hundred thousand users would be one key.
//!
//! **Asked twice.** A claim that is repeated by its claimant has still begun, and a home is set once whoever repeats it. A
//! take that is repeated counts twice until it drains or its lease ends: then too little is let through, never too much.

use std::sync::Arc;

use control::id::AccountId;
use control::shared::{
    Consult, Consulted, HomeAnswer, Housed, KeyAnswer, KeyClaim, Note, Noted, Part, RateCorrection,
    RateTake, RatesAnswer,
};

use super::Store;
use super::client::Caller;
use super::error::StoreError;
use asks::{Ask, home_read, home_set, key_claim, key_end, rates_settle, rates_take};

mod answers;
mod asks;
pub(super) mod desk;

pub use asks::wave_scripts;

/// Asks for what is shared beside the ledger, on the ledger's connection.
#[derive(Clone, Debug)]
pub struct Wave {
    caller: Arc<Caller>,
}

/// What a wave brought: of each part what was asked, and why it has no answer.
#[derive(Debug)]
pub struct Brought {
    /// The answers that came.
    pub consulted: Consulted,
    /// What came of each part that was asked: its name, and why there is no answer, where there is none.
    pub parts: Vec<(&'static str, Option<StoreError>)>,
}

impl Wave {
    /// Beside a ledger.
    #[must_use]
    pub fn beside(store: &Store) -> Self {
        Self { caller: Arc::clone(&store.beside) }
    }

    /// Asks for all parts at once. `name` is what the session is called; without it nobody is asked for its home, which is odd.
    pub async fn consult(&self, consult: &Consult, name: Option<&str>) -> Brought {
        let (lease, tenant) = (consult.lease, consult.tenant);
        let rates = async {
            if consult.rates.is_empty() {
                return None;
            }
            Some(self.take(tenant, None, lease, &consult.rates).await)
        };
        let key = async {
            let claim = consult.idempotency.as_ref()?;
            Some(self.claim(tenant, None, lease, claim).await)
        };
        let home = async {
            consult.home?;
            Some(self.home(name?).await)
        };
        let (rates, idempotency, home) = tokio::join!(rates, key, home);
        let nameless = consult.home.is_some() && name.is_none();
        let odd = [
            (Part::Rates, rates.as_ref().is_some_and(is_odd)),
            (Part::Keys, idempotency.as_ref().is_some_and(is_odd)),
            (Part::Homes, nameless || home.as_ref().is_some_and(is_odd)),
        ];
        let mut parts = Vec::new();
        let consulted = Consulted {
            op: consult.op,
            rates: told("rates", rates, &mut parts),
            idempotency: told("key", idempotency, &mut parts),
            home: told("home", home, &mut parts),
            odd: odd.into_iter().filter_map(|(part, odd)| odd.then_some(part)).collect(),
        };
        Brought { consulted, parts }
    }

    /// Tells the store. Says where the session lives now, where the note was about one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note(
        &self,
        note: &Note,
        name: Option<&str>,
    ) -> Result<Option<Housed>, StoreError> {
        let nameless = StoreError::Unrepresentable("a session whose name nobody knows any more");
        match &note.what {
            Noted::Rates(corrections) => {
                self.correct(note.tenant, None, corrections).await.map(|()| None)
            }
            Noted::Key { .. } => self.end(note.tenant, None, &note.what).await.map(|()| None),
            Noted::Home { session, .. } | Noted::Homeless { session, .. } => {
                let home = self.set_home(name.ok_or(nameless)?, &note.what).await?;
                Ok(Some(Housed { op: note.op, session: *session, home }))
            }
        }
    }

    /// Takes from all rates, or from none. `now` in microseconds, where it is not the server's own (tests).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take(
        &self,
        tenant: AccountId,
        now: Option<u64>,
        lease: u64,
        takes: &[RateTake],
    ) -> Result<RatesAnswer, StoreError> {
        answers::rates(self.ask(&rates_take(tenant, now, lease, takes)?).await?, takes)
    }

    /// Lets go what was held, and counts what was used.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn correct(
        &self,
        tenant: AccountId,
        now: Option<u64>,
        corrections: &[RateCorrection],
    ) -> Result<(), StoreError> {
        if corrections.is_empty() {
            return Ok(());
        }
        answers::done(&self.ask(&rates_settle(tenant, now, corrections)?).await?)
    }

    /// Claims an idempotency key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim(
        &self,
        tenant: AccountId,
        now: Option<u64>,
        lease: u64,
        claim: &KeyClaim,
    ) -> Result<KeyAnswer, StoreError> {
        answers::key(&self.ask(&key_claim(tenant, now, lease, claim)?).await?)
    }

    /// Ends it, as a [`Noted::Key`] says; of anything else nothing is told.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end(
        &self,
        tenant: AccountId,
        now: Option<u64>,
        noted: &Noted,
    ) -> Result<(), StoreError> {
        let Some(ask) = key_end(tenant, now, noted)? else { return Ok(()) };
        answers::done(&self.ask(&ask).await?)
    }

    /// Where the session of that name lives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn home(&self, name: &str) -> Result<HomeAnswer, StoreError> {
        answers::home(&self.ask(&home_read(name)).await?)
    }

    /// Moves it, as a [`Noted::Home`] or [`Noted::Homeless`] says, and tells where it lives then; of anything else, where it
    /// lives now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_home(&self, name: &str, noted: &Noted) -> Result<HomeAnswer, StoreError> {
        answers::home(&self.ask(&home_set(name, noted)?).await?)
    }

    async fn ask(&self, ask: &Ask) -> Result<redis::Value, StoreError> {
        let asked = self.caller.script(|whole| ask.command(whole)).await;
        match asked {
            // The connection that broke may have been the last thing of a server that is back already.
            Err(StoreError::Broken(_)) if ask.is_repeatable => {
                self.caller.script(|whole| ask.command(whole)).await
            }
            other => other,
        }
    }
}

/// It has no answer, and others may have one.
fn is_odd<T>(answer: &Result<T, StoreError>) -> bool {
    answer.as_ref().is_err_and(|error| !error.is_for_all())
}

fn told<T>(
    part: &'static str,
    answer: Option<Result<T, StoreError>>,
    parts: &mut Vec<(&'static str, Option<StoreError>)>,
) -> Option<T> {
    match answer? {
        Ok(answer) => {
            parts.push((part, None));
            Some(answer)
        }
        Err(error) => {
            parts.push((part, Some(error)));
            None
        }
    }
}

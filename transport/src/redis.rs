//! The shared quota ledger on Redis: the pure [`Ledger`](control::quota::Ledger), kept by scripts.
//!
//! **What stands where.** A tenant's ledger is six keys with its hash tag, `pointsman:ledger:2:{<tenant>}:*`: a hash (the
//! book) with what is live, what has ended, the accounts and the balances; and sorted sets and a list that say what
//! expires, closes or is forgotten next. One call of one script performs one ask of a tenant or, under load, up to 64
//! ([`group`]); it touches one slot and does a bounded amount of work: at most 64 expiries and 64 ends to forget, and for
//! each draw 12 windows to close, whatever has piled up. The bounds of
//! [`LedgerConfig`] count per tenant here, where the pure ledger has one for all. Histories of closed windows are not
//! kept: no answer depends on them, and gateways have them in their journals.
//!
//! **Time** is the server's, in microseconds; it never runs backwards within a tenant. Expiry is lazy: what is due expires
//! with the next ask of its tenant, and the hold that is asked about always does. Nobody who is not asked about can be
//! harmed by a hold that is due. All six keys live 45 days (and twice the longest rolling window) after their tenant was
//! last heard of: longer than any window, so that only debts of tenants who were away for all that time are forgotten.
//!
//! **Numbers** stay below 2^53. The ledger's own bounds see to sums; what arrives larger is refused before it is sent.
//!
//! # What a run of the store is
//!
//! An owner believes what the store confirmed. It must stop believing when the store may have forgotten: then it asserts
//! what it holds before it draws again, and a settlement of something the store does not know is charged rather than taken
//! for an echo. So each answer names a *run*, and a run must end whenever acknowledged writes may be gone:
//!
//! - *Failover*: replication is asynchronous, so the replica that takes over may lack the last writes.
//! - *Restart*: whatever was not yet on disk is gone, or all of it where nothing is.
//! - *Failover and back*: the old primary returns as a replica, copies the poorer data, and is promoted again. Same
//!   process, same `run_id`, same connection if it was kept; other data.
//! - *Deletion*: `FLUSHALL`, an eviction, an operator's `DEL`.
//!
//! The server's `run_id` misses the third case, and so does anything a client asks once when it connects. A token written
//! by a script misses the first: the replica has it too. What changes in the first three is the *replication id* of the
//! primary: it is drawn anew when a process starts and whenever one is promoted, and no two reigns share it. What changes
//! in the fourth is a token in the tenant's own book, drawn when the book is new. A run is the two together, and the script
//! reads both, in the same atomic step in which it decides (`INFO replication` costs a script some 3 microseconds): there is
//! no moment between the look and the act.
//!
//! It also ends where nothing was lost (the first replica attaches; the backlog is dropped after an hour without replicas;
//! a slot moves to another node). That costs one round of assertions, which are idempotent.
//!
//! Tenants live in slots, slots on nodes, and each node has its own replication id. An owner knows one run id; [`Runs`]
//! makes one of many.
//!
//! # When there is no answer
//!
//! A call ends within its deadline, with an answer or a [`StoreError`]. An error is never "no": the ask may have been
//! performed, and is asked again by whoever asked (the plane's `quota` room), under the same ids.

mod client;
mod desk;
mod error;
mod group;
mod names;
mod reply;
mod runs;
mod script;
mod session_log;
mod shared;
mod spent;
mod stream_log;
mod untold;
mod wave;

use std::sync::{Arc, Mutex, PoisonError};

use control::id::AccountId;
use control::quota::{Ask, BalanceKey, LedgerConfig, Reply, RunId, StoreAnswer, StoreOp, Sums};

pub use client::{Settings, SettingsError, Tls};
pub use desk::{Counter, Desk};
pub use error::StoreError;
pub use names::{home_keys, key_key, rate_key, scoped_name};
pub use runs::Runs;
pub use script::{NUMBER_MAX, Together, Told, keys, scripts};
pub use session_log::SessionLog;
pub use shared::{JoinError, Shared};
pub use stream_log::{Beat, Claimed, Logged, Owned, Readers, Shipment, StreamLog, stream_scripts};
pub use untold::Untold;
pub use wave::{Brought, Wave, wave_scripts};

use crate::seam::Network;
use client::Caller;
use group::Group;
use script::{Call, Words};

/// Balances read with one call: some 20 KiB, and well below a millisecond of the server's time.
const BALANCES_PER_CALL: usize = 100;

/// The salt's key.
const SALT_KEY: &str = "pointsman:salt";

/// What probes write, and for how long.
const PROBE_KEY: &str = "pointsman:probe";
const PROBE_SECONDS: u64 = 60;

/// The shared ledger.
#[derive(Debug)]
pub struct Store {
    caller: Arc<Caller>,
    /// For what is shared beside the ledger.
    beside: Arc<Caller>,
    group: Arc<Group>,
    runs: Mutex<Runs>,
    token: String,
}

impl Store {
    /// Dials nothing yet. `bounds` are those of each tenant's ledger, and should be the same for all who share it; `salt`
    /// is random, fresh with each start of the process.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings, bounds: LedgerConfig, salt: u64) -> Result<Self, SettingsError> {
        Self::over(settings, bounds, salt, Network::Real)
    }

    /// The same over a network that may be a simulated one. That has no clusters and no TLS.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn over(
        settings: Settings,
        bounds: LedgerConfig,
        salt: u64,
        network: Network,
    ) -> Result<Self, SettingsError> {
        let (patience, asks_max) = (settings.call_timeout, settings.in_flight_max);
        let caller = Arc::new(Caller::new(settings, network)?);
        let token = format!("{salt:016x}");
        let group = Group::new(Arc::clone(&caller), bounds, token.clone(), (patience, asks_max));
        Ok(Self {
            beside: Arc::new(caller.beside()),
            caller,
            group: Arc::new(group),
            runs: Mutex::new(Runs::new(salt)),
            token,
        })
    }

    /// Asks; together with other asks of its tenant, where some wait already.
    ///
    /// # Errors
    /// [`StoreError`]: no answer. Except where it says that nothing was sent, the ask may have been performed.
    pub async fn perform(&self, op: &StoreOp) -> Result<StoreAnswer, StoreError> {
        let Some(tenant) = op.tenant.filter(|_| op.ask != Ask::Probe) else {
            // A server that answers and takes no writes (full, a replica) is as good as away: so it is asked to write.
            let mut probe = redis::cmd("SET");
            probe.arg(PROBE_KEY).arg(&self.token).arg("EX").arg(PROBE_SECONDS);
            self.caller.command(&probe).await?;
            let run = self.runs().current();
            return Ok(StoreAnswer { op: op.op, run, reply: Reply::Here });
        };
        let (believed, confirmed, then) = {
            let runs = self.runs();
            let confirmed = match &op.ask {
                Ask::Settle { confirmed, .. } => *confirmed,
                Ask::Probe
                | Ask::Reserve(_)
                | Ask::Extend { .. }
                | Ask::Assert { .. }
                | Ask::Refund { .. } => None,
            };
            let told = |run| runs.told(tenant, run).map(str::to_owned);
            (told(op.run), told(confirmed), runs.now())
        };
        let told = Told { believed: believed.as_deref(), confirmed: confirmed.as_deref() };
        let (run, reply) = self.group.ask(tenant, Words::of(&op.ask, told)?).await?;
        let run = self.runs().hear(tenant, run, then);
        Ok(StoreAnswer { op: op.op, run, reply })
    }

    /// Runs the script for these asks, with what it is told: the seam at which it is compared with its specification, which
    /// performs them one after the other at one time. Returns the tenant's run and the replies.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run_script(
        &self,
        tenant: AccountId,
        asks: &[(&Ask, Told<'_>)],
        together: &Together<'_>,
    ) -> Result<(String, Vec<Reply>), StoreError> {
        let words = asks.iter().map(|(ask, told)| Words::of(ask, *told));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let (run, replies) = group::run(&self.caller, tenant, &words, together).await?;
        Ok((run, replies.into_iter().collect::<Result<_, _>>()?))
    }

    /// The open balances of a tenant, by account and window. Read in parts: what happens meanwhile may show in some.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn balances(&self, tenant: AccountId) -> Result<Vec<(BalanceKey, Sums)>, StoreError> {
        let mut all: Vec<(BalanceKey, Sums)> = Vec::new();
        loop {
            let after = all.last().map(|(key, _)| *key);
            let call = Call::balances(tenant, after.as_ref(), BALANCES_PER_CALL);
            let part = reply::balances(self.caller.call(&call).await?)?;
            let last = part.len() < BALANCES_PER_CALL;
            all.extend(part);
            if last {
                return Ok(all);
            }
        }
    }

    /// Those of these balances that are open, in one call that takes no place of the ledger's. Of nine at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn standing(
        &self,
        tenant: AccountId,
        wanted: &[BalanceKey],
    ) -> Result<Vec<(BalanceKey, Sums)>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        reply::balances(self.beside.call(&Call::standing(tenant, wanted)?).await?)
    }

    /// The run that was heard of last.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.runs().current()
    }

    /// The salt of all who share this Redis: the one that is there, else `proposal`, which is there then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn salt(&self, proposal: [u8; 32]) -> Result<[u8; 32], StoreError> {
        let text: String = proposal.iter().map(|byte| format!("{byte:02x}")).collect();
        self.caller.command(redis::cmd("SETNX").arg(SALT_KEY).arg(text)).await?;
        reply::salt(self.caller.command(redis::cmd("GET").arg(SALT_KEY)).await?)
    }

    /// What may make this Redis forget or refuse: a policy that evicts. `None` where all is well, or where it cannot be said
    /// (a cluster, a user without `INFO`).
    pub async fn evicts(&self) -> Option<String> {
        let info = self.caller.command(redis::cmd("INFO").arg("memory")).await.ok()?;
        reply::evicting_policy(&info)
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The ledger, for services beside the gateway that charge the same accounts.
//!
//! One interface before two ledgers. The embedded one is asked through the plane, so that its facts stand in the journal
//! before an answer is believed: whoever hears "it is set aside" finds it set aside after a crash. The shared one is asked
//! with the scripts that the gateways use, by the same words, and is durable as far as that Redis is.
//!
//! **Names.** A reservation is named by its owner. The hold's id is a keyed hash of the tenant and that name, under an owner
//! that is no gateway's: two tenants' names never meet, and none of them is a request's.
//!
//! **Rejected:** an owner like a gateway's, which draws ahead and asserts after a failover. A service would have to live as
//! long as its reservations; this one keeps nothing. So after a failover that lost a reservation, what was set aside is
//! free again, and its settlement, which brings the accounts along, is charged late if it is the first to meet the failover.
//!
//! **What nobody knows.** Ends are remembered for two hours, the last 65,536 of them. What is settled after that may have been
//! settled before, and to charge it would be to charge it twice; to say OK would be to lose what was used in silence. So it
//! is refused, [`DenyReason::Ended`](control::quota::DenyReason::Ended), and whoever knows that it was never charged reserves
//! and settles it under another name. The same goes for one that a
//! failover lost which others have met before. A process that has heard nothing of a tenant yet takes what is unknown for lost.

use core::time::Duration;
use std::sync::Arc;

use control::Wall;
use control::id::{AccountId, Minted, Principal, ReservationId};
use control::quota::{
    Ask, BalanceKey, Denied, Draw, EMBEDDED_RUN, HoldId, Limits, MAX_AMOUNT, OpId, OwnerId, Reply,
    StoreAnswer, StoreOp, Sums, Window, WindowKind,
};
use control::units::Amount;

use crate::driver::Driver;
use crate::keys::AccountIds;
use crate::redis::{Store, StoreError};

/// A record is written within moments; whoever waits longer is better told.
const RECORD_WAIT: Duration = Duration::from_secs(5);

/// The names of reservations and users.
pub const NAME_BYTES_MAX: usize = 256;

/// The ledger's counter, where services are served.
pub struct Till {
    driver: Arc<Driver>,
    /// The shared ledger, where it is shared.
    store: Option<Arc<Store>>,
    ids: AccountIds,
}

/// Why nothing was done, or nothing is known to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be asked so.
    #[error("{0}")]
    Invalid(&'static str),
    /// The ledger says no.
    #[error("the ledger refuses")]
    Denied(Denied),
    /// No answer that could be believed. It may have been done: ask again, with the same words.
    #[error("the ledger cannot be asked just now: {0}")]
    Away(String),
}

/// An account in a window, with what may be spent in it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Which.
    pub key: BalanceKey,
    /// How it stands.
    pub sums: Sums,
    /// What may be spent.
    pub limits: Limits,
}

impl Till {
    /// Before the ledger of a driven plane, or the one that it shares. `ids` are those of the accounts.
    #[must_use]
    pub fn new(driver: Arc<Driver>, store: Option<Arc<Store>>, ids: AccountIds) -> Self {
        Self { driver, store, ids }
    }

    /// Sets an amount aside for `who`. Returns all that the reservation holds.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn reserve(
        &self,
        who: &Principal,
        name: &str,
        amount: Amount,
        ttl: Duration,
    ) -> Result<Amount, Refused> {
        let hold = self.hold(who, name)?;
        let accounts = self.payers(who);
        let ask = Ask::Reserve(Draw { hold, accounts, amount: possible(amount)?, ttl });
        granted(self.ask(who, hold, ask).await?)
    }

    /// Makes it hold so much in all.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn extend(
        &self,
        who: &Principal,
        name: &str,
        total: Amount,
    ) -> Result<Amount, Refused> {
        let hold = self.hold(who, name)?;
        let ask = Ask::Extend { hold, total: possible(total)? };
        granted(self.ask(who, hold, ask).await?)
    }

    /// Ends it with what was used.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn settle(
        &self,
        who: &Principal,
        name: &str,
        (actual, estimated): (Amount, bool),
    ) -> Result<(), Refused> {
        let hold = self.hold(who, name)?;
        // A shared ledger may have lost it in a failover: then it is charged where it would count now. In the run that is
        // known already, as in the embedded one, what nobody knows has ended long ago or was never made.
        let confirmed = Some(self.store.as_ref().map_or(EMBEDDED_RUN, |store| store.run()));
        let (pins, actual) = (self.pins(who), possible(actual)?);
        let ask = Ask::Settle { hold, pins, actual, estimated, confirmed };
        done(self.ask(who, hold, ask).await?)
    }

    /// Ends it with nothing.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn refund(&self, who: &Principal, name: &str) -> Result<(), Refused> {
        let hold = self.hold(who, name)?;
        done(self.ask(who, hold, Ask::Refund { hold }).await?)
    }

    /// How the accounts of `who` stand, the tenant's first; those windows in which something moved.
    ///
    /// # Errors
    /// [`Refused::Away`].
    pub async fn balances(&self, who: &Principal) -> Result<Vec<Standing>, Refused> {
        let payers = self.payers(who);
        let open = self.pins_of(&payers);
        let found: Vec<(BalanceKey, Sums)> = match &self.store {
            Some(store) => store.standing(who.tenant, &open).await.map_err(|why| refused(&why))?,
            None => self.driver.look(|plane| {
                let ledger = plane.ledger().ledger();
                let sums = |key: &BalanceKey| Some((*key, *ledger?.balance(key)?));
                open.iter().filter_map(sums).collect()
            }),
        };
        let standing = open.into_iter().map(|key| {
            let known = found.iter().find(|(other, _)| *other == key);
            let sums = known.map(|(_, sums)| *sums).unwrap_or_default();
            let limits = payers.iter().find(|(account, _)| *account == key.account);
            Standing { key, sums, limits: limits.map(|(_, limits)| *limits).unwrap_or_default() }
        });
        Ok(standing.collect())
    }

    fn payers(&self, who: &Principal) -> Vec<(AccountId, Limits)> {
        self.driver.look(|plane| plane.payers(who))
    }

    /// Where something counts that `who` spends now.
    fn pins(&self, who: &Principal) -> Vec<BalanceKey> {
        self.pins_of(&self.payers(who))
    }

    fn pins_of(&self, payers: &[(AccountId, Limits)]) -> Vec<BalanceKey> {
        let wall = self.driver.clock().wall();
        payers.iter().flat_map(|(account, limits)| windows(*account, limits, wall)).collect()
    }

    fn hold(&self, who: &Principal, name: &str) -> Result<HoldId, Refused> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Refused::Invalid("reservation_id must have 1 to 256 bytes"));
        }
        let tenant = who.tenant.0.to_be_bytes();
        let owner = self.ids.digest("service", &[&tenant]).0;
        let id = self.ids.digest("reservation", &[&tenant, name.as_bytes()]).0;
        // The first 64 bits and the next 32: the compiler sees that nothing else is lost.
        let (counter, incarnation) = ((id >> 64) as u64, (id >> 32) as u32);
        let id = ReservationId(Minted { incarnation, counter });
        Ok(HoldId::request(OwnerId((owner >> 64) as u64), id))
    }

    async fn ask(&self, who: &Principal, hold: HoldId, ask: Ask) -> Result<StoreAnswer, Refused> {
        let op =
            StoreOp { op: OpId(0), owner: hold.owner, run: None, tenant: Some(who.tenant), ask };
        let Some(store) = &self.store else { return self.ask_plane(op).await };
        let answer = match store.perform(&op).await {
            // The connection that broke may have been the last thing of a server that is back already.
            Err(StoreError::Broken(_)) => store.perform(&op).await,
            other => other,
        };
        answer.map_err(|why| refused(&why))
    }

    async fn ask_plane(&self, op: StoreOp) -> Result<StoreAnswer, Refused> {
        let asked = self.driver.ask_ledger(op).map_err(|why| Refused::Away(why.to_string()))?;
        let (answer, position) =
            asked.ok_or_else(|| Refused::Away("this process is stopping".to_owned()))?;
        let written = self.driver.journal().wait_written(position);
        match tokio::time::timeout(RECORD_WAIT, written).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(why)) => Err(Refused::Away(why.to_string())),
            Err(_) => Err(Refused::Away("the journal's disk is slow".to_owned())),
        }
    }
}

fn windows(account: AccountId, limits: &Limits, wall: Wall) -> impl Iterator<Item = BalanceKey> {
    let kinds = [WindowKind::Day, WindowKind::Month, WindowKind::Rolling];
    let open = kinds.map(|kind| Window::open(kind, wall, limits));
    open.into_iter().flatten().map(move |window| BalanceKey { account, window })
}

fn possible(amount: Amount) -> Result<Amount, Refused> {
    if amount.tokens.0 > MAX_AMOUNT || amount.money.0 > MAX_AMOUNT {
        return Err(Refused::Invalid("an amount has at most 2^36 of each unit"));
    }
    Ok(amount)
}

fn granted(answer: StoreAnswer) -> Result<Amount, Refused> {
    match answer.reply {
        Reply::Granted { total, .. } => Ok(total),
        Reply::Denied(denied) => Err(Refused::Denied(denied)),
        Reply::Done | Reply::OtherRun | Reply::Here => Err(beside(&answer)),
    }
}

fn done(answer: StoreAnswer) -> Result<(), Refused> {
    match answer.reply {
        Reply::Done => Ok(()),
        Reply::Denied(denied) => Err(Refused::Denied(denied)),
        Reply::Granted { .. } | Reply::OtherRun | Reply::Here => Err(beside(&answer)),
    }
}

/// An answer to something else.
fn beside(answer: &StoreAnswer) -> Refused {
    tracing::error!(reply = ?answer.reply, "the ledger answered what was not asked");
    Refused::Away("it answered what was not asked".to_owned())
}

/// The operator reads the rest in the log: a service has no use for addresses of servers.
fn refused(why: &StoreError) -> Refused {
    match why {
        StoreError::TooLarge(..) | StoreError::Unrepresentable(_) => {
            Refused::Invalid("the shared ledger cannot count that: make it smaller")
        }
        StoreError::Busy(_)
        | StoreError::Away(_)
        | StoreError::Unanswered(_)
        | StoreError::Broken(_)
        | StoreError::NotServing(_)
        | StoreError::Full(_)
        | StoreError::Forbidden(_)
        | StoreError::Foreign(_)
        | StoreError::Garbled(_) => {
            tracing::warn!("a service cannot be answered: {why}");
            Refused::Away(why.name().to_owned())
        }
    }
}

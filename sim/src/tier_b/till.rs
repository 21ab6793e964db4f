//! The books of a ledger that gateways share: invariants 1 to 3 on what the simulated Redis wrote.
//!
//! Every entry goes into a [`Book`] of our own: the algebra, one end for each hold, and the bound. What owners assert after a
//! failover is true whatever the limits say, and raises the bound by as much. In the end each account was charged what its
//! requests used: never more, and no less but what lies in allotments that have not ended, unless the store was made to
//! forget.

use std::collections::BTreeMap;
use std::time::Duration;

use control::id::AccountId;
use control::quota::{Entry, Fact, OwnerId};

use super::book::{Book, Broken, Hold};
use super::plan::TierBPlan;
use super::tenancy::account;
use crate::coverage::sometimes;
use crate::redis::{Made, Server};

/// The books of the store.
pub(super) struct Till {
    book: Book,
    /// What it charged, over all windows.
    charged: BTreeMap<AccountId, u64>,
    /// It forgot something that it had acknowledged.
    has_forgotten: bool,
}

impl Till {
    pub fn new(plan: &TierBPlan) -> Self {
        let book = awaiting(plan, limits(plan, 0));
        Self { book, charged: BTreeMap::new(), has_forgotten: false }
    }

    /// The store wrote something.
    pub fn wrote(&mut self, made: &[Made]) -> Result<(), Broken> {
        for Made { entry, asserted, .. } in made {
            if *asserted {
                sometimes!("b_redis_asserted");
                self.book.allow(entry);
            }
            self.add(entry)?;
        }
        Ok(())
    }

    fn add(&mut self, entry: &Entry) -> Result<(), Broken> {
        let (accounts, tokens) = match &entry.fact {
            Fact::Settle { hold, actual, .. } => (self.book.accounts_of(*hold), actual.tokens.0),
            Fact::Late { pins, actual, .. } => {
                sometimes!("b_redis_late");
                let mut accounts: Vec<_> = pins.iter().map(|pin| pin.account).collect();
                accounts.dedup();
                (accounts, actual.tokens.0)
            }
            Fact::Limits { .. }
            | Fact::Reserve { .. }
            | Fact::Extend { .. }
            | Fact::Refund { .. }
            | Fact::Expire { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => (Vec::new(), 0),
        };
        self.book.shared(entry)?;
        for account in accounts {
            *self.charged.entry(account).or_default() += tokens;
        }
        Ok(())
    }

    /// The store forgot: its books are what it still has.
    pub fn forgot(&mut self, server: &Server) -> Result<(), Broken> {
        self.has_forgotten = true;
        self.book = self.book.of_what_is_left(server.entries())?;
        Ok(())
    }

    /// In the end: `ever` is what gateways ever wrote down as used, `now` what of that is still written, with the number of
    /// requests that were lent what had been drawn ahead; each where that says anything.
    pub fn reconciles(
        &self,
        ever: Option<&BTreeMap<AccountId, u64>>,
        now: Option<(&BTreeMap<AccountId, u64>, u64)>,
    ) -> Result<(), Broken> {
        let of = |sums: &BTreeMap<AccountId, u64>, account| {
            sums.get(account).copied().unwrap_or_default()
        };
        // What it forgot it may charge again, or never.
        if self.has_forgotten {
            return Ok(());
        }
        for (account, charged) in &self.charged {
            let Some(used) = ever.map(|ever| of(ever, account)) else { break };
            if *charged > used {
                let text = format!("{account} is charged {charged} tokens, and used {used}");
                return Err((3, text));
            }
        }
        let Some((now, lent)) = now else { return Ok(()) };
        for (account, used) in now {
            // Each of those that were lent some of it may have used more than that: its end will say so.
            let drawn = match self.book.drawn_ahead(*account) {
                0 => 0,
                drawn => drawn + lent * self.book.overrun_max(),
            };
            let charged = of(&self.charged, account);
            if charged + drawn < *used {
                let text = format!(
                    "{account} used {used} tokens, and is charged {charged}; {drawn} are drawn ahead"
                );
                return Err((3, text));
            }
        }
        Ok(())
    }

    /// Its sums are the server's.
    pub fn compares(&self, server: &Server) -> Result<(), Broken> {
        for (_, ledger) in server.ledgers() {
            for (key, theirs) in ledger.balances() {
                let ours = self.book.balances.get(&key).copied().unwrap_or_default();
                if ours.outstanding != theirs.outstanding.into()
                    || ours.charged != theirs.charged.into()
                {
                    return Err((1, format!("{key:?}: the entries say {ours:?}, not {theirs:?}")));
                }
            }
        }
        Ok(())
    }

    /// Requests that are held there by these owners in these lives. What an earlier life asked for and did not come to write
    /// down nobody gives back: that expires, in minutes.
    pub fn held_by(&self, lives: &BTreeMap<OwnerId, u32>) -> usize {
        let live = self.book.holds.iter().filter(|(_, hold)| matches!(hold, Hold::Live { .. }));
        let of_requests = live.filter(|(id, _)| !id.allotment);
        of_requests.filter(|(id, _)| lives.get(&id.owner) == Some(&id.id.0.incarnation)).count()
    }
}

/// An empty book of a gateway's tenants. Of a ledger that is shared no gateway's part says how much is left.
pub(super) fn of_gateway(plan: &TierBPlan, gateway: u8) -> Book {
    match plan.shared {
        // At a door nobody is limited, and no store is asked.
        _ if plan.is_door(gateway) => Book::new(BTreeMap::new()),
        true => awaiting(plan, BTreeMap::new()),
        false => Book::new(limits(plan, plan.tenants_of(gateway))),
    }
}

/// As the product's `quota` room waits for a store, and what a tick and a slow link add.
const ANSWER_MAX: Duration = Duration::from_millis(250 + 100);

fn awaiting(plan: &TierBPlan, limits: BTreeMap<AccountId, u64>) -> Book {
    Book::new(limits).awaiting(ANSWER_MAX, Duration::from_millis(plan.knobs.each_ms))
}

/// The plan's limits in tokens a day, by account of a gateway's tenants.
fn limits(plan: &TierBPlan, gateway: u8) -> BTreeMap<AccountId, u64> {
    let tokens = plan.knobs.tenant_tokens.iter().enumerate();
    let of = |at: usize| account(gateway, u8::try_from(at).ok());
    tokens.map(|(at, tokens)| (of(at), *tokens)).collect()
}

#[cfg(test)]
mod tests {
    use control::id::{Minted, ReservationId};
    use control::quota::{BalanceKey, HoldId, Window};
    use control::units::{Amount, MicroUsd, Tokens};
    use control::{Instant, Wall};

    use super::*;

    #[test]
    fn what_is_charged_is_what_was_used_no_more_and_no_less() {
        for (used, broken) in [(40, Ok(())), (39, Err(3)), (41, Err(3))] {
            let mut till = till();
            assert_eq!(till.wrote(&[reserve(1, 60), settle(1, 40)]), Ok(()));
            let used = [(account(0, Some(0)), used)].into();
            let judged = till.reconciles(Some(&used), Some((&used, 0)));
            assert_eq!(judged.map_err(|broken| broken.0), broken, "{used:?}");
        }
    }

    #[test]
    fn what_is_drawn_ahead_may_be_used_before_it_is_charged() {
        let mut till = till();
        let hold = HoldId { allotment: true, ..hold(1) };
        assert_eq!(till.wrote(&[reserved(hold, 50)]), Ok(()));
        let used = |tokens| BTreeMap::from([(account(0, Some(0)), tokens)]);
        assert_eq!(till.held_by(&[(OwnerId(1), 1)].into()), 0);
        let judged = |tokens, lent| {
            let judged = till.reconciles(None, Some((&used(tokens), lent)));
            judged.map_err(|broken| broken.0)
        };
        assert_eq!(judged(50, 0), Ok(()));
        assert_eq!(judged(51, 0), Err(3));
        let overrun = till.book.overrun_max();
        assert_eq!(judged(50 + overrun, 1), Ok(()), "it was lent to one who used more");
        assert_eq!(judged(51 + overrun, 1), Err(3));
    }

    #[test]
    fn a_grant_beyond_the_limit_breaks_the_second_and_an_assertion_does_not() {
        let limit = limits(&plan(), 0)[&account(0, Some(0))];
        assert_eq!(till().wrote(&[reserve(1, limit)]), Ok(()));
        let beyond = till().wrote(&[reserve(1, limit), reserve(2, 1)]);
        assert_eq!(beyond.map_err(|broken| broken.0), Err(2));
        let asserted = Made { asserted: true, ..reserve(2, 7) };
        let mut till = till();
        assert_eq!(till.wrote(&[reserve(1, limit), asserted]), Ok(()));
        assert_eq!(till.wrote(&[reserve(3, 1)]).map_err(|broken| broken.0), Err(2), "and no more");
    }

    #[test]
    fn what_an_earlier_life_or_a_directory_of_before_holds_is_nobodys() {
        let mut till = till();
        assert_eq!(till.wrote(&[reserve(1, 60)]), Ok(()));
        for (owner, incarnation, held) in [(1, 1, 1), (1, 2, 0), (2, 1, 0)] {
            let lives = [(OwnerId(owner), incarnation)].into();
            assert_eq!(till.held_by(&lives), held, "{lives:?}");
        }
    }

    #[test]
    fn two_ends_break_the_first_and_a_refund_of_what_never_came_does_not() {
        let mut till = till();
        assert_eq!(till.wrote(&[reserve(1, 60), settle(1, 40), refund(2)]), Ok(()));
        assert_eq!(till.held_by(&[(OwnerId(1), 1)].into()), 0);
        for second in [settle(1, 1), reserve(1, 1), reserve(2, 1), refund(1)] {
            assert_eq!(again(&second), Err(1), "{second:?}");
        }
    }

    fn again(second: &Made) -> Result<(), u8> {
        let mut till = till();
        let before = [reserve(1, 60), settle(1, 40), refund(2), second.clone()];
        till.wrote(&before).map_err(|broken| broken.0)
    }

    fn plan() -> TierBPlan {
        TierBPlan { shared: true, ..super::super::plan(1) }
    }

    fn till() -> Till {
        Till::new(&plan())
    }

    fn hold(counter: u64) -> HoldId {
        HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter }))
    }

    fn amount(tokens: u64) -> Amount {
        Amount { tokens: Tokens(tokens), money: MicroUsd::ZERO }
    }

    fn made(fact: Fact) -> Made {
        let entry = Entry { at: Instant::ZERO, wall: Wall::default(), fact };
        Made { tenant: account(0, Some(0)), entry, asserted: false }
    }

    fn reserve(id: u64, tokens: u64) -> Made {
        reserved(hold(id), tokens)
    }

    fn reserved(hold: HoldId, tokens: u64) -> Made {
        made(Fact::Reserve {
            hold,
            pins: vec![BalanceKey { account: account(0, Some(0)), window: Window::Day(20_000) }],
            amount: amount(tokens),
            ttl: std::time::Duration::from_secs(60),
            expires: Instant::FAR_FUTURE,
            from: None,
        })
    }

    fn settle(id: u64, tokens: u64) -> Made {
        made(Fact::Settle { hold: hold(id), actual: amount(tokens), estimated: false })
    }

    fn refund(id: u64) -> Made {
        made(Fact::Refund { hold: hold(id) })
    }
}

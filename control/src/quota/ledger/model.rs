//! The ledger against a slow and obvious one: a list of everything that ever happened, counted from scratch each time.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]
#![allow(clippy::disallowed_types, reason = "what prop_oneof expands to")]

use alloc::collections::BTreeMap;
use alloc::vec;

use proptest::prelude::*;

use super::super::terms::Rolling;
use super::tests::{NOON, TENANT, at, cap, hold, tokens};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Reserve { id: u64, user: u64, amount: u64 },
    Extend { id: u64, total: u64 },
    Settle { id: u64, actual: u64 },
    Refund { id: u64 },
    Expire,
    ClockBack(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Live,
    Settled(u64),
    Refunded,
    Expired,
    Late(u64),
}

/// One reservation that was granted, ever.
#[derive(Clone, Debug)]
struct Past {
    id: u64,
    accounts: [AccountId; 2],
    made: u64,
    total: u64,
    expires: u64,
    state: State,
    /// Where its late usage counted; the ledger says, since it depends on what it has pruned.
    late: Vec<BalanceKey>,
}

const TTL: u64 = 30_000;
const DAY: u64 = 86_400_000;
const ROLLING: u64 = 64_000;

fn limits(account: AccountId) -> Limits {
    let rolling = Some(Rolling { window: Duration::from_millis(ROLLING), cap: cap(400) });
    if account == TENANT {
        Limits { day: cap(900), month: cap(4_000), rolling, carry_debt: false }
    } else {
        Limits { day: cap(500), ..Limits::default() }
    }
}

#[derive(Default)]
struct Model {
    past: Vec<Past>,
    now: u64,
    /// Wall time, as the furthest seen.
    wall: u64,
}

impl Model {
    /// What counts against an account's window now, from scratch.
    fn used(&self, account: AccountId, kind: WindowKind, pinned: u64) -> u64 {
        let mut used = 0;
        for past in self.past.iter().filter(|past| past.accounts.contains(&account)) {
            let counts = match kind {
                WindowKind::Day => past.made / DAY == pinned / DAY,
                WindowKind::Month => {
                    Wall::from_millis(past.made).month() == Wall::from_millis(pinned).month()
                }
                // Two seconds a slice.
                WindowKind::Rolling => past.made / 2_000 * 2_000 + 2_000 + ROLLING > self.wall,
            };
            used += match past.state {
                State::Live if counts => past.total,
                State::Settled(actual) if counts => actual,
                State::Late(actual) => {
                    let open = |key: &&BalanceKey| {
                        key.account == account
                            && match key.window {
                                Window::Day(day) => kind == WindowKind::Day && day == pinned / DAY,
                                Window::Month(month) => {
                                    kind == WindowKind::Month
                                        && month == Wall::from_millis(pinned).month()
                                }
                                Window::Rolling { until, .. } => {
                                    kind == WindowKind::Rolling && until.as_millis() > self.wall
                                }
                            }
                    };
                    actual * past.late.iter().filter(open).count() as u64
                }
                State::Live | State::Settled(_) | State::Refunded | State::Expired => 0,
            };
        }
        used
    }

    fn fits(&self, accounts: [AccountId; 2], pinned: u64, amount: u64) -> bool {
        amount == 0
            || accounts.into_iter().all(|account| {
                WindowKind::ALL.into_iter().all(|kind| {
                    let cap = limits(account).cap(kind).tokens;
                    cap.is_none_or(|cap| self.used(account, kind, pinned) + amount <= cap.0)
                })
            })
    }

    fn find(&mut self, id: u64) -> Option<&mut Past> {
        self.past.iter_mut().find(|past| past.id == id)
    }

    /// The sums of an account over all days, from scratch.
    fn sums(&self, account: AccountId) -> Sums {
        let mut sums = Sums::default();
        for past in self.past.iter().filter(|past| past.accounts.contains(&account)) {
            let total = tokens(past.total);
            sums.hold(total);
            match past.state {
                State::Live => {}
                State::Settled(actual) => sums.settle(total, tokens(actual)),
                State::Refunded => sums.refund(total),
                State::Expired => sums.expire(total),
                State::Late(actual) => {
                    sums.expire(total);
                    sums.late(tokens(actual));
                }
            }
        }
        sums
    }
}

struct Pair {
    ledger: Ledger,
    model: Model,
    entries: Vec<Entry>,
}

impl Pair {
    fn at(&self) -> At {
        At { wall: Wall::from_millis(self.model.wall), ..at(self.model.now) }
    }

    fn step(&mut self, op: &Op) {
        let made = self.entries.len();
        match *op {
            Op::Wait(millis) => {
                self.model.now += millis;
                self.model.wall += millis;
            }
            Op::ClockBack(millis) => {
                let at = At { wall: Wall::from_millis(self.model.wall - millis), ..self.at() };
                self.ledger.close_due(at, 100, &mut self.entries);
            }
            Op::Reserve { id, user, amount } => self.reserve(id, user, amount),
            Op::Extend { id, total } => self.extend(id, total),
            Op::Settle { id, actual } => self.settle(id, actual),
            Op::Refund { id } => {
                let at = self.at();
                let live = self.model.find(id).filter(|past| past.state == State::Live);
                let refunded = self.ledger.refund(at, hold(id), &mut self.entries);
                assert_eq!(refunded, live.is_some());
                live.into_iter().for_each(|past| past.state = State::Refunded);
            }
            Op::Expire => {
                let (at, now) = (self.at(), self.model.now);
                assert!(self.ledger.expire(at, 1_000, &mut self.entries).is_continue());
                for past in &mut self.model.past {
                    if past.state == State::Live && past.expires <= now {
                        past.state = State::Expired;
                    }
                }
            }
        }
        self.compare(made);
    }

    fn reserve(&mut self, id: u64, user: u64, amount: u64) {
        let accounts = [TENANT, AccountId(10 + user)];
        let (at, pinned) = (self.at(), self.model.wall);
        let ttl = Duration::from_millis(TTL);
        let paying = accounts.map(|account| (account, limits(account))).to_vec();
        let draw = Draw { hold: hold(id), accounts: paying, amount: tokens(amount), ttl };
        let answer = self.ledger.reserve(at, &draw, &mut self.entries);
        let fits = self.model.fits(accounts, pinned, amount);
        let (made, expires) = (self.model.wall, self.model.now + TTL);
        match self.model.find(id) {
            Some(past) if past.state == State::Live => {
                assert_eq!(answer, Ok(tokens(past.total)));
                past.expires = expires;
            }
            Some(_) => assert_eq!(answer.unwrap_err().reason, DenyReason::Ended),
            None => {
                assert_eq!(answer.is_ok(), fits, "{answer:?}");
                if fits {
                    let state = State::Live;
                    let late = vec![];
                    let past = Past { id, accounts, made, total: amount, expires, state, late };
                    self.model.past.push(past);
                }
            }
        }
    }

    fn extend(&mut self, id: u64, total: u64) {
        let at = self.at();
        let answer = self.ledger.extend_to(at, hold(id), tokens(total), &mut self.entries);
        let Some(past) = self.model.find(id).filter(|past| past.state == State::Live).cloned()
        else {
            assert_eq!(answer.unwrap_err().reason, DenyReason::Ended);
            return;
        };
        let more = total.saturating_sub(past.total);
        let fits = self.model.fits(past.accounts, past.made, more);
        assert_eq!(answer.is_ok(), fits, "{answer:?}");
        let expires = self.model.now + TTL;
        if let Some(past) = self.model.find(id).filter(|_| fits) {
            past.total += more;
            past.expires = expires;
        }
    }

    fn settle(&mut self, id: u64, actual: u64) {
        let at = self.at();
        let settled = self.ledger.settle(at, hold(id), tokens(actual), false, &mut self.entries);
        let pins = self.entries.iter().rev().find_map(|entry| match &entry.fact {
            Fact::Late { hold: late, pins, .. } if *late == hold(id) => Some(pins.clone()),
            _ => None,
        });
        let (expected, next) = match self.model.find(id).map(|past| past.state) {
            Some(State::Live) => (Settled::Charged, State::Settled(actual)),
            Some(State::Expired) => (Settled::Late, State::Late(actual)),
            Some(State::Settled(_) | State::Refunded | State::Late(_)) | None => {
                assert_eq!(settled, Settled::Ignored);
                return;
            }
        };
        assert_eq!(settled, expected);
        let past = self.model.find(id).unwrap();
        past.state = next;
        past.late = pins.unwrap_or_default();
    }

    fn compare(&self, made: usize) {
        self.ledger.invariants();
        let audit = self.ledger.audit();
        let mut days: BTreeMap<AccountId, Sums> = BTreeMap::new();
        let open = audit.balances.iter().filter(|(key, _)| key.window.kind() == WindowKind::Day);
        let open = open.map(|(key, sums)| (key.account, sums));
        let closed = audit.history.iter().filter(|(_, kind, _)| *kind == WindowKind::Day);
        for (account, sums) in open.chain(closed.map(|(account, _, sums)| (*account, sums))) {
            days.entry(account).or_default().absorb(sums);
        }
        for (account, sums) in days {
            let forgiven = sums.forgiven;
            let all = Sums { spent: sums.spent + forgiven, forgiven: Amount::ZERO, ..sums };
            assert_eq!(all, self.model.sums(account), "{account}");
        }
        let mut folded = Ledger::new(self.ledger.config().clone());
        if made != self.entries.len() {
            self.entries.iter().for_each(|entry| folded.apply(entry));
            assert_eq!(folded.audit(), audit, "the entries say the same");
            assert!(folded.live().eq(self.ledger.live()));
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let id = 0_u64..24;
    let op = prop_oneof![
        3 => prop_oneof![0_u64..3_000, 3_000_u64..40_000, 1_000_000_u64..50_000_000]
            .prop_map(Op::Wait),
        8 => (id.clone(), 0_u64..3, 0_u64..200)
            .prop_map(|(id, user, amount)| Op::Reserve { id, user, amount }),
        3 => (id.clone(), 0_u64..300).prop_map(|(id, total)| Op::Extend { id, total }),
        5 => (id.clone(), 0_u64..300).prop_map(|(id, actual)| Op::Settle { id, actual }),
        1 => id.prop_map(|id| Op::Refund { id }),
        2 => Just(Op::Expire),
        1 => (0_u64..NOON).prop_map(Op::ClockBack),
    ];
    prop::collection::vec(op, 1..70)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_decides_as_one_that_counts_everything_from_scratch(ops in ops()) {
        let ledger = Ledger::new(LedgerConfig {
            remember: Duration::from_secs(1_000_000),
            ..LedgerConfig::default()
        });
        let model = Model { wall: NOON, ..Model::default() };
        let mut pair = Pair { ledger, model, entries: Vec::new() };
        for op in &ops {
            pair.step(op);
        }
        let bytes = postcard::to_allocvec(&pair.ledger).unwrap();
        let restored: Ledger = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(restored, pair.ledger);
    }
}

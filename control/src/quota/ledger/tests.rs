#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::super::terms::{Cap, OwnerId, Rolling};
use super::*;
use crate::id::{Minted, ReservationId};
use crate::units::{MicroUsd, Tokens};

pub(super) const TENANT: AccountId = AccountId(1);
const USER: AccountId = AccountId(2);
const HOUR: u64 = 3_600_000;
/// Noon of a day in the middle of a month.
pub(super) const NOON: u64 = 20_588 * 24 * HOUR + 12 * HOUR;

pub(super) fn hold(counter: u64) -> HoldId {
    HoldId::request(OwnerId(0), ReservationId(Minted { incarnation: 1, counter }))
}

pub(super) fn at(millis: u64) -> At {
    let now = Instant::from_nanos(millis * 1_000_000);
    At { now, wall: Wall::from_millis(NOON + millis) }
}

pub(super) fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

pub(super) fn cap(count: u64) -> Cap {
    Cap { tokens: Some(Tokens(count)), money: None }
}

fn daily(count: u64) -> Limits {
    Limits { day: cap(count), ..Limits::default() }
}

struct Case {
    ledger: Ledger,
    entries: Vec<Entry>,
}

impl Case {
    fn new(config: LedgerConfig) -> Self {
        Self { ledger: Ledger::new(config), entries: Vec::new() }
    }

    fn reserve(&mut self, at: At, id: u64, limits: Limits, amount: u64) -> Result<u64, Denied> {
        self.reserve_in(at, id, &[(TENANT, limits)], tokens(amount))
    }

    fn reserve_in(
        &mut self,
        at: At,
        id: u64,
        accounts: &[(AccountId, Limits)],
        amount: Amount,
    ) -> Result<u64, Denied> {
        let (accounts, ttl) = (accounts.to_vec(), Duration::from_secs(60));
        let draw = Draw { hold: hold(id), accounts, amount, ttl };
        let answer = self.ledger.reserve(at, &draw, &mut self.entries);
        self.ledger.invariants();
        answer.map(|total| total.tokens.0)
    }

    fn settle(&mut self, at: At, id: u64, actual: u64) -> Settled {
        let settled = self.ledger.settle(at, hold(id), tokens(actual), false, &mut self.entries);
        self.ledger.invariants();
        settled
    }

    fn refund(&mut self, at: At, id: u64) -> bool {
        self.ledger.refund(at, hold(id), &mut self.entries)
    }

    fn expire(&mut self, at: At) {
        assert!(self.ledger.expire(at, 100, &mut self.entries).is_continue());
        self.ledger.invariants();
    }

    fn today(&self, at: At) -> Sums {
        let key = BalanceKey { account: TENANT, window: Window::Day(at.wall.day()) };
        self.ledger.balance(&key).copied().unwrap_or_default()
    }
}

fn case() -> Case {
    Case::new(LedgerConfig::default())
}

fn spent(denied: Denied) -> (WindowKind, Unit, u64, Duration) {
    match denied.reason {
        DenyReason::Spent { window, unit, remaining, .. } => {
            (window, unit, unit.of(remaining), denied.retry_after)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_used_is_there_again_and_what_is_used_is_not() {
    let mut case = case();
    assert_eq!(case.reserve(at(0), 1, daily(100), 80), Ok(80));
    let denied = case.reserve(at(0), 2, daily(100), 30).unwrap_err();
    let half_day = Duration::from_millis(12 * HOUR);
    assert_eq!(spent(denied), (WindowKind::Day, Unit::Tokens, 20, half_day));
    assert_eq!(case.settle(at(1), 1, 50), Settled::Charged);
    assert_eq!(case.reserve(at(1), 2, daily(100), 50), Ok(50));
    assert!(case.reserve(at(1), 3, daily(100), 1).is_err());
}

#[test]
fn the_same_id_holds_once_and_ends_once() {
    let mut case = case();
    for _ in 0..3 {
        assert_eq!(case.reserve(at(0), 1, daily(100), 40), Ok(40));
    }
    assert_eq!(case.today(at(0)).outstanding, tokens(40));
    assert_eq!(case.settle(at(0), 1, 40), Settled::Charged);
    assert_eq!(case.settle(at(0), 1, 40), Settled::Ignored);
    assert!(!case.refund(at(0), 1));
    assert_eq!(case.today(at(0)).spent, tokens(40));
    let again = case.reserve(at(0), 1, daily(100), 40).unwrap_err();
    assert_eq!(again.reason, DenyReason::Ended);
}

#[test]
fn a_user_out_of_quota_holds_nothing_of_the_tenants() {
    let mut case = case();
    let accounts = [(TENANT, daily(1_000)), (USER, daily(10))];
    let denied = case.reserve_in(at(0), 1, &accounts, tokens(11)).unwrap_err();
    assert!(matches!(denied.reason, DenyReason::Spent { account: USER, .. }));
    assert_eq!(case.today(at(0)), Sums::default());
}

#[test]
fn money_and_tokens_are_held_together_or_not_at_all() {
    let mut case = case();
    let day = Cap { tokens: Some(Tokens(1_000)), money: Some(MicroUsd(50)) };
    let accounts = [(TENANT, Limits { day, ..Limits::default() })];
    let dear = Amount { tokens: Tokens(10), money: MicroUsd(51) };
    let denied = case.reserve_in(at(0), 1, &accounts, dear).unwrap_err();
    assert_eq!(spent(denied).1, Unit::Money);
    let free = Amount { tokens: Tokens(10), money: MicroUsd(50) };
    assert_eq!(case.reserve_in(at(0), 2, &accounts, free), Ok(10));
    let gratis = Amount { tokens: Tokens(10), money: MicroUsd(0) };
    assert_eq!(case.reserve_in(at(0), 3, &accounts, gratis), Ok(10), "a free model costs nothing");
}

#[test]
fn an_overrun_is_charged_and_the_balance_floors_at_zero() {
    let mut case = case();
    case.reserve(at(0), 1, daily(100), 90).unwrap();
    case.settle(at(0), 1, 130);
    let sums = case.today(at(0));
    assert_eq!((sums.charged, sums.overrun, sums.spent), (tokens(130), tokens(40), tokens(130)));
    assert_eq!(case.ledger.remaining(TENANT, WindowKind::Day).tokens, Tokens::ZERO);
    assert!(case.reserve(at(0), 2, daily(100), 1).is_err());
}

#[test]
fn debt_is_taken_from_the_next_day_where_the_account_says_so_and_forgiven_where_not() {
    for (carry_debt, left) in [(true, 60), (false, 100)] {
        let mut case = case();
        let limits = Limits { carry_debt, ..daily(100) };
        case.reserve(at(0), 1, limits, 90).unwrap();
        case.settle(at(0), 1, 140);
        let tomorrow = at(13 * HOUR);
        assert!(case.reserve(tomorrow, 2, limits, left + 1).is_err(), "carry {carry_debt}");
        assert_eq!(case.reserve(tomorrow, 3, limits, left), Ok(left), "carry {carry_debt}");
        let audit = case.ledger.audit();
        let (_, kind, day) = audit.history[0];
        assert_eq!(kind, WindowKind::Day);
        assert_eq!(day.forgiven, tokens(if carry_debt { 0 } else { 40 }));
    }
}

#[test]
fn debt_counts_before_its_day_can_close() {
    let mut case = case();
    let limits = Limits { carry_debt: true, ..daily(100) };
    case.reserve(at(0), 1, limits, 10).unwrap();
    let long = Draw {
        hold: hold(2),
        accounts: vec![(TENANT, limits)],
        amount: tokens(10),
        ttl: Duration::from_millis(24 * HOUR),
    };
    case.ledger.reserve(at(0), &long, &mut case.entries).unwrap();
    case.settle(at(0), 1, 130);
    let tomorrow = at(13 * HOUR);
    assert!(case.reserve(tomorrow, 3, limits, 61).is_err());
    assert_eq!(case.reserve(tomorrow, 4, limits, 60), Ok(60));
    case.settle(tomorrow, 2, 0);
    assert_eq!(case.today(tomorrow).carried, tokens(30), "it has closed");
    assert!(case.reserve(tomorrow, 5, limits, 11).is_err());
    assert_eq!(case.reserve(tomorrow, 6, limits, 10), Ok(10));
}

#[test]
fn a_clock_set_back_reopens_no_window() {
    let mut case = case();
    let tomorrow = at(13 * HOUR);
    case.reserve(tomorrow, 1, daily(100), 100).unwrap();
    let back = At { wall: at(0).wall, ..tomorrow };
    assert!(case.reserve(back, 2, daily(100), 1).is_err());
    assert_eq!(case.ledger.wall(), tomorrow.wall);
}

#[test]
fn a_reservation_counts_in_the_day_it_was_made_in() {
    let mut case = case();
    case.reserve(at(12 * HOUR - 1), 1, daily(100), 100).unwrap();
    let tomorrow = at(12 * HOUR + 10);
    assert_eq!(case.reserve(tomorrow, 2, daily(100), 100), Ok(100));
    case.settle(tomorrow, 1, 100);
    assert_eq!(case.today(tomorrow).used(), tokens(100));
    let history = case.ledger.audit().history;
    assert_eq!(history[0].2.charged, tokens(100), "yesterday has closed behind it");
}

#[test]
fn a_rolling_window_never_holds_more_than_its_cap_and_says_when_there_is_room() {
    let mut case = case();
    let rolling = Some(Rolling { window: Duration::from_millis(32_000), cap: cap(100) });
    let limits = Limits { rolling, ..Limits::default() };
    case.reserve(at(500), 1, limits, 70).unwrap();
    case.settle(at(500), 1, 70);
    case.reserve(at(5_500), 2, limits, 30).unwrap();
    case.settle(at(5_500), 2, 30);
    let denied = case.reserve(at(10_000), 3, limits, 40).unwrap_err();
    // The first slice, of one second, leaves 33 seconds after it began.
    assert_eq!(spent(denied), (WindowKind::Rolling, Unit::Tokens, 0, Duration::from_secs(23)));
    assert!(case.reserve(at(32_999), 3, limits, 40).is_err());
    assert_eq!(case.reserve(at(33_000), 3, limits, 40), Ok(40));
}

#[test]
fn what_its_owner_forgot_returns_by_itself_and_late_usage_is_charged_once() {
    let mut case = case();
    case.reserve(at(0), 1, daily(100), 100).unwrap();
    case.expire(at(59_999));
    assert_eq!(case.ledger.outstanding(), 1);
    case.expire(at(60_000));
    assert_eq!(case.today(at(0)).expired, tokens(100));
    assert_eq!(case.settle(at(60_001), 1, 70), Settled::Late);
    assert_eq!(case.settle(at(60_001), 1, 70), Settled::Ignored);
    let sums = case.today(at(0));
    assert_eq!((sums.late, sums.spent), (tokens(70), tokens(70)));
}

#[test]
fn late_usage_of_a_closed_day_counts_in_the_open_one() {
    let mut case = case();
    case.reserve(at(0), 1, daily(100), 100).unwrap();
    case.expire(at(60_000));
    let tomorrow = at(13 * HOUR);
    case.reserve(tomorrow, 2, daily(100), 10).unwrap();
    // Remembered for two hours only, so the end itself must be young.
    let mut fresh = Case::new(LedgerConfig {
        remember: Duration::from_secs(100 * 3_600),
        ..LedgerConfig::default()
    });
    fresh.reserve(at(0), 1, daily(100), 100).unwrap();
    fresh.expire(at(60_000));
    fresh.reserve(tomorrow, 2, daily(100), 10).unwrap();
    assert_eq!(fresh.settle(tomorrow, 1, 70), Settled::Late);
    assert_eq!(fresh.today(tomorrow).used(), tokens(80));
}

#[test]
fn a_reservation_asked_for_again_lives_longer_and_holds_nothing_twice() {
    let mut case = case();
    for at in [at(0), at(50_000)] {
        assert_eq!(case.reserve(at, 1, daily(100), 40), Ok(40));
    }
    assert_eq!(case.today(at(0)).held, tokens(40));
    case.expire(at(109_999));
    assert_eq!(case.ledger.held(hold(1)), Some(tokens(40)), "from when it was asked for last");
    case.expire(at(111_000));
    assert_eq!(case.ledger.held(hold(1)), None);
}

#[test]
fn an_extension_lives_longer_and_repeated_holds_nothing_twice() {
    let mut case = case();
    case.reserve(at(0), 1, daily(100), 40).unwrap();
    for _ in 0..2 {
        let total = case.ledger.extend_to(at(50_000), hold(1), tokens(90), &mut case.entries);
        assert_eq!(total, Ok(tokens(90)));
    }
    assert_eq!(case.today(at(0)).held, tokens(90));
    assert!(case.ledger.extend_to(at(0), hold(1), tokens(101), &mut case.entries).is_err());
    assert_eq!(case.ledger.held(hold(1)), Some(tokens(90)), "a denied extension changes nothing");
    case.expire(at(109_999));
    assert_eq!(case.ledger.outstanding(), 1);
}

#[test]
fn numbers_stay_where_doubles_are_exact() {
    let mut case = case();
    let denied = case.reserve(at(0), 1, Limits::default(), super::super::MAX_AMOUNT + 1);
    assert_eq!(denied.unwrap_err().reason, DenyReason::TooLarge);
    case.reserve(at(0), 1, Limits::default(), 1).unwrap();
    case.settle(at(0), 1, u64::MAX);
    assert_eq!(case.today(at(0)).spent, tokens(super::super::MAX_AMOUNT));
}

#[test]
fn a_full_ledger_refuses_and_recovers() {
    let mut case =
        Case::new(LedgerConfig { live_max: 1, accounts_max: 1, ..LedgerConfig::default() });
    case.reserve(at(0), 1, daily(100), 1).unwrap();
    assert_eq!(case.reserve(at(0), 2, daily(100), 1).unwrap_err().reason, DenyReason::Full);
    case.settle(at(0), 1, 1);
    let other = [(USER, daily(100))];
    let denied = case.reserve_in(at(0), 3, &other, tokens(1)).unwrap_err();
    assert_eq!(denied.reason, DenyReason::Full, "the account still counts today");
    let next_month = at(31 * 24 * HOUR);
    assert_eq!(case.reserve_in(next_month, 4, &other, tokens(1)), Ok(1));
    let retired: Vec<_> = case.ledger.audit().retired.iter().map(|(_, s)| s.spent).collect();
    assert_eq!(retired, [tokens(1), tokens(1)], "day and month of whoever made room");
}

#[test]
fn a_refund_that_overtakes_its_reservation_prevents_it() {
    let mut case = case();
    case.ledger.release(at(0), hold(1), &mut case.entries);
    let late = case.reserve(at(1), 1, daily(100), 40).unwrap_err();
    assert_eq!(late.reason, DenyReason::Ended);
}

#[test]
fn forgiveness_gives_back_no_more_than_was_spent() {
    let mut case = case();
    case.reserve(at(0), 1, daily(100), 100).unwrap();
    case.settle(at(0), 1, 100);
    case.ledger.forgive(at(0), TENANT, WindowKind::Day, tokens(500), &mut case.entries);
    case.ledger.invariants();
    assert_eq!(case.today(at(0)).forgiven, tokens(100));
    assert_eq!(case.reserve(at(0), 2, daily(100), 100), Ok(100));
}

/// What happens to a reservation in each state: the table of the module's first page, driven.
#[test]
fn the_states_of_a_reservation_are_the_documented_ones() {
    type Event = (&'static str, fn(&mut Case, At) -> String);
    let events: [Event; 7] = [
        ("reserve", |c, t| format!("{:?}", c.reserve(t, 1, daily(100), 40).map_err(|d| d.reason))),
        ("extend", |c, t| {
            let answer = c.ledger.extend_to(t, hold(1), tokens(50), &mut c.entries);
            format!("{:?}", answer.map(|total| total.tokens.0).map_err(|d| d.reason))
        }),
        ("settle", |c, t| format!("{:?}", c.settle(t, 1, 30))),
        ("refund", |c, t| format!("{}", c.refund(t, 1))),
        ("expiry", |c, t| {
            c.expire(At { now: t.now + Duration::from_secs(3_600), ..t });
            String::new()
        }),
        ("pinned", |c, t| {
            let pins = [BalanceKey { account: TENANT, window: Window::Day(t.wall.day()) }];
            let usage = (tokens(30), false);
            let settled = c.ledger.settle_pinned(t, hold(1), (&pins, false), usage, &mut c.entries);
            format!("{settled:?}")
        }),
        ("assert", |c, t| {
            let pins = [BalanceKey { account: TENANT, window: Window::Day(t.wall.day()) }];
            let held = (pins.as_slice(), tokens(40), Duration::from_secs(60));
            let answer = c.ledger.assert_held(t, hold(1), held, &mut c.entries);
            format!("{:?}", answer.map(|total| total.tokens.0).map_err(|d| d.reason))
        }),
    ];
    let mut table = String::new();
    for (state, path) in [
        ("unknown", [].as_slice()),
        ("live", &[0]),
        ("settled", &[0, 2]),
        ("refunded", &[0, 3]),
        ("expired", &[0, 4]),
        ("late", &[0, 4, 2]),
    ] {
        for (name, event) in events {
            let mut case = case();
            path.iter().for_each(|step: &usize| drop(events[*step].1(&mut case, at(0))));
            let answer = event(&mut case, at(0));
            let next = match (case.ledger.held(hold(1)), case.ledger.ended(hold(1))) {
                (Some(_), _) => "live".into(),
                (None, Some(how)) => format!("{how:?}").to_lowercase(),
                (None, None) => String::from("unknown"),
            };
            case.ledger.invariants();
            let line = format!("{state:8} {name:7} -> {next:8} {answer}");
            table += line.trim_end();
            table.push('\n');
        }
    }
    assert_eq!(table, TABLE, "\n{table}");
}

const TABLE: &str = "\
unknown  reserve -> live     Ok(40)
unknown  extend  -> unknown  Err(Ended)
unknown  settle  -> unknown  Ignored
unknown  refund  -> unknown  false
unknown  expiry  -> unknown
unknown  pinned  -> late     Late
unknown  assert  -> live     Ok(40)
live     reserve -> live     Ok(40)
live     extend  -> live     Ok(50)
live     settle  -> settled  Charged
live     refund  -> refunded true
live     expiry  -> expired
live     pinned  -> settled  Charged
live     assert  -> live     Ok(40)
settled  reserve -> settled  Err(Ended)
settled  extend  -> settled  Err(Ended)
settled  settle  -> settled  Ignored
settled  refund  -> settled  false
settled  expiry  -> settled
settled  pinned  -> settled  Ignored
settled  assert  -> settled  Err(Ended)
refunded reserve -> refunded Err(Ended)
refunded extend  -> refunded Err(Ended)
refunded settle  -> refunded Ignored
refunded refund  -> refunded false
refunded expiry  -> refunded
refunded pinned  -> late     Late
refunded assert  -> refunded Err(Ended)
expired  reserve -> expired  Err(Ended)
expired  extend  -> expired  Err(Ended)
expired  settle  -> late     Late
expired  refund  -> expired  false
expired  expiry  -> expired
expired  pinned  -> late     Late
expired  assert  -> expired  Err(Ended)
late     reserve -> late     Err(Ended)
late     extend  -> late     Err(Ended)
late     settle  -> late     Ignored
late     refund  -> late     false
late     expiry  -> late
late     pinned  -> late     Ignored
late     assert  -> late     Err(Ended)
";

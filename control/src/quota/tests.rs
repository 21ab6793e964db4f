#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use alloc::format;
use alloc::string::String;
use alloc::vec;

mod late;

use super::*;
use crate::id::{AccountId, Minted};

const TENANT: AccountId = AccountId(1);

fn id(counter: u64) -> ReservationId {
    ReservationId(Minted { incarnation: 1, counter })
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn ask(counter: u64, amount: u64) -> Reserve {
    let day = Cap { tokens: Some(Tokens(1_000)), money: None };
    let accounts = vec![(TENANT, Limits { day, ..Limits::default() })];
    let ttl = Duration::from_secs(60);
    Reserve { id: id(counter), accounts, amount: tokens(amount), ttl }
}

fn drain(quota: &mut Quota) -> Vec<Event> {
    core::iter::from_fn(|| quota.poll_event()).collect()
}

fn embedded_room() -> Quota {
    let mut quota = Quota::new(Config::default());
    quota.wall(at(0), Wall::from_millis(1_790_000_000_000));
    quota
}

fn shared_room() -> Quota {
    Quota::new(Config { store: StoreMode::Shared, allotment: Amount::ZERO, ..Config::default() })
}

fn sent(events: &[Event]) -> Vec<&StoreOp> {
    let op = |event: &Event| matches!(event, Event::Ask(_));
    let asks = events.iter().filter(|event| op(event));
    asks.filter_map(|event| if let Event::Ask(op) = event { Some(op) } else { None }).collect()
}

fn granted(op: &StoreOp, counter: u64, total: u64) -> StoreAnswer {
    let hold = HoldId::request(OwnerId::default(), id(counter));
    let pins = vec![BalanceKey { account: TENANT, window: Window::Day(7) }];
    let reply = Reply::Granted { hold, total: tokens(total), pins };
    StoreAnswer { op: op.op, run: RunId(1), reply }
}

#[test]
fn an_embedded_ledger_answers_at_once_and_its_entries_come_first() {
    let mut quota = embedded_room();
    quota.reserve(at(0), ask(1, 100));
    let events = drain(&mut quota);
    let last = events.last().unwrap();
    assert_eq!(*last, Event::Granted { id: id(1), total: tokens(100) });
    let entries = events[..events.len() - 1].iter();
    assert!(entries.clone().all(|event| matches!(event, Event::Entry(_))) && entries.len() == 2);
}

#[test]
fn a_room_that_kept_nothing_yet_goes_where_it_is_told_and_then_stays() {
    let shared = Config { store: StoreMode::Shared, owner: OwnerId(5), ..Config::default() };
    let mut quota = embedded_room();
    quota.set_config(shared.clone());
    quota.reserve(at(0), ask(1, 100));
    let asked = drain(&mut quota);
    assert_eq!(sent(&asked)[0].owner, OwnerId(5), "it asks the store");
    quota.set_config(Config::default());
    assert_eq!((quota.config().store, quota.config().owner), (StoreMode::Shared, OwnerId(5)));
    assert_eq!(quota.outstanding(), 1, "what was asked for is still waited for");

    let mut quota = embedded_room();
    quota.reserve(at(0), ask(1, 100));
    quota.set_config(shared);
    assert_eq!(quota.config().store, StoreMode::Embedded);
    assert_eq!(quota.held(id(1)), Some(tokens(100)));
}

#[test]
fn a_stream_is_extended_slice_by_slice_until_its_limit() {
    let mut quota = embedded_room();
    quota.reserve(at(0), ask(1, 256));
    assert!(!quota.wants_extension(id(1), Tokens(128)));
    assert!(quota.wants_extension(id(1), Tokens(129)));
    for _ in 0..2 {
        quota.extend(at(0), id(1), tokens(256));
    }
    quota.extend(at(0), id(1), tokens(256));
    let events = drain(&mut quota);
    assert!(events.contains(&Event::Extended { id: id(1), total: tokens(768) }));
    assert!(matches!(events.last(), Some(Event::ExtendDenied { .. })));
    quota.settle(at(1), id(1), tokens(700), false);
    assert_eq!(quota.ledger().unwrap().remaining(TENANT, WindowKind::Day).tokens, Tokens(300));
}

#[test]
fn what_expired_here_frees_its_quota_at_its_time() {
    let mut quota = embedded_room();
    quota.reserve(at(0), ask(1, 1_000));
    assert_eq!(quota.poll_timeout(), Some(at(60_000)));
    quota.handle_timeout(at(60_000));
    assert_eq!((quota.outstanding(), quota.poll_timeout()), (0, None));
    quota.reserve(at(60_000), ask(2, 1_000));
    assert_eq!(quota.held(id(2)), Some(tokens(1_000)));
}

#[test]
fn entries_alone_bring_back_every_balance_and_what_is_live() {
    let mut quota = embedded_room();
    quota.reserve(at(0), ask(1, 100));
    quota.reserve(at(0), ask(2, 200));
    quota.extend(at(1), id(2), tokens(50));
    quota.settle(at(2), id(1), tokens(120), true);
    let mut restored = Quota::new(Config::default());
    for event in drain(&mut quota) {
        if let Event::Entry(entry) = event {
            restored.apply_entry(&entry);
        }
    }
    assert_eq!(restored.audit(), quota.audit());
    assert!(restored.live().eq([id(2)]));
    assert_eq!(restored.poll_event(), None);
}

#[test]
fn a_restored_snapshot_has_the_same_future() {
    for mut quota in [embedded_room(), shared_room()] {
        quota.reserve(at(0), ask(1, 100));
        let bytes = postcard::to_allocvec(&quota).unwrap();
        let mut restored: Quota = postcard::from_bytes(&bytes).unwrap();
        for quota in [&mut quota, &mut restored] {
            quota.reserve(at(5), ask(2, 950));
            quota.handle_timeout(at(300));
            quota.settle(at(301), id(1), tokens(10), false);
        }
        assert_eq!(drain(&mut quota), drain(&mut restored));
        assert_eq!(quota, restored);
    }
}

#[test]
fn a_shared_ledger_is_asked_and_its_answer_takes_the_same_path() {
    let mut quota = shared_room();
    quota.reserve(at(0), ask(1, 100));
    let events = drain(&mut quota);
    assert_eq!((events.len(), quota.outstanding(), quota.held(id(1))), (1, 1, None));
    let answer = granted(sent(&events)[0], 1, 100);
    quota.answer(at(1), answer.clone());
    let events = drain(&mut quota);
    assert_eq!(events.last(), Some(&Event::Granted { id: id(1), total: tokens(100) }));
    quota.answer(at(1), answer);
    assert_eq!(drain(&mut quota), [], "a second answer changes nothing");
    quota.invariants();
}

#[test]
fn a_store_that_never_answers_hangs_no_request() {
    let mut quota = shared_room();
    quota.reserve(at(0), ask(1, 100));
    let ask_op = sent(&drain(&mut quota))[0].clone();
    // Nothing is drawn ahead: a slow store is better than a refusal.
    quota.handle_timeout(at(50));
    assert_eq!(drain(&mut quota), []);
    assert_eq!(quota.poll_timeout(), Some(at(250)));
    quota.handle_timeout(at(250));
    let events = drain(&mut quota);
    let denied =
        Denied { reason: DenyReason::StoreUnreachable, retry_after: Duration::from_secs(1) };
    assert!(events.contains(&Event::Degraded));
    assert!(events.contains(&Event::Denied { id: id(1), denied }));
    assert_eq!((quota.outstanding(), quota.ending()), (0, 1), "what it may have granted goes back");
    quota.answer(at(400), granted(&ask_op, 1, 100));
    assert_eq!(drain(&mut quota), [Event::Restored]);
    let mut now = at(400);
    let mut refunds = 0;
    while let Some(due) = quota.poll_timeout().filter(|due| *due < at(2_000)) {
        now = now.max(due);
        quota.handle_timeout(now);
        let events = drain(&mut quota);
        for op in sent(&events) {
            refunds += usize::from(matches!(op.ask, Ask::Refund { .. }));
            let answer = StoreAnswer { op: op.op, run: RunId(1), reply: Reply::Done };
            quota.answer(now, answer);
        }
        quota.invariants();
    }
    assert_eq!((refunds, quota.ending()), (1, 0));
}

#[test]
fn answers_nobody_asked_for_change_nothing() {
    let mut quota = shared_room();
    for op in [0, 1, u64::MAX] {
        for reply in [
            Reply::Done,
            Reply::Here,
            Reply::OtherRun,
            Reply::Denied(Denied::never(DenyReason::Ended)),
        ] {
            quota.answer(at(0), StoreAnswer { op: OpId(op), run: RunId(op), reply });
        }
    }
    assert_eq!(drain(&mut quota), []);
    assert_eq!(quota.outstanding(), 0);
    quota.invariants();
}

#[test]
fn who_heard_of_two_new_runs_in_the_wrong_order_is_not_turned_away_for_ever() {
    let mut quota = shared_room();
    // Answers of other tenants' asks.
    for run in [1, 3, 2] {
        let (op, reply) = (OpId(u64::MAX), Reply::Done);
        quota.answer(at(0), StoreAnswer { op, run: RunId(run), reply });
    }
    quota.reserve(at(1), ask(1, 100));
    let mut events = drain(&mut quota);
    for _ in 0..3 {
        for op in sent(&events.clone()) {
            let reply = match op.run {
                Some(RunId(3)) => granted(op, 1, 100).reply,
                _ => Reply::OtherRun,
            };
            quota.answer(at(2), StoreAnswer { op: op.op, run: RunId(3), reply });
        }
        quota.handle_timeout(at(2));
        events.extend(drain(&mut quota));
        if events.contains(&Event::Granted { id: id(1), total: tokens(100) }) {
            return;
        }
        events.retain(|event| matches!(event, Event::Ask(op) if op.run.is_some()));
        events = events.split_off(events.len().saturating_sub(1));
    }
    panic!("turned away each time: {events:?}");
}

#[test]
fn an_end_that_is_never_acknowledged_is_given_up_and_said_so() {
    let mut quota = shared_room();
    quota.reserve(at(0), ask(1, 100));
    let op = sent(&drain(&mut quota))[0].clone();
    quota.answer(at(1), granted(&op, 1, 100));
    quota.settle(at(2), id(1), tokens(60), false);
    let mut lost = 0;
    while let Some(due) = quota.poll_timeout().filter(|due| *due < at(2 * 3_600_000)) {
        quota.handle_timeout(due);
        let events = drain(&mut quota);
        lost += events.iter().filter(|event| matches!(event, Event::Lost { .. })).count();
    }
    assert_eq!((lost, quota.ending()), (1, 0));
    quota.invariants();
}

#[test]
fn an_owner_remembers_what_it_has_to_settle_over_an_upgrade() {
    let mut quota = shared_room();
    quota.reserve(at(0), ask(1, 100));
    quota.reserve(at(0), ask(2, 100));
    let mut entries = Vec::new();
    let asked = drain(&mut quota);
    for (counter, op) in sent(&asked).into_iter().enumerate() {
        quota.answer(at(1), granted(op, counter as u64 + 1, 100));
    }
    quota.settle(at(2), id(1), tokens(60), false);
    entries.extend(drain(&mut quota).into_iter().filter_map(|event| match event {
        Event::Entry(entry) => Some(entry),
        _ => None,
    }));
    let mut restored = shared_room();
    entries.iter().for_each(|entry| restored.apply_entry(entry));
    assert!(restored.live().eq([id(2)]));
    assert_eq!(restored.ending(), 1);
    restored.handle_timeout(at(10_000));
    let events = drain(&mut restored);
    assert!(matches!(sent(&events)[0].ask, Ask::Settle { confirmed: None, .. }));
    restored.invariants();
}

/// A room in which request 1 is in that state. Whatever is lent comes from an allotment drawn for request 9.
fn room_in(state: &str) -> Quota {
    let mut quota = with_300_drawn_ahead();
    if state != "unknown" {
        quota.reserve(at(3), ask(1, 100));
        let op = sent(&drain(&mut quota))[0].clone();
        match state {
            "held" => quota.answer(at(4), granted(&op, 1, 100)),
            "lent" => quota.handle_timeout(at(253)),
            _ => {}
        }
    }
    drain(&mut quota);
    quota
}

/// A room that was granted request 9, and drew ahead behind it.
fn with_300_drawn_ahead() -> Quota {
    let allotment = tokens(300);
    let mut quota = Quota::new(Config { store: StoreMode::Shared, allotment, ..Config::default() });
    quota.reserve(at(0), ask(9, 10));
    let first = sent(&drain(&mut quota))[0].clone();
    quota.answer(at(1), granted(&first, 9, 10));
    let draw = sent(&drain(&mut quota))[0].clone();
    let Ask::Reserve(Draw { hold, .. }) = &draw.ask else { panic!("{draw:?}") };
    let pins = vec![BalanceKey { account: TENANT, window: Window::Day(7) }];
    let reply = Reply::Granted { hold: *hold, total: allotment, pins };
    quota.answer(at(2), StoreAnswer { op: draw.op, run: RunId(1), reply });
    drain(&mut quota);
    quota
}

/// What an owner does in each state of a reservation: the table of the module's first page, driven.
#[test]
fn the_states_of_a_reservation_at_its_owner_are_the_documented_ones() {
    let answer = |quota: &mut Quota, reply| {
        // Request 1 is the third ask; where it has gone, the answer is a stray one.
        quota.answer(at(260), StoreAnswer { op: OpId(2), run: RunId(1), reply });
    };
    let mut table = String::new();
    for state in ["unknown", "asked", "held", "lent"] {
        for event in ["granted", "denied", "silence", "extend", "settle", "refund"] {
            let mut quota = room_in(state);
            let before = quota.ending();
            match event {
                "granted" => {
                    let op = StoreOp {
                        op: OpId(2),
                        owner: OwnerId::default(),
                        run: None,
                        tenant: None,
                        ask: Ask::Probe,
                    };
                    answer(&mut quota, granted(&op, 1, 100).reply);
                }
                "denied" => answer(&mut quota, Reply::Denied(Denied::never(DenyReason::Full))),
                "silence" => quota.handle_timeout(at(253)),
                "extend" => quota.extend(at(260), id(1), tokens(50)),
                "settle" => quota.settle(at(260), id(1), tokens(60), false),
                _ => quota.refund(at(260), id(1)),
            }
            quota.invariants();
            let next = match (quota.held(id(1)), quota.live().any(|live| live == id(1))) {
                (Some(_), _) => "held",
                (None, true) => "asked",
                (None, false) => "gone",
            };
            let ends = if quota.ending() > before { " and an end to be told" } else { "" };
            let told = drain(&mut quota).into_iter().filter_map(|event| match event {
                Event::Granted { .. } => Some(" granted"),
                Event::Denied { .. } => Some(" denied"),
                Event::Extended { .. } => Some(" extended"),
                Event::ExtendDenied { .. } => Some(" not extended"),
                Event::Ask(StoreOp { ask: Ask::Extend { .. }, .. }) => Some(" asked"),
                _ => None,
            });
            let told: String = told.collect();
            let line = format!("{state:7} {event:7} -> {next:5}{told}{ends}");
            table += line.trim_end();
            table.push('\n');
        }
    }
    assert_eq!(table, OWNER_TABLE, "\n{table}");
}

const OWNER_TABLE: &str = "\
unknown granted -> gone  and an end to be told
unknown denied  -> gone
unknown silence -> gone
unknown extend  -> gone  not extended
unknown settle  -> gone
unknown refund  -> gone
asked   granted -> held  granted
asked   denied  -> gone  denied
asked   silence -> held  granted and an end to be told
asked   extend  -> asked not extended
asked   settle  -> gone  and an end to be told
asked   refund  -> gone  and an end to be told
held    granted -> held
held    denied  -> held
held    silence -> held
held    extend  -> held  asked
held    settle  -> gone  and an end to be told
held    refund  -> gone  and an end to be told
lent    granted -> held
lent    denied  -> held
lent    silence -> held
lent    extend  -> held  extended
lent    settle  -> gone
lent    refund  -> gone
";

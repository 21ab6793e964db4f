#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::Minted;

const KEY: SessionKey = SessionKey(7);

#[test]
fn every_session_answers_every_event_as_the_table_says() {
    let expected = "\
idle    | begin new        | Go                      | running 9
idle    | begin running    | Go                      | running 1
idle    | begin waiting    | Go                      | running 2
idle    | end running      | None                    | idle
idle    | end waiting      | None                    | idle
idle    | end stranger     | None                    | idle
idle    | timer            | []                      | idle
running | begin new        | Wait { position: 0 }    | running 1, then 9
running | begin running    | Go                      | running 1
running | begin waiting    | Wait { position: 0 }    | running 1, then 2
running | end running      | None                    | idle
running | end waiting      | None                    | running 1
running | end stranger     | None                    | running 1
running | timer            | []                      | running 1
waited  | begin new        | Wait { position: 2 }    | running 1, then 2 3 9
waited  | begin running    | Go                      | running 1, then 2 3
waited  | begin waiting    | Wait { position: 0 }    | running 1, then 2 3
waited  | end running      | Some(req_0-2)           | running 2, then 3
waited  | end waiting      | None                    | running 1, then 3
waited  | end stranger     | None                    | running 1, then 2 3
waited  | timer            | [req_0-2, req_0-3]      | running 1
full    | begin new        | Refused(TooManyWaiting) | running 1, then 2 3 4 5
full    | begin running    | Go                      | running 1, then 2 3 4 5
full    | begin waiting    | Wait { position: 0 }    | running 1, then 2 3 4 5
full    | end running      | Some(req_0-2)           | running 2, then 3 4 5
full    | end waiting      | None                    | running 1, then 3 4 5
full    | end stranger     | None                    | running 1, then 2 3 4 5
full    | timer            | [req_0-2, req_0-3, req_0-4, req_0-5] | running 1
";
    let mut actual = String::new();
    for (name, turns) in [("idle", 0), ("running", 1), ("waited", 3), ("full", 5)] {
        for event in EVENTS {
            let mut turns = with_turns(turns);
            let answer = drive(&mut turns, event);
            turns.invariants();
            actual += &format!("{name:<7} | {event:<16} | {answer:<23} | {}\n", told(&turns));
        }
    }
    assert_eq!(actual, expected, "\n{actual}");
}

#[test]
fn turns_run_one_at_a_time_in_order_of_arrival() {
    let mut turns = with_turns(4);
    let mut running = request(1);
    let mut order = Vec::new();
    while let Some(next) = turns.end_turn(KEY, running) {
        order.push(next);
        running = next;
    }
    assert_eq!(order, [request(2), request(3), request(4)]);
    assert!(turns.is_empty() && turns.poll_timeout().is_none());
}

#[test]
fn a_client_that_leaves_the_line_lets_the_others_move_up() {
    let mut turns = with_turns(4);
    assert_eq!(turns.end_turn(KEY, request(2)), None);
    assert_eq!(turns.begin_turn(AT, KEY, request(3)), Turn::Wait { position: 0 });
    assert_eq!(turns.end_turn(KEY, request(1)), Some(request(3)));
}

#[test]
fn who_waited_too_long_is_refused_and_later_ones_go_on_waiting() {
    let mut turns = with_turns(2);
    let later = AT + Duration::from_secs(10);
    turns.begin_turn(later, KEY, request(3));
    let due = turns.poll_timeout().unwrap();
    assert_eq!(due, AT + Duration::from_secs(30));
    assert_eq!(turns.handle_timeout(due), [(KEY, request(2))]);
    assert_eq!(turns.handle_timeout(due), []);
    assert_eq!(turns.end_turn(KEY, request(1)), Some(request(3)));
}

#[test]
fn sessions_do_not_wait_for_each_other() {
    let mut turns = with_turns(3);
    assert_eq!(turns.begin_turn(AT, SessionKey(8), request(9)), Turn::Go);
    assert_eq!(turns.end_turn(SessionKey(8), request(1)), None, "not his session");
    assert_eq!(told(&turns), "running 1, then 2 3");
}

#[test]
fn more_sessions_than_may_be_are_refused_and_say_so() {
    let mut turns = Turns::new(Config { sessions_max: 2, ..Config::default() });
    assert_eq!(turns.begin_turn(AT, SessionKey(1), request(1)), Turn::Go);
    assert_eq!(turns.begin_turn(AT, SessionKey(2), request(2)), Turn::Go);
    let third = turns.begin_turn(AT, SessionKey(3), request(3));
    assert_eq!(third, Turn::Refused(TurnRefused::TooManySessions));
    assert_eq!(turns.begin_turn(AT, SessionKey(1), request(4)), Turn::Wait { position: 0 });
}

#[test]
fn many_that_waited_too_long_are_refused_in_bounded_calls() {
    let mut turns = Turns::new(Config { waiting_max: 100, ..Config::default() });
    for n in 0..101 {
        turns.begin_turn(AT, KEY, request(n));
    }
    let late = AT + Duration::from_secs(60);
    assert_eq!(turns.handle_timeout(late).len(), TIMEOUTS_PER_CALL);
    assert!(turns.poll_timeout().unwrap() <= late);
    assert_eq!(turns.handle_timeout(late).len(), 100 - TIMEOUTS_PER_CALL);
    assert_eq!(told(&turns), "running 0");
}

#[test]
fn a_shorter_line_by_configuration_sends_nobody_away() {
    let mut turns = with_turns(5);
    turns.set_config(Config { waiting_max: 1, ..Config::default() });
    turns.invariants();
    assert_eq!(told(&turns), "running 1, then 2 3 4 5");
    let refused = turns.begin_turn(AT, KEY, request(6));
    assert_eq!(refused, Turn::Refused(TurnRefused::TooManyWaiting));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn turns_are_a_list_of_arrivals_for_each_session(
        ops in prop::collection::vec((0_u8..12, 0_u64..3, 0_u64..12), 1..150),
    ) {
        let config = Config { sessions_max: 2, waiting_max: 3, ..Config::default() };
        let mut turns = Turns::new(config);
        // (session, request, until), in order of arrival: the first of a session runs.
        let mut lines: Vec<(u64, u64, Instant)> = Vec::new();
        let mut now = AT;
        for (kind, key, n) in ops {
            match kind {
                0..6 => {
                    let told = turns.begin_turn(now, SessionKey(key), request(n));
                    prop_assert_eq!(told, begin(&mut lines, key, n, now + Duration::from_secs(30)));
                }
                6..10 => {
                    let told = turns.end_turn(SessionKey(key), request(n));
                    prop_assert_eq!(told, end(&mut lines, key, n));
                }
                _ => {
                    now = now + Duration::from_secs(n * 2);
                    let told = turns.handle_timeout(now);
                    prop_assert_eq!(told.len(), expire(&mut lines, now));
                }
            }
            turns.invariants();
            let bytes = postcard::to_allocvec(&turns).unwrap();
            turns = postcard::from_bytes(&bytes).unwrap();
        }
    }
}

fn begin(lines: &mut Vec<(u64, u64, Instant)>, key: u64, n: u64, until: Instant) -> Turn {
    let line: Vec<_> = lines.iter().filter(|l| l.0 == key).map(|l| l.1).collect();
    let mut sessions: Vec<_> = lines.iter().map(|l| l.0).collect();
    sessions.sort_unstable();
    sessions.dedup();
    let stands = line.iter().position(|m| *m == n);
    if stands.is_none() && line.is_empty() && sessions.len() == 2 {
        return Turn::Refused(TurnRefused::TooManySessions);
    }
    if stands.is_none() && line.len() > 3 {
        return Turn::Refused(TurnRefused::TooManyWaiting);
    }
    if stands.is_none() {
        lines.push((key, n, until));
    }
    match stands.unwrap_or(line.len()) {
        0 => Turn::Go,
        at => Turn::Wait { position: u32::try_from(at - 1).unwrap() },
    }
}

fn end(lines: &mut Vec<(u64, u64, Instant)>, key: u64, n: u64) -> Option<RequestId> {
    let first = lines.iter().find(|l| l.0 == key).map(|l| l.1);
    lines.retain(|l| (l.0, l.1) != (key, n));
    let next = lines.iter().find(|l| l.0 == key).map(|l| request(l.1));
    next.filter(|_| first == Some(n))
}

fn expire(lines: &mut Vec<(u64, u64, Instant)>, now: Instant) -> usize {
    let before = lines.clone();
    let runs = |l: &(u64, u64, Instant)| before.iter().find(|b| b.0 == l.0) == Some(l);
    lines.retain(|l| runs(l) || l.2 > now);
    before.len() - lines.len()
}

const AT: Instant = Instant::from_nanos(5_000_000_000);

const EVENTS: [&str; 7] = [
    "begin new",
    "begin running",
    "begin waiting",
    "end running",
    "end waiting",
    "end stranger",
    "timer",
];

fn drive(turns: &mut Turns, event: &str) -> String {
    match event {
        "begin new" => format!("{:?}", turns.begin_turn(AT, KEY, request(9))),
        "begin running" => format!("{:?}", turns.begin_turn(AT, KEY, request(1))),
        "begin waiting" => format!("{:?}", turns.begin_turn(AT, KEY, request(2))),
        "end running" => format!("{:?}", turns.end_turn(KEY, request(1))),
        "end waiting" => format!("{:?}", turns.end_turn(KEY, request(2))),
        "end stranger" => format!("{:?}", turns.end_turn(KEY, request(9))),
        "timer" => {
            let refused = turns.handle_timeout(AT + Duration::from_secs(30));
            format!("{:?}", refused.iter().map(|(_, request)| request).collect::<Vec<_>>())
        }
        other => panic!("no such event: {other}"),
    }
}

/// Request 1 runs, 2 and later wait.
fn with_turns(number: u64) -> Turns {
    let mut turns = Turns::new(Config::default());
    for n in 1..=number {
        turns.begin_turn(AT, KEY, request(n));
    }
    turns
}

fn told(turns: &Turns) -> String {
    let Some(session) = turns.sessions.get(&KEY) else { return String::from("idle") };
    let line = session.waiting.iter().map(|w| w.request.0.counter.to_string());
    let line = line.collect::<Vec<_>>().join(" ");
    let then = if line.is_empty() { String::new() } else { format!(", then {line}") };
    format!("running {}{then}", session.running.0.counter)
}

fn request(counter: u64) -> RequestId {
    RequestId(Minted { incarnation: 0, counter })
}

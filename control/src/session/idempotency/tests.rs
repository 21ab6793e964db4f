#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::Minted;

#[test]
fn every_key_answers_every_event_as_the_table_says() {
    let expected = "\
unknown   | begin, same body  | New                      | in flight by 2
unknown   | begin, other body | New                      | in flight by 2
unknown   | success           | -                        | unknown
unknown   | failure           | -                        | unknown
unknown   | other's success   | -                        | unknown
unknown   | other's failure   | -                        | unknown
unknown   | ttl passes        | 0                        | unknown
in flight | begin, same body  | InFlight { by: req_0-1 } | in flight by 1
in flight | begin, other body | Mismatch { by: req_0-1 } | in flight by 1
in flight | success           | -                        | done by 1
in flight | failure           | -                        | unknown
in flight | other's success   | -                        | in flight by 1
in flight | other's failure   | -                        | in flight by 1
in flight | ttl passes        | 0                        | in flight by 1
done      | begin, same body  | Done { by: req_0-1 }     | done by 1
done      | begin, other body | Mismatch { by: req_0-1 } | done by 1
done      | success           | -                        | done by 1
done      | failure           | -                        | done by 1
done      | other's success   | -                        | done by 1
done      | other's failure   | -                        | done by 1
done      | ttl passes        | 1                        | unknown
";
    let mut actual = String::new();
    for state in ["unknown", "in flight", "done"] {
        for event in EVENTS {
            let mut keys = Idempotency::new(Config::default());
            if state != "unknown" {
                begin(&mut keys, AT, 1, SAME, 1);
            }
            if state == "done" {
                finish(&mut keys, AT, 1, 1, true);
            }
            let answer = drive(&mut keys, event);
            keys.invariants();
            actual += &format!("{state:<9} | {event:<17} | {answer:<24} | {}\n", told(&keys));
        }
    }
    assert_eq!(actual, expected, "\n{actual}");
}

#[test]
fn a_failed_request_frees_its_key_so_that_a_retry_runs() {
    let mut keys = Idempotency::new(Config::default());
    begin(&mut keys, AT, 1, SAME, 1);
    finish(&mut keys, AT, 1, 1, false);
    assert_eq!(begin(&mut keys, AT, 1, OTHER, 2), Begun::New);
}

#[test]
fn a_repetition_that_was_turned_away_does_not_free_the_key_of_the_one_that_runs() {
    let mut keys = Idempotency::new(Config::default());
    begin(&mut keys, AT, 1, SAME, 1);
    assert_eq!(begin(&mut keys, AT, 1, SAME, 2), Begun::InFlight { by: request(1) });
    finish(&mut keys, AT, 1, 2, false);
    assert_eq!(begin(&mut keys, AT, 1, SAME, 3), Begun::InFlight { by: request(1) });
}

#[test]
fn tenants_do_not_share_keys() {
    let mut keys = Idempotency::new(Config::default());
    begin(&mut keys, AT, 1, SAME, 1);
    let other = keys.begin(AT, AccountId(2), Digest(1), SAME, request(2));
    assert_eq!((other, keys.len()), (Begun::New, 2));
}

#[test]
fn a_late_timer_does_not_keep_a_key_alive() {
    let mut keys = Idempotency::new(Config::default());
    begin(&mut keys, AT, 1, SAME, 1);
    finish(&mut keys, AT, 1, 1, true);
    let due = keys.poll_timeout().unwrap();
    assert_eq!(due, AT + Duration::from_secs(24 * 60 * 60));
    assert_eq!(begin(&mut keys, due, 1, OTHER, 2), Begun::New);
    keys.invariants();
    assert_eq!(keys.poll_timeout(), None);
}

#[test]
fn a_full_room_forgets_the_oldest_done_key_and_never_one_in_flight() {
    let mut keys = Idempotency::new(Config { idempotency_keys_max: 3, ..Config::default() });
    for n in 1..=3 {
        begin(&mut keys, AT, n, SAME, n);
    }
    assert_eq!(begin(&mut keys, AT, 4, SAME, 4), Begun::Full);
    finish(&mut keys, AT + Duration::from_secs(1), 3, 3, true);
    finish(&mut keys, AT + Duration::from_secs(2), 1, 1, true);
    assert_eq!(begin(&mut keys, AT, 4, SAME, 4), Begun::New);
    assert_eq!(begin(&mut keys, AT, 1, SAME, 5), Begun::Done { by: request(1) });
    assert_eq!(begin(&mut keys, AT, 2, SAME, 5), Begun::InFlight { by: request(2) });
    assert_eq!(begin(&mut keys, AT, 3, SAME, 5), Begun::New, "3 was forgotten; now 1 is");
    assert_eq!((begin(&mut keys, AT, 1, SAME, 6), keys.len()), (Begun::Full, 3));
}

#[test]
fn a_backlog_expires_in_bounded_calls_and_a_new_ttl_holds_for_old_keys() {
    let mut keys = Idempotency::new(Config::default());
    for n in 0..300 {
        begin(&mut keys, AT, n, SAME, n);
        finish(&mut keys, AT, n, n, true);
    }
    keys.set_config(Config { idempotency_ttl: Duration::from_secs(60), ..Config::default() });
    let due = AT + Duration::from_secs(60);
    assert_eq!(keys.poll_timeout(), Some(due));
    assert_eq!(keys.expire(due - Duration::from_nanos(1)), 0);
    assert_eq!(keys.expire(due), EXPIRED_PER_CALL);
    assert!(keys.poll_timeout().unwrap() <= due);
    assert_eq!(keys.expire(due), 300 - EXPIRED_PER_CALL);
    assert!(keys.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn keys_are_a_list_searched_from_the_front(
        ops in prop::collection::vec((0_u8..10, 0_u64..6, 1_u128..3, any::<bool>()), 1..150),
    ) {
        let ttl = Duration::from_secs(20);
        let mut keys = Idempotency::new(Config {
            idempotency_keys_max: 4,
            idempotency_ttl: ttl,
            ..Config::default()
        });
        let mut model: Vec<Line> = Vec::new();
        let mut now = AT;
        for ((kind, key, body, good), n) in ops.into_iter().zip(0..) {
            // Time never stands still here, so that the oldest is one.
            now = now + Duration::from_millis(700);
            match kind {
                0..5 => {
                    let told = begin(&mut keys, now, key, Digest(body), n);
                    model.retain(|l| l.key != key || l.done.is_none_or(|at| now < at + ttl));
                    let line = Line { key, body, n, done: None };
                    prop_assert_eq!(told, model_begin(&mut model, line));
                }
                5..9 => {
                    let by = model.iter().find(|l| l.key == key).map_or(n, |l| l.n);
                    let by = if kind == 8 { by + 1 } else { by };
                    finish(&mut keys, now, key, by, good);
                    model_finish(&mut model, key, by, good.then_some(now));
                }
                _ => {
                    let before = model.len();
                    model.retain(|l| l.done.is_none_or(|at| now < at + ttl));
                    prop_assert_eq!(keys.expire(now), before - model.len());
                }
            }
            keys.invariants();
            prop_assert_eq!(keys.len(), model.len());
            let bytes = postcard::to_allocvec(&keys).unwrap();
            keys = postcard::from_bytes(&bytes).unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    key: u64,
    body: u128,
    n: u64,
    done: Option<Instant>,
}

fn model_begin(model: &mut Vec<Line>, new: Line) -> Begun {
    if let Some(line) = model.iter().find(|l| l.key == new.key) {
        let by = request(line.n);
        return match (line.body == new.body, line.done) {
            (false, _) => Begun::Mismatch { by },
            (true, Some(_)) => Begun::Done { by },
            (true, None) => Begun::InFlight { by },
        };
    }
    if model.len() == 4 {
        let Some(oldest) = model.iter().filter_map(|l| l.done).min() else { return Begun::Full };
        model.retain(|l| l.done != Some(oldest));
    }
    model.push(new);
    Begun::New
}

fn model_finish(model: &mut Vec<Line>, key: u64, by: u64, done: Option<Instant>) {
    let mine = |l: &Line| l.key == key && l.n == by && l.done.is_none();
    match done {
        Some(_) => model.iter_mut().filter(|l| mine(l)).for_each(|l| l.done = done),
        None => model.retain(|l| !mine(l)),
    }
}

const AT: Instant = Instant::from_nanos(5_000_000_000);
const TENANT: AccountId = AccountId(1);
const SAME: Digest = Digest(10);
const OTHER: Digest = Digest(11);

const EVENTS: [&str; 7] = [
    "begin, same body",
    "begin, other body",
    "success",
    "failure",
    "other's success",
    "other's failure",
    "ttl passes",
];

fn drive(keys: &mut Idempotency, event: &str) -> String {
    match event {
        "begin, same body" => return format!("{:?}", begin(keys, AT, 1, SAME, 2)),
        "begin, other body" => return format!("{:?}", begin(keys, AT, 1, OTHER, 2)),
        "success" => finish(keys, AT, 1, 1, true),
        "failure" => finish(keys, AT, 1, 1, false),
        "other's success" => finish(keys, AT, 1, 2, true),
        "other's failure" => finish(keys, AT, 1, 2, false),
        "ttl passes" => return format!("{}", keys.expire(AT + Duration::from_secs(86_400))),
        other => panic!("no such event: {other}"),
    }
    String::from("-")
}

fn told(keys: &Idempotency) -> String {
    let Some(entry) = keys.entries.get(&(TENANT, Digest(1))) else {
        return String::from("unknown");
    };
    let state = if entry.done_at.is_some() { "done" } else { "in flight" };
    format!("{state} by {}", entry.by.0.counter)
}

fn begin(keys: &mut Idempotency, now: Instant, key: u64, body: Digest, n: u64) -> Begun {
    keys.begin(now, TENANT, Digest(u128::from(key)), body, request(n))
}

fn finish(keys: &mut Idempotency, now: Instant, key: u64, n: u64, succeeded: bool) {
    keys.finish(now, TENANT, Digest(u128::from(key)), request(n), succeeded);
}

fn request(counter: u64) -> RequestId {
    RequestId(Minted { incarnation: 0, counter })
}

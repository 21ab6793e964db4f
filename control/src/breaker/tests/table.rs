//! The transition table of the module's documentation, from the machine itself.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use super::*;

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    let expected = "\
closed            | success       | closed 1000, row 0
closed            | failure       | closed 1000, row 1
closed            | backpressure  | closed 1000, row 0
closed            | neutral       | closed 1000, row 0
closed            | fault         | open: the endpoint refuses our key (401): check its api_key
closed            | late success  | closed 1000, row 0
closed            | late failure  | closed 1000, row 0
closed            | timer         | closed 1000, row 0
closed            | reset         | closed 1000, row 0: reset by an operator
closed, row of 4  | success       | closed 1000, row 0
closed, row of 4  | failure       | open: 5 failures in a row
closed, row of 4  | backpressure  | closed 1000, row 4
closed, row of 4  | neutral       | closed 1000, row 4
closed, row of 4  | fault         | open: the endpoint refuses our key (401): check its api_key
closed, row of 4  | late success  | closed 1000, row 4
closed, row of 4  | late failure  | closed 1000, row 4
closed, row of 4  | timer         | closed 1000, row 4
closed, row of 4  | reset         | closed 1000, row 0: reset by an operator
slow start        | success       | closed 100, row 0
slow start        | failure       | closed 100, row 1
slow start        | backpressure  | closed 100, row 0
slow start        | neutral       | closed 100, row 0
slow start        | fault         | open: the endpoint refuses our key (401): check its api_key
slow start        | late success  | closed 100, row 0
slow start        | late failure  | closed 100, row 0
slow start        | timer         | closed 190, row 0: returning, with a larger share
slow start        | reset         | closed 1000, row 0: reset by an operator
open              | success       | open
open              | failure       | open
open              | backpressure  | open
open              | neutral       | open
open              | fault         | open: the endpoint refuses our key (401): check its api_key
open              | late success  | open
open              | late failure  | open
open              | timer         | half-open, 0 probes: the ejection is over, a probe may pass
open              | reset         | closed 1000, row 0: reset by an operator
half-open         | success       | closed 100, row 0: the probes succeeded
half-open         | failure       | open: a probe failed
half-open         | backpressure  | half-open, 0 probes
half-open         | neutral       | half-open, 0 probes
half-open         | fault         | open: the endpoint refuses our key (401): check its api_key
half-open         | late success  | half-open, 0 probes
half-open         | late failure  | half-open, 0 probes
half-open         | timer         | half-open, 0 probes
half-open         | reset         | closed 1000, row 0: reset by an operator
half-open, probed | success       | half-open, 1 probes
half-open, probed | failure       | half-open, 1 probes
half-open, probed | backpressure  | half-open, 1 probes
half-open, probed | neutral       | half-open, 1 probes
half-open, probed | fault         | open: the endpoint refuses our key (401): check its api_key
half-open, probed | late success  | half-open, 1 probes
half-open, probed | late failure  | half-open, 1 probes
half-open, probed | timer         | open: a probe was not answered in time
half-open, probed | reset         | closed 1000, row 0: reset by an operator
";
    let mut actual = String::new();
    for (name, bench, late) in states() {
        for event in EVENTS {
            let mut bench = bench.clone();
            let moved = drive(&mut bench, event, late);
            actual += &format!("{name:<17} | {event:<13} | {}\n", told(&bench, moved));
        }
    }
    assert_eq!(actual, expected, "\n{actual}");
}

const EVENTS: [&str; 9] = [
    "success",
    "failure",
    "backpressure",
    "neutral",
    "fault",
    "late success",
    "late failure",
    "timer",
    "reset",
];

/// Each state, and a ticket from an earlier one.
fn states() -> [(&'static str, Bench, Ticket); 6] {
    let mut closed = Bench::new();
    let late = closed.begin();
    closed.breakers.reset(closed.now, closed.id);
    let mut row = closed.clone();
    row.fail(4);
    let mut open = row.clone();
    open.ask(Verdict::Failure);
    let mut half_open = open.clone();
    half_open.pass_until_half_open();
    let mut slow = half_open.clone();
    slow.ask(Verdict::Success);
    let mut probed = half_open.clone();
    assert!(probed.begin().probe);
    [
        ("closed", closed, late),
        ("closed, row of 4", row, late),
        ("slow start", slow, late),
        ("open", open, late),
        ("half-open", half_open, late),
        ("half-open, probed", probed, late),
    ]
}

fn drive(bench: &mut Bench, event: &str, late: Ticket) -> Option<Transition> {
    match event {
        "success" => bench.ask(Verdict::Success),
        "failure" => bench.ask(Verdict::Failure),
        "backpressure" => bench.ask(Verdict::Backpressure),
        "neutral" => bench.ask(Verdict::Neutral),
        "fault" => bench.ask(Verdict::Fault(Fault::KeyRefused)),
        "late success" => bench.record(late, Verdict::Success),
        "late failure" => bench.record(late, Verdict::Failure),
        "timer" => {
            let due = bench.breakers.poll_timeout().unwrap_or(bench.now);
            bench.pass(due.since(bench.now).max(Duration::from_nanos(1))).pop()
        }
        "reset" => bench.breakers.reset(bench.now, bench.id),
        other => panic!("no such event: {other}"),
    }
}

fn told(bench: &Bench, moved: Option<Transition>) -> String {
    let view = bench.view();
    let state = match view.phase {
        Phase::Closed => {
            format!("closed {}, row {}", view.share_permille, view.consecutive_failures)
        }
        Phase::Open => String::from("open"),
        Phase::HalfOpen => format!("half-open, {} probes", view.probes),
    };
    let Some(moved) = moved else { return state };
    assert_eq!((moved.to, moved.until), (view.phase, view.until));
    format!("{state}: {}", moved.cause)
}

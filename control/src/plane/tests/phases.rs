//! The phases of a request as a table: every phase met with every event, on a plane of its own.

use super::world::{Ask, NOON, World, daily, seconds};
use crate::id::{AccountId, CallerToken};
use crate::outcome::{AttemptEnd, Failure};
use crate::plane::Input;
use crate::plane::request::Phase;
use crate::plane::{Effect, Outcome};
use crate::quota::{
    Ask as StoreAsk, BalanceKey, Denied, DenyReason, Reply, RunId, StoreAnswer, StoreMode, Window,
};
use crate::shared::{Consult, Consulted, HomeAnswer, KeyAnswer};
use crate::units::Tokens;

/// The table in the module doc of `request.rs`, as the plane behaves.
const TABLE: &str = "\
phase      | turn comes | granted    | denied  | let through | turned away | unanswered | accepted   | first token | limit met | completed | failed     | failed for good | cancelled | client gone | timer | hedge due
waiting    | asking     | -          | -       | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -
asking     | -          | consulting | refused | reserving   | refused     | reserving  | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -
reserving  | -          | attempting | refused | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -
consulting | -          | -          | -       | attempting  | refused     | attempting | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -
attempting | -          | -          | -       | -           | -           | -          | attempting | begun       | -         | completed | backoff    | refused         | refused   | refused     | refused | hedged
hedged     | -          | -          | -       | -           | -           | -          | hedged     | begun       | -         | completed | attempting | refused         | attempting| refused     | refused| -
begun      | -          | -          | -       | -           | -           | -          | begun      | begun       | cutting   | completed | broken     | broken          | cancelled | cancelled   | broken | -
backoff    | -          | -          | -       | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | attempting | -
cutting    | -          | -          | -       | -           | -           | -          | cutting    | cutting     | cutting   | completed | spent      | spent           | spent     | cancelled   | spent | -
";

const PHASES: [&str; 9] = [
    "waiting",
    "asking",
    "reserving",
    "consulting",
    "attempting",
    "hedged",
    "begun",
    "backoff",
    "cutting",
];

#[test]
fn every_phase_answers_every_event_as_the_table_says() {
    let heads: Vec<_> = TABLE.lines().next().unwrap().split('|').map(str::trim).collect();
    for (line, phase) in TABLE.lines().skip(1).zip(PHASES) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[0], phase);
        for (event, expected) in heads.iter().zip(&cells).skip(1) {
            assert_eq!(meet(phase, event), *expected, "{phase} meets {event}");
        }
    }
}

#[test]
fn the_table_in_the_module_doc_is_this_one() {
    let doc: Vec<_> =
        include_str!("../request.rs").lines().take_while(|l| l.starts_with("//!")).collect();
    for line in TABLE.lines() {
        let row: Vec<_> = line.split('|').map(str::trim).collect();
        let row = format!("//! | {} |", row.join(" | "));
        let found = doc.iter().any(|line| line.split_whitespace().eq(row.split_whitespace()));
        assert!(found, "not in the doc: {row}");
    }
}

/// Brings a request into a phase, lets the event happen, and names what it is then. `-` where the event cannot reach it.
fn meet(phase: &str, event: &str) -> String {
    let (mut world, caller) = stage(phase);
    let steps = world.effects.len();
    let dispatched = world.dispatches.contains_key(&caller);
    let attempts = matches!(phase, "attempting" | "hedged" | "begun" | "cutting");
    match event {
        "turn comes" if phase == "waiting" => drop(world.complete(CallerToken(1), 1)),
        "granted" | "denied" if matches!(phase, "asking" | "reserving") => {
            answer(&mut world, event == "granted");
        }
        "let through" | "turned away" if matches!(phase, "asking" | "consulting") => {
            consulted(&mut world, event == "let through");
        }
        "unanswered" if matches!(phase, "asking" | "consulting") => {
            let op = consult(&world).op;
            world.input(Input::ConsultFailed { op });
        }
        "accepted" if attempts => drop(world.accept(caller)),
        "first token" if attempts => world.first_token(caller),
        "limit met" if matches!(phase, "begun" | "cutting") => drop(world.produce(caller, 90)),
        "completed" if attempts => drop(world.complete(caller, 1)),
        "failed" if attempts => drop(world.fail(caller, Failure::Status(500))),
        "failed for good" if attempts => drop(world.fail(caller, Failure::ClientError(400))),
        "cancelled" if attempts => {
            world.end(caller, AttemptEnd::Cancelled { produced: Tokens(70) });
        }
        "hedge due" if phase == "attempting" => {
            world.members(&["a", "b"]);
            world.later(seconds(10));
        }
        "client gone" => drop(world.gone(caller)),
        "timer" => {
            // Its own timer, and nobody else's.
            world.later(seconds(match phase {
                "cutting" => 1,
                "backoff" => 3,
                _ => 20,
            }));
        }
        _ => return "-".into(),
    }
    let waits = matches!(phase, "waiting") && event == "turn comes";
    assert!(dispatched || world.effects.len() > steps || waits || event != "timer");
    name(&world, caller)
}

fn stage(phase: &str) -> (World, CallerToken) {
    let hedge_after = seconds(if matches!(phase, "attempting" | "hedged") { 9 } else { 0 });
    let mut world = World::with(|config| {
        if matches!(phase, "asking" | "reserving" | "consulting" | "waiting") {
            config.quota.store = StoreMode::Shared;
            config.quota.answer_timeout = seconds(60);
        }
        config.attempt.hedge_after = hedge_after;
        config.timeouts.request = seconds(15);
    });
    let both: &[&str] = &["a", "b"];
    world.members(if phase == "hedged" { both } else { &both[..1] });
    if matches!(phase, "begun" | "cutting") {
        world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(100))));
    }
    let caller = match phase {
        "waiting" => {
            let first = world.ask(Ask::new().stored(1).patience(seconds(60)));
            consulted(&mut world, true);
            answer(&mut world, true);
            assert!(world.dispatches.contains_key(&first));
            world.ask(Ask::new().stored(1))
        }
        "asking" | "reserving" | "consulting" => world.ask(Ask::new().keyed(1, 1)),
        _ => world.ask(Ask::stream()),
    };
    match phase {
        "reserving" => consulted(&mut world, true),
        "consulting" => answer(&mut world, true),
        "begun" => world.first_token(caller),
        "hedged" => world.later(seconds(10)),
        "backoff" => drop(world.fail(caller, Failure::Status(500))),
        "cutting" => {
            world.first_token(caller);
            world.produce(caller, 64);
            world.produce(caller, 90);
        }
        _ => {}
    }
    assert_eq!(name(&world, caller), phase, "the stage is set");
    (world, caller)
}

/// The scripted store answers what it was last asked.
fn answer(world: &mut World, granted: bool) {
    let asked = world.effects.iter().rev().find_map(|effect| match effect {
        Effect::Reserve(op) if matches!(op.ask, StoreAsk::Reserve(_)) => Some(op.clone()),
        _ => None,
    });
    let asked = asked.unwrap();
    let StoreAsk::Reserve(draw) = &asked.ask else { unreachable!() };
    let reply = if granted {
        let pin = BalanceKey { account: AccountId(1), window: Window::Day(NOON.day()) };
        Reply::Granted { hold: draw.hold, total: draw.amount, pins: vec![pin] }
    } else {
        Reply::Denied(Denied { reason: DenyReason::Full, retry_after: seconds(1) })
    };
    world.input(Input::StoreAnswered(StoreAnswer { op: asked.op, run: RunId(1), reply }));
}

/// The consultation that was made last.
fn consult(world: &World) -> Consult {
    let asked = world.effects.iter().rev().find_map(|effect| match effect {
        Effect::Consult(consult) => Some((**consult).clone()),
        _ => None,
    });
    asked.unwrap()
}

fn consulted(world: &mut World, through: bool) {
    let Consult { op, idempotency, home, .. } = consult(world);
    let key = if through { KeyAnswer::Begun } else { KeyAnswer::InFlight };
    let answer = Consulted {
        op,
        rates: None,
        idempotency: idempotency.map(|_| key),
        home: home.map(|_| HomeAnswer::Nowhere { epoch: 0 }),
        odd: Vec::new(),
    };
    world.input(Input::Consulted(answer.into()));
}

fn name(world: &World, caller: CallerToken) -> String {
    let id = world.plane.callers.get(&caller);
    let request = id.and_then(|id| world.plane.requests.get(id));
    let hedged = request.is_some_and(|request| request.hedge.attempt.is_some());
    let name = match request.map(|request| (&request.phase, request.committed)) {
        Some((Phase::WaitingTurn, _)) => "waiting",
        Some((Phase::Reserving, _)) => {
            let heard = request.map(|request| (request.heard.granted, request.heard.awaits));
            match heard {
                Some((false, true)) => "asking",
                Some((true, true)) => "consulting",
                _ => "reserving",
            }
        }
        Some((Phase::Attempting(_), false)) if hedged => "hedged",
        Some((Phase::Attempting(_), false)) => "attempting",
        Some((Phase::Attempting(_), true)) => "begun",
        Some((Phase::Backoff { .. }, _)) => "backoff",
        Some((Phase::Cutting { .. }, _)) => "cutting",
        None => match world.ends.get(&caller) {
            Some(Effect::Reject { .. }) => "refused",
            Some(Effect::Finish { outcome: Outcome::Completed, .. }) => "completed",
            Some(Effect::Finish { outcome: Outcome::Broken(_), .. }) => "broken",
            Some(Effect::Finish { outcome: Outcome::QuotaSpent(_), .. }) => "spent",
            Some(Effect::Finish { outcome: Outcome::Cancelled, .. }) => "cancelled",
            end => panic!("no end: {end:?}"),
        },
    };
    name.into()
}

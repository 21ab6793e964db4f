//! Whatever happens, in whatever order: what must hold for every request, beside a slow reference that only keeps books.

use alloc::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::chaos::Chaos;
use crate::Machine;
use crate::id::{CallerToken, EndpointId, RequestId, ReservationId};
use crate::plane::{ATTEMPTS_MAX, ControlPlane, Durable, Effect, Input, Observation, Race};
use crate::quota::{Fact, Quota};
use crate::units::Amount;

/// The books of an honest clerk.
#[derive(Default)]
struct Books {
    /// Requests under way, with their callers and where they were tried.
    open: BTreeMap<RequestId, (CallerToken, Vec<EndpointId>)>,
    ended: BTreeSet<RequestId>,
    reserved: BTreeSet<ReservationId>,
    settled: BTreeMap<ReservationId, Fact>,
    charged: u64,
    /// Charged, as Finish said; a restart tells nobody.
    finished: u64,
}

impl Books {
    fn note(&mut self, plane: &ControlPlane, before: &Before, effects: &[Effect], restart: bool) {
        for effect in effects {
            match effect {
                Effect::Admitted { caller, request } => {
                    let fresh = self.open.insert(*request, (*caller, Vec::new())).is_none();
                    assert!(fresh && !self.ended.contains(request), "{request} is minted once");
                }
                Effect::Dispatch(dispatch) => {
                    let (caller, tried) = self.open.get_mut(&dispatch.request).unwrap();
                    assert_eq!(*caller, dispatch.caller);
                    tried.push(dispatch.endpoint);
                    assert_eq!(tried.len(), dispatch.number as usize);
                    assert!(dispatch.number <= ATTEMPTS_MAX);
                    assert!(!before.draining.contains(&dispatch.endpoint), "it drains");
                    assert!(dispatch.deadline > plane.now(), "sent with no time left");
                    let id = ReservationId(dispatch.request.0);
                    assert!(self.reserved.contains(&id), "reserved before it is sent");
                }
                Effect::Reject { caller, request, .. } => self.close(*request, *caller),
                Effect::Finish { caller, request, charged, .. } => {
                    self.finished += charged.tokens.0;
                    self.close(*request, *caller);
                    let fact = self.settled.get(&ReservationId(request.0));
                    match fact.unwrap() {
                        Fact::Settle { actual, .. } => assert_eq!(actual, charged),
                        Fact::Refund { .. } => assert_eq!(*charged, Amount::ZERO),
                        fact => panic!("ended by {fact:?}"),
                    }
                }
                Effect::LedgerAnswered { .. } => panic!("no service asked"),
                Effect::Cancel { caller, .. } => {
                    assert!(self.open.values().any(|(open, _)| open == caller));
                }
                Effect::Persist(Durable::Entry(entry)) => self.post(&entry.fact),
                Effect::Persist(
                    Durable::Binding { .. } | Durable::Released { .. } | Durable::Adopted { .. },
                )
                | Effect::Consult(_)
                | Effect::Note(_)
                | Effect::Reserve(_) => {}
            }
        }
        if restart {
            self.ended.extend(core::mem::take(&mut self.open).into_keys());
        }
    }

    fn close(&mut self, request: RequestId, caller: CallerToken) {
        let (asked, _) = self.open.remove(&request).expect("a request ends once");
        assert_eq!(asked, caller);
        self.ended.insert(request);
    }

    fn post(&mut self, fact: &Fact) {
        match fact {
            Fact::Reserve { hold, .. } => {
                assert!(self.reserved.insert(hold.id), "reserved twice");
            }
            Fact::Settle { hold, .. } | Fact::Refund { hold } | Fact::Expire { hold } => {
                assert!(self.reserved.contains(&hold.id));
                let before = self.settled.insert(hold.id, fact.clone());
                assert_eq!(before, None, "one terminal entry");
                if let Fact::Settle { actual, .. } = fact {
                    self.charged += actual.tokens.0;
                }
            }
            Fact::Late { .. } => panic!("nothing expires under a request that runs"),
            _ => {}
        }
    }
}

/// What held before a step.
struct Before {
    draining: BTreeSet<EndpointId>,
}

impl Before {
    fn of(plane: &ControlPlane) -> Self {
        let draining = plane.view().endpoints.into_iter().filter(|endpoint| endpoint.draining);
        Self { draining: draining.map(|endpoint| endpoint.id).collect() }
    }
}

/// A run of the plane under chaos, with its books; and what it took down.
fn run(seed: u64, steps: usize) {
    let mut chaos = Chaos::new(seed);
    let mut plane = ControlPlane::with_config(seed, chaos.config.clone());
    let mut shadow = Quota::new(chaos.config.quota.clone());
    let mut books = Books::default();
    let mut lost = 0;
    for step in 0..steps + 200 {
        let (now, input) = if step < steps {
            chaos.next()
        } else {
            // Quiescence: every timer is served, and the shell reports nothing any more.
            let due = plane.poll_timeout().map_or(chaos.now, |(due, _)| due.max(chaos.now));
            chaos.now = due;
            (due, Input::Timeout)
        };
        let restart = matches!(input, Input::Restarted { .. });
        let ended = matches!(input, Input::AttemptEnded { .. });
        let before = Before::of(&plane);
        plane.handle(now, input);
        if step % 16 == 0 {
            plane.invariants();
        }
        let effects: Vec<_> = core::iter::from_fn(|| plane.poll_effect()).collect();
        chaos.learn(&effects);
        let charged = books.charged;
        books.note(&plane, &before, &effects, restart);
        if restart {
            lost += books.charged - charged;
        }
        for effect in &effects {
            if let Effect::Persist(Durable::Entry(entry)) = effect {
                shadow.apply_entry(entry);
            }
        }
        // In a step of timers, room may be made after a pick; in this one nothing moves after it.
        while let Some(observation) = plane.poll_observation() {
            if ended {
                picked_fairly(&plane, &observation, &books);
            }
        }
    }
    plane.invariants();
    let view = plane.view();
    assert_eq!((view.requests, view.reservations), (0, 0), "all is quiet");
    assert!(view.endpoints.iter().all(|endpoint| endpoint.in_flight == 0));
    assert!(books.open.is_empty(), "every admitted request has its end");
    assert!(books.reserved.iter().all(|id| books.settled.contains_key(id)));
    assert_eq!(books.charged, books.finished + lost, "charged is what clients were told");
    assert!(plane.audit().violations.is_empty());
    assert_eq!(shadow.audit().unwrap(), plane.audit(), "the entries are the ledger");
}

/// Never the same endpoint twice while another could take it.
fn picked_fairly(plane: &ControlPlane, observation: &Observation, books: &Books) {
    let Observation::Picked { request, chosen, throttled, .. } = observation else { return };
    let Some((_, tried)) = books.open.get(request) else { return };
    let before = &tried[..tried.len() - 1];
    let again = before.contains(&chosen.endpoint);
    assert!(!again || chosen.retried_same, "a repetition says so");
    if again && !chosen.panic {
        let model = &plane.requests.get(request).map(|request| request.arrival.model.clone());
        let Some(model) = model else { return };
        let others = plane.view().endpoints.into_iter().filter(|other| {
            let free = !other.draining && other.breaker.share_permille == 1_000;
            let closed = other.breaker.phase == crate::breaker::Phase::Closed;
            let spec = &plane.registry.endpoint(other.id).unwrap().spec;
            other.models.contains(model)
                && free
                && closed
                && other.in_flight < spec.in_flight_max
                && !tried.contains(&other.id)
                && !throttled.contains(&other.id)
        });
        assert_eq!(others.count(), 0, "somebody else was there");
    }
}

#[test]
fn chaos_sees_two_attempts_beside_each_other_from_every_beginning_to_every_end() {
    let mut seen = BTreeSet::new();
    for seed in 0..30 {
        let mut chaos = Chaos::new(seed);
        let mut plane = ControlPlane::with_config(seed, chaos.config.clone());
        for _ in 0..600 {
            let (now, input) = chaos.next();
            plane.handle(now, input);
            plane.invariants();
            let effects: Vec<_> = core::iter::from_fn(|| plane.poll_effect()).collect();
            chaos.learn(&effects);
            while let Some(observation) = plane.poll_observation() {
                if let Observation::Hedged { race, .. } = observation {
                    seen.insert(match race {
                        Race::Begun { .. } => "begun",
                        Race::NotBegun { .. } => "not begun",
                        Race::Won { .. } => "won",
                        Race::Lost { .. } => "lost",
                        Race::Alone { .. } => "alone",
                        Race::Stopped => "stopped",
                    });
                }
            }
        }
    }
    assert_eq!(Vec::from_iter(seen), ["alone", "begun", "lost", "not begun", "stopped", "won"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_request_ends_once_and_every_token_is_in_the_books(seed: u64) {
        run(seed, 600);
    }
}

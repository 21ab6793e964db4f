//! A slow, obvious balancer beside the fast one: a list of members, filtered anew for every pick.
#![allow(clippy::disallowed_types, reason = "prop_oneof! shares its strategies in Arcs")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::support::{config, key, name};
use crate::balance::{
    Balancer, Chosen, Fallback, Member, Nobody, Pick, Policy, Query, Reason, Reported,
};
use crate::id::EndpointId;
use crate::rng::Rng;
use crate::time::Instant;

const SLOTS: u32 = 10;
const MODELS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Op {
    Insert { slot: u32, weight: u32, tier: u8, most: u32, models: u8 },
    Remove(u32),
    Drain(u32, bool),
    Admit(u32, bool),
    Share(u32, u32),
    Release(u32),
    ReleaseStale(u32),
    Policy(usize, Policy),
    Report(u32, Reported),
    Pass(Duration),
    Pick { model: usize, key: Option<u64>, bound: Option<u32>, tried: Vec<u32>, dispatch: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let slot = || 0..SLOTS;
    let policy = prop_oneof![
        Just(Policy::RoundRobin),
        Just(Policy::LeastLoad),
        Just(Policy::P2c),
        Just(Policy::Sticky { fallback: Fallback::Rendezvous }),
        Just(Policy::Sticky { fallback: Fallback::RoundRobin }),
        Just(Policy::Auto),
    ];
    let insert =
        (slot(), 0_u32..300, prop_oneof![3 => Just(0_u8), 1 => 1_u8..3], 0_u32..5, 0_u8..4)
            .prop_map(|(slot, weight, tier, most, models)| Op::Insert {
                slot,
                weight,
                tier,
                most,
                models,
            });
    let tried = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(slot(), 1..4),
        1 => prop::collection::vec(slot(), 1..20),
    ];
    let pick =
        (0_usize..2, prop::option::of(0_u64..8), prop::option::of(slot()), tried, any::<bool>())
            .prop_map(|(model, key, bound, tried, dispatch)| Op::Pick {
                model,
                key,
                bound,
                tried,
                dispatch,
            });
    let report = (slot(), 0_u32..12, 0_u32..12, prop::option::of(700_u32..1_100)).prop_map(
        |(slot, queued, running, kv_used_permille)| {
            Op::Report(slot, Reported { queued, running, kv_used_permille })
        },
    );
    let op = prop_oneof![
        4 => insert,
        1 => slot().prop_map(Op::Remove),
        1 => (slot(), any::<bool>()).prop_map(|(slot, on)| Op::Drain(slot, on)),
        3 => (slot(), prop::bool::weighted(0.25)).prop_map(|(slot, on)| Op::Admit(slot, on)),
        1 => (slot(), 0_u32..1_200).prop_map(|(slot, share)| Op::Share(slot, share)),
        3 => slot().prop_map(Op::Release),
        1 => slot().prop_map(Op::ReleaseStale),
        1 => (0_usize..2, policy).prop_map(|(model, policy)| Op::Policy(model, policy)),
        3 => report,
        2 => (0_u64..2_500).prop_map(|millis| Op::Pass(Duration::from_millis(millis))),
        8 => pick,
    ];
    prop::collection::vec(op, 1..150)
}

#[derive(Clone, Debug)]
struct Slow {
    weight: u32,
    share: u32,
    tier: u8,
    most: u32,
    models: Vec<Box<str>>,
    in_flight: u32,
    draining: bool,
    admitted: bool,
    /// When it reported, and how much work of others.
    reported: Option<(Instant, u32)>,
}

impl Slow {
    fn weight(&self) -> u64 {
        (u64::from(self.weight.max(1)) * u64::from(self.share) / 1_000).max(1)
    }

    /// What it has to do, as far as its last report counts.
    fn work(&self, now: Instant) -> u64 {
        let quarters = |at: Instant| match now.since(at).as_millis() {
            0..3_000 => 4,
            3_000..4_000 => 3,
            4_000..5_000 => 2,
            5_000..6_000 => 1,
            _ => 0,
        };
        let others = self.reported.map_or(0, |(at, others)| others * quarters(at) / 4);
        u64::from(self.in_flight) + u64::from(others)
    }
}

#[derive(Clone, Debug, Default)]
struct Model {
    generations: [u32; SLOTS as usize],
    members: [Option<Slow>; SLOTS as usize],
    policies: [Policy; 2],
    now: Instant,
}

/// Whom a pick may choose.
#[derive(Debug)]
struct Allowed {
    slots: Vec<u32>,
    tier: u8,
    panic: bool,
}

impl Model {
    fn id(&self, slot: u32) -> EndpointId {
        EndpointId { slot, generation: self.generations[slot as usize] }
    }

    fn serving(&self, model: &str) -> impl Iterator<Item = (u32, &Slow)> {
        let members = (0..).zip(&self.members).filter_map(|(slot, m)| Some((slot, m.as_ref()?)));
        members.filter(move |(_, member)| member.models.iter().any(|name| **name == *model))
    }

    fn allowed(&self, model: &str, tried: &[u32]) -> Option<Allowed> {
        let fit =
            |slot: u32, m: &Slow| !m.draining && m.in_flight < m.most && !tried.contains(&slot);
        let open: Vec<_> =
            self.serving(model).filter(|(slot, m)| fit(*slot, m) && m.admitted).collect();
        let panics = |tier: u8| {
            let live = || self.serving(model).filter(move |(_, m)| m.tier == tier && !m.draining);
            let admitted = live().filter(|(_, m)| m.admitted).count();
            live().count() >= 3
                && admitted * 10 < live().count()
                && live().any(|(slot, m)| fit(slot, m) && !m.admitted)
        };
        let lowest = open.iter().map(|(_, m)| m.tier).min();
        let (tier, panic) = match lowest {
            Some(tier) => (tier, open.iter().all(|(_, m)| m.tier == tier) && panics(tier)),
            None => ((0..3).find(|tier| panics(*tier))?, true),
        };
        let candidates = self
            .serving(model)
            .filter(|(slot, m)| m.tier == tier && fit(*slot, m) && (m.admitted || panic));
        Some(Allowed { slots: candidates.map(|(slot, _)| slot).collect(), tier, panic })
    }

    fn nobody(&self, model: &str, tried: &[u32]) -> Nobody {
        let count = |condition: &dyn Fn(u32, &Slow) -> bool| {
            self.serving(model).filter(|(slot, m)| condition(*slot, m)).count() as u32
        };
        Nobody {
            members: count(&|_, _| true),
            draining: count(&|_, m| m.draining),
            ejected: count(&|_, m| !m.draining && !m.admitted),
            full: count(&|_, m| !m.draining && m.admitted && m.in_flight >= m.most),
            tried: count(&|slot, _| tried.contains(&slot)),
            unknown_model: count(&|_, _| true) == 0,
        }
    }

    fn member(&self, slot: u32) -> &Slow {
        self.members[slot as usize].as_ref().unwrap()
    }

    /// Whether one more on `slot` stays under the bound among `slots`.
    fn fits(&self, slot: u32, slots: &[u32]) -> bool {
        let in_flight: u64 = slots.iter().map(|s| u64::from(self.member(*s).in_flight)).sum();
        let weight: u64 = slots.iter().map(|s| self.member(*s).weight()).sum();
        let member = self.member(slot);
        let bound = (125 * (in_flight + 1) * member.weight()).div_ceil(100 * weight);
        u64::from(member.in_flight) < bound
    }

    fn check(&self, model: usize, bound: Option<u32>, tried: &[u32], pick: &Pick) {
        let name = MODELS[model];
        let fresh = self.allowed(name, tried);
        let retried_same = fresh.is_none();
        match (fresh.or_else(|| self.allowed(name, &[])), pick) {
            (None, Pick::Nobody(nobody)) => assert_eq!(*nobody, self.nobody(name, tried)),
            (Some(allowed), Pick::Chosen(chosen)) => {
                assert_eq!(chosen.retried_same, retried_same);
                assert_eq!((chosen.tier, chosen.panic), (allowed.tier, allowed.panic));
                assert!(allowed.slots.contains(&chosen.endpoint.slot), "{allowed:?}");
                assert_eq!(chosen.endpoint, self.id(chosen.endpoint.slot));
                self.check_policy(self.policies[model], bound, &allowed, chosen);
            }
            (allowed, _) => panic!("{allowed:?} were allowed, not {pick:?}"),
        }
    }

    fn check_policy(&self, policy: Policy, bound: Option<u32>, allowed: &Allowed, pick: &Chosen) {
        let slot = pick.endpoint.slot;
        let least = |slot: u32, load: &dyn Fn(&Slow) -> u64| {
            let own = self.member(slot);
            allowed.slots.iter().all(|other| {
                let other = self.member(*other);
                load(own) * other.weight() <= load(other) * own.weight()
            })
        };
        let work = |member: &Slow| member.work(self.now);
        let sent = |member: &Slow| u64::from(member.in_flight);
        let above = |slot: &u32| least(*slot, &work) && !self.fits(*slot, &allowed.slots);
        match pick.reason {
            Reason::LeastLoaded if least(slot, &work) => {
                assert!(self.fits(slot, &allowed.slots), "a report drives above the bound");
            }
            Reason::LeastLoaded => {
                assert!(least(slot, &sent) && allowed.slots.iter().any(above));
            }
            Reason::Bound => assert_eq!(Some(slot), bound),
            Reason::Spilled { from } => {
                assert!(
                    allowed.slots.contains(&from.slot) && !self.fits(from.slot, &allowed.slots)
                );
            }
            Reason::Home | Reason::InTurn | Reason::TwoChoices => {}
        }
        if policy.is_affine() {
            assert!(self.fits(slot, &allowed.slots), "above the bound");
            let home = bound.filter(|home| allowed.slots.contains(home));
            if let Some(home) = home.filter(|home| self.fits(*home, &allowed.slots)) {
                assert_eq!((slot, pick.reason), (home, Reason::Bound));
            }
        }
        let told = pick.considered.iter().filter(|candidate| candidate.why_not.is_none());
        assert_eq!(told.map(|candidate| candidate.endpoint).collect::<Vec<_>>(), [pick.endpoint]);
    }
}

/// Applies an operation to both; a pick's answer is returned after it was checked.
fn step(balancer: &mut Balancer, model: &mut Model, op: &Op) -> Option<Pick> {
    match op {
        Op::Insert { slot, weight, tier, most, models } => {
            insert(balancer, model, *slot, *weight, *tier, *most, *models);
        }
        Op::Remove(slot) => {
            balancer.remove(model.id(*slot));
            model.members[*slot as usize] = None;
            model.generations[*slot as usize] += 1;
        }
        Op::Drain(slot, on) => {
            balancer.set_draining(model.id(*slot), *on);
            change(model, *slot, |member| member.draining = *on);
        }
        Op::Admit(slot, on) => {
            balancer.set_admitted(model.id(*slot), *on);
            change(model, *slot, |member| member.admitted = *on);
        }
        Op::Share(slot, share) => {
            balancer.set_share(model.id(*slot), *share);
            change(model, *slot, |member| member.share = (*share).min(1_000));
        }
        Op::Release(slot) => {
            let released = balancer.released(model.id(*slot));
            let mut expected = false;
            change(model, *slot, |member| {
                expected = member.in_flight > 0;
                member.in_flight -= u32::from(expected);
            });
            assert_eq!(released, expected);
        }
        Op::ReleaseStale(slot) => {
            let stale = EndpointId { generation: u32::MAX, ..model.id(*slot) };
            assert!(!balancer.released(stale));
        }
        Op::Policy(index, policy) => {
            balancer.set_policy(MODELS[*index], *policy);
            model.policies[*index] = *policy;
        }
        Op::Report(slot, load) => report(balancer, model, *slot, *load),
        Op::Pass(time) => {
            model.now = model.now + *time;
            balancer.age(model.now);
        }
        Op::Pick { model: index, key: number, bound, tried, dispatch } => {
            let ids: Vec<_> = tried.iter().map(|slot| model.id(*slot)).collect();
            let pick = balancer.pick(&Query {
                model: MODELS[*index],
                key: number.map(key),
                bound: bound.map(|slot| model.id(slot)),
                tried: &ids,
            });
            model.check(*index, *bound, tried, &pick);
            if let (Pick::Chosen(chosen), true) = (&pick, *dispatch) {
                balancer.dispatched(chosen.endpoint);
                change(model, chosen.endpoint.slot, |member| member.in_flight += 1);
            }
            return Some(pick);
        }
    }
    None
}

fn report(balancer: &mut Balancer, model: &mut Model, slot: u32, load: Reported) {
    let now = model.now;
    let known = balancer.reported(now, model.id(slot), load);
    assert_eq!(known, model.members[slot as usize].is_some());
    let total = load.queued + load.running;
    let full = load.kv_used_permille.unwrap_or(0).clamp(900, 1_000) - 900;
    let waiting = (total.max(1) * full).div_ceil(100);
    change(model, slot, |member| {
        let others = total.saturating_sub(member.in_flight) + waiting;
        member.reported = Some((now, others));
    });
}

fn change(model: &mut Model, slot: u32, change: impl FnOnce(&mut Slow)) {
    if let Some(member) = &mut model.members[slot as usize] {
        change(member);
    }
}

fn insert(
    balancer: &mut Balancer,
    model: &mut Model,
    slot: u32,
    weight: u32,
    tier: u8,
    most: u32,
    bits: u8,
) {
    let serves = (0..2).filter(|bit| bits >> bit & 1 == 1);
    let models: Vec<Box<str>> = serves.map(|bit: usize| MODELS[bit].into()).collect();
    let name = name(slot);
    let member = Member { name: &name, weight, tier, in_flight_max: most, models: &models };
    balancer.insert(model.id(slot), member);
    let (share, in_flight, draining, admitted, reported) = match &model.members[slot as usize] {
        Some(known) => {
            (known.share, known.in_flight, known.draining, known.admitted, known.reported)
        }
        None => (1_000, 0, false, true, None),
    };
    model.members[slot as usize] =
        Some(Slow { weight, share, tier, most, models, in_flight, draining, admitted, reported });
}

fn fresh() -> (Balancer, Model) {
    (Balancer::new(config(Policy::Auto), Rng::new(3)), Model::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_pick_is_one_the_slow_balancer_allows(ops in ops()) {
        let (mut balancer, mut model) = fresh();
        for op in &ops {
            step(&mut balancer, &mut model, op);
            balancer.invariants();
        }
        let expected: u64 = model.members.iter().flatten().map(|m| u64::from(m.in_flight)).sum();
        prop_assert_eq!(balancer.in_flight_total(), expected);
        for slot in 0..SLOTS {
            while balancer.released(model.id(slot)) {}
        }
        prop_assert_eq!(balancer.in_flight_total(), 0);
    }

    #[test]
    fn a_restored_balancer_has_the_same_future(ops in ops(), at in 0_usize..150) {
        let (mut balancer, mut model) = fresh();
        let (past, future) = ops.split_at(at.min(ops.len()));
        for op in past {
            step(&mut balancer, &mut model, op);
        }
        let bytes = postcard::to_allocvec(&balancer).unwrap();
        let mut restored: Balancer = postcard::from_bytes(&bytes).unwrap();
        restored.invariants();
        let mut again = model.clone();
        for op in future {
            let first = step(&mut balancer, &mut model, op);
            prop_assert_eq!(first, step(&mut restored, &mut again, op));
        }
        let end = postcard::to_allocvec(&balancer).unwrap();
        prop_assert_eq!(end, postcard::to_allocvec(&restored).unwrap());
    }
}

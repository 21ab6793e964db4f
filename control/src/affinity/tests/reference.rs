//! A slow, obvious affinity beside the fast one: a list, searched from end to end.
#![allow(clippy::disallowed_types, reason = "prop_oneof! shares its strategies in Arcs")]

use proptest::prelude::*;

use super::*;

const TTL: u64 = 10;
const MEMORY: u64 = 5;
const WINDOW: u64 = 4;
const MOST: usize = 4;

fn config() -> Config {
    Config {
        ttl: Duration::from_secs(TTL),
        memory: Duration::from_secs(MEMORY),
        bindings_max: MOST,
        spills_before_migration: 2,
        spill_window: Duration::from_secs(WINDOW),
        migrations_per_second: 1,
        migrations_burst: 2,
    }
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Lookup(u64),
    Bind(u64, u32),
    Decide(u64, bool),
    Release(u64),
    RemoveEndpoint(u32),
    Expire(usize),
    Restore { key: u64, slot: u32, epoch: u64, ago: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || 0_u64..7;
    let op = prop_oneof![
        2 => prop_oneof![4 => 0_u64..3, 1 => 5_u64..20].prop_map(Op::Pass),
        2 => key().prop_map(Op::Lookup),
        5 => (key(), 0_u32..3).prop_map(|(key, slot)| Op::Bind(key, slot)),
        6 => (key(), prop::bool::weighted(0.8)).prop_map(|(key, over)| Op::Decide(key, over)),
        1 => key().prop_map(Op::Release),
        1 => (0_u32..3).prop_map(Op::RemoveEndpoint),
        1 => (0_usize..4).prop_map(Op::Expire),
        1 => (key(), 0_u32..3, 0_u64..6, 0_u64..12)
            .prop_map(|(key, slot, epoch, ago)| Op::Restore { key, slot, epoch, ago }),
    ];
    prop::collection::vec(op, 1..120)
}

#[derive(Clone, Debug)]
struct Slow {
    key: u64,
    endpoint: EndpointId,
    epoch: u64,
    used: u64,
    /// Times of the spills in a row.
    spills: Vec<u64>,
    released: bool,
}

/// Seconds instead of instants, a list instead of two orders, endpoints that exist instead of removed ones.
#[derive(Clone, Debug, Default)]
struct Model {
    now: u64,
    known: Vec<Slow>,
    generations: [u32; 3],
    highest_forgotten: u64,
    /// Tokens in thousandths, as of `refilled`.
    tokens: u64,
    refilled: u64,
}

impl Model {
    fn id(&self, slot: u32) -> EndpointId {
        EndpointId { slot, generation: self.generations[slot as usize] }
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.known.iter().position(|slow| slow.key == key)
    }

    fn live(&self, slow: &Slow) -> bool {
        let young = self.now.saturating_sub(slow.used) < TTL;
        young && !slow.released && slow.endpoint == self.id(slow.endpoint.slot)
    }

    fn lookup(&self, key: u64) -> Option<(EndpointId, u64)> {
        let slow = &self.known[self.find(key)?];
        self.live(slow).then_some((slow.endpoint, slow.epoch))
    }

    fn bind(&mut self, key: u64, endpoint: EndpointId) -> (u64, Option<EndpointId>) {
        let now = self.now;
        let (epoch, moved_from) = match self.find(key) {
            None => {
                let epoch = self.highest_forgotten + 1;
                let (used, spills) = (now, Vec::new());
                self.known.push(Slow { key, endpoint, epoch, used, spills, released: false });
                (epoch, None)
            }
            Some(index) => {
                let live = self.live(&self.known[index]);
                let slow = &mut self.known[index];
                let other = slow.endpoint != endpoint;
                let moved_from = (other && live).then_some(slow.endpoint);
                slow.epoch += u64::from(other);
                slow.endpoint = endpoint;
                slow.used = slow.used.max(now);
                if other || !live {
                    slow.spills.clear();
                }
                slow.released = false;
                (slow.epoch, moved_from)
            }
        };
        self.forget_oldest(usize::from(self.known.len() > MOST));
        (epoch, moved_from)
    }

    fn decide(&mut self, key: u64, over: bool) -> Decision {
        let (now, live) = (self.now, self.lookup(key).is_some());
        let index = self.find(key).filter(|_| live);
        match (index, over) {
            (None, true) => Decision::Spill,
            (None, false) => Decision::Stay,
            (Some(index), false) => {
                self.known[index].spills.clear();
                Decision::Stay
            }
            (Some(index), true) => {
                let spills = &mut self.known[index].spills;
                if spills.first().is_some_and(|first| now - first > WINDOW) {
                    spills.clear();
                }
                if spills.len() < 2 {
                    spills.push(now);
                    Decision::Spill
                } else if self.take_token() {
                    Decision::Migrate
                } else {
                    Decision::Spill
                }
            }
        }
    }

    fn take_token(&mut self) -> bool {
        self.tokens = (self.tokens + 1_000 * (self.now - self.refilled)).min(2_000);
        self.refilled = self.now;
        let granted = self.tokens >= 1_000;
        self.tokens -= if granted { 1_000 } else { 0 };
        granted
    }

    fn forget_oldest(&mut self, count: usize) {
        for _ in 0..count {
            let Some(oldest) = self.known.iter().min_by_key(|slow| (slow.used, slow.key)) else {
                return;
            };
            let (key, epoch) = (oldest.key, oldest.epoch);
            self.known.retain(|slow| slow.key != key);
            self.highest_forgotten = self.highest_forgotten.max(epoch);
        }
    }

    fn expire(&mut self, limit: usize) -> usize {
        let over = self.known.iter().filter(|slow| slow.used + TTL + MEMORY <= self.now).count();
        let count = over.min(limit);
        self.forget_oldest(count);
        count
    }

    fn restore(&mut self, key: u64, endpoint: EndpointId, epoch: u64, used: u64) -> bool {
        if let Some(index) = self.find(key) {
            let known = &self.known[index];
            let later = (known.epoch, known.endpoint) == (epoch, endpoint) && known.used < used;
            if known.epoch >= epoch && !later {
                return false;
            }
            self.known.remove(index);
        }
        let spills = Vec::new();
        self.known.push(Slow { key, endpoint, epoch, used, spills, released: false });
        self.forget_oldest(usize::from(self.known.len() > MOST));
        true
    }
}

fn step(affinity: &mut Affinity, model: &mut Model, op: &Op) {
    let now = at(model.now);
    match *op {
        Op::Pass(seconds) => model.now += seconds,
        Op::Lookup(number) => {
            let found = affinity.lookup(now, key(number));
            assert_eq!(found.map(|b| (b.endpoint, b.epoch)), model.lookup(number));
        }
        Op::Bind(number, slot) => {
            let bound = affinity.bind(now, key(number), model.id(slot));
            assert_eq!(bound.binding.endpoint, model.id(slot));
            let expected = model.bind(number, model.id(slot));
            assert_eq!((bound.binding.epoch, bound.moved_from), expected);
        }
        Op::Decide(number, over) => {
            assert_eq!(affinity.decide(now, key(number), over), model.decide(number, over));
        }
        Op::Release(number) => {
            affinity.release(key(number));
            if let Some(index) = model.find(number) {
                model.known[index].released = true;
            }
        }
        Op::RemoveEndpoint(slot) => {
            affinity.endpoint_removed(model.id(slot));
            model.generations[slot as usize] += 1;
        }
        Op::Expire(limit) => assert_eq!(affinity.expire(now, limit), model.expire(limit)),
        Op::Restore { key: number, slot, epoch, ago } => {
            let (endpoint, used) = (model.id(slot), model.now.saturating_sub(ago));
            let binding = Binding { endpoint, epoch, last_used: at(used) };
            let restored = affinity.restore(key(number), binding);
            assert_eq!(restored, model.restore(number, endpoint, epoch, used));
        }
    }
}

fn fresh() -> (Affinity, Model) {
    (Affinity::new(config()), Model { tokens: 2_000, ..Model::default() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn everything_it_says_is_what_the_list_says(ops in ops()) {
        let (mut affinity, mut model) = fresh();
        for op in &ops {
            step(&mut affinity, &mut model, op);
            affinity.invariants();
            prop_assert_eq!(affinity.len(), model.known.len());
            let oldest = model.known.iter().map(|slow| slow.used).min();
            prop_assert_eq!(affinity.poll_timeout(), oldest.map(|used| at(used + TTL + MEMORY)));
        }
    }

    #[test]
    fn epochs_of_one_session_only_grow(ops in ops()) {
        let (mut affinity, mut model) = fresh();
        let mut highest = [0; 7];
        for op in &ops {
            // Facts from elsewhere may tell of any epoch; what is told here must not go back.
            if matches!(op, Op::Restore { .. }) {
                continue;
            }
            step(&mut affinity, &mut model, op);
            for number in 0..7_u64 {
                if let Some(binding) = affinity.lookup(at(model.now), key(number)) {
                    prop_assert!(binding.epoch >= highest[number as usize]);
                    highest[number as usize] = binding.epoch;
                }
            }
        }
    }

    #[test]
    fn a_restored_affinity_has_the_same_future(ops in ops(), split in 0_usize..120) {
        let (mut affinity, mut model) = fresh();
        let (past, future) = ops.split_at(split.min(ops.len()));
        past.iter().for_each(|op| step(&mut affinity, &mut model, op));
        let bytes = postcard::to_allocvec(&affinity).unwrap();
        let mut restored: Affinity = postcard::from_bytes(&bytes).unwrap();
        let mut again = model.clone();
        for op in future {
            step(&mut affinity, &mut model, op);
            step(&mut restored, &mut again, op);
        }
        let end = postcard::to_allocvec(&affinity).unwrap();
        prop_assert_eq!(end, postcard::to_allocvec(&restored).unwrap());
    }
}

//! `pick/<policy>/<n>`: one pick among `n` replicas, its dispatch, and the release of an older one.
//!
//! The counting belongs to it: a policy that is fast because it leaves the upkeep of its order to somebody else would
//! otherwise look better than it is. Two attempts per replica are in flight; every request has a session key, which
//! only `sticky` and `auto` look at, and no binding, which is their slower case. `auto` is also measured without key.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use control::balance::{Balancer, Config, Fallback, Member, Pick, Policy, Query};
use control::id::{EndpointId, SessionKey};
use control::rng::{Rng, mix};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const MODEL: &str = "demo";

/// One balancer under steady load.
struct Load {
    balancer: Balancer,
    running: VecDeque<EndpointId>,
    number: u64,
}

impl Load {
    fn new(policy: Policy, replicas: u32) -> Self {
        let config = Config { policy, ..Config::default() };
        let mut balancer = Balancer::new(config, Rng::new(1));
        let models = [Box::from(MODEL)];
        for slot in 0..replicas {
            let name = format!("replica-{slot}");
            let member =
                Member { name: &name, weight: 100, tier: 0, in_flight_max: 1_000, models: &models };
            balancer.insert(EndpointId { slot, generation: 0 }, member);
        }
        let mut load = Self { balancer, running: VecDeque::new(), number: 0 };
        for _ in 0..2 * replicas {
            load.start(true);
        }
        load
    }

    fn start(&mut self, with_key: bool) {
        self.number += 1;
        let key = with_key.then(|| SessionKey(mix(self.number)));
        let query = Query { model: MODEL, key, bound: None, tried: &[] };
        match self.balancer.pick(black_box(&query)) {
            Pick::Chosen(chosen) => {
                self.balancer.dispatched(chosen.endpoint);
                self.running.push_back(chosen.endpoint);
            }
            Pick::Nobody(nobody) => panic!("{nobody}"),
        }
    }

    fn end(&mut self) {
        let oldest = self.running.pop_front().expect("something is running");
        assert!(self.balancer.released(oldest));
    }
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    // Eighteen figures within a minute.
    group.sample_size(20);
    group.warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(1));
    let policies = [
        ("round_robin", Policy::RoundRobin, true),
        ("least_load", Policy::LeastLoad, true),
        ("p2c", Policy::P2c, true),
        ("sticky", Policy::Sticky { fallback: Fallback::Rendezvous }, true),
        ("auto", Policy::Auto, true),
        ("auto_without_key", Policy::Auto, false),
    ];
    for (name, policy, with_key) in policies {
        for replicas in [10, 1_000, 10_000] {
            let mut load = Load::new(policy, replicas);
            group.bench_function(BenchmarkId::new(name, replicas), |bencher| {
                bencher.iter(|| {
                    load.start(with_key);
                    load.end();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);

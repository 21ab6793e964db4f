//! `plane/request/<n>`: one whole request among `n` endpoints, from its arrival to its settlement: five inputs (arrived,
//! accepted, first token, two progress marks) and its end, each handled, drained, observed and encoded for the journal,
//! as the driver does it under its lock. Every request is of one of 1,000 sessions and of one of 100 tenants with a
//! daily limit; 2 x `n` requests are under way.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use control::Machine;
use control::id::{AccountId, AttemptId, CallerToken, Principal, SessionKey};
use control::journal::Recorder;
use control::outcome::AttemptEnd;
use control::plane::{
    AccountConfig, Arrival, Config, ControlPlane, Effect, Input, Session, SessionKind,
};
use control::quota::{Cap, Limits};
use control::registry::{EndpointSpec, SourceKind};
use control::units::{Tokens, Usage};
use control::{Instant, Wall};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// A plane under steady load, driven as in production.
struct Load {
    plane: ControlPlane,
    recorder: Recorder,
    effects: Vec<Effect>,
    running: VecDeque<AttemptId>,
    now: Instant,
    requests: u64,
}

impl Load {
    fn new(endpoints: usize) -> Self {
        let mut load = Self {
            plane: ControlPlane::new(1),
            recorder: Recorder::default(),
            effects: Vec::new(),
            running: VecDeque::new(),
            now: Instant::ZERO,
            requests: 0,
        };
        let wall = Wall::from_millis(1_780_000_000_000);
        load.step(Input::Restarted { incarnation: 1, wall });
        load.step(Input::Configured(Box::new(config())));
        let listed = (0..endpoints).map(|number| EndpointSpec {
            name: format!("replica-{number}").into(),
            weight: 100,
            tier: 0,
            in_flight_max: 1_000,
            rps_max: None,
            models: vec!["demo".into()],
            fingerprint: None,
        });
        load.step(Input::Membership {
            source: "config".into(),
            kind: SourceKind::Authoritative,
            version: 1,
            endpoints: listed.collect(),
        });
        for _ in 0..2 * endpoints {
            load.begin();
        }
        // Every session has its home, every account its balances.
        for _ in 0..2_000 {
            load.request();
        }
        load
    }

    fn request(&mut self) {
        self.begin();
        let attempt = self.running.pop_front().expect("requests are under way");
        for produced in [16, 32] {
            self.step(Input::Progress { attempt, produced: Tokens(produced) });
        }
        let usage = Usage { prompt: Tokens(200), completion: Tokens(40) };
        let end = AttemptEnd::Completed { usage, estimated: false };
        self.step(Input::AttemptEnded { attempt, end });
    }

    /// A request arrives, is taken, and gets its first token.
    fn begin(&mut self) {
        self.requests += 1;
        let tenant = AccountId(self.requests % 100);
        let session = SessionKey(self.requests % 1_000);
        self.step(Input::RequestArrived(Box::new(Arrival {
            caller: CallerToken(self.requests),
            model: "demo".into(),
            principal: Principal { tenant, user: None, key: None },
            session: Some(Session { key: session, kind: SessionKind::Hint }),
            idempotency: None,
            prompt: Tokens(200),
            output_max: None,
            resumable: false,
            stream: true,
            patience: None,
        })));
        let attempt = self.effects.iter().find_map(|effect| {
            if let Effect::Dispatch(dispatch) = effect { Some(dispatch.attempt) } else { None }
        });
        let attempt = attempt.expect("somebody takes it");
        self.step(Input::AttemptAccepted { attempt });
        self.step(Input::FirstToken { attempt });
        self.running.push_back(attempt);
    }

    fn step(&mut self, input: Input) {
        self.now = self.now + Duration::from_micros(100);
        self.recorder.begin(self.now, &input);
        self.plane.handle(self.now, input);
        self.effects.clear();
        self.effects.extend(std::iter::from_fn(|| self.plane.poll_effect()));
        black_box(self.recorder.finish(&self.effects));
        while let Some(observation) = self.plane.poll_observation() {
            black_box(&observation);
        }
        black_box(self.plane.poll_timeout());
    }
}

fn config() -> Config {
    let mut config = Config::default();
    let day = Cap { tokens: Some(Tokens(u64::MAX / 4)), money: None };
    for tenant in 0..100 {
        let limits = Limits { day, ..Limits::default() };
        let account = AccountConfig { limits, ..AccountConfig::default() };
        config.accounts.insert(AccountId(tenant), account);
    }
    config
}

fn request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plane/request");
    for endpoints in [10, 100, 1_000] {
        let mut load = Load::new(endpoints);
        group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| {
            bencher.iter(|| load.request());
        });
    }
    group.finish();
}

criterion_group!(benches, request);
criterion_main!(benches);

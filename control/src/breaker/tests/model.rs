//! A slow breaker that keeps everything it was ever told, beside the fast one.
#![allow(clippy::disallowed_types, reason = "prop_oneof! shares its strategies in Arcs")]

use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::super::window::{BUCKETS, number};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_moves_exactly_when_its_whole_history_says_so(
        ops in prop::collection::vec(op(), 1..250),
        config in config(),
    ) {
        let mut real = Bench::with(config.clone());
        let mut model = Model::new(config);
        for op in ops {
            apply(&mut real, &mut model, op);
            real.breakers.invariants();
            prop_assert_eq!(real.phase(), model.phase, "{:?}", model);
            prop_assert_eq!(real.view().until, model.until);
            prop_assert_eq!(real.view().probes as usize, model.probes.len());
            let admitted = matches!(real.admission(), Admission::Allowed { .. });
            prop_assert_eq!(admitted, model.admits());
        }
    }

    #[test]
    fn a_restored_breaker_has_the_same_future(
        before in prop::collection::vec(op(), 1..80),
        after in prop::collection::vec(op(), 1..80),
    ) {
        let mut stopped = Bench::new();
        let mut tickets = Vec::new();
        before.iter().for_each(|op| { step(&mut stopped, &mut tickets, *op); });
        let bytes = postcard::to_allocvec(&stopped.breakers).unwrap();
        let mut restored = stopped.clone();
        restored.breakers = postcard::from_bytes(&bytes).unwrap();
        let mut copies = tickets.clone();
        for op in after {
            let told = step(&mut stopped, &mut tickets, op);
            prop_assert_eq!(told, step(&mut restored, &mut copies, op));
        }
        prop_assert_eq!(postcard::to_allocvec(&stopped.breakers), postcard::to_allocvec(&restored.breakers));
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Begin,
    Record(usize, Verdict),
    Progress(usize),
    Pass(Duration),
    Room(u32),
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Success),
        8 => Just(Verdict::Failure),
        1 => Just(Verdict::Backpressure),
        1 => Just(Verdict::Neutral),
        1 => Just(Verdict::Fault(Fault::Forbidden)),
    ];
    prop_oneof![
        20 => Just(Op::Begin),
        20 => (0_usize..8, verdict).prop_map(|(i, verdict)| Op::Record(i, verdict)),
        2 => (0_usize..8).prop_map(Op::Progress),
        8 => (0_u64..4_000).prop_map(|ms| Op::Pass(Duration::from_millis(ms))),
        2 => (0_u64..120).prop_map(|s| Op::Pass(Duration::from_secs(s))),
        1 => (0_u32..10).prop_map(Op::Room),
        1 => Just(Op::Reset),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    (1_u32..6, 1_u32..4, 1_u32..3, 2_u32..12).prop_map(|(row, probes, close, volume)| Config {
        consecutive_failures: row,
        probes_max: probes,
        probes_to_close: close,
        window_requests_min: volume,
        ..Config::default()
    })
}

fn step(bench: &mut Bench, tickets: &mut Vec<Ticket>, op: Op) -> Vec<Transition> {
    match op {
        Op::Begin => {
            tickets.push(bench.begin());
            Vec::new()
        }
        Op::Record(..) | Op::Progress(_) if tickets.is_empty() => Vec::new(),
        Op::Record(i, verdict) => {
            let ticket = tickets.remove(i % tickets.len());
            bench.record(ticket, verdict).into_iter().collect()
        }
        Op::Progress(i) => {
            bench.breakers.progress(bench.now, bench.id, tickets[i % tickets.len()]);
            Vec::new()
        }
        Op::Pass(time) => bench.pass(time),
        Op::Room(ejected) => {
            bench.room = EjectionRoom { members: 10, ejected };
            Vec::new()
        }
        Op::Reset => bench.breakers.reset(bench.now, bench.id).into_iter().collect(),
    }
}

/// Everything it was told since it last moved, and nothing derived.
#[derive(Debug)]
struct Model {
    config: Config,
    phase: Phase,
    until: Option<Instant>,
    faulty: bool,
    /// Counts moves: a ticket is good for the stay it was begun in.
    stay: u32,
    results: Vec<(Instant, bool)>,
    closes: u32,
    /// (ticket's number, deadline).
    probes: Vec<(usize, Instant)>,
    /// (ticket, its number, its stay).
    tickets: Vec<(Ticket, usize, u32)>,
    begun: usize,
    /// When it last closed, and how often it was ejected without being forgiven.
    closed_at: Instant,
    doublings: u64,
    /// Seconds of its latest ejection, before jitter.
    full: u64,
}

impl Model {
    fn new(config: Config) -> Self {
        Self {
            config,
            phase: Phase::Closed,
            until: None,
            faulty: false,
            stay: 0,
            results: Vec::new(),
            closes: 0,
            probes: Vec::new(),
            tickets: Vec::new(),
            begun: 0,
            closed_at: Instant::ZERO,
            doublings: 0,
            full: 0,
        }
    }

    fn admits(&self) -> bool {
        match self.phase {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::HalfOpen => self.probes.len() < self.config.probes_max as usize,
        }
    }

    fn enter(&mut self, now: Instant, phase: Phase) {
        if phase == Phase::Closed {
            self.closed_at = now;
        }
        self.phase = phase;
        self.until = None;
        self.stay += 1;
        self.results.clear();
        self.probes.clear();
        self.closes = 0;
    }

    /// Takes the deadline the real one drew, after checking that it may be drawn.
    fn eject(&mut self, now: Instant, faulty: bool, drawn: Option<Instant>) {
        if self.phase == Phase::Closed {
            self.doublings =
                self.doublings.saturating_sub(now.since(self.closed_at).as_secs() / 60);
        }
        let base = |faulty| if faulty { 60 } else { 5 };
        // Out again without having closed: at least twice as long as before, in whatever base that was.
        let before = if self.phase == Phase::Closed { 0 } else { self.full };
        while base(faulty) << self.doublings < (before * 2).min(300) {
            self.doublings += 1;
        }
        let full = (base(faulty) << self.doublings).min(300);
        self.full = full;
        let earlier = self.until;
        let drawn = drawn.expect("an open breaker has a deadline");
        let length = drawn.since(now);
        assert!(length >= Duration::from_secs(full * 4 / 5), "{length:?} of {full}");
        assert!(
            length <= Duration::from_secs(full) || Some(drawn) == earlier,
            "{length:?} of {full}"
        );
        assert!(earlier.is_none_or(|earlier| drawn >= earlier), "kept the shorter deadline");
        self.doublings += u64::from(full < 300);
        self.enter(now, Phase::Open);
        (self.until, self.faulty) = (Some(drawn), faulty);
    }

    fn tripped(&self, now: Instant) -> bool {
        let row = self.results.iter().rev().take_while(|(_, good)| !good).count();
        let window = self.config.window;
        let recent: Vec<_> = self
            .results
            .iter()
            .filter(|(at, _)| number(*at, window) + BUCKETS > number(now, window))
            .collect();
        let failed = recent.iter().filter(|(_, good)| !good).count();
        let volume = recent.len() >= self.config.window_requests_min as usize;
        row >= self.config.consecutive_failures as usize || (volume && failed * 2 >= recent.len())
    }

    fn record(&mut self, now: Instant, at: usize, verdict: Verdict, real: &Bench) {
        let (_, number, stay) = self.tickets.remove(at);
        let before = self.probes.len();
        self.probes.retain(|(probe, _)| *probe != number);
        let probe = self.probes.len() < before;
        if stay != self.stay {
            return;
        }
        let good = verdict == Verdict::Success;
        match (verdict, self.phase) {
            (Verdict::Backpressure | Verdict::Neutral, _) => {}
            (Verdict::Fault(_), Phase::Open) if self.faulty => {}
            (Verdict::Fault(_), _) => self.eject(now, true, real.view().until),
            (Verdict::Success | Verdict::Failure, Phase::Open) => {}
            (Verdict::Success | Verdict::Failure, Phase::Closed) => {
                self.results.push((now, good));
                if !good && self.tripped(now) && has_room(real.room) {
                    self.eject(now, false, real.view().until);
                }
            }
            (Verdict::Success, Phase::HalfOpen) if probe => {
                self.closes += 1;
                if self.closes == self.config.probes_to_close {
                    self.enter(now, Phase::Closed);
                }
            }
            (Verdict::Failure, Phase::HalfOpen) if probe => {
                self.eject(now, false, real.view().until);
            }
            (Verdict::Success | Verdict::Failure, Phase::HalfOpen) => {}
        }
    }

    fn timeout(&mut self, now: Instant, real: &Bench) {
        if self.until.is_some_and(|until| until <= now) {
            self.enter(now, Phase::HalfOpen);
        } else if self.probes.iter().any(|(_, deadline)| *deadline <= now) {
            self.eject(now, false, real.view().until);
        }
    }
}

fn has_room(room: EjectionRoom) -> bool {
    room.ejected == 0 || f64::from(room.ejected + 1) / f64::from(room.members) <= 0.8
}

fn apply(real: &mut Bench, model: &mut Model, op: Op) {
    let mut tickets: Vec<_> = model.tickets.iter().map(|(ticket, ..)| *ticket).collect();
    step(real, &mut tickets, op);
    let at = |i: usize| i % model.tickets.len().max(1);
    match op {
        Op::Begin => {
            let deadline = real.now + model.config.probe_timeout;
            if model.phase == Phase::HalfOpen && model.admits() {
                model.probes.push((model.begun, deadline));
            }
            let ticket = *tickets.last().unwrap();
            model.tickets.push((ticket, model.begun, model.stay));
            model.begun += 1;
        }
        Op::Record(..) | Op::Progress(_) if model.tickets.is_empty() => {}
        Op::Record(i, verdict) => model.record(real.now, at(i), verdict, real),
        Op::Progress(i) => {
            let number = model.tickets[at(i)].1;
            let deadline = real.now + model.config.probe_timeout;
            model.probes.iter_mut().filter(|p| p.0 == number).for_each(|p| p.1 = deadline);
        }
        Op::Pass(_) => model.timeout(real.now, real),
        Op::Room(_) => {}
        Op::Reset => {
            model.enter(real.now, Phase::Closed);
            (model.doublings, model.faulty) = (0, false);
        }
    }
}

//! What a configuration is put through.

use control::rng::Rng;

use super::subject::Subject;
use crate::plan::{Ask, Fault, FaultKind, PLAN_VERSION, Plan, ReplicaIllness, trouble_for};

/// One kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scenario {
    Calm,
    Hiccup,
    OneDies,
    OneHangs,
    OneFails,
    KeyRevoked,
    HalfSlow,
    Burst,
    Nemesis,
}

/// When things happen, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Trouble begins.
    pub from: u64,
    /// Nobody asks any more.
    pub until: u64,
    /// The world ends.
    pub end: u64,
}

/// Long enough for a few requests of every caller.
const WARM_MS: u64 = 30_000;
/// A process restarts in less; a machine does not.
const TROUBLE_MS: u64 = 60_000;
const HICCUP_MS: u64 = 2_000;
const BURST_MS: u64 = 20_000;
/// The nemesis of a seed is drawn for so long.
const NEMESIS_MS: u64 = 75_000;
/// So many times as many requests in a burst.
const BURST_TIMES: u64 = 5;
/// How many times as long slow endpoints take.
const SLOW_TIMES: u32 = 8;
/// How long clients go on after the trouble: twice an ejection and a minute, between these. A return that takes longer
/// is told as one that was not seen.
const AFTER_MS: std::ops::RangeInclusive<u64> = 120_000..=420_000;
/// No world goes on longer after its last request: where timeouts are longer, whether it comes to rest is not judged.
const REST_MS_MAX: u64 = 1_500_000;

impl Times {
    pub fn of(subject: &Subject) -> Self {
        let breaker = &subject.config.breaker;
        let millis =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let after = millis(breaker.ejection_base).saturating_mul(2).saturating_add(60_000);
        let after = after.clamp(*AFTER_MS.start(), *AFTER_MS.end());
        let until = WARM_MS + TROUBLE_MS + after;
        let own = subject.config.models.values().filter_map(|model| model.timeouts.as_ref());
        let timeouts = || own.clone().chain([&subject.config.timeouts]);
        let request = timeouts().map(|t| millis(t.request)).max().unwrap_or_default();
        let first = timeouts().map(|t| millis(t.first_token)).max().unwrap_or_default();
        let probed = first.max(millis(breaker.probe_timeout));
        let ejected = millis(breaker.ejection_max).max(millis(breaker.fault_ejection_base));
        let rest = request.saturating_add(ejected).saturating_add(probed.saturating_mul(2));
        let rest = rest.saturating_add(26_000);
        // A world whose rest is too long to be awaited still lets its last requests end.
        let rest =
            if rest > REST_MS_MAX { REST_MS_MAX.min(request.saturating_add(20_000)) } else { rest };
        Self { from: WARM_MS, until, end: until + rest }
    }

    pub const fn seconds(&self) -> u64 {
        self.until / 1_000
    }
}

impl Scenario {
    pub const ALL: [Self; 9] = [
        Self::Calm,
        Self::Hiccup,
        Self::OneDies,
        Self::OneHangs,
        Self::OneFails,
        Self::KeyRevoked,
        Self::HalfSlow,
        Self::Burst,
        Self::Nemesis,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Hiccup => "hiccup",
            Self::OneDies => "one dies",
            Self::OneHangs => "one hangs",
            Self::OneFails => "one fails fast",
            Self::KeyRevoked => "key revoked",
            Self::HalfSlow => "half is slow",
            Self::Burst => "burst",
            Self::Nemesis => "nemesis",
        }
    }

    /// What it is, in a sentence.
    pub fn text(self) -> String {
        let trouble = TROUBLE_MS / 1_000;
        match self {
            Self::Calm => "nothing happens".to_owned(),
            Self::Hiccup => format!("no endpoint can be reached for {} s", HICCUP_MS / 1_000),
            Self::OneDies => format!("one endpoint of each model is down for {trouble} s"),
            Self::OneHangs => {
                format!("one endpoint of each model accepts and says nothing for {trouble} s")
            }
            Self::OneFails => {
                format!("one endpoint of each model answers 500 at once for {trouble} s")
            }
            Self::KeyRevoked => format!("one endpoint of each model answers 401 for {trouble} s"),
            Self::HalfSlow => {
                format!("half of the endpoints take {SLOW_TIMES} times as long for {trouble} s")
            }
            Self::Burst => {
                format!("{BURST_TIMES} times as many requests for {} s", BURST_MS / 1_000)
            }
            Self::Nemesis => {
                format!("what a seed brings in {} s: crashes, cuts, lies", NEMESIS_MS / 1_000)
            }
        }
    }

    /// How long its trouble lasts, in milliseconds.
    pub const fn lasts_ms(self) -> u64 {
        match self {
            Self::Hiccup => HICCUP_MS,
            Self::Burst => BURST_MS,
            Self::Nemesis => NEMESIS_MS,
            Self::Calm
            | Self::OneDies
            | Self::OneHangs
            | Self::OneFails
            | Self::KeyRevoked
            | Self::HalfSlow => TROUBLE_MS,
        }
    }

    /// Whether a pool's other endpoints could serve everybody meanwhile.
    pub const fn spares_some(self) -> bool {
        match self {
            Self::OneDies | Self::OneHangs | Self::OneFails | Self::KeyRevoked => true,
            Self::Calm | Self::Hiccup | Self::HalfSlow | Self::Burst | Self::Nemesis => false,
        }
    }

    /// The scenario as a plan.
    pub fn plan(self, subject: &Subject, asks: &[Ask], times: Times, seed: u64) -> Plan {
        let mut rng = Rng::new(seed).fork(self.name());
        let mut asks = asks.to_vec();
        if self == Self::Burst {
            crowd(&mut asks, times, &mut rng);
        }
        asks.sort_by_key(|ask| ask.at_us);
        Plan {
            version: PLAN_VERSION,
            what: format!("a configuration under trial: {}", self.text()),
            seed,
            duration_ms: times.end,
            heal_at_ms: times.until,
            topology: subject.topology.clone(),
            config: subject.config.clone(),
            asks,
            faults: self.faults(subject, times, seed, &mut rng),
        }
    }

    fn faults(self, subject: &Subject, times: Times, seed: u64, rng: &mut Rng) -> Vec<Fault> {
        let lasts = |replica: u32, make: &dyn Fn(u32) -> FaultKind| Fault {
            at_ms: times.from,
            until_ms: Some(times.from + self.lasts_ms()),
            kind: make(replica),
        };
        let all = |replicas: Vec<u32>, make: &dyn Fn(u32) -> FaultKind| -> Vec<Fault> {
            replicas.into_iter().map(|replica| lasts(replica, make)).collect()
        };
        let crash = |replica| FaultKind::ReplicaCrash { replica, power: false };
        let ill = |with| move |replica| FaultKind::Ill { replica, with };
        let fails = |status| ReplicaIllness::Fails { status, retry_after_ms: None };
        let everybody = (0..subject.topology.replicas.len() as u32).collect();
        match self {
            Self::Calm | Self::Burst => Vec::new(),
            Self::Hiccup => all(everybody, &crash),
            Self::OneDies => all(victims(subject, seed), &crash),
            Self::OneHangs => all(victims(subject, seed), &ill(ReplicaIllness::Silent)),
            Self::OneFails => all(victims(subject, seed), &ill(fails(500))),
            Self::KeyRevoked => all(victims(subject, seed), &ill(fails(401))),
            Self::HalfSlow => all(half(subject), &ill(ReplicaIllness::Slow { times: SLOW_TIMES })),
            Self::Nemesis => {
                let mut faults = trouble_for(&subject.topology, &subject.config, rng.fork("drawn"));
                for fault in &mut faults {
                    fault.at_ms += times.from;
                    fault.until_ms = fault.until_ms.map(|until| until + times.from);
                }
                faults
            }
        }
    }
}

/// One endpoint of each model's first tier; another with each seed.
pub(super) fn victims(subject: &Subject, seed: u64) -> Vec<u32> {
    let mut victims: Vec<u32> = Vec::new();
    for model in 0..subject.models.len() as u32 {
        let pool = subject.pool(model);
        let tier = |replica: &u32| subject.topology.replicas[*replica as usize].tier;
        let Some(first) = pool.first().map(tier) else { continue };
        let first: Vec<u32> = pool.into_iter().filter(|replica| tier(replica) == first).collect();
        // A model whose pool has a victim already needs no other.
        if !first.iter().any(|replica| victims.contains(replica)) {
            victims.push(first[(seed % first.len() as u64) as usize]);
        }
    }
    victims
}

fn half(subject: &Subject) -> Vec<u32> {
    let mut half: Vec<u32> = Vec::new();
    for model in 0..subject.models.len() as u32 {
        let pool = subject.pool(model);
        let count = pool.len().div_ceil(2);
        half.extend(pool.into_iter().take(count));
    }
    half.sort_unstable();
    half.dedup();
    half
}

/// Each request of the burst's time comes five times, at other moments of the same half second.
fn crowd(asks: &mut Vec<Ask>, times: Times, rng: &mut Rng) {
    let window = times.from * 1_000..(times.from + BURST_MS) * 1_000;
    let more: Vec<Ask> = asks
        .iter()
        .filter(|ask| window.contains(&ask.at_us))
        .flat_map(|ask| {
            (1..BURST_TIMES)
                .map(|_| Ask {
                    at_us: ask.at_us + rng.below(500_000),
                    session: None,
                    ..ask.clone()
                })
                .collect::<Vec<_>>()
        })
        .collect();
    asks.extend(more);
}

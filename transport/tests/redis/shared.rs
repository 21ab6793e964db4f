//! Random asks for what gateways share beside the ledger, to a server and to the pure store of `control::shared`.

use std::collections::BTreeMap;

use control::id::{AccountId, Digest, Minted, RequestId, SessionKey};
use control::plane::Idempotency;
use control::quota::OwnerId;
use control::rate::RateUnit;
use control::shared::{
    Claimant, HomeAnswer, Homes, KeyAnswer, KeyClaim, Keys, Noted, RateCorrection, RateTake, Rates,
    RatesAnswer, SLOT_MICROS,
};
use transport::redis::{StoreError, Wave, home_keys};

use crate::script::Rng;

/// What the answers are called, so that a test can see that each was heard.
pub const ANSWERS: [&str; 9] =
    ["taken", "refused", "corrected", "begun", "running", "done", "mismatch", "nowhere", "at home"];

/// How long homes live: longer than any test takes, so that they go when the test says so.
pub const HOME_MICROS: u64 = 3_600_000_000;

/// Time passes for the homes at the server: these keys go.
pub trait Lapse {
    /// They do.
    fn lapse(&mut self, keys: &[String]);
}

/// Both stores.
pub struct Both<L> {
    wave: Wave,
    lapse: L,
    rates: BTreeMap<AccountId, Rates>,
    keys: Keys,
    homes: Homes,
    now: u64,
    homes_now: u64,
    /// The ends of slots that were told.
    slots: Vec<u64>,
    /// How often each answer was heard.
    pub heard: BTreeMap<&'static str, usize>,
}

impl<L: Lapse> Both<L> {
    /// Nothing was asked yet. Two of them on one server have different `salt`s.
    pub fn new(wave: Wave, lapse: L) -> Self {
        Self {
            wave,
            lapse,
            rates: BTreeMap::new(),
            keys: Keys::default(),
            homes: Homes::default(),
            // Some time in 2026.
            now: 1_772_323_200_000_000,
            homes_now: 0,
            slots: vec![0],
            heard: BTreeMap::new(),
        }
    }

    /// Asks both `count` times and compares.
    pub async fn compare(&mut self, seed: u64, count: usize) {
        let rng = &mut Rng(seed);
        for step in 0..count {
            let compared = self.step(rng).await;
            compared.unwrap_or_else(|why| panic!("seed {seed}, step {step}: {why}"));
        }
    }

    async fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        if rng.one_in(4) {
            self.now += match rng.below(4) {
                0 => rng.of(&[1, 1_000_000, 20_000_000, 60_000_000, SLOT_MICROS]),
                1 => SLOT_MICROS - self.now % SLOT_MICROS,
                _ => rng.below(2_000_000),
            };
        }
        if rng.one_in(40) {
            self.lapse();
        }
        match rng.below(8) {
            0..=2 => self.take(rng).await,
            3 => self.correct(rng).await,
            4 => self.claim(rng).await,
            5 => self.end(rng).await,
            6 => self.settle(rng).await,
            _ => self.look(rng).await,
        }
    }

    async fn take(&mut self, rng: &mut Rng) -> Result<(), String> {
        let (tenant, lease) =
            (tenant(rng), rng.of(&[0, 1, 60_000_000, 601_000_000, 3_600_000_000]));
        let (first, mut takes) = (rng.below(3), Vec::new());
        for account in first..first + 1 + rng.below(3) {
            for unit in [RateUnit::Rpm, RateUnit::Tpm] {
                if takes.is_empty() || rng.one_in(2) {
                    takes.push(take_of(rng, AccountId(account), unit));
                }
            }
        }
        let expected = self.rates.entry(tenant).or_default().take(self.now, lease, &takes);
        let said = self.wave.take(tenant, Some(self.now), lease, &takes).await;
        match expected {
            RatesAnswer::Taken { until } => {
                self.slots.push(until);
                self.hear("taken");
            }
            RatesAnswer::Refused { .. } => self.hear("refused"),
        }
        same(&format!("{tenant:?} {lease} {takes:?}"), &expected, said)
    }

    async fn correct(&mut self, rng: &mut Rng) -> Result<(), String> {
        let tenant = tenant(rng);
        let mut corrections = Vec::new();
        for account in 0..1 + rng.below(3) {
            let until = match rng.below(4) {
                0 => 0,
                1 => self.now.next_multiple_of(SLOT_MICROS),
                _ => rng.of(&self.slots),
            };
            corrections.push(RateCorrection {
                account: AccountId(account),
                unit: RateUnit::Tpm,
                until,
                held: if until == 0 { 0 } else { amount(rng) },
                used: amount(rng),
            });
        }
        self.rates.entry(tenant).or_default().correct(self.now, &corrections);
        self.hear("corrected");
        let said = self.wave.correct(tenant, Some(self.now), &corrections).await;
        same(&format!("{corrections:?}"), &(), said)
    }

    async fn claim(&mut self, rng: &mut Rng) -> Result<(), String> {
        let (tenant, claim) = (tenant(rng), claim(rng));
        let lease = rng.of(&[0, 1_000_000, 60_000_000, 600_000_000]);
        let expected = self.keys.claim(self.now, lease, tenant, claim.idempotency, claim.by);
        self.hear(match expected {
            KeyAnswer::Begun => "begun",
            KeyAnswer::InFlight => "running",
            KeyAnswer::Done => "done",
            KeyAnswer::Mismatch => "mismatch",
        });
        let said = self.wave.claim(tenant, Some(self.now), lease, &claim).await;
        same(&format!("{claim:?} {lease}"), &expected, said)
    }

    async fn end(&mut self, rng: &mut Rng) -> Result<(), String> {
        let (tenant, KeyClaim { idempotency, by }) = (tenant(rng), claim(rng));
        let (charged, keep) = (rng.one_in(2), rng.of(&[0, 60_000_000, 600_000_000]));
        self.keys.end(self.now, keep, tenant, (idempotency, by), charged);
        let noted = Noted::Key { idempotency, by, charged, keep };
        let said = self.wave.end(tenant, Some(self.now), &noted).await;
        same(&format!("{noted:?}"), &(), said)
    }

    async fn settle(&mut self, rng: &mut Rng) -> Result<(), String> {
        let session = SessionKey(rng.below(SESSIONS));
        let epoch = match self.homes.at(self.homes_now, session) {
            HomeAnswer::Nowhere { epoch } | HomeAnswer::At { epoch, .. } => epoch,
        };
        let believed = rng.of(&[0, 1, epoch, epoch, epoch, epoch + 3, epoch.saturating_sub(1)]);
        let (noted, expected) = if rng.one_in(4) {
            let expected = self.homes.homeless(self.homes_now, session, believed);
            (Noted::Homeless { session, believed }, expected)
        } else {
            let endpoint: Box<str> = rng.of(&["a", "b", "http://c:1 \u{e9}"]).into();
            let expected =
                self.homes.accepted(self.homes_now, session, &endpoint, believed, HOME_MICROS);
            (Noted::Home { session, endpoint, believed, ttl: HOME_MICROS }, expected)
        };
        let said = self.wave.set_home(&name(session), &noted).await;
        same(&format!("{noted:?}"), &expected, said)
    }

    async fn look(&mut self, rng: &mut Rng) -> Result<(), String> {
        let session = SessionKey(rng.below(SESSIONS));
        let expected = self.homes.at(self.homes_now, session);
        self.hear(match expected {
            HomeAnswer::Nowhere { .. } => "nowhere",
            HomeAnswer::At { .. } => "at home",
        });
        same(&format!("{session:?}"), &expected, self.wave.home(&name(session)).await)
    }

    /// All homes that were not heard of since the last time lapse, and the epochs of those that had lapsed then.
    fn lapse(&mut self) {
        self.homes_now += HOME_MICROS;
        let mut gone = Vec::new();
        for session in (0..SESSIONS).map(SessionKey) {
            let [home, epoch] = home_keys(&name(session));
            match self.homes.at(self.homes_now, session) {
                HomeAnswer::At { .. } => {}
                HomeAnswer::Nowhere { epoch: 0 } => gone.extend([home, epoch]),
                HomeAnswer::Nowhere { .. } => gone.push(home),
            }
        }
        self.lapse.lapse(&gone);
    }

    fn hear(&mut self, answer: &'static str) {
        *self.heard.entry(answer).or_default() += 1;
    }
}

fn same<T: PartialEq + core::fmt::Debug>(
    asked: &str,
    expected: &T,
    said: Result<T, StoreError>,
) -> Result<(), String> {
    match said {
        Ok(said) if said == *expected => Ok(()),
        said => Err(format!("{asked}\n     pure: {expected:?}\ntheir own: {said:?}")),
    }
}

const SESSIONS: u64 = 6;

fn name(session: SessionKey) -> String {
    format!("session:{}", session.0)
}

fn tenant(rng: &mut Rng) -> AccountId {
    AccountId(rng.of(&[0xa11ce, u64::MAX]))
}

fn amount(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => rng.below(3_600_000_000),
        _ => rng.below(20_000_000),
    }
}

fn take_of(rng: &mut Rng, account: AccountId, unit: RateUnit) -> RateTake {
    let limit = rng.of(&[1, 60, 1 << 40]);
    let (drain, burst) = (amount(rng), rng.of(&[0, 1_000_000, 60_000_000, 60_000_000, 1 << 50]));
    RateTake { account, unit, limit, drain, burst }
}

fn claim(rng: &mut Rng) -> KeyClaim {
    let counter = rng.of(&[1, 2, u64::MAX]);
    let request = RequestId(Minted { incarnation: rng.of(&[1, u32::MAX]), counter });
    KeyClaim {
        idempotency: Idempotency {
            key: Digest(rng.of(&[1, 2, 3, u128::MAX])),
            body: Digest(rng.of(&[7, 7, 7, 7, u128::MAX])),
        },
        by: Claimant { owner: OwnerId(rng.of(&[1, u64::MAX])), request },
    }
}

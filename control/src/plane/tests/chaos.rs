//! A shell that has lost its mind: inputs that are valid, late, repeated or about nobody, in any order, with restarts,
//! reloads and clocks that jump. Deterministic by its seed.

use alloc::vec::Vec;
use core::time::Duration;

use super::world::{Ask, NOON, daily, failed, rated, spec};
use crate::balance::Reported;
use crate::id::{AccountId, AttemptId, CallerToken, EndpointId, Minted};
use crate::outcome::{AttemptEnd, Failure, Fault, Stage};
use crate::plane::{Arrival, Config, Dispatch, Effect, Input, ModelConfig};
use crate::registry::{EndpointSpec, SourceKind};
use crate::rng::Rng;
use crate::time::{Instant, Wall};
use crate::units::{MicroUsd, Price, Tokens, Usage};

/// Makes inputs, and learns of attempts from effects.
pub(crate) struct Chaos {
    rng: Rng,
    pub now: Instant,
    pub config: Config,
    /// Attempts that were ever dispatched, the latest 64.
    known: Vec<Dispatch>,
    callers: u64,
    version: u64,
    lives: u32,
    started: bool,
    /// Gives no caller's token twice, as no sane shell does.
    pub unrepeated: bool,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Chaos {
    pub fn new(seed: u64) -> Self {
        let mut config = Config::default();
        config.quota.slice = Tokens(32);
        config.requests_max = 24;
        config.session.waiting_max = 2;
        config.timeouts.request = Duration::from_secs(20);
        Self {
            rng: Rng::new(seed),
            now: Instant::ZERO,
            config,
            known: Vec::new(),
            callers: 0,
            version: 0,
            lives: 0,
            started: false,
            unrepeated: false,
        }
    }

    /// What happens next, and when.
    pub fn next(&mut self) -> (Instant, Input) {
        if !self.started {
            self.started = true;
            return (self.now, self.restart());
        }
        self.now = self.now + self.pause();
        let input = match self.rng.below(100) {
            0..22 => self.arrival(),
            22..34 => Input::AttemptAccepted { attempt: self.attempt() },
            34..46 => Input::FirstToken { attempt: self.attempt() },
            46..62 => {
                let produced = Tokens(self.rng.below(120));
                Input::Progress { attempt: self.attempt(), produced }
            }
            62..80 => Input::AttemptEnded { attempt: self.attempt(), end: self.end() },
            80..84 => Input::ClientGone { caller: CallerToken(self.rng.below(self.callers + 2)) },
            84..91 => Input::Timeout,
            91..93 => self.load(),
            93..95 => self.membership(),
            95 => {
                let endpoint = NAMES[self.rng.below(5) as usize].into();
                Input::Drain { endpoint, on: self.rng.below(3) == 0 }
            }
            96 => self.reload(),
            // Jumps back as often as forward.
            97 => Input::WallTime(self.wall(self.rng.clone().below(200_000_000))),
            98 => Input::SourceLost { source: "discovery".into() },
            _ if self.rng.below(8) == 0 => self.restart(),
            _ => Input::Timeout,
        };
        (self.now, input)
    }

    pub fn learn(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Dispatch(dispatch) = effect {
                if self.known.len() == 64 {
                    self.known.remove(0);
                }
                self.known.push(dispatch.clone());
            }
        }
    }

    fn pause(&mut self) -> Duration {
        match self.rng.below(40) {
            0 => Duration::from_secs(self.rng.below(30)),
            1..10 => Duration::from_millis(self.rng.below(500)),
            _ => Duration::from_micros(self.rng.below(500)),
        }
    }

    fn wall(&self, ahead: u64) -> Wall {
        NOON + self.now.since(Instant::ZERO) + Duration::from_millis(ahead)
    }

    fn arrival(&mut self) -> Input {
        self.callers += 1;
        // Seldom one that may be in use.
        let again = self.rng.below(20) == 0 && !self.unrepeated;
        let caller = if again { 1 + self.rng.below(self.callers) } else { self.callers };
        let mut ask = if self.rng.below(3) > 0 { Ask::stream() } else { Ask::new() };
        ask = match self.rng.below(6) {
            0 => ask.stored(self.rng.below(3)),
            1..4 => ask.session(self.rng.below(8)),
            _ => ask,
        };
        if self.rng.below(6) == 0 {
            ask = ask.keyed(u128::from(self.rng.below(4)), u128::from(self.rng.below(2)));
        }
        if self.rng.below(4) == 0 {
            ask = ask.at_most(self.rng.below(200));
        }
        if self.rng.below(30) == 0 {
            ask = ask.patience(Duration::from_millis(self.rng.below(3_000)));
        }
        let model = ["m", "m", "m", "k", "unknown"][self.rng.below(5) as usize];
        let ask = ask.tenant(1 + self.rng.below(3)).model(model);
        Input::RequestArrived(Arrival { caller: CallerToken(caller), ..ask.0 }.into())
    }

    /// Mostly one of late, sometimes one from long ago, sometimes nobody's.
    fn attempt(&mut self) -> AttemptId {
        let nobody = Minted { incarnation: self.rng.below(4) as u32, counter: self.rng.below(500) };
        if self.known.is_empty() || self.rng.below(25) == 0 {
            return AttemptId(nobody);
        }
        let latest = self.known.len() as u64;
        let span = if self.rng.below(4) == 0 { latest } else { latest.min(12) };
        self.known[(latest - 1 - self.rng.below(span)) as usize].attempt
    }

    fn end(&mut self) -> AttemptEnd {
        let completion = Tokens(self.rng.below(150));
        match self.rng.below(10) {
            0..4 => AttemptEnd::Completed {
                usage: Usage { prompt: Tokens(self.rng.below(20)), completion },
                estimated: self.rng.below(2) == 0,
            },
            4 => AttemptEnd::Cancelled { produced: completion },
            _ => {
                let failures = [
                    Failure::Connect,
                    Failure::Connect,
                    Failure::ConnectionLost,
                    Failure::Timeout(Stage::FirstToken),
                    Failure::Timeout(Stage::Deadline),
                    Failure::Status(500),
                    Failure::Backpressure(429),
                    Failure::ClientError(400),
                    Failure::EndpointFault(Fault::KeyRefused),
                    Failure::Truncated,
                ];
                let failure = failures[self.rng.below(failures.len() as u64) as usize];
                match self.rng.below(4) {
                    0 => AttemptEnd::Failed {
                        failure,
                        produced: completion,
                        retry_after: Some(Duration::from_millis(self.rng.below(5_000))),
                    },
                    _ => failed(failure, completion.0),
                }
            }
        }
    }

    /// Of somebody who is there, mostly; whatever a shell may believe, and what none would.
    fn load(&mut self) -> Input {
        let known = self.known.last().map(|dispatch| dispatch.endpoint);
        let slot = self.rng.below(6) as u32;
        let nobody = EndpointId { slot, generation: self.rng.below(3) as u32 };
        let endpoint = known.filter(|_| self.rng.below(3) > 0).unwrap_or(nobody);
        let mut count = || match self.rng.below(10) {
            0 => u32::MAX,
            1..4 => 0,
            _ => self.rng.below(40) as u32,
        };
        let (queued, running) = (count(), count());
        let kv_used_permille = Some(self.rng.below(1_200) as u32).filter(|used| *used > 400);
        Input::LoadReported { endpoint, load: Reported { queued, running, kv_used_permille } }
    }

    fn membership(&mut self) -> Input {
        self.version += 1;
        let observed = self.rng.below(3) == 0;
        let listed = self.rng.below(32);
        let mut endpoints = Vec::new();
        for (bit, name) in NAMES.iter().enumerate() {
            if listed & (1 << bit) != 0 {
                endpoints.push(EndpointSpec {
                    tier: (self.rng.below(4) == 0).into(),
                    in_flight_max: 1 + self.rng.below(6) as u32,
                    rps_max: (self.rng.below(3) == 0).then_some(1 + self.rng.below(5) as u32),
                    models: if bit == 4 { vec!["k".into(), "m".into()] } else { vec!["m".into()] },
                    ..spec(name)
                });
            }
        }
        let (source, kind) = if observed {
            ("discovery".into(), SourceKind::Observed)
        } else {
            ("config".into(), SourceKind::Authoritative)
        };
        // Sometimes an old answer arrives late.
        let version = self.version.saturating_sub(self.rng.below(4) / 3 * 2);
        Input::Membership { source, kind, version, endpoints }
    }

    fn reload(&mut self) -> Input {
        self.config.version += 1;
        let version = self.config.version;
        let price = MicroUsd(self.rng.below(3) * 500_000);
        let model = ModelConfig {
            price: Price { input: price, output: price },
            concurrency_max: (self.rng.below(2) == 0).then_some(10),
            hedge_after: Some(Duration::from_millis(version % 3 * 40)),
            ..ModelConfig::default()
        };
        self.config.models.insert("m".into(), model);
        self.config.accounts.insert(AccountId(1), daily(200 + self.rng.below(2_000)));
        let tpm = (self.rng.below(2) == 0).then_some(5_000);
        self.config.accounts.insert(AccountId(2), rated(Some(300), tpm));
        self.config.attempt.attempts_max = 1 + self.rng.below(5) as u32;
        self.config.attempt.hedge_share_percent = (version % 4 * 30) as u32;
        self.config.breaker.probes_max = 1 + self.rng.below(2) as u32;
        Input::Configured(self.config.clone().into())
    }

    fn restart(&mut self) -> Input {
        self.lives += 1;
        Input::Restarted { incarnation: self.lives, wall: self.wall(0) }
    }
}

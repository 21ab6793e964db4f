//! Stories in `control/tests/transcripts`: prose, commands (`> ...`), and below each what the plane did about it.
//!
//! A story's indented lines are what is expected. `UPDATE_TRANSCRIPTS=1 cargo test -p control transcripts` writes them
//! anew; read the difference before you commit it.

use alloc::collections::BTreeMap;
use core::fmt::Write;
use core::time::Duration;
use std::path::PathBuf;

use super::world::{Ask, World, daily};
use crate::id::{AccountId, CallerToken};
use crate::outcome::{AttemptEnd, Failure, Stage};
use crate::plane::{Durable, Effect, Observation};
use crate::quota::Fact;
use crate::units::Tokens;

#[test]
fn a_replica_dies_and_comes_back() {
    check("a_replica_dies_and_comes_back");
}

#[test]
fn a_tenant_meets_its_limit_in_the_middle_of_a_stream() {
    check("a_tenant_meets_its_limit_in_the_middle_of_a_stream");
}

#[test]
fn a_retry_storm_is_damped() {
    check("a_retry_storm_is_damped");
}

/// A story takes its time.
const BETWEEN_COMMANDS: Duration = Duration::from_millis(20);

fn check(name: &str) {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "transcripts", &format!("{name}.txt")]
            .iter()
            .collect();
    let expected = std::fs::read_to_string(&path).unwrap();
    let told = Story::new().tell(&expected);
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        std::fs::write(&path, told).unwrap();
        return;
    }
    for (number, (told, expected)) in told.lines().zip(expected.lines()).enumerate() {
        assert_eq!(told, expected, "{name}.txt, line {}", number + 1);
    }
    assert_eq!(told, expected);
}

struct Story {
    world: World,
    callers: BTreeMap<String, CallerToken>,
    shown: (usize, usize),
}

impl Story {
    fn new() -> Self {
        Self { world: World::new(), callers: BTreeMap::new(), shown: (0, 0) }
    }

    fn tell(mut self, text: &str) -> String {
        let mut told = String::new();
        for line in text.lines().filter(|line| !line.starts_with("    ")) {
            told.push_str(line);
            told.push('\n');
            if let Some(command) = line.strip_prefix("> ") {
                let words: Vec<_> = command.split_whitespace().collect();
                let extra = self.obey(&words);
                self.what_followed(&mut told);
                extra.lines().for_each(|line| writeln!(told, "    {line}").unwrap());
            }
        }
        told
    }

    fn obey(&mut self, words: &[&str]) -> String {
        let number = |word: &str| word.parse::<u64>().unwrap();
        if !matches!(words[0], "explain" | "status" | "after") {
            self.world.later(BETWEEN_COMMANDS);
        }
        match *words {
            ["replicas", ref names @ ..] => self.world.members(names),
            ["tenant", tenant, "may", "spend", tokens, "tokens", "a", "day"] => {
                let (account, limit) = (AccountId(number(tenant)), daily(number(tokens)));
                self.world.configure(|config| drop(config.accounts.insert(account, limit)));
            }
            ["retries", "saved", "up:", burst] => {
                let burst = number(burst) as u32;
                self.world.configure(|config| {
                    config.attempt.budget_burst = burst;
                    config.attempt.budget_floor_per_second = 0;
                    config.attempt.budget_ratio_percent = 0;
                });
            }
            ["ask", name, ref how @ ..] => {
                let ask = how.chunks(2).fold(Ask::stream(), |ask, how| match *how {
                    ["session", key] => ask.session(number(key)),
                    ["tenant", tenant] => ask.tenant(number(tenant)),
                    _ => panic!("ask how? {how:?}"),
                });
                // Known by its name before its first effect is told.
                self.callers.insert(name.into(), CallerToken(self.callers.len() as u64 + 1));
                let caller = self.world.ask(ask);
                assert_eq!(self.callers[name], caller);
            }
            ["begins", name] => self.world.first_token(self.callers[name]),
            ["produced", name, tokens] => {
                drop(self.world.produce(self.callers[name], number(tokens)));
            }
            ["answered", name, tokens] => {
                drop(self.world.complete(self.callers[name], number(tokens)));
            }
            ["stopped", name, tokens] => {
                let produced = Tokens(number(tokens));
                self.world.end(self.callers[name], AttemptEnd::Cancelled { produced });
            }
            ["fails", name, ref how @ ..] => {
                drop(self.world.fail(self.callers[name], failure(how)));
            }
            ["leaves", name] => drop(self.world.gone(self.callers[name])),
            ["after", time, "s"] => self.world.later(Duration::from_secs(number(time))),
            ["after", time, "ms"] => self.world.later(Duration::from_millis(number(time))),
            ["explain", name] => return self.world.explain(self.callers[name]),
            ["status"] => return self.status(),
            _ => panic!("what is that? {words:?}"),
        }
        String::new()
    }

    fn what_followed(&mut self, told: &mut String) {
        let (effects, observations) = self.shown;
        for observation in &self.world.observations[observations..] {
            if let Observation::Breaker(moved) = observation
                && moved.from != moved.to
            {
                let name = self.world.plane.endpoint_name(moved.id).unwrap_or("?");
                let (from, to, cause) = (moved.from, moved.to, moved.cause);
                writeln!(told, "    breaker of {name}: {from} -> {to}: {cause}").unwrap();
            }
        }
        for effect in &self.world.effects[effects..] {
            if let Some(words) = self.words(effect) {
                writeln!(told, "    {words}").unwrap();
            }
        }
        self.shown = (self.world.effects.len(), self.world.observations.len());
    }

    fn words(&self, effect: &Effect) -> Option<String> {
        let name = |caller: &CallerToken| {
            let found = self.callers.iter().find(|(_, token)| *token == caller);
            found.map_or("?", |(name, _)| name).to_owned()
        };
        Some(match effect {
            Effect::Admitted { caller, request } => format!("{} is {request}", name(caller)),
            Effect::Reserve(_) | Effect::LedgerAnswered { .. } => return None,
            Effect::Dispatch(dispatch) => {
                let (number, endpoint) = (dispatch.number, &dispatch.endpoint_name);
                format!("{} -> {endpoint}, attempt {number}", name(&dispatch.caller))
            }
            Effect::Cancel { caller, .. } => format!("{}: stop upstream", name(caller)),
            Effect::Persist(Durable::Binding { session, binding }) => {
                let home = self.world.plane.endpoint_name(binding.endpoint).unwrap_or("?");
                format!("write: {session:?} lives on {home} (epoch {})", binding.epoch)
            }
            Effect::Consult(_) | Effect::Note(_) | Effect::Persist(Durable::Adopted { .. }) => {
                return None;
            }
            Effect::Persist(Durable::Released { session }) => {
                format!("write: {session:?} lives nowhere")
            }
            Effect::Persist(Durable::Entry(entry)) => match &entry.fact {
                Fact::Reserve { amount, .. } => format!("write: holds {}", amount.tokens),
                Fact::Extend { amount, .. } => format!("write: holds {} more", amount.tokens),
                Fact::Settle { actual, .. } => format!("write: charges {}", actual.tokens),
                Fact::Refund { .. } => "write: gives all of it back".into(),
                _ => return None,
            },
            Effect::Reject { caller, refusal, .. } => {
                format!("{} is refused: {refusal:?}", name(caller))
            }
            Effect::Finish { caller, outcome, charged, attempts, .. } => {
                let tokens = charged.tokens;
                format!("{} is over: {outcome:?}; {tokens}, attempts: {attempts}", name(caller))
            }
        })
    }

    fn status(&self) -> String {
        let mut told = String::new();
        for endpoint in self.world.plane.view().endpoints {
            let (phase, share) = (endpoint.breaker.phase, endpoint.breaker.share_permille);
            let in_flight = endpoint.in_flight;
            writeln!(told, "{}: {phase}, share {share}, {in_flight} in flight", endpoint.name)
                .unwrap();
        }
        for tenant in self.world.config.accounts.keys() {
            writeln!(told, "tenant {}: spent {}", tenant.0, self.world.spent(tenant.0)).unwrap();
        }
        told
    }
}

fn failure(words: &[&str]) -> Failure {
    match words {
        ["to", "connect"] => Failure::Connect,
        ["in", "the", "middle"] => Failure::Truncated,
        ["to", "begin"] => Failure::Timeout(Stage::FirstToken),
        ["with", status] => Failure::Status(status.parse().unwrap()),
        _ => panic!("fails how? {words:?}"),
    }
}

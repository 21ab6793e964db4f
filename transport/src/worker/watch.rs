//! How the backend is: whether it answers, and how busy it says it is.

use core::time::Duration;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use control::outcome::Failure;

use super::backend::Backend;
use super::desk::{Desk, Told};
use super::openai::OpenAi;
use super::telemetry::Telemetry;
use crate::upstream::{Failed, Limits};

/// As often as callers want to hear of the load.
const LOAD_EVERY: Duration = Duration::from_secs(1);
/// A server without figures may be asked again: it may be starting.
const NO_LOAD_EVERY: Duration = Duration::from_secs(30);
/// Whether the server answers at all.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// For the question whether it does. A server that computes at its limit is slow to list its models, and works.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);
/// So many looks in a row must end in silence before a server that answered is taken for gone.
const SILENT_MAX: u32 = 3;
/// A server that said something of an answer since then is there, however slow it is to list its models.
const SPOKE_WITHIN: Duration = Duration::from_secs(5);
/// For the figures. The server stands beside the worker.
const WITHIN: Duration = Duration::from_secs(1);
/// The figures of a server take some 100 KiB.
const BYTES_MAX: usize = 4 << 20;

/// Says how the worker is, once, and keeps saying it where its backend may come and go.
pub(super) async fn start(
    backend: &Arc<Backend>,
    desk: &Arc<Desk>,
    health: &HealthReporter,
    telemetry: &Telemetry,
) -> Option<AbortOnDropHandle<()>> {
    let Backend::OpenAi(server) = &**backend else {
        super::say(health, ServingStatus::Serving).await;
        telemetry.backend_is_ready(true);
        return None;
    };
    super::say(health, ServingStatus::NotServing).await;
    let watch = Watch {
        server: (**server).clone(),
        desk: Arc::clone(desk),
        health: health.clone(),
        telemetry: telemetry.clone(),
    };
    Some(AbortOnDropHandle::new(tokio::spawn(watch.run())))
}

struct Watch {
    server: OpenAi,
    desk: Arc<Desk>,
    health: HealthReporter,
    telemetry: Telemetry,
}

impl Watch {
    /// Beside each other: a server that is slow to list its models is not to keep its load to itself.
    async fn run(self) {
        tokio::join!(self.look_alive(), self.look_load());
    }

    async fn look_alive(&self) {
        let mut alive = Alive::default();
        loop {
            let due = Instant::now() + ALIVE_EVERY;
            let before = alive.answers;
            let answers = alive.after(self.looked().await, self.server.spoke_within(SPOKE_WITHIN));
            if before != Some(answers) {
                let status =
                    if answers { ServingStatus::Serving } else { ServingStatus::NotServing };
                super::say(&self.health, status).await;
                self.telemetry.backend_is_ready(answers);
            }
            tokio::time::sleep_until(due).await;
        }
    }

    async fn look_load(&self) {
        loop {
            let due = Instant::now();
            let told = self.told().await;
            self.desk.tell(told);
            let due = due + told.map_or(NO_LOAD_EVERY, |_| LOAD_EVERY);
            tokio::time::sleep_until(due).await;
        }
    }

    /// A server that refuses to list its models is there all the same.
    async fn looked(&self) -> Look {
        match self.server.client.discover(&self.server.target, limits(ALIVE_WITHIN)).await {
            Ok(_) => {
                tracing::debug!("the backend answers");
                Look::Answers
            }
            Err(Failed { failure, detail, .. }) => {
                let look = Look::of(failure);
                if look != Look::Answers {
                    tracing::warn!("the backend does not answer: {detail}");
                }
                look
            }
        }
    }

    async fn told(&self) -> Option<Told> {
        let page = self.server.client.figures(&self.server.target, limits(WITHIN)).await.ok()?;
        read(core::str::from_utf8(&page).ok()?)
    }
}

/// What a look at the server came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Answers,
    /// Nobody is there.
    Away,
    /// Somebody may be, and says nothing in time.
    Silent,
}

impl Look {
    fn of(failure: Failure) -> Self {
        if matches!(failure, Failure::Connect | Failure::ConnectionLost) {
            Self::Away
        } else if matches!(failure, Failure::Timeout(_)) {
            Self::Silent
        } else {
            Self::Answers
        }
    }
}

/// Whether the server counts as one that answers, look by look.
#[derive(Debug, Default)]
struct Alive {
    /// `None` before the first look.
    answers: Option<bool>,
    /// Looks in a row that ended in silence.
    silent: u32,
}

impl Alive {
    /// Silence takes a server away that answered when it has lasted, and nothing else was heard of it meanwhile (`spoke`): at
    /// its limit it is slow, and to take it away just then is to put its load on the others. It brings none back.
    fn after(&mut self, look: Look, spoke: bool) -> bool {
        let is_silent = look == Look::Silent && !spoke;
        self.silent = if is_silent { self.silent + 1 } else { 0 };
        let answers = match look {
            Look::Answers => true,
            Look::Away => false,
            Look::Silent => spoke || (self.answers == Some(true) && self.silent < SILENT_MAX),
        };
        *self.answers.insert(answers)
    }
}

fn limits(within: Duration) -> Limits {
    Limits {
        connect: within,
        first_token: within,
        between_tokens: within,
        whole_answer: within,
        deadline: Instant::now() + within,
        answer_bytes_max: BYTES_MAX,
    }
}

/// The figures of vLLM and SGLang in Prometheus' text format. Several engines add up; of their caches the fullest counts.
fn read(page: &str) -> Option<Told> {
    let mut told = Told::default();
    for line in page.lines() {
        let Some((name, value)) = sample(line) else { continue };
        match name {
            "vllm:num_requests_running" | "sglang:num_running_reqs" => {
                add(&mut told.running, value)
            }
            "vllm:num_requests_waiting" | "sglang:num_queue_reqs" => add(&mut told.queued, value),
            "vllm:gpu_cache_usage_perc" | "vllm:kv_cache_usage_perc" | "sglang:token_usage" => {
                let permille = (value.min(1.0) * 1_000.0).round() as u32;
                told.kv_used_permille = told.kv_used_permille.max(Some(permille));
            }
            _ => {}
        }
    }
    (told != Told::default()).then_some(told)
}

fn add(sum: &mut Option<u32>, value: f64) {
    // Saturates: what claims more is nonsense anyway.
    *sum = Some(sum.unwrap_or(0).saturating_add(value as u32));
}

/// Name and value of a line, if it is a possible one.
fn sample(line: &str) -> Option<(&str, f64)> {
    let name = line.split(['{', ' ']).next()?;
    let rest = &line[name.len()..];
    let value = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
    let value: f64 = value.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_takes_a_server_away_when_it_lasts_and_a_refusal_at_once() {
        let mut alive = Alive::default();
        assert!(!alive.after(Look::Silent, false), "it has never answered");
        assert!(alive.after(Look::Answers, false));
        assert!(alive.after(Look::Silent, false) && alive.after(Look::Silent, false));
        assert!(alive.after(Look::Answers, false));
        assert!(alive.after(Look::Silent, false) && alive.after(Look::Silent, false));
        assert!(!alive.after(Look::Silent, false), "three in a row");
        assert!(!alive.after(Look::Silent, false), "and it stays away");
        assert!(alive.after(Look::Answers, false));
        assert!(!alive.after(Look::Away, true));
    }

    #[test]
    fn a_server_that_speaks_is_there_however_long_it_lists_no_models() {
        let mut alive = Alive::default();
        assert!(alive.after(Look::Answers, false));
        assert!((0..10).all(|_| alive.after(Look::Silent, true)));
        assert!(alive.after(Look::Silent, false) && alive.after(Look::Silent, false));
        assert!(!alive.after(Look::Silent, false));
    }

    #[test]
    fn the_figures_of_both_servers_are_read() {
        let vllm = "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a } b\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"0\"} 7.0\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n\
            vllm:kv_cache_usage_perc{engine=\"1\"} 0.8754\n";
        let told = Told { running: Some(5), queued: Some(7), kv_used_permille: Some(875) };
        assert_eq!(read(vllm), Some(told));
        let sglang = "sglang:num_running_reqs 4\nsglang:num_queue_reqs 0\nsglang:token_usage 0.5 1700000000\n";
        let told = Told { running: Some(4), queued: Some(0), kv_used_permille: Some(500) };
        assert_eq!(read(sglang), Some(told));
    }

    #[test]
    fn nonsense_tells_nothing() {
        let page = "vllm:num_requests_running NaN\nvllm:num_requests_waiting{a=\"b\"} -1\n\
            sglang:token_usage{\nsglang:num_queue_reqs x\n\u{e9}\n{ 1\n<html>\n";
        assert_eq!(read(page), None);
        assert_eq!(read(""), None);
        let told = Told { kv_used_permille: Some(1_000), ..Told::default() };
        assert_eq!(read("vllm:gpu_cache_usage_perc 17"), Some(told));
    }
}

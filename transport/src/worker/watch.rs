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
/// For each question. The server stands beside the worker.
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
    async fn run(self) {
        let mut answered = None;
        let (mut load_due, mut alive_due) = (Instant::now(), Instant::now());
        loop {
            if alive_due <= Instant::now() {
                alive_due = Instant::now() + ALIVE_EVERY;
                let answers = self.answers().await;
                if answered.replace(answers) != Some(answers) {
                    let status =
                        if answers { ServingStatus::Serving } else { ServingStatus::NotServing };
                    super::say(&self.health, status).await;
                    self.telemetry.backend_is_ready(answers);
                }
            }
            if load_due <= Instant::now() {
                let told = self.told().await;
                self.desk.tell(told);
                load_due = Instant::now() + told.map_or(NO_LOAD_EVERY, |_| LOAD_EVERY);
            }
            tokio::time::sleep_until(load_due.min(alive_due)).await;
        }
    }

    /// A server that refuses to list its models is there all the same.
    async fn answers(&self) -> bool {
        match self.server.client.discover(&self.server.target, limits()).await {
            Ok(_) => {
                tracing::debug!("the backend answers");
                true
            }
            Err(Failed { failure, detail, .. }) => {
                let away = matches!(
                    failure,
                    Failure::Connect | Failure::ConnectionLost | Failure::Timeout(_)
                );
                if away {
                    tracing::warn!("the backend does not answer: {detail}");
                }
                !away
            }
        }
    }

    async fn told(&self) -> Option<Told> {
        let page = self.server.client.figures(&self.server.target, limits()).await.ok()?;
        read(core::str::from_utf8(&page).ok()?)
    }
}

fn limits() -> Limits {
    Limits {
        connect: WITHIN,
        first_token: WITHIN,
        between_tokens: WITHIN,
        whole_answer: WITHIN,
        deadline: Instant::now() + WITHIN,
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

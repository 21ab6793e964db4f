//! The auth role: it has the keys and says whom one names. It decides nothing else and keeps nothing.
//!
//! Whoever reaches its port may ask whom a hash names. That is no way in: a hash cannot be guessed, and is not taken for a key.
//! Beyond a network that is trusted, `server.grpc.tls.client_ca` lets in roles alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::auth::v1::auth_service_server::{AuthService, AuthServiceServer};
use proto::auth::v1::{AuthenticateRequest, AuthenticateResponse, Identity, Models, Verdict};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::exchange::Checks;
use crate::front::{Page, RpcDoor, RpcError, exposition, pages, serve_routes};
use crate::keys::{AccountIds, KeyHash, KeyRing};
use crate::trace::{Incoming, Tracer};

/// The name by which health is asked for.
const SERVICE: &str = "pointsman.auth.v1.AuthService";
/// A question is 32 bytes.
const REQUEST_BYTES_MAX: usize = 1 << 10;
/// A look into a table takes microseconds; more than some milliseconds is a machine that has no time for it. In seconds.
const ANSWER: [f64; 9] =
    [0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Wrong {
    kind: &'static str,
}

/// What it tells of itself.
struct Figures {
    registry: Registry,
    answers: Family<Answered, Counter>,
    took: Histogram,
    errors: Family<Wrong, Counter>,
    keys: Gauge,
}

impl Figures {
    fn new() -> Self {
        let mut figures = Self {
            registry: Registry::default(),
            answers: Family::default(),
            took: Histogram::new(ANSWER),
            errors: Family::default(),
            keys: Gauge::default(),
        };
        let r = &mut figures.registry;
        let help = "Questions about keys by what was answered: known, unknown, malformed";
        r.register("pointsman_auth_answers", help, figures.answers.clone());
        let help = "From question to answer";
        r.register("pointsman_auth_answer_seconds", help, figures.took.clone());
        let help = "What went wrong: malformed questions, changed configurations that were refused";
        r.register("pointsman_auth_errors", help, figures.errors.clone());
        r.register("pointsman_auth_keys", "Keys that are let in", figures.keys.clone());
        // Shown from the start: a rate over a series that begins at its first error misses that one.
        for kind in [MALFORMED, CONFIGURATION] {
            let _ = figures.errors.get_or_create(&Wrong { kind });
        }
        figures
    }

    fn answered(&self, verdict: &'static str, took: Duration) {
        self.answers.get_or_create(&Answered { verdict }).inc();
        self.took.observe(took.as_secs_f64());
    }

    fn failed(&self, kind: &'static str) {
        self.errors.get_or_create(&Wrong { kind }).inc();
    }
}

/// A question that is none.
const MALFORMED: &str = "malformed";
/// A changed file that cannot be used.
const CONFIGURATION: &str = "configuration";

/// The keys of a configuration, for other processes.
pub struct Role {
    ring: ArcSwap<KeyRing>,
    ttl: Duration,
    serving: AtomicBool,
    /// What is wrong with the configuration that was written last.
    refused: ArcSwap<Option<String>>,
    /// Whether its figures are served.
    measured: bool,
    figures: Figures,
    tracer: Tracer,
}

impl Role {
    /// With the keys of this configuration, and a span for each question.
    #[must_use]
    pub fn new(config: &Config, tracer: Tracer) -> Arc<Self> {
        let role = Self {
            ring: ArcSwap::default(),
            ttl: config.auth.ttl,
            serving: AtomicBool::new(false),
            refused: ArcSwap::default(),
            measured: config.monitoring.prometheus_enabled,
            figures: Figures::new(),
            tracer,
        };
        role.reconfigure(config);
        Arc::new(role)
    }

    /// Takes the keys of a changed configuration. One that is gone is out wherever it was used as soon as the time is over
    /// for which the last answer about it may be used.
    pub fn reconfigure(&self, config: &Config) {
        // Ids of accounts are made by the roles that count; these here leave this place nowhere.
        let ring = KeyRing::new(&config.keys, &AccountIds::new([0; 32]));
        self.figures.keys.set(i64::try_from(ring.len()).unwrap_or(i64::MAX));
        self.ring.store(Arc::new(ring));
        self.refused.store(Arc::new(None));
    }

    /// A changed configuration was refused; the old one stays.
    pub fn refuse(&self, why: String) {
        self.figures.failed(CONFIGURATION);
        self.refused.store(Arc::new(Some(why)));
    }

    /// Whether it serves (or, `false`, drains).
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// How it is.
    #[must_use]
    pub fn checks(&self) -> Checks {
        let ready = self.serving.load(Ordering::Relaxed);
        let mut parts =
            vec![("keys".into(), true, format!("{} are let in", self.ring.load().len()))];
        if let Some(why) = &**self.refused.load() {
            parts.push(("configuration".into(), false, format!("refused: {why}")));
        }
        Checks { ready, parts }
    }

    /// Its figures, in the text format.
    #[must_use]
    pub fn figures(&self) -> String {
        exposition::text(&self.figures.registry, "")
    }

    /// `/health`, `/ready` and, where the configuration has it, `/metrics`.
    pub fn router(self: &Arc<Self>) -> Router {
        pages(Arc::clone(self), self.measured)
    }

    /// Answers other roles until `stopping` resolves; calls under way may then go on for `grace`.
    ///
    /// # Errors
    /// See [`RpcError`].
    pub async fn serve(
        self: &Arc<Self>,
        door: RpcDoor,
        stopping: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), RpcError> {
        let service = AuthServiceServer::new(Service(Arc::clone(self)))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let role = Arc::clone(self);
        let ready = move || role.checks().ready;
        serve_routes(door, (vec![SERVICE], Routes::new(service)), ready, stopping, grace).await
    }

    fn answer(&self, hash: &KeyHash) -> AuthenticateResponse {
        let ring = self.ring.load();
        let found = ring.find(hash);
        let verdict = if found.is_some() { Verdict::Known } else { Verdict::Unknown };
        let identity = found.map(|found| Identity {
            tenant: found.tenant.clone(),
            user: found.user.clone().unwrap_or_default(),
            key_name: found.name.clone(),
            models: found.models.clone().map(|names| Models { names }),
        });
        let ttl_ms = u32::try_from(self.ttl.as_millis()).unwrap_or(u32::MAX);
        AuthenticateResponse { verdict: verdict.into(), identity, ttl_ms }
    }
}

impl Page for Role {
    fn checks(&self) -> Checks {
        Self::checks(self)
    }

    fn metrics(&self) -> String {
        self.figures()
    }
}

struct Service(Arc<Role>);

#[tonic::async_trait]
impl AuthService for Service {
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let said = |name: &str| request.metadata().get(name)?.to_str().ok();
        let _span = self.0.tracer.serve("auth.authenticate", Incoming::read(said));
        let (began, figures) = (Instant::now(), &self.0.figures);
        let Ok(hash) = <[u8; 32]>::try_from(request.into_inner().key_sha256) else {
            figures.answered(MALFORMED, began.elapsed());
            figures.failed(MALFORMED);
            return Err(Status::invalid_argument("key_sha256 is a SHA-256: 32 bytes"));
        };
        let answer = self.0.answer(&KeyHash::from(hash));
        let verdict = if answer.identity.is_some() { "known" } else { "unknown" };
        figures.answered(verdict, began.elapsed());
        Ok(Response::new(answer))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use axum::body::Body;
    use http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;
    use crate::config::{Env, Flags, Role as Playing, parse};

    #[tokio::test]
    async fn figures_are_served_unless_the_configuration_says_otherwise() {
        for (more, status) in [
            ("", StatusCode::OK),
            ("monitoring: {prometheus: {enabled: false}}", StatusCode::NOT_FOUND),
        ] {
            let hash = KeyHash::of("k");
            let text = format!("version: 1\nkeys: [{{hash: '{hash}'}}]\n{more}");
            let flags = Flags { role: Playing::Auth, ..Flags::default() };
            let loaded = parse("a.yaml", text.as_bytes(), &flags, &Env::default()).unwrap();
            let role = Role::new(&loaded.config, Tracer::default());
            for (path, expected) in [("/metrics", status), ("/health", StatusCode::OK)] {
                let request = http::Request::get(path).body(Body::empty()).unwrap();
                let answer = role.router().oneshot(request).await.unwrap();
                assert_eq!(answer.status(), expected, "{path} {more}");
            }
        }
    }
}

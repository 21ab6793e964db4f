//! An agent of Consul, as far as a worker needs it: register, report, deregister.

use core::fmt;
use core::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::backend::Backend;
use super::{TTL, service_name};
use crate::quic::Pin;
use crate::sources::Protocol;
use crate::sources::consul::{Unproven, escaped};
use crate::upstream::{BaseUrl, Client, Failed, Limits, Target};

/// For each call, and each step of it on the network.
const WITHIN: Duration = Duration::from_secs(5);
/// Such answers have a line.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// When Consul itself removes a worker that died without leaving.
const FORGET_AFTER: &str = "10m";
/// What a value in a service's meta may have, by Consul's own rule.
const META_BYTES_MAX: usize = 512;

/// What the registry is told of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name among all workers, as gateways show it.
    pub instance: String,
    /// The model it serves.
    pub model: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// The host that others reach it at: a name or an address.
    pub host: String,
    /// And the port.
    pub port: u16,
    /// The fingerprint of its certificate, for those who come over QUIC.
    pub pin: Option<Pin>,
    backend: &'static str,
    fingerprint: String,
}

impl Registration {
    /// Of a worker that serves `model` from `backend`, reached at `host` and `port`.
    #[must_use]
    pub fn new(
        instance: String,
        (model, backend): (&str, &Backend),
        (protocol, host, port): (Protocol, String, u16),
        pin: Option<Pin>,
    ) -> Self {
        let (fingerprint, backend) = (backend.fingerprint(model), backend.name());
        let model = model.to_owned();
        let pin = pin.filter(|_| protocol == Protocol::Quic);
        Self { instance, model, protocol, host, port, pin, backend, fingerprint }
    }

    fn check(&self) -> String {
        format!("{}:ttl", self.instance)
    }

    fn body(&self) -> Value {
        let mut meta = json!({
            "model": self.model,
            "protocol": self.protocol.to_string(),
            "backend": self.backend,
            "fingerprint": self.fingerprint,
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(pin) = self.pin {
            meta["pin"] = json!(pin.to_string());
        }
        json!({
            "ID": self.instance,
            "Name": service_name(&self.model),
            "Address": self.host,
            "Port": self.port,
            "Meta": meta,
            "Check": {
                "CheckID": self.check(),
                "Name": "worker reports",
                "TTL": format!("{}s", TTL.as_secs()),
                "DeregisterCriticalServiceAfter": FORGET_AFTER,
            },
        })
    }
}

/// Why the agent did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It does not know this worker.
    Forgotten,
    /// It is away, or refuses: in words for an operator.
    Down(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forgotten => f.write_str("Consul forgot this worker"),
            Self::Down(why) => f.write_str(why),
        }
    }
}

/// One agent, and what it is told. Every call ends within some seconds.
#[derive(Clone, Debug)]
pub struct Agent {
    client: Client,
    target: Target,
    what: Registration,
}

/// Where it is, and who is registered there: for the log.
impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registration { instance, model, protocol, host, port, .. } = &self.what;
        let (at, service) = (self.target.base_url.authority(), service_name(model));
        write!(f, "Consul at {at} as {instance} of {service}, {protocol} at {host}:{port}")
    }
}

/// Why a worker cannot be registered at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// No URL of an HTTP API.
    #[error("{0} is not where Consul's agent is: write http://host:8500")]
    Url(String),
    /// The token cannot stand in a header.
    #[error("the token holds what no header can carry: look for a copying mistake")]
    Token,
    /// A name that Consul does not take.
    #[error("Consul takes names of up to {META_BYTES_MAX} bytes, and this model's has {0}")]
    Model(usize),
}

impl Agent {
    /// The agent whose HTTP API is at `addr`, to be told `what`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn new(
        client: Client,
        addr: BaseUrl,
        token: Option<&str>,
        what: Registration,
    ) -> Result<Self, AgentError> {
        if addr.is_worker() {
            return Err(AgentError::Url(addr.to_string()));
        }
        if what.model.len() > META_BYTES_MAX {
            return Err(AgentError::Model(what.model.len()));
        }
        let mut target = Target::new(addr);
        target.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = token {
            let mut token = HeaderValue::from_str(token).map_err(|_| AgentError::Token)?;
            token.set_sensitive(true);
            target.headers.insert(HeaderName::from_static("x-consul-token"), token);
        }
        Ok(Self { client, target, what })
    }

    /// Makes the worker known; again is the same as once.
    pub(super) async fn register(&self) -> Result<(), Trouble> {
        match self.put("/agent/service/register", &self.what.body()).await {
            Err(Trouble::Forgotten) => Err(Trouble::Down(format!(
                "{} answers 404, so it is no agent of Consul's: look at CONSUL_HTTP_ADDR",
                self.target.base_url.authority()
            ))),
            other => other,
        }
    }

    /// Renews the TTL: passing, or critical with the reason.
    pub(super) async fn report(&self, trouble: Option<&str>) -> Result<(), Trouble> {
        let status = if trouble.is_some() { "critical" } else { "passing" };
        let body = json!({"Status": status, "Output": trouble.unwrap_or_default()});
        self.put(&format!("/agent/check/update/{}", escaped(&self.what.check())), &body).await
    }

    /// Takes the worker off. One that was never there is off as well.
    pub(super) async fn deregister(&self) -> Result<(), String> {
        let path = format!("/agent/service/deregister/{}", escaped(&self.what.instance));
        match self.put(&path, &Value::Null).await {
            Ok(()) | Err(Trouble::Forgotten) => Ok(()),
            Err(Trouble::Down(why)) => Err(why),
        }
    }

    async fn put(&self, path: &str, body: &Value) -> Result<(), Trouble> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let at = self.target.base_url.authority();
        match self.client.put(&self.target, path, body, limits()).await {
            // Consul answers these with nothing. A page is from somebody who answers everything with one.
            Ok(got) if got.body.trim_ascii_start().starts_with(b"<") => {
                Err(Trouble::Down(format!(
                    "{at} answers with a web page, so it is no agent of Consul's: look at CONSUL_HTTP_ADDR"
                )))
            }
            Ok(_) => Ok(()),
            Err(failed) => Err(trouble(&self.target.base_url, &failed)),
        }
    }
}

fn trouble(addr: &BaseUrl, failed: &Failed) -> Trouble {
    let at = addr.authority();
    let Some(said) = &failed.upstream else {
        let why = &failed.detail;
        return Trouble::Down(match Unproven::of(addr, failed) {
            Some(Unproven::They) => format!(
                "{at} is not believed ({why}): name the authority of its certificate with --consul-ca or CONSUL_CACERT"
            ),
            Some(Unproven::We) => format!(
                "{at} does not answer: {failed}; where it asks who calls, show it --consul-cert and --consul-key"
            ),
            None => format!("{at} does not answer: {failed}"),
        });
    };
    let words = String::from_utf8_lossy(&said.body).to_lowercase();
    // An older agent says so in three ways, a newer one with 404.
    let unknown = ["unknown check", "unknown service", "does not have associated ttl"];
    let unknown = unknown.iter().any(|phrase| words.contains(phrase));
    match said.status {
        404 => Trouble::Forgotten,
        500 if unknown => Trouble::Forgotten,
        401 | 403 => Trouble::Down(format!(
            "{at} refuses the ACL token ({}): it needs service:write for this service",
            said.status
        )),
        status => Trouble::Down(format!("{at} answers with status {status}")),
    }
}

fn limits() -> Limits {
    Limits {
        connect: WITHIN,
        first_token: WITHIN,
        between_tokens: WITHIN,
        whole_answer: WITHIN,
        deadline: Instant::now() + WITHIN,
        answer_bytes_max: ANSWER_BYTES_MAX,
    }
}

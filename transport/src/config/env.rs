//! What stands beside the file: flags and environment variables.
//!
//! Precedence, strongest first: flag, `*_ADDR` variable, plain variable, file, default. Each override becomes the text of
//! one key, so that it is checked and reported like any other value.

use std::collections::BTreeMap;
use std::fmt;

use super::Role;
use super::problem::{At, Origin, Problem, ProblemKind};
use super::tree::{Content, Node, Scalar};

/// What the command line said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`: the address of the HTTP front.
    pub listen: Option<String>,
    /// `--data`: the data directory.
    pub data: Option<String>,
    /// `--upstream`, any number: added to the file's `upstreams`, or to its `chats`.
    pub upstreams: Vec<String>,
    /// `--role`.
    pub role: Role,
    /// The process runs, and its file has changed: what only a start needs may be gone.
    pub running: bool,
}

/// The environment's variables, as a value: read once, so that a test or a simulation brings its own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env {
    vars: BTreeMap<String, String>,
}

impl Env {
    /// This process's variables. Those that are not UTF-8 are left out.
    #[must_use]
    pub fn process() -> Self {
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self { vars: vars.collect() }
    }

    /// The value of a variable, where it is set.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// Those whose names begin so.
    pub(super) fn only(&self, prefix: &str) -> Self {
        let vars = self.vars.iter().filter(|(name, _)| name.starts_with(prefix));
        Self { vars: vars.map(|(name, value)| (name.clone(), value.clone())).collect() }
    }

    /// Set and not empty: an empty variable says nothing about a key.
    fn said(&self, name: &str) -> Option<&str> {
        self.var(name).filter(|value| !value.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(vars: I) -> Self {
        Self { vars: vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }
}

impl fmt::Debug for Env {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}

/// Values that replace the file's, by key path.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    by_path: BTreeMap<String, (Origin, Scalar)>,
    /// What `--upstream` said.
    pub upstreams: Vec<String>,
    /// What `--role` said.
    pub role: Role,
    /// It is not a start.
    pub running: bool,
    pub warnings: Vec<Problem>,
}

/// Variable, provider.
const PROVIDER_KEYS: [(&str, &str); 2] =
    [("OPENAI_API_KEY", "openai"), ("ALIYUN_API_KEY", "aliyun")];

/// Variables of stores that this build does not have.
const STORES: [&str; 6] = ["DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME", "MYSQL_DSN"];

impl Overrides {
    /// `file` is the parsed document, where one was given.
    pub(super) fn new(flags: &Flags, env: &Env, file: Option<&Node>) -> Self {
        let (upstreams, role) = (flags.upstreams.clone(), flags.role);
        let mut all = Self { upstreams, role, running: flags.running, ..Self::default() };
        if let Some(port) = env.said("GATEWAY") {
            let addr = with_port(file, "server.http.addr", port);
            all.set("server.http.addr", Origin::Environment("GATEWAY".into()), addr);
        }
        for (name, path) in [
            ("GATEWAY_HTTP_ADDR", "server.http.addr"),
            ("LOG_LEVEL", "log.level"),
            ("LOG_FORMAT", "log.format"),
            ("OTEL_TRACES_SAMPLER", "monitoring.tracing.sampler"),
            ("OTEL_TRACES_SAMPLER_ARG", "monitoring.tracing.sample_ratio"),
        ] {
            if let Some(value) = env.said(name) {
                all.set(path, Origin::Environment(name.into()), value.to_lowercase());
            }
        }
        for (name, provider) in PROVIDER_KEYS {
            all.provider(name, provider, env, file);
        }
        all.tracing(env);
        all.consul(env, file);
        all.redis(env, file);
        all.stores(env);
        let listens = match role {
            Role::Chat => {
                all.role_port(env, file, "CHAT_SERVICE", "server.grpc.addr");
                "server.grpc.addr"
            }
            Role::Auth => {
                all.role_port(env, file, "AUTH_GRPC", "server.grpc.addr");
                // One address with two names: each that the file gives, or the first.
                let (name, other) = ("server.admin.addr", "monitoring.prometheus.addr");
                let given = |path| file.is_some_and(|file| file.get(path).is_some());
                if given(other) {
                    all.role_port(env, file, "AUTH_HTTP_HEALTH", other);
                }
                if given(name) || !given(other) {
                    all.role_port(env, file, "AUTH_HTTP_HEALTH", name);
                }
                "server.grpc.addr"
            }
            Role::All | Role::Gateway => {
                // Others have variables of their own, which this one must not beat where all of them are set everywhere.
                if let Some(addr) = env.said("GATEWAY_GRPC_ADDR") {
                    let origin = Origin::Environment("GATEWAY_GRPC_ADDR".into());
                    all.set("server.grpc.addr", origin, addr.to_owned());
                }
                "server.http.addr"
            }
        };
        if matches!(role, Role::All | Role::Chat) {
            all.role_port(env, file, "TOKEN_SERVICE", "server.quota.addr");
        }
        for (value, name, path) in
            [(&flags.listen, "--listen", listens), (&flags.data, "--data", "data.dir")]
        {
            if let Some(value) = value {
                all.set(path, Origin::Flag(name.into()), value.clone());
            }
        }
        all
    }

    pub(super) fn get(&self, path: &str) -> Option<&(Origin, Scalar)> {
        self.by_path.get(path)
    }

    /// The names directly under `path` that only an override mentions.
    pub(super) fn names_under(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}.");
        let mut names: Vec<String> = self
            .by_path
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix)?.split('.').next().map(str::to_owned))
            .collect();
        names.dedup();
        names
    }

    /// Later calls are stronger.
    fn set(&mut self, path: &str, origin: Origin, value: String) {
        self.by_path.insert(path.to_owned(), (origin, Scalar::text(value)));
    }

    /// A key in the environment makes a provider where there is no file. A file, on the other hand, is the whole list of
    /// whom the user's prompts may be sent to: a variable that happens to be set adds nobody to it.
    fn provider(&mut self, name: &str, provider: &str, env: &Env, file: Option<&Node>) {
        let Some(key) = env.said(name) else {
            return;
        };
        let origin = Origin::Environment(name.to_owned());
        let path = format!("providers.{provider}");
        if file.is_some_and(|file| file.get(&path).is_none()) {
            let kind = ProblemKind::NoEffect("the file names no such provider, so it is not used");
            self.warnings.push(Problem { origin, path, kind });
            return;
        }
        self.set(&format!("{path}.api_key"), origin, key.to_owned());
        if let (Some(model), "openai") = (env.said("OPENAI_MODEL"), provider) {
            let origin = Origin::Environment("OPENAI_MODEL".into());
            self.set(&format!("{path}.models"), origin, model.to_owned());
        }
    }

    /// Where a role listens: `NAME` is a port alone, at the host that the file says, `NAME_ADDR` an address.
    fn role_port(&mut self, env: &Env, file: Option<&Node>, name: &str, path: &str) {
        let (port, addr) = (env.said(name), format!("{name}_ADDR"));
        if let Some(port) = port {
            let origin = Origin::Environment(name.to_owned());
            self.set(path, origin, with_port(file, path, port));
        }
        if let Some(value) = env.said(&addr) {
            self.set(path, Origin::Environment(addr.clone()), value.to_owned());
        }
    }

    /// OpenTelemetry's own variables, which every program that makes spans takes.
    fn tracing(&mut self, env: &Env) {
        if let Some(name) = env.said("OTEL_SERVICE_NAME") {
            let origin = Origin::Environment("OTEL_SERVICE_NAME".into());
            self.set("monitoring.tracing.service_name", origin, name.to_owned());
        }
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, env.said(name)?)))
        };
        let url = first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        match (url, protocol) {
            (Some(_), Some((name, protocol))) if protocol != "grpc" => {
                let kind = ProblemKind::NoEffect(
                    "spans go over gRPC alone: say grpc, and the port where the collector takes that",
                );
                let origin = Origin::Environment(name.to_owned());
                let path = "monitoring.tracing.endpoint".to_owned();
                self.warnings.push(Problem { origin, path, kind });
            }
            (Some((name, url)), _) => {
                let origin = Origin::Environment(name.to_owned());
                self.set("monitoring.tracing.endpoint", origin, url.to_owned());
            }
            (None, _) => {}
        }
    }

    /// Like a provider's key: other programs know these names, and a file is the whole list of whom prompts may be sent to.
    fn consul(&mut self, env: &Env, file: Option<&Node>) {
        let named = file.is_none_or(|file| file.get("discovery.consul").is_some());
        let Some(addr) = env.said("CONSUL_HTTP_ADDR").filter(|_| named) else { return };
        // Consul's own tools take an address without a scheme.
        let addr = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
        let over_tls = addr.starts_with("https://");
        self.set("discovery.consul.addr", Origin::Environment("CONSUL_HTTP_ADDR".into()), addr);
        for (name, path, counts) in [
            ("CONSUL_HTTP_TOKEN", "discovery.consul.token", true),
            // Other tools may be meant by these, where there is nothing to prove.
            ("CONSUL_CACERT", "discovery.consul.ca", over_tls),
            ("CONSUL_CLIENT_CERT", "discovery.consul.cert", over_tls),
            ("CONSUL_CLIENT_KEY", "discovery.consul.key", over_tls),
        ] {
            if let Some(value) = env.said(name).filter(|_| counts) {
                self.set(path, Origin::Environment(name.into()), value.to_owned());
            }
        }
    }

    /// An address is enough to share the ledger; a password alone is not, and may be meant for another program.
    fn redis(&mut self, env: &Env, file: Option<&Node>) {
        if let Some(addr) = env.said("REDIS_ADDR") {
            let origin = Origin::Environment("REDIS_ADDR".into());
            self.set("data.redis.addr", origin, addr.to_owned());
        } else if file.is_none_or(|file| file.get("data.redis").is_none()) {
            return;
        }
        if let Some(password) = env.said("REDIS_PASSWORD") {
            let origin = Origin::Environment("REDIS_PASSWORD".into());
            self.set("data.redis.password", origin, password.to_owned());
        }
    }

    /// Such names are common and may be meant for another program, so they do not keep the server from starting; but
    /// whoever meant this one must read that nothing is shared.
    fn stores(&mut self, env: &Env) {
        for name in STORES.into_iter().filter(|name| env.said(name).is_some()) {
            self.warnings.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                path: "data".into(),
                kind: ProblemKind::NoEffect(
                    "this build uses no database: its data is in its data directory",
                ),
            });
        }
    }
}

/// `GATEWAY=8080` is a port alone: the host stays what the file says.
fn with_port(file: Option<&Node>, path: &str, port: &str) -> String {
    let host = |node: &Node| match &node.content {
        Content::Scalar(scalar) => scalar.text.rsplit_once(':').map(|(host, _)| host.to_owned()),
        Content::Nothing | Content::Unknown | Content::Map(_) | Content::List(_) => None,
    };
    let written = file.and_then(|file| host(file.get(path)?));
    format!("{}:{port}", written.unwrap_or_else(|| "127.0.0.1".to_owned()))
}

/// Where a value of the file stands.
pub(super) fn in_file(file: &std::sync::Arc<str>, at: At, variables: &[String]) -> Origin {
    Origin::File { file: file.clone(), at, variables: variables.to_vec() }
}

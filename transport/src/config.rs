//! The configuration: one YAML file, some environment variables, some flags.
//!
//! [`load`] gives a typed [`Config`] together with every value's origin and with warnings; or every [`Problem`] there
//! is. It is total: no file, however broken or hostile, makes it panic or take more than a bounded time.
//!
//! Why not `#[derive(Deserialize)]` on the types: serde stops at the first mistake, forgets where a value stood and whether
//! it was given, and cannot merge the environment in with the right precedence. The file becomes a
//! `tree` with lines, and the sections read themselves from it through a `reader` that records all three.
//!
//! Edge cases decided here:
//! - A file is the whole list of whom prompts may be sent to. `OPENAI_API_KEY` adds a provider only where there is no file.
//! - What this build cannot do is refused where silence would mislead (`data.database`), and accepted with a
//!   warning where it only costs a feature (`session.summary_model`).
//! - Secrets appear in no error, no warning, no `Debug` and no `--print`.

mod accounts;
mod auth;
mod catalogue;
mod discovery;
mod effective;
mod env;
mod expand;
mod observe;
mod problem;
mod reader;
mod redis;
mod restart;
mod role;
mod routes;
mod routing;
mod schema;
mod server;
mod streams;
mod tracing;
mod tree;
mod trust;
mod units;
mod value;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use accounts::{DEFAULT_TENANT, KeyEntry, Limits, Tenant};
pub(crate) use accounts::{KEY_OWNER, NAME_MAX};
pub use auth::{Auth, AuthRole};
pub use catalogue::{Endpoint, Model, Provider, Rule, Upstream};
pub use discovery::{Consul, Discovery, DnsName};
pub use effective::{Effective, Entry};
pub use env::{Env, Flags};
pub use observe::{Log, LogFormat, LogLevel, Monitoring, Session};
pub use problem::{At, Errors, Origin, Problem, ProblemKind};
pub use redis::{HostPorts, Redis};
pub use restart::restart_required;
pub use role::Role;
pub use routes::{Route, Serves};
pub use routing::{
    Affinity, Backoff, Breaker, Fallback, LoadBalancer, RetryBudget, Routing, Timeouts,
};
pub use schema::{Absent, SchemaKey, schema};
pub use server::{Admin, Data, Fsync, GrpcTls, Http, Journal, Server, Tls};
pub use streams::Streams;
pub use tracing::{Collector, Sampler, Share, Tracing};
pub use trust::WorkerTls;
pub use units::{BadSecret, ByteSize, Secret, Url};
pub use watch::{Fingerprint, POLL_INTERVAL, watch};

use reader::{Gathered, Section, Sink};

/// Everything that can be configured, checked and with its defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is listened on.
    pub server: Server,
    /// Where things are kept.
    pub data: Data,
    /// The journal.
    pub journal: Journal,
    /// How requests are placed and tried.
    pub routing: Routing,
    /// Registries that know where workers are.
    pub discovery: Discovery,
    /// Resumable streams.
    pub streams: Streams,
    /// Stored sessions.
    pub session: Session,
    /// Providers by name.
    pub providers: BTreeMap<String, Provider>,
    /// Models by the name callers use.
    pub models: BTreeMap<String, Model>,
    /// Servers whose models are asked for.
    pub upstreams: Vec<Upstream>,
    /// Where the chat role is, for the gateway role.
    pub chats: Vec<Upstream>,
    /// Priority and weight of providers, model by model.
    pub rules: Vec<Rule>,
    /// Tenants by name.
    pub tenants: BTreeMap<String, Tenant>,
    /// Who judges keys.
    pub auth: Auth,
    /// The API keys that are let in. Without any, only loopback is served.
    pub keys: Vec<KeyEntry>,
    /// What is measured.
    pub monitoring: Monitoring,
    /// What is logged.
    pub log: Log,
    /// What this process does. The rest is what that takes of the file.
    pub role: Role,
}

/// A configuration, and what is worth saying about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every value and its origin.
    pub effective: Effective,
    /// What is accepted but may not do what its writer expects.
    pub warnings: Vec<Problem>,
    /// What it was made of, to tell whether that changed.
    pub fingerprint: Fingerprint,
}

/// Reads the configuration; `path` is absent where only flags, environment and defaults count.
///
/// # Errors
/// Every problem that was found. None of the file is then to be used.
pub fn load(path: Option<&Path>, flags: &Flags, env: &Env) -> Result<Loaded, Errors> {
    load_and_fingerprint(path, flags, env).0
}

/// The same from text, named `file` in messages.
///
/// # Errors
/// Every problem that was found.
pub fn parse(file: &str, text: &[u8], flags: &Flags, env: &Env) -> Result<Loaded, Errors> {
    interpret(file, Some(text), flags, env).0
}

impl Config {
    /// Whether nobody to send requests to is named: the built-in `demo` model is served then.
    #[must_use]
    pub fn is_demo(&self) -> bool {
        self.models.is_empty()
            && self.providers.is_empty()
            && self.upstreams.is_empty()
            && self.rules.is_empty()
            && !self.discovery.is_some()
    }
}

/// The fingerprint is there for what cannot be used, too: it tells when to look again.
fn load_and_fingerprint(
    path: Option<&Path>,
    flags: &Flags,
    env: &Env,
) -> (Result<Loaded, Errors>, Fingerprint) {
    let Some(path) = path else {
        return interpret("", None, flags, env);
    };
    let file = path.display().to_string();
    match read_file(path) {
        Ok(text) => interpret(&file, Some(&text), flags, env),
        Err(kind) => {
            let fingerprint = Fingerprint::of_text(Some(kind.to_string().as_bytes()), Vec::new());
            (Err(file_problem(&file, kind)), fingerprint)
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ProblemKind> {
    let unreadable = |error: std::io::Error| ProblemKind::Unreadable(error.to_string());
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.len() > tree::BYTES_MAX {
        return Err(ProblemKind::TooLarge { bytes: metadata.len(), bytes_max: tree::BYTES_MAX });
    }
    std::fs::read(path).map_err(unreadable)
}

fn file_problem(file: &str, kind: ProblemKind) -> Errors {
    let origin = env::in_file(&Arc::from(file), At::default(), &[]);
    Errors::new(vec![Problem { origin, path: String::new(), kind }])
}

fn interpret(
    file: &str,
    text: Option<&[u8]>,
    flags: &Flags,
    env: &Env,
) -> (Result<Loaded, Errors>, Fingerprint) {
    let fingerprint = |files| Fingerprint::of_text(text, files);
    let (node, findings) = match text.map(to_tree).transpose() {
        Ok(parsed) => parsed.map_or((None, Vec::new()), |(node, findings)| (Some(node), findings)),
        Err((at, path, kind)) => {
            let origin = env::in_file(&Arc::from(file), at, &[]);
            let errors = Errors::new(vec![Problem { origin, path, kind }]);
            return (Err(errors), fingerprint(Vec::new()));
        }
    };
    let (mut node, mut findings) = (node, findings);
    if let Some(node) = &mut node {
        expand::expand(node, env, "", &mut findings);
    }
    let overrides = env::Overrides::new(flags, env, node.as_ref());
    let sink = Sink::new(Arc::from(file), overrides);
    sink.findings(findings);
    let config = Section::root(&sink, node.as_ref(), read);
    let Gathered { problems, warnings, effective, files, schema: _ } = sink.into_gathered();
    let fingerprint = fingerprint(files);
    if !problems.is_empty() {
        return (Err(Errors::new(problems)), fingerprint);
    }
    let loaded = Loaded { config, effective, warnings, fingerprint: fingerprint.clone() };
    (Ok(loaded), fingerprint)
}

fn to_tree(text: &[u8]) -> Result<(tree::Node, Vec<tree::Finding>), tree::Finding> {
    let whole = |kind| (At::default(), String::new(), kind);
    let bytes = text.len() as u64;
    if bytes > tree::BYTES_MAX {
        return Err(whole(ProblemKind::TooLarge { bytes, bytes_max: tree::BYTES_MAX }));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        whole(ProblemKind::Syntax(format!("not UTF-8 from byte {} on", error.valid_up_to())))
    })?;
    tree::parse(text)
}

/// The schema, from the top.
fn read(root: &Section<'_>) -> Config {
    read_version(root);
    let mut server = root.section("server", Server::read);
    let data = root.section("data", Data::read);
    let journal = root.section("journal", Journal::read);
    let routing = root.section("routing", Routing::read);
    let discovery = root.section("discovery", Discovery::read);
    let streams = root.section("streams", Streams::read);
    let session = root.section("session", Session::read);
    let providers = catalogue::read_providers(root);
    let models = catalogue::read_models(root, &routing.timeouts);
    let (upstreams, chats) = catalogue::read_upstreams(root);
    let rules = catalogue::read_rules(root, &providers);
    let tenants = accounts::read_tenants(root);
    let auth = root.section("auth", Auth::read);
    let asks = matches!(root.role(), Role::Gateway | Role::Chat) && auth.remote.is_some();
    let keys = accounts::read_keys(root, &tenants, !asks);
    let monitoring = root.section("monitoring", Monitoring::read);
    let log = root.section("log", Log::read);
    one_admin_address(root, &mut server, &monitoring);
    let config = Config {
        server,
        data,
        journal,
        routing,
        discovery,
        streams,
        session,
        providers,
        models,
        upstreams,
        chats,
        rules,
        tenants,
        auth,
        keys,
        monitoring,
        log,
        role: Role::All,
    };
    check_routes(root, &config);
    check_deadlines(root, &config);
    config.played(root.role(), root)
}

/// A file says which version of this schema it was written for, so that a later one can tell.
fn read_version(root: &Section<'_>) {
    if !root.is_present() {
        return;
    }
    if root.required::<u32>("version").is_some_and(|version| version != 1) {
        let reason = "this build reads version 1 of the configuration".to_owned();
        root.problem("version", ProblemKind::Invalid(reason));
    }
}

fn one_admin_address(root: &Section<'_>, server: &mut Server, monitoring: &Monitoring) {
    let (addr, other) = ("server.admin.addr", "monitoring.prometheus.addr");
    if let Some(metrics) = monitoring.prometheus_addr {
        let default = Admin::default_addr(root.role());
        if server.admin.addr != default && server.admin.addr != metrics {
            let kind = ProblemKind::Contradicts { other: addr.to_owned() };
            root.problem_of(&["monitoring", "prometheus", "addr"], kind);
        }
        server.admin.addr = metrics;
        root.same_as(addr, other);
    }
    if server.admin.addr == server.http.addr && server.http.addr.port() != 0 {
        let reason = "the same address as server.http.addr; give each its own".to_owned();
        root.problem_of(&["server", "admin", "addr"], ProblemKind::Invalid(reason));
    }
}

/// Of two deadlines the shorter counts, and only that of the request says anything about the endpoint.
fn check_deadlines(root: &Section<'_>, config: &Config) {
    let bound = config.server.http.timeout;
    let warn = |keys: &[&str], timeouts: &Timeouts| {
        if timeouts.request > bound {
            let bound = value::Value::show(&bound);
            let text = format!("over HTTP an exchange ends after {bound} (server.http.timeout)");
            root.warn_of(keys, text);
        }
    };
    warn(&["routing", "timeout"], &config.routing.timeouts);
    warn(&["routing", "timeouts", "request"], &config.routing.timeouts);
    for (name, model) in &config.models {
        warn(&["models", name, "timeouts", "request"], &model.timeouts);
    }
}

fn check_routes(root: &Section<'_>, config: &Config) {
    if let Some(name) = &config.routing.default_provider
        && !config.providers.contains_key(name)
    {
        let names = config.providers.keys().map(String::as_str);
        let suggestion = problem::nearest(name, names);
        let kind = ProblemKind::NoSuch { what: "provider", found: format!("{name:?}"), suggestion };
        root.problem_of(&["routing", "default_provider"], kind);
    }
    let routes = config.routes();
    for name in config.models.keys() {
        if !config.discovery.is_some() && !routes.iter().any(|route| route.may_serve(name)) {
            let reason = "nobody serves it; give it an endpoint, or list it under a provider";
            root.problem_of(&["models", name], ProblemKind::Invalid(reason.to_owned()));
        }
    }
}

/// Files that make up a configuration beside the file itself.
type Files = Vec<PathBuf>;

//! What each of our processes is started with, how it is known again, and when it is ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::kept::{Kept, ask, at, listens};
use crate::process::Workspace;

/// The model that the Rust workers serve; its text is a function of what it is asked.
pub const MODEL: &str = "words";

/// The model of the Python worker, which says again what it is told.
const PYTHON_MODEL: &str = "parrot";

/// Variables that would overrule what is configured here, if whoever runs this has them set. Taken away before any is given.
const OVERRULING: [&str; 22] = [
    "GATEWAY",
    "GATEWAY_HTTP_ADDR",
    "GATEWAY_GRPC_ADDR",
    "REDIS_ADDR",
    "REDIS_PASSWORD",
    "LLM",
    "LLM_ADDR",
    "OPENAI_API_KEY",
    "OPENAI_MODEL",
    "METRICS_ADDR",
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_CACERT",
    "ADVERTISE_ADDR",
    "CHAT_SERVICE",
    "CHAT_SERVICE_ADDR",
    "AUTH_GRPC",
    "AUTH_GRPC_ADDR",
    "AUTH_HTTP_HEALTH",
    "AUTH_HTTP_HEALTH_ADDR",
    "TOKEN_SERVICE",
    "TOKEN_SERVICE_ADDR",
];

/// One of our processes, in the order in which they are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A worker, in Rust.
    #[value(name = "worker-1")]
    Worker1,
    /// The other of the same model.
    #[value(name = "worker-2")]
    Worker2,
    /// A worker of another model, in Python.
    WorkerPython,
    /// Who has the keys.
    Auth,
    /// A chat role.
    #[value(name = "chat-1")]
    Chat1,
    /// The other.
    #[value(name = "chat-2")]
    Chat2,
    /// A gateway role.
    #[value(name = "gateway-1")]
    Gateway1,
    /// The other.
    #[value(name = "gateway-2")]
    Gateway2,
}

/// What they are started among.
pub struct Around<'a> {
    /// Our binary.
    pub program: PathBuf,
    /// The ledger's host and port.
    pub redis: String,
    /// The registry's.
    pub consul: String,
    /// Of the key that is let in.
    pub hash: String,
    /// Where the auth role is asked.
    pub auth: String,
    /// Where the chat roles are.
    pub chats: [String; 2],
    /// Where the Python worker's environment is.
    pub workspace: &'a Workspace,
}

impl Role {
    /// Those that are started unless others are named.
    pub const USUAL: [Self; 7] = [
        Self::Worker1,
        Self::Worker2,
        Self::Auth,
        Self::Chat1,
        Self::Chat2,
        Self::Gateway1,
        Self::Gateway2,
    ];

    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker1 => "worker-1",
            Self::Worker2 => "worker-2",
            Self::WorkerPython => "worker-python",
            Self::Auth => "auth",
            Self::Chat1 => "chat-1",
            Self::Chat2 => "chat-2",
            Self::Gateway1 => "gateway-1",
            Self::Gateway2 => "gateway-2",
        }
    }

    /// The preferred port. Far from the usual ones.
    pub const fn port(self) -> u16 {
        match self {
            Self::Worker1 => 17_055,
            Self::Worker2 => 17_056,
            Self::WorkerPython => 17_057,
            Self::Gateway1 => 17_081,
            Self::Gateway2 => 17_082,
            Self::Chat1 => 17_083,
            Self::Chat2 => 17_084,
            Self::Auth => 17_085,
        }
    }

    /// What the command line of its process contains.
    pub fn marks(self, kept: &Kept) -> Vec<String> {
        match self {
            Self::Auth | Self::Chat1 | Self::Chat2 | Self::Gateway1 | Self::Gateway2 => {
                vec!["pointsman serve".into(), kept.address()]
            }
            Self::Worker1 | Self::Worker2 => vec!["pointsman worker".into(), kept.address()],
            // It is told by its environment alone.
            Self::WorkerPython => vec!["-m pointsman_worker".into()],
        }
    }

    /// How it is started.
    pub fn command(self, kept: &Kept, around: &Around<'_>) -> Result<Command, String> {
        Ok(match self {
            Self::Auth => served("auth", kept, around, &auth(kept, around))?,
            Self::Chat1 | Self::Chat2 => served("chat", kept, around, &shared(kept, around))?,
            Self::Gateway1 | Self::Gateway2 => {
                served("gateway", kept, around, &shared(kept, around))?
            }
            Self::Worker1 | Self::Worker2 => {
                let mut command = clean(&around.program);
                command.args(["worker", "--model", MODEL, "--backend", "hash", "--delay", "20ms"]);
                command.args(["--grace", "10s", "--listen", &kept.address()]);
                command.args(["--metrics-listen", &format!("127.0.0.1:{}", kept.second)]);
                command.args(["--consul", &format!("http://{}", around.consul)]);
                command.args(["--instance-id", kept.name]);
                command
            }
            Self::WorkerPython => python(kept, around)?,
        })
    }

    /// Whether it can be asked at all.
    pub fn lives(self, kept: &Kept) -> bool {
        let page = |port, path| ask(port, "GET", path, "").is_some_and(|(status, _)| status == 200);
        match self {
            Self::Gateway1 | Self::Gateway2 => page(kept.port, "/health"),
            Self::Auth | Self::Chat1 | Self::Chat2 => page(kept.second, "/health"),
            Self::Worker1 | Self::Worker2 => listens(kept.port),
            Self::WorkerPython => page(kept.second, "/ready"),
        }
    }

    /// How it is, in some words.
    pub fn state(self, kept: &Kept) -> String {
        let said = match self {
            Self::Worker1 | Self::Worker2 => {
                return if listens(kept.port) { "listens" } else { "does not listen" }.to_owned();
            }
            Self::Gateway1 | Self::Gateway2 => ask(kept.port, "GET", "/ready", ""),
            Self::Auth | Self::Chat1 | Self::Chat2 | Self::WorkerPython => {
                ask(kept.second, "GET", "/ready", "")
            }
        };
        match said {
            Some((200, _)) => "ready".to_owned(),
            Some((_, why)) => why.lines().collect::<Vec<_>>().join("; "),
            None => "does not answer".to_owned(),
        }
    }
}

/// A program that knows nothing of what overrules.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in OVERRULING {
        command.env_remove(name);
    }
    command
}

/// A role of the one binary, with a configuration of its own.
fn served(role: &str, kept: &Kept, around: &Around<'_>, text: &str) -> Result<Command, String> {
    let config = kept.place.join("config.yaml");
    fs::write(&config, text).map_err(|why| at(&config, why))?;
    let mut command = clean(&around.program);
    command.args(["serve", "--role", role, "--listen", &kept.address(), "--config"]).arg(config);
    Ok(command)
}

/// What gateway roles and chat roles read: each takes what it decides.
fn shared(kept: &Kept, around: &Around<'_>) -> String {
    let Around { redis, consul, auth, chats: [one, two], .. } = around;
    let (data, admin) = (kept.place.join("data"), kept.second);
    let (first, second) = (Role::Chat1.name(), Role::Chat2.name());
    format!(
        "version: 1
server: {{http: {{drain_grace: 10s}}, admin: {{addr: \"127.0.0.1:{admin}\"}}}}
data: {{dir: {data:?}, redis: {{addr: \"{redis}\"}}}}
auth: {{url: \"auth://{auth}\"}}
chats:
  - {{url: \"chat://{one}\", name: {first}}}
  - {{url: \"chat://{two}\", name: {second}}}
discovery: {{consul: {{addr: \"http://{consul}\"}}}}
tenants: {{dev: {{daily_tokens: 10000000}}}}
log: {{level: info, format: json}}
"
    )
}

/// The keys.
fn auth(kept: &Kept, around: &Around<'_>) -> String {
    let (hash, admin) = (&around.hash, kept.second);
    format!(
        "version: 1
server: {{http: {{drain_grace: 5s}}, admin: {{addr: \"127.0.0.1:{admin}\"}}}}
tenants: {{dev: {{}}}}
keys: [{{name: dev, hash: \"{hash}\", tenant: dev}}]
log: {{level: info, format: json}}
"
    )
}

fn python(kept: &Kept, around: &Around<'_>) -> Result<Command, String> {
    let program = around.workspace.target.join("worker/venv/bin/python");
    if !program.exists() {
        let missing = program.display();
        return Err(format!("{missing} is missing: `deploy/worker/check.sh` installs the worker"));
    }
    let mut command = clean(&program);
    command.args(["-m", "pointsman_worker"]).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("MODEL_NAME", PYTHON_MODEL).env("BACKEND", "echo").env("INSTANCE_ID", kept.name);
    command.env("LISTEN_ADDR", kept.address()).env("CONSUL_HTTP_ADDR", &around.consul);
    command.env("METRICS_ADDR", format!("127.0.0.1:{}", kept.second)).env("DRAIN_SECONDS", "10");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_called_the_same_on_the_command_line_and_in_its_files() {
        for role in Role::value_variants() {
            let called = role.to_possible_value().expect("no role is hidden");
            assert_eq!(called.get_name(), role.name());
        }
    }

    #[test]
    fn what_overrules_is_taken_away_and_what_is_meant_is_given() {
        let home = std::env::temp_dir().join(format!("pointsman-roles-{}", std::process::id()));
        let workspace = Workspace { root: home.clone(), target: home.clone(), place: None };
        let python = home.join("worker/venv/bin/python");
        fs::create_dir_all(python.parent().expect("it has one")).expect("a directory");
        fs::write(&python, "").expect("a file");
        let own = || "127.0.0.1:1".to_owned();
        let around = Around {
            program: "pointsman".into(),
            redis: own(),
            consul: "127.0.0.1:8500".to_owned(),
            hash: format!("sha256:{}", "ab".repeat(32)),
            auth: own(),
            chats: [own(), own()],
            workspace: &workspace,
        };
        for role in Role::value_variants() {
            let place = home.join(role.name());
            fs::create_dir_all(&place).expect("a directory");
            let kept = Kept { name: role.name(), place, port: role.port(), second: 2 };
            let command = role.command(&kept, &around).expect("it can be started");
            let given = |name: &str| {
                let found = command.get_envs().find(|(known, _)| *known == name);
                found.expect("neither given nor taken away").1.map(|value| value.to_owned())
            };
            let is_python = *role == Role::WorkerPython;
            for name in OVERRULING {
                let meant = match name {
                    "METRICS_ADDR" if is_python => Some("127.0.0.1:2".into()),
                    "CONSUL_HTTP_ADDR" if is_python => Some("127.0.0.1:8500".into()),
                    _ => None,
                };
                assert_eq!(given(name), meant, "{name} of {}", role.name());
            }
        }
        fs::remove_dir_all(&home).expect("our own directory can be removed");
    }

    #[test]
    fn no_two_roles_prefer_the_same_port() {
        let mut ports: Vec<u16> = Role::value_variants().iter().map(|role| role.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), Role::value_variants().len());
    }
}

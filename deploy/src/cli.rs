//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use transport::config::Role;

use crate::commands::health::Asked;
use crate::demo::{DemoReplicaArgs, parse_duration};

/// An LLM gateway whose every decision can be replayed.
///
/// Without a command it serves: a model named `demo` on three built-in replicas, at http://127.0.0.1:8080/v1.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// A command line. Ends the process where it is none.
    pub fn of(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(worker_named(args.into_iter().collect()))
    }
}

/// A worker shares no flag with the other roles, and has no configuration file: so it is a command. Whoever starts it as the
/// role that it is means that command.
fn worker_named(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_none_or(|command| command != "serve") {
        return args;
    }
    let apart = args.windows(2).position(|pair| pair[0] == "--role" && pair[1] == "worker");
    let joined = args.iter().position(|arg| arg == "--role=worker");
    if let Some(said) = apart.map(|at| at..at + 2).or_else(|| joined.map(|at| at..at + 1)) {
        args.drain(said);
        args[1] = "worker".into();
    }
    args
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the OpenAI API in front of replicas and providers.
    Serve(ServeArgs),
    /// Check a configuration file: errors with line, key and suggestion.
    Check(CheckArgs),
    /// An OpenAI-compatible replica to try things with; it fails as it is told to.
    DemoReplica(DemoReplicaArgs),
    /// Stand beside a model server and serve gateways over gRPC, `grpc://host:port` in their configuration, or QUIC.
    Worker(Box<WorkerArgs>),
    /// Make API keys.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Ask a gateway or a worker whether it is well; exits non-zero where it is not.
    Health(HealthArgs),
    /// Endpoints, breakers, load and requests under way.
    Status(StatusArgs),
    /// Give an endpoint no new requests; what runs there finishes.
    Drain(DrainArgs),
    /// Give a drained endpoint requests again.
    Undrain(DrainArgs),
    /// Why a request went where it went.
    Explain(ExplainArgs),
    /// Look into the journal.
    Journal {
        #[command(subcommand)]
        command: JournalCommand,
    },
    /// Look into the ledger.
    Quota {
        #[command(subcommand)]
        command: QuotaCommand,
    },
}

impl Default for Command {
    fn default() -> Self {
        Self::Serve(ServeArgs::default())
    }
}

#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// An OpenAI-compatible server to ask; its models are discovered. May be given several times.
    #[arg(long, value_name = "URL")]
    pub upstream: Vec<String>,
    /// A configuration file; changes to it are applied while running.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What this process does: everything; or, in front, rates and protocols (`gateway`, which asks the chat roles of `chats`
    /// or `--upstream chat://host:port`); or, behind, quota, sessions and workers (`chat`, asked over gRPC); or keys for both
    /// (`auth`, named as `auth.url`). With `worker`, all other flags are those of `pointsman worker`.
    #[arg(long, value_enum, default_value_t)]
    pub role: RoleArg,
    /// Where to listen. Default: 127.0.0.1:8080; over gRPC, the chat role 127.0.0.1:8081, the auth role 127.0.0.1:8082.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where to keep the journal. Default: ./pointsman-data.
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    #[default]
    All,
    Gateway,
    Chat,
    Auth,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::All => Self::All,
            RoleArg::Gateway => Self::Gateway,
            RoleArg::Chat => Self::Chat,
            RoleArg::Auth => Self::Auth,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct WorkerArgs {
    /// The model it serves, as gateways name it.
    #[arg(long, value_name = "NAME", env = "MODEL_NAME")]
    pub model: String,
    /// Who writes the answers: `echo`, `hash`, or `openai:URL` for an OpenAI-compatible server. The key it is asked with,
    /// where it needs one, stands in the variable WORKER_BACKEND_KEY.
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// What the OpenAI-compatible server calls the model. Default: as we do.
    #[arg(long, value_name = "NAME")]
    pub backend_model: Option<String>,
    /// The OpenAI-compatible server continues answers (`continue_final_message`: vLLM, SGLang), and runs what this text names:
    /// weights, tokenizer and chat template. Workers of a model that say the same go on with each other's broken streams.
    #[arg(long, value_name = "REVISION")]
    pub backend_continues: Option<String>,
    /// Where to listen. Default: LLM_ADDR, else the port LLM, else 0.0.0.0:50055.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where `/metrics`, `/health` and `/ready` are, or `off`. Default: METRICS_ADDR, else 0.0.0.0:9464.
    #[arg(long, value_name = "ADDR", env = "METRICS_ADDR")]
    pub metrics_listen: Option<String>,
    /// Serve QUIC here too, `quic://host:port` in the gateways' configuration. Where only a port is given, on every
    /// address. Default: not served; 50056 is what a URL without a port means.
    #[arg(long, value_name = "ADDR")]
    pub quic_listen: Option<String>,
    /// Its certificate chain, PEM. Where neither this nor the key is there, both are made. Default: a certificate that
    /// lasts as long as the process; the line that says it is ready has its fingerprint.
    #[arg(long, value_name = "FILE", requires_all = ["quic_key", "quic_listen"])]
    pub quic_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["quic_cert", "quic_listen"])]
    pub quic_key: Option<PathBuf>,
    /// Over QUIC, serve only callers that show a certificate of these authorities, PEM.
    #[arg(long, value_name = "FILE", requires = "quic_listen")]
    pub quic_client_ca: Option<PathBuf>,
    /// Register with this agent of Consul as `llm-NAME`, for as long as it serves. Default: CONSUL_HTTP_ADDR, else nowhere.
    #[arg(long, value_name = "URL")]
    pub consul: Option<String>,
    /// The agent's ACL token, as file:/path. Default: CONSUL_HTTP_TOKEN.
    #[arg(long, value_name = "file:PATH")]
    pub consul_token: Option<String>,
    /// Authorities to believe about the agent beside the public ones, PEM. Default: CONSUL_CACERT.
    #[arg(long, value_name = "FILE")]
    pub consul_ca: Option<PathBuf>,
    /// What is shown to an agent that asks who calls, PEM. Default: CONSUL_CLIENT_CERT.
    #[arg(long, value_name = "FILE")]
    pub consul_cert: Option<PathBuf>,
    /// Its private key, PEM. Default: CONSUL_CLIENT_KEY.
    #[arg(long, value_name = "FILE")]
    pub consul_key: Option<PathBuf>,
    /// Where others reach it: HOST, HOST:PORT, or the same behind grpc:// or quic:// to say which door is registered.
    /// Default: ADVERTISE_ADDR, else the address that is listened on, else this machine's own; QUIC where that is served.
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Its name in Consul and in its log lines, and what gateways call it. Default: INSTANCE_ID, else the machine's name and a draw.
    #[arg(long, value_name = "NAME")]
    pub instance_id: Option<String>,
    /// The most answers at once; who comes then is told when to come back.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: u32,
    /// How long answers may go on after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub grace: Duration,
    /// Wait before each token (echo and hash).
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub delay: Duration,
    /// What chance is drawn from where a request names no seed (hash).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// As this role reads it.
    #[arg(long, value_enum, default_value_t)]
    pub role: RoleArg,
    /// Print every value in effect and where it came from, without secrets.
    #[arg(long)]
    pub print: bool,
    /// Ask every endpoint for its models, and the auth role of `auth.url` whether it is there.
    #[arg(long)]
    pub online: bool,
}

#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Where to ask: http://host:port/health (it lives) or /ready (it can serve) of a gateway; grpc://host:port of a worker.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:9090/health")]
    pub url: Asked,
    /// How long to wait for the answer.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub within: Duration,
}

/// Which gateway is meant.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// The data directory of the gateway, running or stopped.
    #[arg(long, value_name = "DIR", default_value = "./pointsman-data")]
    pub data: PathBuf,
    /// Its admin socket, where that is not in the data directory.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub which: Which,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The endpoint's name, as `status` shows it.
    pub endpoint: String,
    #[command(flatten)]
    pub which: Which,
}

#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The request's id: the response header x-request-id.
    pub request: String,
    #[command(flatten)]
    pub which: Which,
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Print a new key, once, and its hash for the configuration.
    New,
}

#[derive(Clone, Debug, Subcommand)]
pub enum JournalCommand {
    /// Replay what is retained and compare every effect. Exits non-zero at the first record that differs.
    Verify {
        /// The data directory. Default: ./pointsman-data.
        dir: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum QuotaCommand {
    /// Every balance.
    Show(StatusArgs),
    /// Recompute every balance from the ledger's entries. Exits non-zero where the sums do not hold.
    Audit {
        #[command(flatten)]
        which: Which,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(line: &str) -> String {
        let words = worker_named(line.split(' ').map(Into::into).collect());
        words.join(std::ffi::OsStr::new(" ")).into_string().unwrap_or_default()
    }

    #[test]
    fn a_worker_that_is_started_as_a_role_is_the_command() {
        let worker = "pointsman worker --model m --backend echo";
        for line in [
            "pointsman serve --role worker --model m --backend echo",
            "pointsman serve --model m --role=worker --backend echo",
        ] {
            assert_eq!(meant(line), worker);
            let command = Cli::of(line.split(' ').map(Into::into)).command;
            assert!(matches!(command, Some(Command::Worker(args)) if args.model == "m"));
        }
        for line in ["pointsman serve --role chat", "pointsman check --role worker", "pointsman"] {
            assert_eq!(meant(line), line);
        }
    }
}

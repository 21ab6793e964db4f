//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::demo::DemoReplicaArgs;

/// An LLM gateway whose every decision can be replayed.
///
/// Without a command it serves: a model named `demo` on three built-in replicas, at http://127.0.0.1:8080/v1.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the OpenAI API in front of replicas and providers.
    Serve(ServeArgs),
    /// Check a configuration file: errors with line, key and suggestion.
    Check(CheckArgs),
    /// An OpenAI-compatible replica to try things with; it fails as it is told to.
    DemoReplica(DemoReplicaArgs),
    /// Make API keys.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
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
    /// Where to listen. Default: 127.0.0.1:8080.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where to keep the journal. Default: ./pointsman-data.
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print every value in effect and where it came from, without secrets.
    #[arg(long)]
    pub print: bool,
    /// Ask every endpoint for its models.
    #[arg(long)]
    pub online: bool,
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

//! The steps of `cargo xtask test`, in the order they run: the cheap and telling ones first.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::process::{Workspace, run, run_within};
use crate::services::{consul, install};
use crate::{purity, sdk, simulation};

/// One check, by the name `--only` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// rustfmt has nothing to change.
    Fmt,
    /// clippy has nothing to say about any target.
    Clippy,
    /// The decisions build alone, without the standard library.
    Purity,
    /// Licences, duplicates and banned crates.
    Dependencies,
    /// The style, as a test.
    Tidy,
    /// The servers that tests start, the tools that cut them off, and the checker of their metrics: installed if they must and
    /// may be.
    Servers,
    /// All unit, property and transcript tests.
    Tests,
    /// The world, simulated: seeds, planted bugs, determinism.
    Simulation,
    /// The binary real clients will meet.
    Build,
    /// The wire's `.proto` files, by buf.
    Wire,
    /// The Python worker: lints, types and its own tests.
    PythonWorker,
    /// The official Python SDK against it, alone and as one of several over real servers and workers.
    PythonSdk,
    /// The images and the compose file: lints, the schema, and both run as far as that goes without an engine.
    Containers,
    /// The official Node SDK against it.
    NodeSdk,
}

impl Step {
    /// What the step finds out, for its header.
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Fmt => "the sources are formatted",
            Self::Clippy => "no warning in any target",
            Self::Purity => "control builds alone, and nothing it uses has std",
            Self::Dependencies => "licences, duplicates and banned crates",
            Self::Tidy => "the house rules hold",
            Self::Servers => "the servers that tests start are there",
            Self::Tests => "unit, property and transcript tests",
            Self::Simulation => {
                "partitions, crashes and lies, seed by seed, and planted bugs that must ring"
            }
            Self::Build => "the binary",
            Self::PythonSdk => {
                "the official Python SDK, against replicas, servers and gateways that die"
            }
            Self::Containers => "hadolint, the compose schema, and what they describe, running",
            Self::NodeSdk => "the official Node SDK",
            Self::PythonWorker => "the Python worker: lints, types, tests",
            Self::Wire => "buf lint and buf format on the wire",
        }
    }

    /// Runs it; the error says what failed.
    ///
    /// `xtask`'s own tests run in the two steps before [`Step::Tests`] and are left out of it: none runs twice. The
    /// SDK steps build the binary themselves, so that `--only` never tries a stale one; `Build` comes before them to
    /// tell a build that fails from clients that do. The bugs planted in `control` are linted and tested apart: features
    /// unify over a build of the workspace, and no other crate's tests shall meet them.
    pub fn run(self, workspace: &Workspace) -> Result<(), String> {
        let cargo = |args: &[&str]| run(&mut workspace.cargo(args));
        match self {
            Self::Fmt => cargo(&["fmt", "--all", "--check"]),
            Self::Clippy => {
                cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
                let planted = ["clippy", "-p", "control", "--features", "mutants", "--all-targets"];
                cargo(&[planted.as_slice(), &["--", "-D", "warnings"]].concat())
            }
            Self::Purity => purity::check(workspace),
            Self::Dependencies => cargo(&["test", "-p", "xtask", "--test", "dependencies"]),
            Self::Tidy => cargo(&["test", "-p", "xtask", "--bins", "--test", "tidy"]),
            Self::Servers => {
                let wanted =
                    [install::REDIS, install::NGINX, install::IP, install::NFT, install::PROMTOOL];
                for wanted in wanted {
                    install::ensure(wanted)?;
                }
                consul::ensure(&workspace.target.join("services")).map(drop)
            }
            Self::Tests => {
                cargo(&["test", "--workspace", "--exclude", "xtask", "--no-fail-fast"])?;
                cargo(&["test", "-p", "control", "--features", "mutants", "--lib", "mutant"])
            }
            Self::Simulation => simulation::gate(workspace),
            Self::Build => sdk::binary(workspace).map(drop),
            Self::PythonSdk => sdk::python(workspace),
            Self::Containers => sdk::containers(workspace),
            Self::NodeSdk => sdk::node(workspace),
            Self::PythonWorker => script(workspace, "deploy/worker/check.sh"),
            Self::Wire => script(workspace, "deploy/proto-lint.sh"),
        }
    }
}

/// The longest of them measures half a minute, and two where it installs everything.
const SCRIPT_MAX: Duration = Duration::from_secs(10 * 60);

fn script(workspace: &Workspace, path: &str) -> Result<(), String> {
    let mut command = workspace.command("bash");
    command.arg(workspace.root.join(path));
    run_within(&mut command, SCRIPT_MAX)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.to_possible_value();
        f.write_str(named.as_ref().map_or("hidden", |value| value.get_name()))
    }
}

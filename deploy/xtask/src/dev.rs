//! `cargo xtask dev up|down|restart|status|logs [ROLE]`: our own processes on this machine, over the servers that `dev deps`
//! starts.
//!
//! nginx stands before two gateway roles, those before two chat roles, which share Redis and Consul; one auth role has the key;
//! two workers of one model serve behind them, and a third, in Python, when it is named. Each has a directory with its configuration, its data, its ports and its process id
//! ([`crate::kept`]), and a log in `logs/`. A role is a row in [`role`]: what it is started with, how it is known, when it is
//! ready.
//!
//! The servers are not started in passing: whoever takes them down on purpose, to see what happens, wants them to stay down.

mod role;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};

use crate::kept::{Kept, at, wait_ready};
use crate::process::{Workspace, run};
use crate::{sdk, services};
use role::Role;

/// A debug build on a busy machine, with a journal to recover.
const START_MAX: Duration = Duration::from_secs(60);

/// Longer than the grace time that they are configured with.
const STOP_MAX: Duration = Duration::from_secs(20);

/// What `logs` begins with.
const LOG_LINES: &str = "40";

/// What to do with them.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Build, start what does not run (all but `worker-python`, or those named), wait until it is ready.
    Up {
        /// These alone.
        roles: Vec<Role>,
    },
    /// Stop what runs, by process id. Data and logs stay.
    Down {
        /// These alone.
        roles: Vec<Role>,
    },
    /// Stop and start what runs, or those named.
    Restart {
        /// These alone.
        roles: Vec<Role>,
    },
    /// Print what runs where, and how it is. Fails if something does not run.
    Status,
    /// Print the end of the logs.
    Logs {
        /// These alone.
        roles: Vec<Role>,
        /// And go on with what comes.
        #[arg(long, short)]
        follow: bool,
    },
    /// The servers that they share: Redis, Consul, nginx.
    Deps {
        #[command(subcommand)]
        action: services::Action,
    },
}

/// Does it.
pub fn run_action(workspace: &Workspace, action: Action) -> Result<(), String> {
    let dev = Dev { workspace };
    match action {
        Action::Up { roles } => dev.up(&roles),
        Action::Down { roles } => dev.down(&roles),
        Action::Restart { roles } => dev.restart(&roles),
        Action::Status => dev.status(),
        Action::Logs { roles, follow } => dev.logs(&roles, follow),
        Action::Deps { action } => services::run_action(workspace, action, &services::NEEDED),
    }
}

/// Where the gateways listen, or will.
pub fn gateway_ports(workspace: &Workspace) -> Result<[u16; 2], String> {
    let dev = Dev { workspace };
    Ok([dev.kept(Role::Gateway1)?.port, dev.kept(Role::Gateway2)?.port])
}

struct Dev<'a> {
    workspace: &'a Workspace,
}

impl Dev<'_> {
    fn up(&self, roles: &[Role]) -> Result<(), String> {
        let redis = services::running(self.workspace, services::REDIS)?;
        let consul = services::running(self.workspace, services::CONSUL)?;
        let program = sdk::binary(self.workspace)?;
        let hash = self.key(&program)?;
        let auth = self.kept(Role::Auth)?.address();
        let chats = [self.kept(Role::Chat1)?.address(), self.kept(Role::Chat2)?.address()];
        let workspace = self.workspace;
        let around = role::Around { program, redis, consul, hash, auth, chats, workspace };
        let wanted = if roles.is_empty() { &Role::USUAL } else { roles };
        for role in Role::value_variants().iter().filter(|role| wanted.contains(role)) {
            self.start(*role, &around)?;
        }
        if roles.is_empty() {
            self.await_ready()?;
        }
        self.status_of(wanted)?;
        self.tell_how_to_ask()
    }

    fn start(&self, role: Role, around: &role::Around<'_>) -> Result<(), String> {
        let kept = self.kept(role)?;
        if kept.process(&role.marks(&kept)).is_some() {
            return Ok(());
        }
        kept.want_ports()?;
        let log = self.log(role)?;
        let mut child = kept.spawn(&mut role.command(&kept, around)?, &log)?;
        wait_ready(kept.name, &mut child, &log, START_MAX, || role.lives(&kept))
    }

    /// Until each has somebody to ask: a worker that registered is known within moments.
    fn await_ready(&self) -> Result<(), String> {
        let started = Instant::now();
        for role in [Role::Chat1, Role::Chat2, Role::Gateway1, Role::Gateway2] {
            let kept = self.kept(role)?;
            while role.state(&kept) != "ready" {
                if started.elapsed() > START_MAX {
                    let why = role.state(&kept);
                    return Err(format!("{} cannot serve: {why}", kept.name));
                }
                sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    fn down(&self, roles: &[Role]) -> Result<(), String> {
        let mut stopped = false;
        for role in Role::value_variants().iter().rev() {
            if roles.is_empty() || roles.contains(role) {
                let kept = self.kept(*role)?;
                let marks = role.marks(&kept);
                stopped |= kept.stop(&marks, STOP_MAX)?;
            }
        }
        if !stopped {
            println!("nothing ran");
        }
        Ok(())
    }

    fn restart(&self, roles: &[Role]) -> Result<(), String> {
        let named = !roles.is_empty();
        let roles = if named { roles.to_vec() } else { self.running()? };
        if roles.is_empty() {
            return Err(NOTHING.to_owned());
        }
        self.down(&roles)?;
        self.up(&roles)
    }

    fn status(&self) -> Result<(), String> {
        let running = self.running()?;
        if running.is_empty() {
            return Err(NOTHING.to_owned());
        }
        let shown = Role::value_variants().iter().copied();
        let shown: Vec<Role> =
            shown.filter(|role| Role::USUAL.contains(role) || running.contains(role)).collect();
        self.status_of(&shown)
    }

    fn status_of(&self, roles: &[Role]) -> Result<(), String> {
        let mut down = Vec::new();
        for role in roles {
            let kept = self.kept(*role)?;
            let (name, address) = (kept.name, kept.address());
            match kept.process(&role.marks(&kept)) {
                Some(id) => {
                    println!("{name:14} {address:16} process {id:<8} {}", role.state(&kept))
                }
                None => {
                    println!("{name:14} {:16} down", "-");
                    down.push(name);
                }
            }
        }
        if down.is_empty() { Ok(()) } else { Err(format!("down: {}", down.join(", "))) }
    }

    fn logs(&self, roles: &[Role], follow: bool) -> Result<(), String> {
        let mut logs = Vec::new();
        for role in Role::value_variants() {
            let log = self.log(*role)?;
            if log.exists() && (roles.is_empty() || roles.contains(role)) {
                logs.push(log);
            } else if roles.contains(role) {
                return Err(format!(
                    "{} was never started: `cargo xtask dev up` does",
                    role.name()
                ));
            }
        }
        if logs.is_empty() {
            return Err(NOTHING.to_owned());
        }
        let mut tail = Command::new("tail");
        tail.args(["-n", LOG_LINES]).args(follow.then_some("-F")).args(&logs);
        run(&mut tail)
    }

    fn running(&self) -> Result<Vec<Role>, String> {
        let mut running = Vec::new();
        for role in Role::value_variants() {
            let kept = self.kept(*role)?;
            running.extend(kept.process(&role.marks(&kept)).map(|_| *role));
        }
        Ok(running)
    }

    fn kept(&self, role: Role) -> Result<Kept, String> {
        Kept::new(&self.workspace.dev(), role.name(), role.port())
    }

    fn log(&self, role: Role) -> Result<PathBuf, String> {
        let logs = self.workspace.logs();
        fs::create_dir_all(&logs).map_err(|why| at(&logs, why))?;
        Ok(logs.join(format!("{}.log", role.name())))
    }

    fn key_file(&self) -> PathBuf {
        self.workspace.dev().join("key")
    }

    /// The hash of the one key they let in. The key itself is made once, and is nowhere but in a file of its owner's.
    fn key(&self, program: &Path) -> Result<String, String> {
        let (file, hashed) = (self.key_file(), self.workspace.dev().join("key.hash"));
        if let Ok(hash) = fs::read_to_string(&hashed) {
            return Ok(hash.trim().to_owned());
        }
        // What it says beside is advice for whoever writes a configuration by hand.
        let made = Command::new(program).args(["key", "new"]).output();
        let made = made.map_err(|why| at(program, why))?.stdout;
        let made = String::from_utf8_lossy(&made);
        let word = |label: &str| {
            let mut lines = made.lines().filter_map(|line| line.trim().strip_prefix(label));
            let word = lines.next().map(|rest| rest.trim().trim_matches('"').to_owned());
            word.ok_or_else(|| format!("`pointsman key new` prints no {label}"))
        };
        let (key, hash) = (word("key:")?, word("hash:")?);
        fs::create_dir_all(self.workspace.dev()).map_err(|why| at(&file, why))?;
        fs::write(&file, "").map_err(|why| at(&file, why))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))
            .map_err(|why| at(&file, why))?;
        fs::write(&file, key + "\n").map_err(|why| at(&file, why))?;
        fs::write(&hashed, format!("{hash}\n")).map_err(|why| at(&hashed, why))?;
        Ok(hash)
    }

    fn tell_how_to_ask(&self) -> Result<(), String> {
        let gateway = self.kept(Role::Gateway1)?.address();
        let address = services::running(self.workspace, services::NGINX).unwrap_or(gateway);
        println!(
            "\ntry it:\n  curl -N http://{address}/v1/chat/completions -H \"Authorization: Bearer $(cat {})\" \\\n    \
             --json '{{\"model\": \"{}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'",
            self.key_file().display(),
            role::MODEL,
        );
        Ok(())
    }
}

const NOTHING: &str = "nothing runs: `cargo xtask dev up` starts it";

//! `cargo xtask services up|down|status`: the servers that roles share, on private ports, below the target directory.
//!
//! Each server has a directory of its own with its configuration, its data, its log, its ports and its process id
//! ([`crate::kept`]). `up` may be said twice; what runs already stays.
//!
//! A service is a [`Server`] in the list of [`all`]; whatever needs more than that (a cluster that must be joined) does so
//! once its servers answer. Programs come from [`install`], or, where no package will do, from the service's own module, or out of
//! an [`image`].

pub mod consul;
mod image;
pub mod install;
mod nginx;
mod node;

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;

use crate::dev;
use crate::kept::{Kept, at, listens, wait_ready};
use crate::process::Workspace;
use install::Program;
use node::Part;

/// How long a server may take to end: it has little to write.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How long one may take to listen, out of an image on a busy machine.
const START_MAX: Duration = Duration::from_secs(30);

/// What to do with them.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Start what does not run, wait until all of it is ready, print the addresses.
    Up,
    /// Stop what runs, by process id. Data stays.
    Down,
    /// Print what runs where. Fails if something does not.
    Status,
}

/// One of them.
struct Server(Kept);

/// Names and preferred ports: far from the usual ones, below those that systems give out by themselves.
const SERVERS: [(&str, u16); 7] = [
    (REDIS, 17_379),
    (REPLICA, 17_380),
    ("redis-node-1", 17_381),
    ("redis-node-2", 17_382),
    ("redis-node-3", 17_383),
    (CONSUL, 17_500),
    (NGINX, 17_080),
];
/// The primary.
pub const REDIS: &str = "redis";
const REPLICA: &str = "redis-replica";
/// The registry.
pub const CONSUL: &str = "consul";
/// What stands before the gateways.
pub const NGINX: &str = "nginx";

/// All of them.
pub const ALL: [&str; 7] =
    [REDIS, REPLICA, "redis-node-1", "redis-node-2", "redis-node-3", CONSUL, NGINX];

/// Those that our own roles need.
pub const NEEDED: [&str; 3] = [REDIS, CONSUL, NGINX];

/// Does it, with those of `names`.
pub fn run_action(workspace: &Workspace, action: Action, names: &[&str]) -> Result<(), String> {
    let servers = all(&workspace.services(), names)?;
    match action {
        Action::Up => up(workspace, &servers),
        Action::Down => servers
            .iter()
            .rev()
            .try_for_each(|server| server.0.stop(&server.marks(), STOP_MAX).map(drop)),
        Action::Status => status(&servers),
    }
}

fn up(workspace: &Workspace, servers: &[Server]) -> Result<(), String> {
    let program = install::ensure_server(install::REDIS, image::REDIS)?;
    let nginx = install::ensure_server(install::NGINX, image::NGINX)?;
    let consul = consul::ensure_server(&workspace.target.join("services"))?;
    let mut nodes = Vec::new();
    for server in servers {
        let (kept, down) = (&server.0, server.process().is_none());
        if down {
            kept.want_ports()?;
        }
        match kept.name {
            CONSUL => {
                if down {
                    consul::start(&consul, &kept.place, kept.port, kept.second)?;
                }
                consul::wait_ready(kept.port, &kept.place)?;
            }
            NGINX if down => {
                nginx::start(&nginx, kept, &workspace.root, dev::gateway_ports(workspace)?)?;
            }
            NGINX => {}
            _ => {
                let part = server.part(servers);
                if down {
                    server.start_redis(&program, part)?;
                }
                node::wait_ready(kept.port, part).map_err(|why| format!("{}: {why}", kept.name))?;
                if let Part::ClusterNode { bus } = part {
                    nodes.push((kept.port, bus));
                }
            }
        }
    }
    node::join(&nodes)?;
    status(servers)
}

fn status(servers: &[Server]) -> Result<(), String> {
    let mut down = Vec::new();
    for server in servers {
        let (name, address) = (server.0.name, server.0.address());
        match server.process() {
            Some(id) => println!("{name:14} {address:16} process {id}"),
            None => {
                println!("{name:14} {:16} down", "-");
                down.push(name);
            }
        }
    }
    if down.is_empty() { Ok(()) } else { Err(format!("down: {}", down.join(", "))) }
}

/// Those of `names`, in the order of [`SERVERS`].
fn all(home: &Path, names: &[&str]) -> Result<Vec<Server>, String> {
    let wanted = SERVERS.iter().filter(|(name, _)| names.contains(name));
    wanted.map(|(name, preferred)| Ok(Server(Kept::new(home, name, *preferred)?))).collect()
}

/// Its address, if it runs; else an error that says how to start it.
pub fn running(workspace: &Workspace, name: &str) -> Result<String, String> {
    let servers = all(&workspace.services(), &[name])?;
    match servers.iter().find(|server| server.process().is_some()) {
        Some(server) => Ok(server.0.address()),
        None => Err(format!("{name} is down: `cargo xtask dev deps up` starts it")),
    }
}

impl Server {
    fn part(&self, all: &[Self]) -> Part {
        let primary = all.iter().find(|server| server.0.name == REDIS);
        match (self.0.name, primary) {
            (REDIS, _) => Part::Primary,
            (REPLICA, Some(primary)) => Part::ReplicaOf(primary.0.port),
            _ => Part::ClusterNode { bus: self.0.second },
        }
    }

    /// Leaves it running when we end.
    fn start_redis(&self, program: &Program, part: Part) -> Result<(), String> {
        let Kept { place, port, name, .. } = &self.0;
        let config = place.join("redis.conf");
        fs::write(&config, node::config(*port, place, part)).map_err(|why| at(&config, why))?;
        let mut command = program.command(place);
        command.arg(&config);
        let printed = place.join("printed");
        let mut child = self.0.spawn(&mut command, &printed)?;
        wait_ready(name, &mut child, &printed, START_MAX, || listens(*port))
            .map_err(|why| format!("{why}; see {}/log", place.display()))
    }

    /// What the command line of its process contains: its program, and what no other process of that program has.
    fn marks(&self) -> [String; 2] {
        match self.0.name {
            CONSUL => [consul::PROGRAM.to_owned(), format!("-http-port={}", self.0.port)],
            NGINX => [nginx::PROGRAM.to_owned(), nginx::path(&self.0).display().to_string()],
            _ => [node::PROGRAM.to_owned(), format!(":{}", self.0.port)],
        }
    }

    fn process(&self) -> Option<u32> {
        self.0.process(&self.marks())
    }
}

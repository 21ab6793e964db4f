//! `cargo xtask services up|down|status`: the servers that roles share, on private ports, below the target directory.
//!
//! Each server has a directory of its own with its configuration, its data, its log and its process id. It is stopped by
//! that id and no other way, after a look whether the process of that id is still the one we started: ids are reused.
//! `up` may be said twice; what runs already stays. Ports are preferred ones, or free ones where those are taken, and are
//! kept in the directory, so that a restarted server is found where it was.
//!
//! A service is a [`Server`] in the list of [`all`]; whatever needs more than that (a cluster that must be joined) does so
//! once its servers answer. Programs come from [`install`], or, where no package will do, from the service's own module.

pub mod consul;
pub mod install;
mod node;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Subcommand;

use crate::process::{Workspace, run};
use node::Part;

/// How long a server may take to end: it has little to write.
const STOP_MAX: Duration = Duration::from_secs(15);

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

/// One process.
struct Server {
    name: &'static str,
    place: PathBuf,
    port: u16,
    /// The second port, where it has one: on which it talks to others of its kind.
    bus: u16,
}

/// Names and preferred ports: far from the usual ones, below those that systems give out by themselves.
const SERVERS: [(&str, u16); 6] = [
    (PRIMARY, 17_379),
    (REPLICA, 17_380),
    ("redis-node-1", 17_381),
    ("redis-node-2", 17_382),
    ("redis-node-3", 17_383),
    (CONSUL, 17_500),
];
const PRIMARY: &str = "redis";
const REPLICA: &str = "redis-replica";
const CONSUL: &str = "consul";

/// A server talks to others of its kind this much above its own port, if that is free.
const BUS_ABOVE: u16 = 1_000;

/// Does it.
pub fn run_action(workspace: &Workspace, action: Action) -> Result<(), String> {
    let home = workspace.target.join("services");
    match action {
        Action::Up => up(&home),
        Action::Down => all(&home)?.iter().rev().try_for_each(stop),
        Action::Status => status(&home),
    }
}

fn up(home: &Path) -> Result<(), String> {
    let (program, consul) = (install::ensure(install::REDIS)?, consul::ensure(home)?);
    let servers = all(home)?;
    let mut nodes = Vec::new();
    for server in &servers {
        if server.name == CONSUL {
            if server.process().is_none() {
                consul::start(&consul, &server.place, server.port, server.bus)?;
            }
            consul::wait_ready(server.port, &server.place)?;
            continue;
        }
        let part = server.part(&servers);
        if server.process().is_none() {
            server.start(&program, part)?;
        }
        node::wait_ready(server.port, part).map_err(|why| format!("{}: {why}", server.name))?;
        if let Part::ClusterNode { bus } = part {
            nodes.push((server.port, bus));
        }
    }
    node::join(&nodes)?;
    status(home)
}

fn status(home: &Path) -> Result<(), String> {
    let mut down = Vec::new();
    for server in all(home)? {
        let address = format!("127.0.0.1:{}", server.port);
        match server.process() {
            Some(id) => println!("{:14} {address:16} process {id}", server.name),
            None => {
                println!("{:14} {:16} down", server.name, "-");
                down.push(server.name);
            }
        }
    }
    if down.is_empty() { Ok(()) } else { Err(format!("down: {}", down.join(", "))) }
}

fn stop(server: &Server) -> Result<(), String> {
    let Some(id) = server.process() else { return Ok(()) };
    // The shell's own `kill`: the program of that name is not everywhere.
    run(Command::new("sh").args(["-c", &format!("kill -TERM {id}")]))?;
    let started = Instant::now();
    while server.process().is_some() {
        if started.elapsed() > STOP_MAX {
            return Err(format!("{} (process {id}) does not end", server.name));
        }
        sleep(Duration::from_millis(50));
    }
    println!("{} is down", server.name);
    Ok(())
}

/// All servers, with their ports: those they had, else the preferred or free ones.
fn all(home: &Path) -> Result<Vec<Server>, String> {
    let mut servers = Vec::new();
    for (name, preferred) in SERVERS {
        let place = home.join(name);
        fs::create_dir_all(&place).map_err(|why| at(&place, why))?;
        let place = place.canonicalize().map_err(|why| at(&place, why))?;
        let kept = place.join("ports");
        let ports = match fs::read_to_string(&kept) {
            Ok(text) => ports(&text).ok_or_else(|| at(&kept, "is not two ports: remove it"))?,
            Err(_) => {
                let chosen = (free(preferred)?, free(preferred + BUS_ABOVE)?);
                let text = format!("{} {}\n", chosen.0, chosen.1);
                fs::write(&kept, text).map_err(|why| at(&kept, why))?;
                chosen
            }
        };
        servers.push(Server { name, place, port: ports.0, bus: ports.1 });
    }
    Ok(servers)
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let (port, bus) = text.trim().split_once(' ')?;
    Some((port.parse().ok()?, bus.parse().ok()?))
}

/// `preferred`, or any other that nobody listens on.
fn free(preferred: u16) -> Result<u16, String> {
    let listener = TcpListener::bind(("127.0.0.1", preferred))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .map_err(|why| format!("no free port: {why}"))?;
    listener.local_addr().map(|address| address.port()).map_err(|why| why.to_string())
}

impl Server {
    fn part(&self, all: &[Self]) -> Part {
        let primary = all.iter().find(|server| server.name == PRIMARY);
        match (self.name, primary) {
            (PRIMARY, _) => Part::Primary,
            (REPLICA, Some(primary)) => Part::ReplicaOf(primary.port),
            _ => Part::ClusterNode { bus: self.bus },
        }
    }

    /// Leaves it running when we end: it makes itself a daemon and notes its process id.
    fn start(&self, program: &Path, part: Part) -> Result<(), String> {
        let config = self.place.join("redis.conf");
        let text = node::config(self.port, &self.place, part) + "daemonize yes\n";
        fs::write(&config, text).map_err(|why| at(&config, why))?;
        let mut command = Command::new(program);
        command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        run(&mut command).map_err(|why| format!("{why}; see {}/log", self.place.display()))
    }

    /// What the command line of its process contains: its program and its port.
    fn marks(&self) -> [String; 2] {
        match self.name {
            CONSUL => [consul::PROGRAM.to_owned(), format!("-http-port={}", self.port)],
            _ => [node::PROGRAM.to_owned(), format!(":{}", self.port)],
        }
    }

    /// Its process, if that runs and is ours.
    fn process(&self) -> Option<u32> {
        let id = fs::read_to_string(self.place.join("pid")).ok()?.trim().parse::<u32>().ok()?;
        let args = arguments(id)?;
        let ours = self.marks().iter().all(|mark| args.contains(mark));
        ours.then_some(id)
    }
}

/// The command line of a process. Where there is no `/proc`, `ps` knows.
fn arguments(id: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).ok().or_else(|| {
        let mut ps = Command::new("ps");
        ps.args(["-o", "args=", "-p", &id.to_string()]);
        Some(ps.output().ok()?.stdout)
    });
    String::from_utf8(bytes?).ok()
}

fn at(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept_and_other_text_is_refused() {
        assert_eq!(ports("17379 18379\n"), Some((17_379, 18_379)));
        assert_eq!(ports("17379"), None);
        assert_eq!(ports("17379 70000"), None);
    }

    #[test]
    fn a_port_that_is_taken_is_not_given_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("it is bound").port();
        assert_ne!(free(port).expect("another is free"), port);
    }

    #[test]
    fn a_stale_process_id_is_nobody() {
        let place = std::env::temp_dir().join(format!("pointsman-pid-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a temporary directory can be made");
        fs::write(place.join("pid"), std::process::id().to_string()).expect("a file is written");
        let server = Server { name: PRIMARY, place: place.clone(), port: 1, bus: 2 };
        assert_eq!(server.process(), None, "that process is this test");
        fs::remove_dir_all(&place).expect("our own directory can be removed");
    }
}

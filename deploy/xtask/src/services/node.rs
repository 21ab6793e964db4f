//! Redis servers of our own: what they are told, when they are ready, how three of them become a cluster.
//!
//! The standard library alone, because two places include this file: the `services` command, whose servers stay, and the
//! tests, whose servers die with them. So both run the same configuration.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The program, and how to get it where it is missing.
pub const PROGRAM: &str = "redis-server";

/// Slots of a cluster.
const SLOTS: u32 = 16_384;

/// How long a server may take to answer at all, or a cluster to agree: seconds on a machine that is busy elsewhere.
const READY_MAX: Duration = Duration::from_secs(30);

/// The longest one command may take. Nothing here is slow.
const COMMAND_MAX: Duration = Duration::from_secs(5);

/// A server's part in something larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It stands alone, or others follow it.
    Primary,
    /// It follows the primary on that port.
    ReplicaOf(u16),
    /// It is one node of a cluster, talking to the others on that port.
    ClusterNode {
        /// The cluster's own port.
        bus: u16,
    },
}

/// The text of a configuration file: loopback only, everything kept in `dir`, appended to disk so that an orderly restart keeps
/// what was acknowledged (a kill may lose its last second), and never evicting, because a ledger that forgets is no ledger.
pub fn config(port: u16, dir: &Path, part: Part) -> String {
    let dir = dir.display();
    let mut text = format!(
        "bind 127.0.0.1\nport {port}\ndir \"{dir}\"\npidfile \"{dir}/pid\"\nlogfile \"{dir}/log\"\n\
         save \"\"\nappendonly yes\nappendfsync everysec\nmaxmemory 256mb\n\
         maxmemory-policy noeviction\n"
    );
    let told = match part {
        Part::Primary => Ok(()),
        Part::ReplicaOf(primary) => {
            writeln!(text, "replicaof 127.0.0.1 {primary}\nrepl-diskless-sync-delay 0")
        }
        Part::ClusterNode { bus } => writeln!(
            text,
            "cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout 2000\n\
             cluster-port {bus}"
        ),
    };
    told.expect("a string takes all that is written to it");
    text
}

/// Sends one command, in the inline form, and returns the answer: a status, a number or a text.
pub fn command(port: u16, line: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(COMMAND_MAX))?;
    stream.set_write_timeout(Some(COMMAND_MAX))?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut answer = BufReader::new(stream);
    let mut head = String::new();
    answer.read_line(&mut head)?;
    let head = head.trim_end();
    match head.split_at_checked(1) {
        Some(("+" | ":", text)) => Ok(text.to_owned()),
        Some(("$", length)) => {
            let length = length.parse().map_err(|_| io::Error::other(head.to_owned()))?;
            let mut text = vec![0; length];
            answer.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Some(_) | None => Err(io::Error::other(format!("`{line:.40}` was answered `{head}`"))),
    }
}

/// Waits until the server on `port` answers, and where it follows another, until it has what that has.
pub fn wait_ready(port: u16, part: Part) -> Result<(), String> {
    wait_for(port, "PING", |answer| answer == "PONG")?;
    match part {
        Part::ReplicaOf(_) => {
            wait_for(port, "INFO replication", |info| info.contains("master_link_status:up"))
        }
        Part::Primary | Part::ClusterNode { .. } => Ok(()),
    }
}

/// Makes one cluster of the servers on `nodes` (each with its cluster's port), unless they are one already.
pub fn join(nodes: &[(u16, u16)]) -> Result<(), String> {
    let say = |port, line: &str| command(port, line).map_err(|why| format!("port {port}: {why}"));
    let count = u32::try_from(nodes.len()).map_err(|why| why.to_string())?;
    for (index, (port, _)) in (0..).zip(nodes) {
        if say(*port, "CLUSTER INFO")?.contains("cluster_slots_assigned:0") {
            let slots = index * SLOTS / count..(index + 1) * SLOTS / count;
            let slots = slots.fold(String::new(), |line, slot| format!("{line} {slot}"));
            say(*port, &format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1))?;
            say(*port, &format!("CLUSTER ADDSLOTS{slots}"))?;
        }
    }
    let Some(((first, _), others)) = nodes.split_first() else { return Ok(()) };
    for (port, bus) in others {
        say(*first, &format!("CLUSTER MEET 127.0.0.1 {port} {bus}"))?;
    }
    nodes.iter().try_for_each(|(port, _)| {
        wait_for(*port, "CLUSTER INFO", |info| {
            info.contains("cluster_state:ok")
                && info.contains(&format!("cluster_known_nodes:{count}"))
        })
    })
}

fn wait_for(port: u16, line: &str, done: impl Fn(&str) -> bool) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let last = command(port, line);
        if last.as_deref().is_ok_and(&done) {
            return Ok(());
        }
        if started.elapsed() > READY_MAX {
            let last = last.unwrap_or_else(|why| why.to_string());
            return Err(format!("the server on port {port} is not ready; {line}: {last}"));
        }
        sleep(Duration::from_millis(20));
    }
}

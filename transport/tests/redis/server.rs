//! Redis servers of a test's own: on free ports, in a directory of their own, gone when dropped.
//!
//! A missing program fails the test: a test of a service that is skipped proves nothing and looks as if it did.

#[path = "../../../deploy/xtask/src/services/node.rs"]
mod node;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use node::Part;
use tempfile::TempDir;

/// A running server. It is killed when this is dropped.
pub struct Server {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    part: Part,
    dir: TempDir,
    child: Option<Child>,
    more: Vec<String>,
}

impl Server {
    /// Starts one that stands alone.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more lines of configuration.
    pub fn start_with(more: &[&str]) -> Self {
        Self::of(free_port(), Part::Primary, more)
    }

    /// Starts one that follows this one.
    pub fn replica(&self) -> Self {
        Self::of(free_port(), Part::ReplicaOf(self.port), &[])
    }

    /// Starts a cluster of `count` nodes without replicas.
    pub fn cluster(count: usize) -> Vec<Self> {
        let nodes: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let part = |bus| Part::ClusterNode { bus };
        let servers = nodes.iter().map(|(port, bus)| Self::of(*port, part(*bus), &[])).collect();
        node::join(&nodes).unwrap();
        servers
    }

    fn of(port: u16, part: Part, more: &[&str]) -> Self {
        let more = more.iter().map(|line| (*line).to_owned()).collect();
        let dir = TempDir::new().unwrap();
        let mut server = Self { port, part, dir, child: None, more };
        server.up();
        server
    }

    /// Starts it (again), with the data it had.
    pub fn up(&mut self) {
        let config = self.dir.path().join("redis.conf");
        let text = node::config(self.port, self.dir.path(), self.part) + &self.more.join("\n");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(node::PROGRAM);
        command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|why| {
            panic!(
                "this test needs {} ({why}): `cargo xtask test --only servers` installs it on Debian, \
                 elsewhere put it on the PATH",
                node::PROGRAM
            )
        });
        self.child = Some(child);
        node::wait_ready(self.port, self.part).unwrap();
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it in its tracks: it takes connections and bytes, and answers nothing until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id();
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
        assert!(sent.unwrap().success());
    }

    /// Asks it something that has one line or one text for an answer.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap()
    }

    /// The same where it may refuse.
    pub fn try_ask(&self, command: &str) -> std::io::Result<String> {
        node::command(self.port, command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port nobody listens on just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

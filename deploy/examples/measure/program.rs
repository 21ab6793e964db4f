//! The processes that are measured: started beside this one, ended when they are dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use transport::quic::{Identity, Trust};
use transport::upstream::Target;

use crate::Result;

/// A worker's port for QUIC, and the certificate it will show.
pub struct Quic {
    pub port: u16,
    dir: PathBuf,
    own: Identity,
}

impl Quic {
    pub fn new() -> Result<Self> {
        let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = std::env::temp_dir().join(format!("pointsman-measure-quic-{port}"));
        std::fs::create_dir_all(&dir)?;
        let own = Identity::read_or_made(&dir.join("cert.pem"), &dir.join("key.pem"))?;
        Ok(Self { port, dir, own })
    }

    pub fn flags(&self) -> String {
        let Self { port, dir, .. } = self;
        let dir = dir.display();
        format!(
            "--quic-listen 127.0.0.1:{port} --quic-cert {dir}/cert.pem --quic-key {dir}/key.pem"
        )
    }

    /// A gateway's only upstream.
    pub fn configuration(&self) -> String {
        format!("version: 1\nupstreams: [{}]\n", self.upstream())
    }

    /// One of a gateway's upstreams.
    pub fn upstream(&self) -> String {
        let (port, pin) = (self.port, self.own.pin());
        format!("{{url: 'quic://127.0.0.1:{port}', tls: {{pin: '{pin}'}}}}")
    }

    pub fn target(&self) -> Result<Target> {
        let mut target = Target::new(format!("quic://127.0.0.1:{}", self.port).parse()?);
        target.trust = Some(Arc::new(Trust::pinned(self.own.pin())));
        Ok(target)
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A `pointsman` that ends when it is dropped.
pub struct Program {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// Its data directory.
    data: Option<PathBuf>,
}

impl Program {
    pub async fn replica(flags: &str) -> Result<Self> {
        let port = free_port()?;
        let line = format!("demo-replica --listen 127.0.0.1:{port} {flags}");
        Self::start(&line, port, None).await
    }

    pub async fn worker(flags: &str) -> Result<Self> {
        let port = free_port()?;
        let line = format!("worker --model demo --listen 127.0.0.1:{port} {flags}");
        Self::start(&line, port, None).await
    }

    /// A Redis that keeps nothing on disk.
    pub async fn redis() -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]).arg(port.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Self { child, port, data: None }.listening("redis-server").await
    }

    /// Over one replica, or over its own.
    pub async fn gateway(upstream: Option<u16>) -> Result<Self> {
        let url = upstream.map(|port| format!("http://127.0.0.1:{port}"));
        Self::gateway_over(&url.unwrap_or_default()).await
    }

    /// Over what is at this URL; over its own replicas where it is empty.
    pub async fn gateway_over(url: &str) -> Result<Self> {
        let port = free_port()?;
        let data = std::env::temp_dir().join(format!("pointsman-measure-{port}"));
        let upstream = if url.is_empty() { String::new() } else { format!("--upstream {url}") };
        let line = format!("serve --listen 127.0.0.1:{port} --data {} {upstream}", data.display());
        Self::start(&line, port, Some(data)).await
    }

    /// With this configuration.
    pub async fn gateway_of(text: &str) -> Result<Self> {
        let port = free_port()?;
        let data = std::env::temp_dir().join(format!("pointsman-measure-{port}"));
        std::fs::create_dir_all(&data)?;
        let config = data.join("pointsman.yaml");
        std::fs::write(&config, text)?;
        let (at, config) = (data.join("data"), config.display().to_string());
        let line =
            format!("serve --listen 127.0.0.1:{port} --data {} --config {config}", at.display());
        Self::start(&line, port, Some(data)).await
    }

    async fn start(line: &str, port: u16, data: Option<PathBuf>) -> Result<Self> {
        let here = std::env::current_exe()?;
        let folder = here.ancestors().nth(2).unwrap_or(Path::new("."));
        let mut command = Command::new(folder.join("pointsman"));
        command.args(line.split_whitespace()).env("LOG_LEVEL", "warn").stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Self { child, port, data }.listening(line).await
    }

    async fn listening(self, line: &str) -> Result<Self> {
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                // Discovery, so that the first request finds its model.
                tokio::time::sleep(Duration::from_millis(500)).await;
                return Ok(self);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("`{line}` does not listen").into())
    }

    /// A figure of the process, in KiB or as it is.
    pub fn status(&self, name: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with(name)).ok_or("no such figure")?;
        let figure = line.split_whitespace().nth(1).ok_or("no such figure")?;
        Ok(figure.parse()?)
    }

    /// Resident memory now, in KiB.
    pub fn resident(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// Ends it without a word, as a crash does.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// CPU time so far, of all threads, in user and system mode.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // The first figure is the nanoseconds on a CPU.
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().ok_or("no such figure")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(data) = &self.data {
            let _ = std::fs::remove_dir_all(data);
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

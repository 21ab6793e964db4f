//! What the tests of the whole binary share: processes that are killed and started again, and a place for their files.
//!
//! Everything here runs the program as people do: a command line, a configuration file, a data directory, signals.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

pub mod client;
pub mod journal;
pub mod load;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The program under test.
const BINARY: &str = env!("CARGO_BIN_EXE_pointsman");
/// A debug build on a busy machine of two cores, with a journal to recover.
const START_MAX: Duration = Duration::from_secs(60);
/// Longer than any grace time the tests configure.
const STOP_MAX: Duration = Duration::from_secs(40);
/// Variables that would change what the program does, if whoever runs the tests has them set.
const OURS: [&str; 17] = [
    "OPENAI",
    "ALIYUN",
    "GATEWAY",
    "CHAT_SERVICE",
    "TOKEN_SERVICE",
    "AUTH",
    "DB",
    "REDIS",
    "MYSQL",
    "LOG",
    "HTTP_PROXY",
    "LLM",
    "MODEL_NAME",
    "WORKER",
    "CONSUL",
    "ADVERTISE",
    "INSTANCE_ID",
];

/// A folder for one test, with a gateway's data and configuration in it; gone with the test.
pub struct World {
    home: TempDir,
}

impl World {
    pub fn new() -> Self {
        // Short: a socket's path must stay below 108 bytes.
        Self { home: tempfile::Builder::new().prefix("pm-").tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn config(&self) -> PathBuf {
        self.path("config.yaml")
    }

    /// Replaces the configuration in one step, as an editor does.
    pub fn write_config(&self, text: &str) {
        self.write("config.yaml", text);
    }

    /// The same of another file.
    pub fn write(&self, name: &str, text: &str) {
        let draft = self.path("config.draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.path(name)).unwrap();
    }

    /// A demo replica of its own process, running.
    pub fn replica(&self, name: &str, flags: &str) -> Server {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let mut arguments = words("demo-replica --model demo --listen");
        arguments.push(listen.into());
        arguments.extend(words(flags));
        let mut replica = Server { process: self.process(name, arguments), port };
        replica.start();
        replica
    }

    /// A worker of its own process, for the model `demo`, running.
    pub fn worker(&self, name: &str, flags: &str) -> Worker {
        let port = free_port();
        let mut arguments = words("worker --model demo --listen");
        arguments.push(format!("127.0.0.1:{port}").into());
        arguments.extend(words(flags));
        let mut worker = Worker { process: self.process(name, arguments), port };
        worker.start();
        worker
    }

    /// A gateway under this world's configuration, not started.
    pub fn gateway(&self, port: u16) -> Server {
        let arguments = ["serve".into(), "--config".into(), self.config().into_os_string()];
        Server { process: self.process("gateway", arguments.to_vec()), port }
    }

    /// A role of several, under this world's configuration, not started. Its first flag is where it listens.
    pub fn role(&self, name: &str, port: u16, flags: &str) -> Process {
        self.role_under(&self.config(), name, port, flags)
    }

    /// The same under another configuration.
    pub fn role_under(&self, config: &Path, name: &str, port: u16, flags: &str) -> Process {
        let mut arguments = words(&format!("serve --listen 127.0.0.1:{port} {flags} --data"));
        arguments.push(self.path(&format!("{name}-data")).into());
        arguments.extend(["--config".into(), config.into()]);
        self.process(name, arguments)
    }

    pub fn process(&self, name: &str, arguments: Vec<OsString>) -> Process {
        let log = self.path(&format!("{name}.log"));
        Process { name: name.to_owned(), arguments, log, child: None }
    }
}

/// A program and its log; killed when it is dropped.
pub struct Process {
    pub name: String,
    arguments: Vec<OsString>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub fn spawn(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let errors = log.try_clone().unwrap();
        let mut command = pointsman(&self.arguments);
        self.child = Some(command.stdout(log).stderr(errors).spawn().unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// SIGKILL: no goodbye.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let began = Instant::now();
        let child = self.child.as_mut().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < STOP_MAX, "{} does not heed SIGTERM", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it printed so far, over all its lives.
    pub fn said(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<_> = said.lines().filter(|line| !line.contains("finished")).collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            eprintln!("---- the last words of {}:\n{tail}", self.name);
        }
    }
}

/// A process that answers HTTP.
pub struct Server {
    pub process: Process,
    pub port: u16,
}

impl Server {
    /// Starts it (again) and waits until it answers.
    pub fn start(&mut self) {
        self.process.spawn();
        let path = if self.process.name == "gateway" { "/ready" } else { "/health" };
        let began = Instant::now();
        while get(self.port, path).is_none_or(|(status, _)| status != 200) {
            let name = self.process.name.clone();
            assert!(self.process.is_alive(), "{name} ended at its start");
            assert!(began.elapsed() < START_MAX, "{name} does not become ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn endpoint(&self) -> String {
        format!("{{url: 'http://127.0.0.1:{}', name: {}}}", self.port, self.process.name)
    }
}

/// A process that answers gRPC.
pub struct Worker {
    pub process: Process,
    pub port: u16,
}

impl Worker {
    /// Starts it (again) and waits until it listens.
    pub fn start(&mut self) {
        self.process.spawn();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let name = self.process.name.clone();
            assert!(self.process.is_alive(), "{name} ended at its start");
            assert!(began.elapsed() < START_MAX, "{name} does not become ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn endpoint(&self) -> String {
        format!("{{url: 'grpc://127.0.0.1:{}', name: {}}}", self.port, self.process.name)
    }
}

/// A port that nobody listens on right now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status and body of a GET; nothing where nobody answers.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Waits for something to be true.
pub fn until(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(seconds), "not in {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `pointsman`, with nothing of the environment that would change what it does.
pub fn pointsman(arguments: &[OsString]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if OURS.iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `pointsman ...` to its end, with a path as the last argument.
pub fn run(line: &str, path: &Path) -> Output {
    let mut arguments = words(line);
    arguments.push(path.into());
    pointsman(&arguments).output().unwrap()
}

/// What a command printed on both channels.
pub fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A fresh API key, and the hash that stands for it in a configuration.
pub fn new_key() -> (String, String) {
    let said = printed(&pointsman(&words("key new")).output().unwrap());
    let word = |label: &str| {
        let line = said.lines().find(|line| line.starts_with(label)).unwrap();
        line[label.len()..].trim().to_owned()
    };
    (word("key:"), word("hash:"))
}

/// A copy of a directory, for tests that damage it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Writes bytes into a file at an offset.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

pub fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

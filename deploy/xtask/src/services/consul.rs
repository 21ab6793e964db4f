//! A Consul agent of our own: one server, on loopback.
//!
//! Debian's newer suites do not carry it, so the one package is fetched from an older one with a source list of its own:
//! the system's lists and packages stay as they are. What is fetched stays below the target directory.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::image::{self, Image};
use super::install::{self, INSTALL_MAX, Program};
use crate::kept;
use crate::process::{output, run_within};

/// The program and its package.
pub const PROGRAM: &str = "consul";

/// The last suite of Debian that carries it.
const SUITE: &str = "bullseye";

/// An agent alone elects itself within some seconds.
const READY_MAX: Duration = Duration::from_secs(60);

/// Where the program is: on the PATH, or fetched into `home` before, or fetched now.
pub fn ensure(home: &Path) -> Result<PathBuf, String> {
    let unpacked = home.join("packages/consul-root");
    let fetched = unpacked.join("usr/bin/consul");
    if let Some(found) =
        install::find(PROGRAM).or_else(|| fetched.exists().then(|| fetched.clone()))
    {
        return Ok(found);
    }
    fetch(&home.join("packages"), &unpacked).map_err(|why| {
        format!("{PROGRAM} is missing and could not be fetched ({why}): install it, or put it on the PATH")
    })?;
    Ok(fetched)
}

/// As [`ensure`], else from its image.
pub fn ensure_server(home: &Path) -> Result<Program, String> {
    let why = match ensure(home) {
        Ok(path) => return Ok(Program::Here(path)),
        Err(why) => why,
    };
    let image = Image::ensure(PROGRAM, image::CONSUL).map_err(|engine| {
        format!("{why}; or start a container engine that `docker` reaches ({engine})")
    })?;
    Ok(Program::Image(image))
}

/// Needs apt and the network, not root: lists and packages go into `place`.
fn fetch(place: &Path, unpacked: &Path) -> Result<(), String> {
    let at = |path: &Path, why: std::io::Error| format!("{}: {why}", path.display());
    let lists = place.join("lists/partial");
    fs::create_dir_all(&lists).map_err(|why| at(&lists, why))?;
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let known = output(&mut targets)?;
    let mirror = known.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    let mirror = mirror.ok_or("apt knows no mirror of Debian")?;
    let sources = place.join("sources.list");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb [signed-by={keys}] {mirror} {SUITE} main\n");
    fs::write(&sources, line).map_err(|why| at(&sources, why))?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(place).args(["-o", "Dir::Etc::sourceparts=-"]);
        command.args(["-o", "APT::Sandbox::User=root"]);
        for (name, path) in [
            ("Dir::Etc::sourcelist", sources.clone()),
            ("Dir::State::lists", place.join("lists")),
            ("Dir::Cache::pkgcache", place.join("pkgcache.bin")),
            ("Dir::Cache::srcpkgcache", place.join("srcpkgcache.bin")),
        ] {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        run_within(command.args(words), INSTALL_MAX)
    };
    apt(&["update"])?;
    apt(&["download", PROGRAM])?;
    let packages = fs::read_dir(place).map_err(|why| at(place, why))?;
    let mut packages = packages.filter_map(|entry| Some(entry.ok()?.path()));
    let package = packages.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("consul_") && name.ends_with(".deb")
    });
    let package = package.ok_or("apt fetched no package")?;
    run_within(Command::new("dpkg-deb").arg("-x").arg(package).arg(unpacked), INSTALL_MAX)
}

/// Starts it in a process group of its own, so that it outlives us: it has no daemon mode.
pub fn start(program: &Program, place: &Path, http: u16, gossip: u16) -> Result<(), String> {
    let log = place.join("log");
    let file = fs::File::create(&log).map_err(|why| format!("{}: {why}", log.display()))?;
    let mut command = program.command(place);
    command.args(["agent", "-server", "-bootstrap-expect=1", "-node=pointsman"]);
    command.args(["-bind=127.0.0.1", "-client=127.0.0.1", "-dns-port=-1", "-grpc-port=-1"]);
    command.args(["-serf-wan-port=-1".to_owned(), format!("-http-port={http}")]);
    command.args([format!("-serf-lan-port={gossip}"), format!("-server-port={}", gossip + 1)]);
    // Alone, it elects itself in one second instead of five.
    command.args(["-hcl", "performance { raft_multiplier = 1 }"]);
    command.arg(format!("-data-dir={}", place.join("data").display()));
    command.arg(format!("-pid-file={}", place.join("pid").display()));
    command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).process_group(0);
    command.spawn().map(drop).map_err(|why| format!("{PROGRAM}: {why}"))
}

/// Waits until it has a leader: before that it answers nothing useful.
pub fn wait_ready(http: u16, place: &Path) -> Result<(), String> {
    let started = Instant::now();
    while !leader(http).is_some_and(|answer| answer.contains("\"127.0.0.1:")) {
        if started.elapsed() > READY_MAX {
            return Err(format!("no leader; see {}", place.join("log").display()));
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn leader(http: u16) -> Option<String> {
    Some(kept::ask(http, "GET", "/v1/status/leader", "")?.1)
}

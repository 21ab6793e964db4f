//! Where the servers' programs come from: what is there, else the distribution's packages, else, for servers, images that a
//! container engine runs, else an error that says what to do. Nothing is installed unless we are root on a Debian system, as
//! CI containers are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::image::Image;
use crate::process::{output, run_within};

/// One installation, from a cold cache over a slow line.
pub const INSTALL_MAX: Duration = Duration::from_secs(10 * 60);

/// Debian's packages ask this program whether a service may start. 101 is "no".
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// A server that can be started.
#[derive(Clone, Debug)]
pub enum Program {
    /// A program of this machine.
    Here(PathBuf),
    /// One in an image.
    Image(Image),
}

impl Program {
    /// The beginning of its command line. What it keeps, it keeps in `place`.
    pub fn command(&self, place: &Path) -> Command {
        match self {
            Self::Here(path) => Command::new(path),
            Self::Image(image) => image.command(place),
        }
    }
}

/// A server: installed as other programs are, else from its image.
pub fn ensure_server(wanted: Wanted, image: &'static str) -> Result<Program, String> {
    let why = match ensure(wanted) {
        Ok(path) => return Ok(Program::Here(path)),
        Err(why) => why,
    };
    let image = Image::ensure(wanted.program, image).map_err(|engine| {
        format!("{why}; or start a container engine that `docker` reaches ({engine})")
    })?;
    Ok(Program::Image(image))
}

/// A program and the package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// As it is called.
    pub program: &'static str,
    /// Debian's name for what it comes in.
    pub package: &'static str,
}

/// Redis, server and all.
pub const REDIS: Wanted = Wanted { program: super::node::PROGRAM, package: "redis-server" };

/// What balances in front of gateways.
pub const NGINX: Wanted = Wanted { program: "nginx", package: "nginx" };

/// What builds networks for tests.
pub const IP: Wanted = Wanted { program: "ip", package: "iproute2" };

/// And what cuts them.
pub const NFT: Wanted = Wanted { program: "nft", package: "nftables" };

/// Prometheus' checker of metrics pages. Debian has it in the server's package.
pub const PROMTOOL: Wanted = Wanted { program: "promtool", package: "prometheus" };

/// Where the program is. Installs it if it must and may.
pub fn ensure(wanted: Wanted) -> Result<PathBuf, String> {
    if let Some(found) = find(wanted.program) {
        return Ok(found);
    }
    let refusal = |why: &str| {
        format!(
            "{} is missing and {why}: install it (on Debian: apt-get install {}), or put it on the PATH",
            wanted.program, wanted.package
        )
    };
    if find("apt-get").is_none() {
        return Err(refusal("there is no apt-get here"));
    }
    if !is_root()? {
        return Err(refusal("only root may install it"));
    }
    install(wanted.package).map_err(|why| refusal(&format!("its installation failed ({why})")))?;
    find(wanted.program).ok_or_else(|| refusal("its package does not have it"))
}

/// Looks through the PATH, and through where Debian keeps servers.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut candidates = places.map(|place| place.join(program));
    candidates.find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    let known = fs::metadata(path);
    known.is_ok_and(|known| known.is_file() && known.permissions().mode() & 0o111 != 0)
}

fn is_root() -> Result<bool, String> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn install(package: &str) -> Result<(), String> {
    let _quiet = Quiet::new()?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run_within(&mut command, INSTALL_MAX)
    };
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", package])
}

/// While it lives, no package may start a service. A policy that is there already is somebody's choice and stays.
struct Quiet {
    ours: bool,
}

impl Quiet {
    fn new() -> Result<Self, String> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self { ours: false });
        }
        let told = |why: std::io::Error| format!("{POLICY}: {why}");
        fs::write(path, "#!/bin/sh\nexit 101\n").map_err(told)?;
        let quiet = Self { ours: true };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(told)?;
        Ok(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours
            && let Err(why) = fs::remove_file(POLICY)
        {
            eprintln!("xtask: {POLICY} is ours and stays behind: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_the_path_leads() {
        assert!(find("sh").is_some_and(|found| found.ends_with("sh")));
        assert!(find("a-program-nobody-has").is_none());
    }
}

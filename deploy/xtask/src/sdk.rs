//! The official SDKs, and what lints and runs the containers' files: installed at pinned versions below the target directory
//! and run against the built binary.
//!
//! Nothing is installed into the system unless Python's `venv` or Node is missing and we are root (as CI containers
//! are): then apt is asked. What is installed is stamped with the file that pins it, so a second run starts at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Workspace, exists, run, run_within};

/// All SDK tests of one language: measured in minutes, so twenty minutes mean that something hangs.
const TESTS_MAX: Duration = Duration::from_secs(20 * 60);

/// One installation, from a cold cache over a slow line.
const INSTALL_MAX: Duration = Duration::from_secs(5 * 60);

/// Runs the tests of the Python SDK.
pub fn python(workspace: &Workspace) -> Result<(), String> {
    pytest(workspace, "e2e")
}

/// Lints and runs what the containers are made of.
pub fn containers(workspace: &Workspace) -> Result<(), String> {
    pytest(workspace, "containers")
}

/// Runs the tests in `deploy/<name>`, with what its `requirements.txt` pins.
fn pytest(workspace: &Workspace, name: &str) -> Result<(), String> {
    let binary = binary(workspace)?;
    let venv = workspace.target.join(name).join("venv");
    let sources = workspace.root.join("deploy").join(name);
    let pinned = sources.join("requirements.txt");
    once(&venv, &pinned, || {
        create_venv(workspace, &venv)?;
        let mut pip = workspace.command(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&pinned);
        run_within(&mut pip, INSTALL_MAX)
    })?;
    let mut tests = workspace.command(venv.join("bin/python"));
    tests.args(["-m", "pytest"]).arg(&sources);
    run_within(with_harness(&mut tests, &binary, &workspace.target.join("e2e")), TESTS_MAX)
}

/// Runs the tests of the Node SDK, in a world the same Python harness sets up.
pub fn node(workspace: &Workspace) -> Result<(), String> {
    let binary = binary(workspace)?;
    let place = workspace.target.join("e2e");
    let modules = place.join("node");
    let sources = workspace.root.join("deploy/e2e/node");
    need_program("python3", &["python3"])?;
    need_program("node", &["nodejs", "npm"])?;
    need_program("npm", &["npm"])?;
    once(&modules, &sources.join("package-lock.json"), || {
        fs::create_dir_all(&modules).map_err(|why| at(&modules, why))?;
        for name in ["package.json", "package-lock.json"] {
            let from = sources.join(name);
            fs::copy(&from, modules.join(name)).map_err(|why| at(&from, why))?;
        }
        let mut npm = workspace.command("npm");
        npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&modules);
        run_within(&mut npm, INSTALL_MAX)
    })?;
    let mut tests = workspace.command("python3");
    tests.args(["deploy/e2e/node_world.py", "node", "--test"]).args(scripts(&sources)?);
    tests.env("NODE_PATH", modules.join("node_modules"));
    run_within(with_harness(&mut tests, &binary, &place), TESTS_MAX)
}

fn with_harness<'a>(command: &'a mut Command, binary: &Path, place: &Path) -> &'a mut Command {
    command
        .env("POINTSMAN_BIN", binary)
        .env("POINTSMAN_E2E_DIR", place)
        .env("POINTSMAN_XTASK", std::env::current_exe().unwrap_or_default())
        // The sources stay as they are: no bytecode beside them.
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// Builds the binary the clients will meet, and says where it is.
///
/// A debug build: it shares nearly all of its work with the tests, where an optimized one would compile every
/// dependency once more, and it checks the plane's invariants after every step while the clients are at it.
pub fn binary(workspace: &Workspace) -> Result<PathBuf, String> {
    run(&mut workspace.cargo(&["build", "-p", "pointsman"]))?;
    Ok(workspace.target.join("debug/pointsman"))
}

/// Installs unless the stamp in `place` says that exactly `pinned` was installed there.
fn once(
    place: &Path,
    pinned: &Path,
    install: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let wanted = fs::read(pinned).map_err(|why| at(pinned, why))?;
    let stamp = place.join("installed-from");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    install()?;
    fs::write(&stamp, wanted).map_err(|why| at(&stamp, why))
}

/// Debian's `python3` comes without what `venv` needs: try, then install that, then try again.
fn create_venv(workspace: &Workspace, venv: &Path) -> Result<(), String> {
    need_program("python3", &["python3", "python3-venv"])?;
    let create = || {
        let mut command = workspace.command("python3");
        command.args(["-m", "venv", "--clear"]).arg(venv);
        run_within(&mut command, INSTALL_MAX)
    };
    create().or_else(|_| apt(&["python3-venv"]).and_then(|()| create()))
}

fn need_program(program: &str, packages: &[&str]) -> Result<(), String> {
    if exists(program) { Ok(()) } else { apt(packages) }
}

fn apt(packages: &[&str]) -> Result<(), String> {
    let wanted = packages.join(" ");
    let refusal = |why: String| format!("please install {wanted} ({why})");
    let mut command = Command::new("apt-get");
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    run(Command::new("apt-get").arg("update")).map_err(refusal)?;
    run(&mut command).map_err(refusal)
}

/// The test files, by name: Node's own discovery differs between its versions.
fn scripts(place: &Path) -> Result<Vec<PathBuf>, String> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(place).map_err(|why| at(place, why))? {
        let path = entry.map_err(|why| at(place, why))?.path();
        if path.to_string_lossy().ends_with(".test.js") {
            scripts.push(path);
        }
    }
    scripts.sort();
    if scripts.is_empty() { Err(format!("{}: no tests", place.display())) } else { Ok(scripts) }
}

fn at(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_is_made_once_for_each_pinned_set() {
        let place = std::env::temp_dir().join(format!("pointsman-xtask-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a temporary directory can be made");
        let pinned = place.join("pinned");
        let mut installs = 0;
        for wanted in ["one", "one", "two", "two"] {
            fs::write(&pinned, wanted).expect("a temporary file can be written");
            once(&place, &pinned, || {
                installs += 1;
                Ok(())
            })
            .expect("nothing fails here");
        }
        assert!(once(&place, &place.join("absent"), || Ok(())).is_err());
        fs::remove_dir_all(&place).expect("our own directory can be removed");
        assert_eq!(installs, 2);
    }
}

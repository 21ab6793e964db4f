//! Running other programs: cargo as we were run by it, and anything else with a deadline.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The directories everything happens in.
pub struct Workspace {
    /// The repository's root.
    pub root: PathBuf,
    /// Cargo's target directory, whatever it is set to.
    pub target: PathBuf,
    /// Where what we leave running keeps its things, if not there.
    pub place: Option<PathBuf>,
}

impl Workspace {
    /// The directory of the servers that roles share.
    pub fn services(&self) -> PathBuf {
        self.place.as_ref().unwrap_or(&self.target).join("services")
    }

    /// The directory of our own processes.
    pub fn dev(&self) -> PathBuf {
        self.place.as_ref().unwrap_or(&self.target).join("dev")
    }

    /// The directory of what those print.
    pub fn logs(&self) -> PathBuf {
        self.place.as_ref().unwrap_or(&self.root).join("logs")
    }

    /// A program to be run at the root.
    ///
    /// What `cargo run` told *us* about our own package is taken out of the environment: build scripts that watch such
    /// variables (`ring` does) would otherwise be rebuilt each time this command and a plain `cargo build` alternate.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            if describes_a_package(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        command
    }

    /// The cargo we were started by.
    pub fn cargo(&self, args: &[&str]) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.command(cargo);
        command.args(args);
        command
    }
}

fn describes_a_package(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Runs to the end, its output going where ours goes.
pub fn run(command: &mut Command) -> Result<(), String> {
    println!("$ {}", shown(command));
    let status = command.status().map_err(|why| format!("{}: {why}", shown(command)))?;
    judge(command, status)
}

/// As [`run`], but killed and failed when it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<(), String> {
    println!("$ {}", shown(command));
    let mut child = command.spawn().map_err(|why| format!("{}: {why}", shown(command)))?;
    let status = wait(&mut child, limit).map_err(|why| format!("{}: {why}", shown(command)))?;
    judge(command, status)
}

/// Runs to the end and returns what it printed; its complaints go where ours go.
pub fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|why| format!("{}: {why}", shown(command)))?;
    judge(command, output.status)?;
    String::from_utf8(output.stdout).map_err(|why| format!("{}: {why}", shown(command)))
}

/// Whether the program is there and answers `--version`.
pub fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Polls, because the standard library has no wait with a deadline: ten times a second costs nothing here.
fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus, String> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait().map_err(|why| why.to_string())? {
            return Ok(status);
        }
        sleep(Duration::from_millis(100));
    }
    child.kill().map_err(|why| why.to_string())?;
    child.wait().map_err(|why| why.to_string())?;
    Err(format!("killed: not done within {} s", limit.as_secs()))
}

fn judge(command: &Command, status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", shown(command))) }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_an_error_that_names_it() {
        let refused = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("it exits with 3");
        assert!(refused.contains("sh -c exit 3"), "{refused}");
    }

    #[test]
    fn a_program_past_its_deadline_is_killed() {
        let started = Instant::now();
        let late = run_within(Command::new("sleep").arg("60"), Duration::from_millis(200));
        assert!(late.is_err_and(|why| why.contains("killed")));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_missing_program_does_not_exist() {
        assert!(!exists("a-program-nobody-has"));
        assert!(exists("sh") || exists("git"));
    }
}

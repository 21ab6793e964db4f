//! The same seed twice, in two processes: do they see and do the same, byte by byte?
//!
//! A simulator that is not deterministic cannot reproduce what it finds. Two runs in one process would share what hides
//! chance (an address, a seeded hasher, a warm cache), so each run of a pair is a process of its own, started from this
//! very program. Compared is everything a run prints, the hash of its trace among it; where whole traces are asked for,
//! the trace files too, byte by byte.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::diff;

/// Runs seeds in pairs.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The program that is started, with what stands before the seed on its command line.
    pub program: PathBuf,
    /// What stands on its command line before `--seed`.
    pub arguments: Vec<String>,
    /// Where traces are kept while they are compared.
    pub folder: PathBuf,
}

impl Pairs {
    /// Runs one seed twice. `None`: both saw and did the same. Otherwise, where they part.
    ///
    /// # Errors
    /// If the program cannot be started or its trace not be read, in words.
    pub fn compare(&self, seed: u64, whole_traces: bool) -> Result<Option<String>, String> {
        let traces = ["one", "other"].map(|of| self.folder.join(format!("{seed}-{of}.trace")));
        let compared = self.both(seed, whole_traces.then_some(&traces));
        if whole_traces {
            for trace in &traces {
                // A trace that was never made need not go.
                let _ = fs::remove_file(trace);
            }
        }
        compared
    }

    fn both(&self, seed: u64, traces: Option<&[PathBuf; 2]>) -> Result<Option<String>, String> {
        let one = self.once(seed, traces.map(|traces| &*traces[0]))?;
        let other = self.once(seed, traces.map(|traces| &*traces[1]))?;
        if let Some([left, right]) = traces {
            let parting = parting(left, right).map_err(|why| format!("a trace: {why}"))?;
            if let Some(parting) = parting {
                return Ok(Some(parting));
            }
        }
        let parting = diff::parting(one.as_bytes(), other.as_bytes());
        let parting = parting.map_err(|why| format!("what a run printed: {why}"))?;
        Ok(parting.map(|parting| parting.to_string()))
    }

    /// What a run prints, and how it exits.
    fn once(&self, seed: u64, trace: Option<&Path>) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["--seed", &seed.to_string()]);
        if let Some(trace) = trace {
            command.arg("--trace").arg(trace);
        }
        let done = command.output();
        let done = done.map_err(|why| format!("{}: {why}", self.program.display()))?;
        let said = String::from_utf8_lossy(&done.stdout);
        match done.status.code() {
            // Whether the seed holds is not asked here, only whether it does so twice.
            Some(code @ 0..=1) if !said.is_empty() => Ok(format!("{said}exit {code}\n")),
            _ => {
                let complaint = String::from_utf8_lossy(&done.stderr);
                Err(format!("seed {seed} did not run ({}): {}", done.status, complaint.trim()))
            }
        }
    }
}

/// Where two trace files part. They are compared as bytes first: a long trace costs no more than its reading.
fn parting(left: &Path, right: &Path) -> io::Result<Option<String>> {
    if fs::read(left)? == fs::read(right)? {
        return Ok(None);
    }
    let (left, right) = (File::open(left)?, File::open(right)?);
    let parting = diff::parting(BufReader::new(left), BufReader::new(right))?;
    Ok(Some(parting.map_or_else(|| "they end differently".to_owned(), |at| at.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that prints, through the shell: `$0` is its script's last argument before `--seed`.
    fn pairs(script: &str) -> Pairs {
        let arguments = ["-c", script, "run"].map(str::to_owned).to_vec();
        Pairs { program: "/bin/sh".into(), arguments, folder: std::env::temp_dir() }
    }

    #[test]
    fn a_program_that_says_the_same_twice_is_the_same() {
        assert_eq!(pairs("echo seed $2").compare(7, false), Ok(None));
    }

    #[test]
    fn a_program_that_prints_its_process_id_parts() {
        let parted = pairs("echo it is $$").compare(7, false).expect("it runs");
        assert!(parted.expect("ids differ").contains("part at line 1"));
    }

    #[test]
    fn traces_are_compared_byte_by_byte() {
        let parted = pairs("echo same; echo $$ > $4").compare(7, true).expect("it runs");
        assert!(parted.is_some());
        assert_eq!(pairs("echo same; echo same > $4").compare(8, true), Ok(None));
    }

    #[test]
    fn a_program_that_dies_is_an_error_and_not_a_difference() {
        let why = pairs("echo no such thing >&2; exit 2").compare(7, false).expect_err("it died");
        assert!(why.contains("no such thing"), "{why}");
    }
}

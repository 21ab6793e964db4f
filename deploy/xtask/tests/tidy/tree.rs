//! The repository as the rules see it: every file that is tracked, or would be if it were added.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use crate::facts::Facts;

/// Files by their path from the root, with `/` between the parts.
pub struct Tree {
    /// The text of each; of those that are not UTF-8, only that they exist.
    pub files: BTreeMap<String, Option<String>>,
    /// What the Rust sources among them contain.
    pub rust: BTreeMap<String, Facts>,
}

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The file, from the root.
    pub path: String,
    /// The line, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl Tree {
    /// The real one. Read once: all rules share it.
    pub fn repository() -> &'static Self {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(|| {
            // Asked for at run time: clones that share a target directory share this executable.
            let package = std::env::var_os("CARGO_MANIFEST_DIR");
            let root = Path::new(&package.expect("cargo test says where we are")).join("../..");
            Self::of(listed(&root).into_iter().filter_map(|path| {
                let bytes = std::fs::read(root.join(&path)).ok()?;
                Some((path, String::from_utf8(bytes).ok()))
            }))
        })
    }

    /// A made-up one, for planted violations.
    pub fn planted<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self::of(files.map(|(path, text)| (path.to_owned(), Some(text.to_owned()))))
    }

    fn of(files: impl IntoIterator<Item = (String, Option<String>)>) -> Self {
        let files: BTreeMap<_, _> = files.into_iter().collect();
        let rust = facts(&files);
        Self { files, rust }
    }

    /// Every file that is text, with that text.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// Whether a file, or a folder with something in it, stands at `path`.
    pub fn holds(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&folder))
    }
}

impl Violation {
    /// A violation in one line.
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Fails with the list, unless the list is empty.
#[track_caller]
pub fn none(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} broken:\n{}", lines.len(), lines.join("\n"));
}

/// Fails unless exactly the lines given (as `path:line`) are broken.
#[track_caller]
pub fn only<const N: usize>(violations: &[Violation], places: [&str; N]) {
    let found: Vec<String> =
        violations.iter().map(|broken| format!("{}:{}", broken.path, broken.line)).collect();
    assert_eq!(found, places, "{violations:#?}");
}

/// Reads the Rust files on all cores: an unoptimized lexer is what takes the time here, and tests must be quick.
fn facts(files: &BTreeMap<String, Option<String>>) -> BTreeMap<String, Facts> {
    let sources: Vec<(&String, &str)> = files
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .filter_map(|(path, text)| Some((path, text.as_deref()?)))
        .collect();
    let cores = available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let shares = (0..cores).map(|core| {
            // Every so many files, not a run of them: the long ones stand together.
            let share: Vec<_> = sources.iter().skip(core).step_by(cores).copied().collect();
            scope.spawn(move || {
                let read =
                    share.into_iter().map(|(path, text)| (path.clone(), Facts::of(path, text)));
                read.collect::<Vec<_>>()
            })
        });
        let shares: Vec<_> = shares.collect();
        let read = shares.into_iter().map(|share| share.join().expect("the lexer does not panic"));
        read.flatten().collect()
    })
}

fn listed(root: &Path) -> Vec<String> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .expect("tidy asks git which files belong to the project: git must be installed");
    assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
    let listing = String::from_utf8(listing.stdout).expect("file names are UTF-8 in this project");
    listing.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn the_repository_is_not_empty() {
    let tree = Tree::repository();
    assert!(tree.holds("Cargo.toml") && tree.holds("control/src") && !tree.holds("target"));
    assert!(tree.rust.values().map(|facts| facts.functions.len()).sum::<usize>() > 20);
}

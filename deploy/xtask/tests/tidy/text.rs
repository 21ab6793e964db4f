//! Rules about any text: its length, and words that must not stand in it.

use crate::tree::{Tree, Violation, none, only};

/// What a reader still holds in mind. The aim is 150; this is where it stops.
const FILE_LINES_MAX: usize = 600;

/// Which files are code and have a length limit.
const CODE: [&str; 6] = [".rs", ".py", ".js", ".html", ".css", ".sh"];

/// Unfinished work and forgotten helpers, in code. Each is written in two halves, so that this file passes.
const UNFINISHED: [&str; 7] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("HA", "CK"),
];

/// Queues without a stated maximum.
const UNBOUNDED: [&str; 2] = [concat!("unbounded", "_channel"), concat!("mpsc::", "unbounded")];

/// Where somebody's machine keeps things.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/fa", "rm/"),
    concat!("/ho", "me/"),
    concat!("/tmp/bash", "_jobs"),
];

/// Where packages happen to be fetched from: everybody's own affair.
const REGISTRIES: [&str; 7] = [
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("registry.npm", "js.org"),
    concat!("registry.yarn", "pkg.com"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("extra-", "index-url"),
];

fn long_files(tree: &Tree) -> Vec<Violation> {
    let code = tree.texts().filter(|(path, _)| is_code(path));
    let long = code.map(|(path, text)| (path, text.lines().count()));
    long.filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| Violation::new(path, lines, "too long: it does two things, split it"))
        .collect()
}

fn unfinished(tree: &Tree) -> Vec<Violation> {
    find(tree, is_code, &UNFINISHED, "finish it, or say in the note that it is missing")
}

fn unbounded(tree: &Tree) -> Vec<Violation> {
    find(tree, is_code, &UNBOUNDED, "every queue has a stated maximum")
}

fn machine_paths(tree: &Tree) -> Vec<Violation> {
    find(tree, |_| true, &MACHINE_PATHS, "a path of one machine")
}

fn registries(tree: &Tree) -> Vec<Violation> {
    let mut found = find(tree, |_| true, &REGISTRIES, "names a package registry");
    let locks = tree.texts().filter(|(path, _)| path.ends_with("package-lock.json"));
    let resolved = locks.flat_map(|(path, text)| {
        let lines = text.lines().enumerate().filter(|(_, line)| line.contains("\"resolved\""));
        lines
            .map(move |(at, _)| Violation::new(path, at + 1, "the lock names a host: leave it out"))
    });
    found.extend(resolved);
    let settings = tree.texts().filter(|(path, _)| {
        let name = path.rsplit('/').next().unwrap_or(path);
        [".npmrc", "pip.conf", ".pypirc"].contains(&name)
    });
    found.extend(settings.map(|(path, _)| Violation::new(path, 0, "settings of one machine")));
    found
}

fn is_code(path: &str) -> bool {
    CODE.iter().any(|ending| path.ends_with(ending)) || path == ".ci/run"
}

fn find(
    tree: &Tree,
    concerns: impl Fn(&str) -> bool,
    words: &[&str],
    advice: &str,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| concerns(path)) {
        // Most files hold none of the words: ask for the whole text before going line by line.
        let words: Vec<&&str> = words.iter().filter(|word| text.contains(**word)).collect();
        if words.is_empty() {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| stands_alone(line, word)) {
                found.push(Violation::new(path, at + 1, format!("`{word}`: {advice}")));
            }
        }
    }
    found
}

/// Whether `word` occurs in `line` other than as a part of a longer word or path.
fn stands_alone(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let of_a_path = word.starts_with('/') && before.is_some_and(|c| matches!(c, '.' | '-'));
        let glued_after = word.ends_with(letter) && after.is_some_and(letter);
        !before.is_some_and(letter) && !of_a_path && !glued_after
    })
}

#[test]
fn no_file_is_too_long() {
    none(&long_files(Tree::repository()));
    let (fits, long) = ("line\n".repeat(FILE_LINES_MAX), "line\n".repeat(FILE_LINES_MAX + 1));
    let tree = Tree::planted([("a.py", &fits), ("b.py", &long), ("c.lock", &long)]);
    only(&long_files(&tree), ["b.py:601"]);
}

#[test]
fn nothing_is_left_unfinished() {
    none(&unfinished(Tree::repository()));
    for word in UNFINISHED {
        let text = format!("fine\n    // {word}: later\nmas{word}s are words\n");
        only(&unfinished(&Tree::planted([("a.js", &text), ("a.md", &text)])), ["a.js:2"]);
    }
}

#[test]
fn every_queue_is_bounded() {
    none(&unbounded(Tree::repository()));
    for word in UNBOUNDED {
        let text = format!("let (tx, rx) = {word}();\n");
        only(&unbounded(&Tree::planted([("transport/src/a.rs", &text)])), ["transport/src/a.rs:1"]);
    }
}

#[test]
fn no_path_of_one_machine_is_named() {
    none(&machine_paths(Tree::repository()));
    for word in MACHINE_PATHS {
        let text = format!("see net{word}x\nsee {word} x\n");
        only(&machine_paths(&Tree::planted([("docs/a.md", &text)])), ["docs/a.md:2"]);
    }
}

#[test]
fn no_package_registry_is_named() {
    none(&registries(Tree::repository()));
    for word in REGISTRIES {
        let text = format!("from {word} we\n");
        only(&registries(&Tree::planted([("Cargo.lock", &text)])), ["Cargo.lock:1"]);
    }
    let lock = "{\n  \"resolved\": \"https://somewhere/a.tgz\"\n}\n";
    let tree = Tree::planted([("a/package-lock.json", lock), (".npmrc", "")]);
    only(&registries(&tree), ["a/package-lock.json:2", ".npmrc:0"]);
}

//! Rules about where things stand: the top level, and the decision records.

use crate::tree::{Tree, Violation, none, only};

/// The folders of the design, the three documents, and what tools insist on finding at the top.
const TOP: [&str; 18] = [
    "control",
    "transport",
    "sim",
    "proto",
    "deploy",
    "benches",
    "docs",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "Cargo.toml",
    "Cargo.lock",
    ".ci",
    ".cargo",
    ".gitignore",
    ".dockerignore",
    "rustfmt.toml",
    "deny.toml",
];

fn strangers_at_the_top(tree: &Tree) -> Vec<Violation> {
    let mut found: Vec<Violation> = Vec::new();
    for path in tree.files.keys() {
        let top = path.split('/').next().unwrap_or(path);
        if !TOP.contains(&top) && found.iter().all(|seen| seen.path != top) {
            found.push(Violation::new(top, 0, "does not belong at the top level"));
        }
    }
    found
}

fn misnamed_decisions(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut last = None;
    for path in tree.files.keys() {
        let Some(name) = path.strip_prefix("docs/adr/") else { continue };
        match number(name) {
            None => found.push(Violation::new(path, 0, "is not NNNN-title-in-small-letters.md")),
            Some(number) if last == Some(number) => {
                found.push(Violation::new(path, 0, "its number is taken"));
            }
            Some(number) => last = Some(number),
        }
    }
    found
}

fn number(name: &str) -> Option<u16> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let small = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let sound = number.len() == 4 && !title.is_empty() && title.chars().all(small);
    if sound { number.parse().ok() } else { None }
}

#[test]
fn only_what_belongs_stands_at_the_top() {
    none(&strangers_at_the_top(Tree::repository()));
    let tree = Tree::planted([("control/a.rs", ""), ("scripts/a", ""), ("scripts/b", "")]);
    only(&strangers_at_the_top(&tree), ["scripts:0"]);
}

#[test]
fn every_decision_record_has_its_number_and_title() {
    none(&misnamed_decisions(Tree::repository()));
    let tree = Tree::planted([
        ("docs/adr/0001-the-journal-is-the-log.md", ""),
        ("docs/adr/0001-twice.md", ""),
        ("docs/adr/0002-Loud.md", ""),
        ("docs/adr/3-short.md", ""),
        ("docs/adr/notes.md", ""),
    ]);
    let expected = ["0001-twice.md:0", "0002-Loud.md:0", "3-short.md:0", "notes.md:0"];
    only(
        &misnamed_decisions(&tree),
        expected.map(|name| format!("docs/adr/{name}")).each_ref().map(String::as_str),
    );
}

//! Relative links in documents lead somewhere.

use crate::tree::{Tree, Violation, none, only};

fn broken_links(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in links(text) {
            if !leads_somewhere(tree, path, target) {
                found.push(Violation::new(path, line, format!("nothing stands at `{target}`")));
            }
        }
    }
    found
}

fn leads_somewhere(tree: &Tree, from: &str, target: &str) -> bool {
    let outside = target.contains("://") || target.starts_with("mailto:");
    let file = target.split('#').next().unwrap_or_default();
    outside || file.is_empty() || resolve(from, file).is_some_and(|path| tree.holds(&path))
}

/// The path `link` means in the document at `from`; nothing where it leaves the repository.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = match link.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => {
            from.rsplit_once('/').map_or_else(Vec::new, |(folder, _)| folder.split('/').collect())
        }
    };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Every `](target)` outside code, with its line.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part stands between backticks.
        for prose in line.split('`').step_by(2) {
            for rest in prose.split("](").skip(1) {
                let target = rest.split(')').next().unwrap_or_default();
                let target = target.split_whitespace().next().unwrap_or_default();
                found.push((at + 1, target.trim_matches(['<', '>'])));
            }
        }
    }
    found
}

#[test]
fn every_relative_link_leads_somewhere() {
    none(&broken_links(Tree::repository()));
    let text = "[a](b.md#part) [c](../README.md \"title\") [d](https://example.org/x) [e](#here)\n\
        `[f](code.md)` and [g](adr) and [h](/docs/b.md)\n```\n[i](fenced.md)\n```\n\
        [j](gone.md)\n[k](../../outside.md)\n";
    let tree = Tree::planted([
        ("docs/a.md", text),
        ("docs/b.md", ""),
        ("docs/adr/0001-x.md", ""),
        ("README.md", ""),
    ]);
    only(&broken_links(&tree), ["docs/a.md:6", "docs/a.md:7"]);
}

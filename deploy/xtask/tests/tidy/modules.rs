//! No dead files: every Rust file is reached from a root of its crate by `mod` declarations.

use std::collections::BTreeSet;

use crate::facts::Module;
use crate::tree::{Tree, Violation, none, only};

fn dead_files(tree: &Tree) -> Vec<Violation> {
    let crates = crates(tree);
    let roots = tree.rust.keys().filter(|path| {
        let inside = home(&crates, path).and_then(|home| path.strip_prefix(home));
        inside.is_some_and(|path| is_root(path.trim_start_matches('/')))
    });
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<String> = roots.cloned().collect();
    while let Some(path) = waiting.pop() {
        if let Some(facts) = tree.rust.get(&path) {
            waiting.extend(facts.modules.iter().flat_map(|module| files(&path, module)));
            waiting.retain(|path| tree.rust.contains_key(path) && !reached.contains(path));
            reached.insert(path);
        }
    }
    let dead = tree.rust.keys().filter(|path| !reached.contains(*path));
    dead.map(|path| Violation::new(path, 0, "no `mod` leads here: the file is dead")).collect()
}

/// The folders that hold a package. The workspace's own manifest describes none.
fn crates(tree: &Tree) -> Vec<&str> {
    let manifests = tree.texts().filter(|(_, text)| text.contains("[package]"));
    manifests.filter_map(|(path, _)| path.strip_suffix("/Cargo.toml")).collect()
}

/// The innermost package around `path`: `deploy/xtask` before `deploy`.
fn home<'a>(crates: &[&'a str], path: &str) -> Option<&'a str> {
    let around = crates
        .iter()
        .filter(|home| path.strip_prefix(**home).is_some_and(|rest| rest.starts_with('/')));
    around.max_by_key(|home| home.len()).copied()
}

/// Where Cargo looks for targets by itself, below a package's folder.
fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    // Of these folders each file is a target, and so is the `main.rs` one folder further down.
    let targets = match parts.as_slice() {
        ["tests" | "benches" | "examples", inner @ ..] | ["src", "bin", inner @ ..] => inner,
        _ => &[],
    };
    matches!(parts.as_slice(), ["build.rs"] | ["src", "lib.rs" | "main.rs"])
        || matches!(targets, [_] | [_, "main.rs"])
}

/// Where `module`, declared in the file at `path`, may stand.
fn files(path: &str, module: &Module) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    if let Some(other) = &module.path {
        return vec![format!("{folder}/{other}")];
    }
    let stem = file.trim_end_matches(".rs");
    let owner = match stem {
        "mod" | "lib" | "main" => folder.to_owned(),
        _ if is_root_folder(folder) => folder.to_owned(),
        _ => format!("{folder}/{stem}"),
    };
    let inside = module.inside.iter().map(|name| format!("{name}/")).collect::<String>();
    let base = format!("{owner}/{inside}{}", module.name);
    vec![format!("{base}.rs"), format!("{base}/mod.rs")]
}

/// In these every file is a crate of its own, and its modules stand beside it.
fn is_root_folder(folder: &str) -> bool {
    let last = folder.rsplit('/').next().unwrap_or(folder);
    ["tests", "benches", "examples", "bin"].contains(&last) && !folder.contains("/src/")
        || folder.ends_with("/src/bin")
}

#[test]
fn no_file_is_dead() {
    none(&dead_files(Tree::repository()));
    let tree = Tree::planted([
        ("a/Cargo.toml", "[package]\nname = \"a\"\n"),
        ("a/b/Cargo.toml", "[package]\nname = \"b\"\n"),
        ("a/src/lib.rs", "mod quota;\nmod inline { mod deep; }\n#[path = \"odd.rs\"]\nmod even;\n"),
        ("a/src/quota.rs", "#[cfg(test)]\nmod tests;\n// mod gone;\n"),
        ("a/src/quota/tests.rs", ""),
        ("a/src/inline/deep.rs", ""),
        ("a/src/odd.rs", ""),
        ("a/src/even.rs", ""),
        ("a/src/gone.rs", ""),
        ("a/b/src/main.rs", "mod helper;\n"),
        ("a/b/src/helper/mod.rs", "mod more;\n"),
        ("a/b/src/helper/more.rs", ""),
        ("a/b/tests/whole.rs", "mod common;\n"),
        ("a/b/tests/common/mod.rs", ""),
        ("a/b/tests/tidy/main.rs", "mod rule;\n"),
        ("a/b/tests/tidy/rule.rs", ""),
        ("a/b/tests/tidy/dead.rs", ""),
        ("stray.rs", ""),
    ]);
    let dead = ["a/b/tests/tidy/dead.rs:0", "a/src/even.rs:0", "a/src/gone.rs:0", "stray.rs:0"];
    only(&dead_files(&tree), dead);
}

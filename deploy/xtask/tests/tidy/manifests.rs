//! Rules about Cargo manifests: which of our crates may know which, that all share the workspace's lints, and that the
//! planted bugs stay with the simulator.

use std::collections::BTreeMap;

use crate::tree::{Tree, Violation, none, only};

/// Package, what its product may use of ours, and what its tests and benches may use besides.
const ARROWS: [(&str, &[&str], &[&str]); 7] = [
    ("control", &[], &["sim"]),
    ("proto", &[], &[]),
    ("transport", &["control", "proto"], &["sim"]),
    ("sim", &["control", "proto", "transport"], &[]),
    ("pointsman", &["control", "proto", "transport"], &["sim"]),
    ("benches", &["control", "proto", "transport"], &[]),
    ("xtask", &[], &[]),
];

fn wrong_arrows(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, manifest) in packages(tree) {
        let name = manifest.name();
        let Some((_, product, tests)) = ARROWS.iter().find(|(package, ..)| *package == name) else {
            found.push(Violation::new(&path, 0, format!("`{name}` has no place in the design")));
            continue;
        };
        for dependency in manifest.dependencies() {
            let ours = ARROWS.iter().any(|(package, ..)| *package == dependency.name);
            let allowed = product.contains(&dependency.name.as_str())
                || dependency.for_tests && tests.contains(&dependency.name.as_str());
            if ours && !allowed {
                let message = format!("`{name}` must not depend on `{}`", dependency.name);
                found.push(Violation::new(&path, dependency.line, message));
            }
        }
    }
    found
}

fn own_lints(tree: &Tree) -> Vec<Violation> {
    let own = packages(tree).into_iter().filter(|(_, manifest)| {
        !manifest.entries("lints").any(|(_, line)| squeezed(line) == "workspace=true")
    });
    own.map(|(path, _)| Violation::new(&path, 0, "has no `[lints] workspace = true`")).collect()
}

/// The feature that compiles planted bugs into `control`: declared there, passed on by `sim`, on by default nowhere, and
/// named by nobody else.
const PLANTED: &str = "mutants";

fn plantings(tree: &Tree) -> Vec<Violation> {
    let manifests = tree.texts().filter(|(path, _)| path.rsplit('/').next() == Some("Cargo.toml"));
    let mut found = Vec::new();
    for (path, text) in manifests {
        let manifest = Manifest::of(text);
        let entries = manifest.sections.iter().flat_map(|(section, entries)| {
            entries.iter().map(move |(at, line)| (*section, *at, *line))
        });
        let named = entries.filter(|(_, _, line)| line.contains(PLANTED));
        let wrong = named.filter(|(section, _, line)| {
            let allowed = match (manifest.name(), *section) {
                ("control", "features") => squeezed(line) == "mutants=[]",
                ("sim", "features") => squeezed(line) == "mutants=[\"control/mutants\"]",
                // A target of the simulator may ask for it, or have that name.
                ("sim", section) => !section.contains("dependencies"),
                _ => false,
            };
            !allowed
        });
        let message = "only the simulator turns planted bugs on, and never by default";
        found.extend(wrong.map(|(_, at, _)| Violation::new(path, at, message)));
    }
    found
}

/// The manifests that describe a package, by path.
fn packages(tree: &Tree) -> BTreeMap<String, Manifest<'_>> {
    let manifests = tree.texts().filter(|(path, _)| path.rsplit('/').next() == Some("Cargo.toml"));
    let read = manifests.map(|(path, text)| (path.to_owned(), Manifest::of(text)));
    read.filter(|(_, manifest)| manifest.entries("package").next().is_some()).collect()
}

/// A manifest as sections of numbered lines: enough for the plain style all of ours are written in.
struct Manifest<'a> {
    sections: Vec<(&'a str, Vec<(usize, &'a str)>)>,
}

struct Dependency {
    name: String,
    line: usize,
    for_tests: bool,
}

impl<'a> Manifest<'a> {
    fn of(text: &'a str) -> Self {
        let mut sections = vec![("", Vec::new())];
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                sections.push((header.trim_matches(['[', ']']).trim(), Vec::new()));
            } else if let Some((_, entries)) = sections.last_mut() {
                entries.push((at + 1, line));
            }
        }
        Self { sections }
    }

    fn entries(&self, section: &str) -> impl Iterator<Item = (usize, &'a str)> {
        let of_section = self.sections.iter().filter(move |(name, _)| *name == section);
        of_section.flat_map(|(_, entries)| entries.iter().copied())
    }

    fn name(&self) -> &'a str {
        let mut entries = self.entries("package");
        let name = entries.find_map(|(_, line)| value(line, "name"));
        name.unwrap_or("a package without a name")
    }

    /// Of `[dependencies]` and its kin: `name = ...`, `name.workspace = true`, `[dependencies.name]`, and what a
    /// `package = "..."` says the crate is really called.
    fn dependencies(&self) -> Vec<Dependency> {
        let mut found = Vec::new();
        for (section, entries) in &self.sections {
            let Some(at) = section.find("dependencies") else { continue };
            let for_tests = section[..at].ends_with("dev-");
            let table = section[at..].strip_prefix("dependencies.");
            for (line, entry) in entries {
                let key = entry.split(['.', '=', ' ']).next().unwrap_or_default();
                let renamed =
                    entry.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
                let name = renamed.or(table).unwrap_or(key);
                found.push(Dependency { name: name.to_owned(), line: *line, for_tests });
            }
        }
        found
    }
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once('=')?;
    (name.trim() == key).then(|| value.trim().trim_matches('"'))
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect()
}

#[test]
fn dependencies_follow_the_arrows_of_the_design() {
    none(&wrong_arrows(Tree::repository()));
    let transport = "[package]\nname = \"transport\"\n\n[dependencies]\ncontrol.workspace = true\n\
        serde = \"1\"\nsim.workspace = true\n\n[dev-dependencies]\nsim = { path = \"../sim\" }\n";
    let control = "[package]\nname = \"control\"\n[target.'cfg(unix)'.dependencies]\n\
        hands = { package = \"transport\" }\n[dependencies.proto]\nworkspace = true\n";
    let stranger = "[package]\nname = \"utilities\"\n";
    let tree = Tree::planted([
        ("a/Cargo.toml", transport),
        ("b/Cargo.toml", control),
        ("c/Cargo.toml", stranger),
        ("Cargo.toml", "[workspace]\nmembers = []\n[workspace.dependencies]\nsim = {}\n"),
    ]);
    only(
        &wrong_arrows(&tree),
        ["a/Cargo.toml:7", "b/Cargo.toml:4", "b/Cargo.toml:6", "c/Cargo.toml:0"],
    );
}

#[test]
fn every_crate_has_the_workspaces_lints() {
    none(&own_lints(Tree::repository()));
    let tree = Tree::planted([
        ("a/Cargo.toml", "[package]\nname = \"a\"\n[lints]\nworkspace = true\n"),
        ("b/Cargo.toml", "[package]\nname = \"b\"\n[lints.rust]\nworkspace = true\n"),
    ]);
    only(&own_lints(&tree), ["b/Cargo.toml:0"]);
}

#[test]
fn only_the_simulator_turns_planted_bugs_on() {
    none(&plantings(Tree::repository()));
    let control = "[package]\nname = \"control\"\n[features]\n# mutants\nmutants = []\n\
        default = [\n    \"mutants\",\n]\n";
    let sim = "[package]\nname = \"sim\"\n[features]\nmutants = [\"control/mutants\"]\n\
        all = [\"mutants\"]\n[[bin]]\nname = \"a\"\nrequired-features = [\"mutants\"]\n\
        [dependencies]\ncontrol = { workspace = true, features = [\"mutants\"] }\n";
    let product = "[package]\nname = \"pointsman\"\n[features]\nmutants = [\"control/mutants\"]\n\
        [dependencies.control]\nworkspace = true\nfeatures = [\"mutants\"]\n";
    let workspace = "[workspace.dependencies]\n\
        control = { path = \"control\", features = [\"mutants\"] }\n";
    let tree = Tree::planted([
        ("Cargo.toml", workspace),
        ("a/Cargo.toml", control),
        ("b/Cargo.toml", sim),
        ("c/Cargo.toml", product),
        ("c/Cargo.lock", "mutants"),
    ]);
    only(
        &plantings(&tree),
        [
            "Cargo.toml:2",
            "a/Cargo.toml:7",
            "b/Cargo.toml:5",
            "b/Cargo.toml:10",
            "c/Cargo.toml:4",
            "c/Cargo.toml:7",
        ],
    );
}

//! Who may know what: `control` is pure, and one place drives it.

use crate::facts::Word;
use crate::tree::{Tree, Violation, none, only};

/// Names that have no place where decisions are made, and why. The compiler (`no_std`) and clippy refuse most of them
/// already; this rule also sees what a macro hides from clippy, and says so without a build.
const IMPURE: [(&str, &str); 11] = [
    ("std", "the standard library has clocks, files and threads"),
    ("tokio", "nothing here waits"),
    ("async", "nothing here waits"),
    ("await", "nothing here waits"),
    ("tracing", "what is worth telling is an observation"),
    ("prost", "wire types become control types in transport"),
    ("HashMap", "its order depends on the hasher"),
    ("HashSet", "its order depends on the hasher"),
    ("Arc", "the plane owns its state"),
    ("Mutex", "the driver owns the only lock"),
    ("AtomicU64", "the plane owns its state"),
];

/// The one file, or folder, that calls `Machine::handle`.
const DRIVER: [&str; 2] = ["transport/src/driver.rs", "transport/src/driver/"];

fn impurities(tree: &Tree) -> Vec<Violation> {
    product(
        tree,
        |path| path.starts_with("control/src/"),
        |words, at| {
            let word = &words[at].text;
            let (name, why) = IMPURE.iter().find(|(name, _)| name == word)?;
            Some(format!("`{name}` in control: {why}"))
        },
    )
}

/// To call `handle` on a plane one must have the trait in scope, or name it in the call, or import everything: so the
/// name of the trait, the glob, and the plain call on something called `plane` are what only the driver may contain.
fn other_drivers(tree: &Tree) -> Vec<Violation> {
    let shell = |path: &str| {
        let shell = path.starts_with("transport/src/") || path.starts_with("deploy/src/");
        shell && !DRIVER.iter().any(|driver| path.starts_with(driver))
    };
    product(tree, shell, |words, at| {
        let driving = words[at].text == "Machine"
            || follows(words, at, &["plane", ".", "handle", "("])
            || follows(words, at, &["ControlPlane", ":", ":", "handle"])
            || follows(words, at, &["control", ":", ":", "*"]);
        driving.then(|| "only transport's driver drives the plane".to_owned())
    })
}

fn follows(words: &[Word], at: usize, wanted: &[&str]) -> bool {
    words[at..].iter().map(|word| word.text.as_str()).take(wanted.len()).eq(wanted.iter().copied())
}

fn product(
    tree: &Tree,
    concerns: impl Fn(&str) -> bool,
    judge: impl Fn(&[Word], usize) -> Option<String>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, facts) in tree.rust.iter().filter(|(path, _)| concerns(path)) {
        for at in 0..facts.product.len() {
            if let Some(message) = judge(&facts.product, at) {
                found.push(Violation::new(path, facts.product[at].line, message));
            }
        }
    }
    found
}

#[test]
fn control_names_nothing_impure() {
    none(&impurities(Tree::repository()));
    let text = "use core::fmt;\n// std is only mentioned here\nuse std::time::Instant;\n\
        fn f() { libm::log(1.0); }\nasync fn g() {}\n\
        #[cfg(test)]\nmod tests {\n    use std::collections::HashMap;\n}\n";
    let tree = Tree::planted([
        ("control/src/a.rs", text),
        ("control/src/a/tests.rs", "use std::collections::HashMap;"),
        ("transport/src/a.rs", "use std::time::Instant;"),
    ]);
    only(&impurities(&tree), ["control/src/a.rs:3", "control/src/a.rs:5"]);
    for (name, _) in IMPURE {
        let text = format!("fn f() {{ m! {{ {name} }} }}");
        only(&impurities(&Tree::planted([("control/src/b.rs", &text)])), ["control/src/b.rs:1"]);
    }
}

#[test]
fn only_the_driver_drives_the_plane() {
    none(&other_drivers(Tree::repository()));
    for text in [
        "fn f() { self.plane.handle(now, input); }",
        "use control::Machine;",
        "use control::{Instant, Machine as M};",
        "use control::*;",
        "fn f() { ControlPlane::handle(plane, now, input); }",
    ] {
        let tree = Tree::planted([
            ("deploy/src/a.rs", text),
            ("transport/src/driver.rs", text),
            ("transport/src/driver/effects.rs", text),
            ("sim/src/a.rs", text),
        ]);
        only(&other_drivers(&tree), ["deploy/src/a.rs:1"]);
    }
    let fine = "fn f() { front.handle(request); plane.status(); }";
    none(&other_drivers(&Tree::planted([("transport/src/front.rs", fine)])));
}

//! Proof that `control` touches nothing.
//!
//! `#![no_std]` makes the compiler refuse clocks, threads, files and sockets in the crate's own code, but a single
//! dependency that links std brings them back, and a build of the whole workspace cannot tell: features unify across
//! it. So `control` is built alone, and what that build pulls in is compared with an allow-list.
//!
//! Neither does the product touch what was planted in `control` for the simulator to find: of the binary's own build, the
//! features of `control` are looked at too.

use std::collections::BTreeSet;

use crate::process::{Workspace, output, run};

/// All that `control` may use, itself and through others (procedural macros run in the compiler and are left out).
/// A new name here is a decision: the crate must be `no_std`, deterministic, and worth it.
const ALLOWED: [&str; 6] = ["cobs", "libm", "postcard", "serde", "serde_core", "thiserror"];

/// The feature names under which crates offer std.
const STD_FEATURES: [&str; 4] = ["std", "use-std", "use_std", "default-std"];

/// The feature of `control` that holds planted bugs. The style test reads the manifests; this reads what cargo makes of
/// them.
const PLANTED: &str = "mutants";

/// Builds `control` alone and judges what it depends on; then what of it the product is built with.
pub fn check(workspace: &Workspace) -> Result<(), String> {
    run(&mut workspace.cargo(&["build", "-p", "control", "--lib"]))?;
    let mut complaints = judge(&tree(workspace, "control")?);
    complaints.extend(planted(&tree(workspace, "pointsman")?));
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    match complaints.len() {
        0 => {
            println!("control uses {} and nothing else, all without std", ALLOWED.join(", "));
            println!("the product has control without planted bugs");
            Ok(())
        }
        count => Err(format!("{count} impurities in or of control")),
    }
}

/// What a package is built with, as lines of `name version [...]|feature,feature`, the first being the package itself.
fn tree(workspace: &Workspace, package: &str) -> Result<String, String> {
    let mut tree = workspace.cargo(&["tree", "-p", package, "-e", "normal,no-proc-macro"]);
    tree.args(["--prefix", "none", "--no-dedupe", "-f", "{p}|{f}"]);
    output(&mut tree)
}

/// Of a tree in which `control` must be: what it was planted with.
fn planted(tree: &str) -> Option<String> {
    let mut features = tree.lines().filter_map(package).filter(|(name, _)| *name == "control");
    match features.next() {
        None => Some("the product does not use control: who decides?".to_owned()),
        Some((_, features)) => features
            .split(',')
            .any(|feature| feature == PLANTED)
            .then(|| format!("the product is built with control's feature {PLANTED}")),
    }
}

/// `tree` holds lines of `name version [...]|feature,feature`, the first being `control` itself.
fn judge(tree: &str) -> Vec<String> {
    let packages: BTreeSet<(&str, &str)> = tree.lines().skip(1).filter_map(package).collect();
    let names: BTreeSet<&str> = packages.iter().map(|(name, _)| *name).collect();
    let allowed = BTreeSet::from(ALLOWED);
    let mut complaints = Vec::new();
    for name in names.difference(&allowed) {
        complaints.push(format!("control depends on {name}, which is not on the allow-list"));
    }
    for name in allowed.difference(&names) {
        complaints.push(format!("control no longer uses {name}: take it off the allow-list"));
    }
    for (name, features) in packages {
        for feature in features.split(',').filter(|feature| STD_FEATURES.contains(feature)) {
            complaints.push(format!("control pulls in {name} with its feature {feature}"));
        }
    }
    complaints
}

fn package(line: &str) -> Option<(&str, &str)> {
    let (package, features) = line.split_once('|')?;
    let name = package.split_whitespace().next()?;
    Some((name, features.trim_end_matches("(*)").trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE: &str = "control v0.1.0 (somewhere)|\ncobs v0.3.0|\nlibm v0.2.16|\n\
        postcard v1.1.3|alloc\nserde v1.0.229|alloc,derive\nserde_core v1.0.229|alloc,result\n\
        serde v1.0.229|alloc,derive (*)\nthiserror v2.0.21|\n";

    #[test]
    fn the_allowed_set_without_std_is_pure() {
        assert_eq!(judge(PURE), Vec::<String>::new());
    }

    #[test]
    fn one_dependency_with_std_is_named() {
        let tree = PURE.replace("|alloc,result", "|alloc,result,std");
        assert_eq!(judge(&tree), ["control pulls in serde_core with its feature std"]);
    }

    #[test]
    fn a_stranger_among_the_dependencies_is_named() {
        let tree = format!("{PURE}hashbrown v0.16.0|\n");
        assert_eq!(judge(&tree), ["control depends on hashbrown, which is not on the allow-list"]);
    }

    #[test]
    fn a_product_with_planted_bugs_is_named() {
        let tree =
            |features| format!("pointsman v0.1.0 (here)|\ncontrol v0.1.0 (here)|{features}\n");
        assert_eq!(planted(&tree("")), None);
        let found = planted(&tree("default,mutants (*)"));
        assert_eq!(found.as_deref(), Some("the product is built with control's feature mutants"));
        assert!(planted("pointsman v0.1.0 (here)|\n").is_some(), "nothing to look at is no proof");
    }

    #[test]
    fn an_allowance_nobody_needs_is_named() {
        let tree = PURE.replace("libm v0.2.16|\n", "");
        assert_eq!(judge(&tree), ["control no longer uses libm: take it off the allow-list"]);
    }
}

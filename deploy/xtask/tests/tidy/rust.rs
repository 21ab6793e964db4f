//! Rules about Rust code: its size, its attributes, its tests' names.

use crate::facts::{Attribute, Function};
use crate::tree::{Tree, Violation, none, only};

/// A function longer than a screen does two things. The aim is 25; this is where it stops.
const FUNCTION_LINES_MAX: usize = 70;

/// Fewer words than this do not make a sentence.
const TEST_NAME_WORDS_MIN: usize = 3;

fn unreadable(tree: &Tree) -> Vec<Violation> {
    let broken = tree.rust.iter().filter_map(|(path, facts)| Some((path, facts.broken.as_ref()?)));
    broken.map(|(path, why)| Violation::new(path, 0, format!("not Rust: {why}"))).collect()
}

fn long_functions(tree: &Tree) -> Vec<Violation> {
    functions(tree, |function| {
        let long = function.lines > FUNCTION_LINES_MAX;
        long.then(|| format!("`{}` has {} lines: split it", function.name, function.lines))
    })
}

fn short_test_names(tree: &Tree) -> Vec<Violation> {
    functions(tree, |function| {
        let words = function.name.split('_').filter(|word| !word.is_empty()).count();
        let short = function.is_test && words < TEST_NAME_WORDS_MIN;
        short.then(|| format!("`{}` is no sentence: say what holds", function.name))
    })
}

fn unargued_allowances(tree: &Tree) -> Vec<Violation> {
    attributes(tree, |attribute| {
        let allows = match attribute.name.as_str() {
            "allow" | "expect" => true,
            "cfg_attr" => ["allow", "expect"].iter().any(|lint| calls(&attribute.text, lint)),
            _ => false,
        };
        let argued = attribute.text.contains("reason");
        (allows && !argued).then(|| "an allowance needs its `reason = \"...\"`".to_owned())
    })
}

fn unargued_ignores(tree: &Tree) -> Vec<Violation> {
    attributes(tree, |attribute| {
        let bare = attribute.name == "ignore" && !attribute.text.contains('=');
        bare.then(|| "an ignored test says why: `#[ignore = \"...\"]`".to_owned())
    })
}

fn functions(tree: &Tree, judge: impl Fn(&Function) -> Option<String>) -> Vec<Violation> {
    let all = tree.rust.iter().flat_map(|(path, facts)| {
        facts.functions.iter().map(move |function| (path, function.line, function))
    });
    all.filter_map(|(path, line, function)| Some(Violation::new(path, line, judge(function)?)))
        .collect()
}

fn attributes(tree: &Tree, judge: impl Fn(&Attribute) -> Option<String>) -> Vec<Violation> {
    let all = tree.rust.iter().flat_map(|(path, facts)| {
        facts.attributes.iter().map(move |attribute| (path, attribute.line, attribute))
    });
    all.filter_map(|(path, line, attribute)| Some(Violation::new(path, line, judge(attribute)?)))
        .collect()
}

fn calls(text: &str, name: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
}

#[test]
fn every_rust_file_can_be_read() {
    none(&unreadable(Tree::repository()));
    only(&unreadable(&Tree::planted([("a.rs", "fn a( {")])), ["a.rs:0"]);
}

#[test]
fn no_function_is_too_long() {
    none(&long_functions(Tree::repository()));
    let body = "    call();\n".repeat(FUNCTION_LINES_MAX - 2);
    let fits = format!("\nfn fits() {{\n{body}}}\n");
    let long = format!("impl A {{\n    fn long(\n        &self,\n    ) {{\n{body}    }}\n}}\n");
    let tree = Tree::planted([("a.rs", &fits), ("b.rs", &long)]);
    only(&long_functions(&tree), ["b.rs:2"]);
}

#[test]
fn every_test_is_named_by_a_sentence() {
    none(&short_test_names(Tree::repository()));
    let text = "#[test]\nfn test_pick() {}\n#[test]\nfn a_pick_holds() {}\nfn pick() {}\n";
    only(&short_test_names(&Tree::planted([("a.rs", text)])), ["a.rs:2"]);
}

#[test]
fn every_allowance_is_argued() {
    none(&unargued_allowances(Tree::repository()));
    let text = "#![allow(missing_docs)]\n#[allow(clippy::a, reason = \"b\")]\nfn a() {}\n\
        #[cfg_attr(test, allow(dead_code))]\nfn b() {}\n#[expect(dead_code)]\nfn c() {}\n\
        #[cfg_attr(not(test), no_std)]\nfn d() {}\n";
    let tree = Tree::planted([("a.rs", text)]);
    only(&unargued_allowances(&tree), ["a.rs:1", "a.rs:4", "a.rs:6"]);
}

#[test]
fn every_ignored_test_says_why() {
    none(&unargued_ignores(Tree::repository()));
    let text = "#[test]\n#[ignore]\nfn a_b_c() {}\n#[test]\n#[ignore = \"slow\"]\nfn d_e_f() {}\n";
    only(&unargued_ignores(&Tree::planted([("a.rs", text)])), ["a.rs:2"]);
}

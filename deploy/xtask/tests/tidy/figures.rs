//! Every figure that is served stands in the documents: what nobody can look up, nobody watches.

use crate::tree::{Tree, Violation, none, only};

/// What exposition puts behind a name.
const ENDINGS: [&str; 3] = ["", "_total", "_seconds"];

fn untold(tree: &Tree) -> Vec<Violation> {
    let told: Vec<&str> = tree
        .texts()
        .filter(|(path, _)| path.starts_with("docs/"))
        .flat_map(|(_, text)| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .collect();
    let is_told = |name: &str| ENDINGS.iter().any(|end| told.contains(&&*format!("{name}{end}")));
    let sources = tree.texts().filter(|(path, _)| {
        let serves = ["transport/src/", "deploy/src/", "deploy/worker/src/"];
        serves.iter().any(|folder| path.starts_with(folder))
    });
    let served = sources.flat_map(|(path, text)| {
        served(text).into_iter().map(move |(line, name)| (path, line, name))
    });
    let message =
        |name| format!("the figure `{name}` stands in no document: docs/observability.md");
    served
        .filter(|(_, _, name)| !is_told(name))
        .map(|(path, line, name)| Violation::new(path, line, message(name)))
        .collect()
}

/// Names of figures among a source's string literals, with their lines: all that begin as ours do, and of the contract's
/// own those that are registered.
fn served(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('"') {
        let (before, rest) = (&text[..at], &text[at + 1..]);
        let Some((name, _)) = rest.split_once('"') else { continue };
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let registered = || before.trim_end().ends_with("register(");
        let ours = name.starts_with("pointsman_") && name != "pointsman_worker";
        if plain && (ours || (name.starts_with("gateway_") && registered())) {
            found.push((before.lines().count(), name));
        }
    }
    found
}

#[test]
fn every_figure_stands_in_the_documents() {
    none(&untold(Tree::repository()));
    let source = "fn f(r: &mut Registry) {\n    r.register(\n        \"gateway_asked\",\n        \"help\",\n    );\n\
        r.register(\"pointsman_told\", \"help\", told);\n\
        r.register(\"pointsman_untold\", \"help\", untold);\n\
        let code = \"gateway_stopping\";\n}\n";
    let documents = "| `pointsman_told_total` | and pointsman_untold_of_another |";
    let tree = Tree::planted([("transport/src/a.rs", source), ("docs/b.md", documents)]);
    only(&untold(&tree), ["transport/src/a.rs:3", "transport/src/a.rs:7"]);
}

//! `${VAR}` and `${VAR:-default}` in the values of a document.
//!
//! Replacement happens in the tree, not in the text before it is parsed: a password with a `#`, a quote or a line break
//! in it must not turn into YAML. A variable that is set but empty is as good as absent for `:-`, as in a shell.

use super::env::Env;
use super::problem::ProblemKind;
use super::tree::{Content, Finding, Node, Scalar, join};

/// A value with variables in it becomes no longer than this.
const EXPANDED_MAX: usize = 64 * 1024;

/// Replaces the variables in every value of `node`.
pub(super) fn expand(node: &mut Node, env: &Env, path: &str, findings: &mut Vec<Finding>) {
    match &mut node.content {
        Content::Nothing | Content::Unknown => {}
        Content::Scalar(scalar) => {
            if let Err(kind) = expand_scalar(scalar, env) {
                findings.push((node.at, path.to_owned(), kind));
                // What cannot be known is looked at no further: one mistake, one message.
                node.content = Content::Unknown;
            }
        }
        Content::Map(entries) => {
            for (key, value) in entries {
                expand(value, env, &join(path, &key.text), findings);
            }
        }
        Content::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, env, &format!("{path}[{index}]"), findings);
            }
        }
    }
}

fn expand_scalar(scalar: &mut Scalar, env: &Env) -> Result<(), ProblemKind> {
    if !scalar.text.contains("${") {
        return Ok(());
    }
    let mut expanded = String::new();
    let mut rest = scalar.text.as_str();
    let mut variables = Vec::new();
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let (inside, after) =
            rest[start + 2..].split_once('}').ok_or(ProblemKind::VariableSyntax)?;
        let (name, value) = variable(inside, env)?;
        expanded.push_str(&value);
        variables.push(name.to_owned());
        rest = after;
        if expanded.len() > EXPANDED_MAX {
            return Err(ProblemKind::Invalid(format!("longer than {EXPANDED_MAX} bytes")));
        }
    }
    expanded.push_str(rest);
    scalar.written = Some(std::mem::replace(&mut scalar.text, expanded));
    scalar.variables = variables;
    Ok(())
}

fn variable<'a>(inside: &'a str, env: &Env) -> Result<(&'a str, String), ProblemKind> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || !name.chars().all(letters)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(ProblemKind::VariableSyntax);
    }
    match (env.var(name), default) {
        (Some(""), Some(default)) | (None, Some(default)) => Ok((name, default.to_owned())),
        (Some(value), _) => Ok((name, value.to_owned())),
        (None, None) => Err(ProblemKind::VariableMissing { name: name.to_owned() }),
    }
}

//! A YAML document as a tree in which every node knows its line.
//!
//! Deserializing straight into the typed configuration would stop at the first mistake and could not tell a value that
//! was given from one that was not; so the document becomes a tree first, and [`reader`](super::reader) walks that. The
//! parser's budget keeps hostile input from costing more than a configuration could: depth, nodes, and what aliases
//! expand to. Duplicate and non-text keys are let through by the parser and reported here, so that the rest of the file is
//! still looked at.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Options, Spanned};

use super::problem::{At, ProblemKind};

/// The largest file that is read: 10,000 API keys with every limit stated are 5 MiB.
pub(super) const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The schema is 6 deep; the rest is for what the user got wrong.
const DEPTH_MAX: usize = 32;

/// Mappings, lists and values together: 10,000 keys of 12 settings are 240,000.
const NODES_MAX: usize = 400_000;

/// What aliases may expand to, in parser events: sharing a block of settings among some hundred models.
const ALIAS_EVENTS_MAX: usize = 20_000;

/// One node of the document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub at: At,
    pub content: Content,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// `key:` with nothing behind it, or `null`.
    Nothing,
    /// A problem that was reported already.
    Unknown,
    Scalar(Scalar),
    Map(Vec<(Key, Node)>),
    List(Vec<Node>),
}

/// A single value, as text.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub text: String,
    /// As it stands in the file where that differs, before variables were replaced.
    pub written: Option<String>,
    pub kind: Kind,
    /// The variables that were put in.
    pub variables: Vec<String>,
}

/// What YAML takes an unquoted value for. A text may still be read as a number: `${PORT}` is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Truth,
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub at: At,
    pub text: String,
}

/// A problem of the tree: where, under which path, what.
pub(super) type Finding = (At, String, ProblemKind);

/// Parses one document. `Err` where nothing can be made of it; otherwise the tree and what is wrong with its keys.
pub(super) fn parse(text: &str) -> Result<(Node, Vec<Finding>), Finding> {
    parse_within(text, NODES_MAX)
}

/// The same with a budget of `nodes_max`.
pub(super) fn parse_within(text: &str, nodes_max: usize) -> Result<(Node, Vec<Finding>), Finding> {
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options(nodes_max))
        .map_err(|error| syntax(error, nodes_max))?;
    let mut findings = Vec::new();
    let node = to_node(raw, "", &mut findings);
    Ok((node, findings))
}

impl Scalar {
    pub(super) fn text(text: String) -> Self {
        Self { text, written: None, kind: Kind::Text, variables: Vec::new() }
    }

    /// The text as its writer knows it.
    pub(super) fn as_written(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }
}

impl Node {
    /// The node under a dotted path of mapping keys.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| match &node.content {
            Content::Map(entries) => {
                entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
            }
            Content::Nothing | Content::Unknown | Content::Scalar(_) | Content::List(_) => None,
        })
    }
}

fn options(nodes_max: usize) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: nodes_max,
            // A document is a run of events, less than four for each node.
            max_events: 4 * nodes_max,
            max_documents: 1,
            max_anchors: 1_000,
            max_aliases: 10_000,
            max_recorded_anchor_events: 4 * ALIAS_EVENTS_MAX,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
            max_replay_stack_depth: 8,
        },
        emit_comments: false,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// Parser messages that are fixed texts are passed on; those that quote the document, or speak of the parser's
/// internals, are replaced.
fn syntax(error: serde_saphyr::Error, nodes_max: usize) -> Finding {
    let at = error.location().map_or_else(At::default, place);
    let message = error.without_snippet().to_string();
    let begins = |beginnings: &[&str]| beginnings.iter().any(|b| message.starts_with(b));
    let message = if begins(&["unsupported tag"]) {
        // Most likely a password that begins with an exclamation mark.
        "tags are not supported; write a value that begins with ! in quotes".to_owned()
    } else if begins(&["recursion limit", "budget breached: Depth"]) {
        format!("nested deeper than {DEPTH_MAX} levels")
    } else if begins(&["budget breached: Documents"]) {
        "a configuration is one document; remove the ---".to_owned()
    } else if begins(&["alias replay", "budget breached: A", "budget breached: Recorded"]) {
        "its aliases expand to more than a configuration holds".to_owned()
    } else if begins(&["budget breached"]) {
        format!("more than {nodes_max} values")
    } else {
        // The place is printed in front already.
        let end = message.find(" at line ").unwrap_or(message.len());
        message[..end].lines().next().unwrap_or_default().to_owned()
    };
    (at, String::new(), ProblemKind::Syntax(message))
}

fn place(location: Location) -> At {
    let fit = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    At { line: fit(location.line()), column: fit(location.column()) }
}

fn to_node(raw: Spanned<Raw>, path: &str, findings: &mut Vec<Finding>) -> Node {
    let at = place(raw.referenced);
    let content = match raw.value {
        Raw::Nothing => Content::Nothing,
        Raw::Scalar(kind, text) => Content::Scalar(Scalar { kind, ..Scalar::text(text) }),
        Raw::Map(entries) => Content::Map(to_entries(entries, path, findings)),
        Raw::List(items) => Content::List(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| to_node(item, &format!("{path}[{index}]"), findings))
                .collect(),
        ),
    };
    Node { at, content }
}

fn to_entries(
    entries: Vec<(Spanned<Raw>, Spanned<Raw>)>,
    path: &str,
    findings: &mut Vec<Finding>,
) -> Vec<(Key, Node)> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut kept = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let at = place(key.referenced);
        let Raw::Scalar(Kind::Text, text) = key.value else {
            findings.push((at, path.to_owned(), ProblemKind::KeyNotText));
            continue;
        };
        let here = join(path, &text);
        let value = to_node(value, &here, findings);
        if text == "<<" {
            findings.push((at, path.to_owned(), ProblemKind::MergeKey));
        } else if let Some(first) = seen.get(&text) {
            findings.push((at, here, ProblemKind::DuplicateKey { first: *first }));
        } else {
            seen.insert(text.clone(), at.line);
            kept.push((Key { at, text }, value));
        }
    }
    kept
}

/// `a` and `b` make `a.b`; a name with a dot or a space in it stands in brackets: `models["qwen2.5"]`.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '<' | '>');
    let name: String = key.chars().take(80).collect();
    match (path.is_empty(), !name.is_empty() && name.chars().all(plain)) {
        (true, true) => name,
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{name:?}]"),
    }
}

/// What the parser hands over.
enum Raw {
    Nothing,
    Scalar(Kind, String),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
    List(Vec<Spanned<Raw>>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Kind::Truth, value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Kind::Number, value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Kind::Number, value.to_string()))
    }

    /// The shortest decimal that reads back as `value`, which is what was written, up to 15 digits.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Kind::Number, value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Kind::Text, value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

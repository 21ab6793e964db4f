//! What has values below it: lists, renames, sections, and mappings and lists of sections.

use std::collections::BTreeMap;

use super::super::env::in_file;
use super::super::problem::ProblemKind;
use super::super::schema::Absent;
use super::super::tree::{Content, Node, join};
use super::{Section, Sink, read_leaf, wrong_shape};

impl<'a> Section<'a> {
    /// Several texts: `[a, b]`, or one.
    pub(in crate::config) fn texts(
        &self,
        key: &'static str,
        meaning: &'static str,
    ) -> Option<Vec<String>> {
        self.describe_as(key, "a list like [a, b]", Absent::Meaning(meaning), false, None);
        self.read_texts(key)
    }

    fn read_texts(&self, key: &'static str) -> Option<Vec<String>> {
        let node = self.node(key)?;
        let path = self.path_of(key);
        let items = match &node.content {
            Content::List(items) => items.as_slice(),
            Content::Scalar(_) => std::slice::from_ref(node),
            Content::Nothing | Content::Unknown | Content::Map(_) => {
                wrong_shape(self.sink, node, &path, "a list like [a, b]");
                return None;
            }
        };
        let texts: Vec<String> = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                read_leaf::<String>(self.sink, item, &format!("{path}[{index}]"), &mut |_| None)
            })
            .map(|(text, _)| text)
            .collect();
        self.record(
            path,
            format!("[{}]", texts.join(", ")),
            in_file(&self.sink.file, node.at, &[]),
        );
        Some(texts)
    }

    /// Names and what each stands for: `{ours: theirs}`, or `[same]`, or (from the environment) `a,b`.
    pub(in crate::config) fn renames(
        &self,
        key: &'static str,
        meaning: &'static str,
    ) -> Option<BTreeMap<String, String>> {
        let expected = "a list like [a, b], or a mapping like {ours: theirs}";
        self.describe_as(key, expected, Absent::Meaning(meaning), false, None);
        let path = self.path_of(key);
        if let Some((origin, scalar)) = self.sink.overrides.get(&path) {
            self.asked.borrow_mut().push(key);
            let names = scalar.text.split(',').map(str::trim).filter(|name| !name.is_empty());
            let names: BTreeMap<_, _> = names.map(|n| (n.to_owned(), n.to_owned())).collect();
            self.record(path, show_renames(&names), origin.clone());
            return Some(names);
        }
        let mapping = self.entries.iter().find(|(given, _)| given.text == key);
        let Some((_, Node { at, content: Content::Map(entries) })) = mapping else {
            let texts = self.read_texts(key)?;
            return Some(texts.into_iter().map(|name| (name.clone(), name)).collect());
        };
        self.asked.borrow_mut().push(key);
        let mut names = BTreeMap::new();
        for (ours, theirs) in entries {
            let here = join(&path, &ours.text);
            let theirs = read_leaf::<String>(self.sink, theirs, &here, &mut |_| None);
            names.extend(theirs.map(|(theirs, _)| (ours.text.clone(), theirs)));
        }
        self.record(path, show_renames(&names), in_file(&self.sink.file, *at, &[]));
        Some(names)
    }

    /// A section below this one; absent, it is all defaults.
    pub(in crate::config) fn section<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'a>) -> T,
    ) -> T {
        let node = self.node(key);
        Self::visit(self.sink, self.path_of(key), node, read)
    }

    /// A section that is there or not.
    pub(in crate::config) fn maybe_section<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'a>) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key);
        let path = self.path_of(key);
        let written = node.is_some_and(|node| !matches!(node.content, Content::Nothing));
        let given = written || !self.sink.overrides.names_under(&path).is_empty();
        (given || self.sink.describing).then(|| Self::visit(self.sink, path, node, read)).flatten()
    }

    /// A mapping from names of the user's choice to sections.
    pub(in crate::config) fn named<T>(
        &self,
        key: &'static str,
        most: usize,
        read: impl Fn(&str, &Section<'a>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let (path, node) = (self.path_of(key), self.node(key));
        let mut items: Vec<(String, Option<&Node>)> = Vec::new();
        match node.map(|node| (node, &node.content)) {
            Some((_, Content::Map(entries))) => {
                items.extend(entries.iter().map(|(name, node)| (name.text.clone(), Some(node))));
            }
            Some((node, Content::Scalar(_) | Content::List(_))) => {
                wrong_shape(self.sink, node, &path, "a mapping of names to settings");
            }
            Some((_, Content::Nothing | Content::Unknown)) | None => {}
        }
        for name in self.sink.overrides.names_under(&path) {
            if !items.iter().any(|(known, _)| *known == name) {
                items.push((name, None));
            }
        }
        if self.sink.describing {
            items.push(("<name>".to_owned(), None));
        }
        self.limit(key, items.len(), most);
        items
            .into_iter()
            .take(most)
            .filter_map(|(name, node)| {
                let here = join(&path, &name);
                check_name(self.sink, &name, &here, node);
                let value = Self::visit(self.sink, here, node, |section| read(&name, section))?;
                Some((name, value))
            })
            .collect()
    }

    /// A list of sections.
    pub(in crate::config) fn list<T>(
        &self,
        key: &'static str,
        most: usize,
        read: impl Fn(&Section<'a>) -> Option<T>,
    ) -> Vec<T> {
        let (path, node) = (self.path_of(key), self.node(key));
        let items: &[Node] = match node.map(|node| (node, &node.content)) {
            Some((_, Content::List(items))) => items,
            Some((node, Content::Scalar(_) | Content::Map(_))) => {
                wrong_shape(self.sink, node, &path, "a list, each entry after a dash");
                &[]
            }
            Some((_, Content::Nothing | Content::Unknown)) | None => &[],
        };
        self.limit(key, items.len(), most);
        if self.sink.describing {
            let none = Self::visit(self.sink, format!("{path}[]"), None, |section| read(section));
            return none.into_iter().collect();
        }
        let numbered = items.iter().take(most).enumerate();
        numbered
            .filter_map(|(index, item)| {
                let here = format!("{path}[{index}]");
                Self::visit(self.sink, here, Some(item), |section| read(section))
            })
            .collect()
    }

    fn limit(&self, key: &str, found: usize, most: usize) {
        if found > most {
            self.problem(key, ProblemKind::TooMany { found, most });
        }
    }
}

fn show_renames(names: &BTreeMap<String, String>) -> String {
    let shown =
        names.iter().map(
            |(ours, theirs)| {
                if ours == theirs { ours.clone() } else { format!("{ours}: {theirs}") }
            },
        );
    format!("[{}]", shown.collect::<Vec<_>>().join(", "))
}

/// Names of models, providers, tenants, users: no longer than a header line carries, and without a slash in front of
/// what they are joined to (see `keys`), which the tenants look after.
fn check_name(sink: &Sink, name: &str, path: &str, node: Option<&Node>) {
    const NAME_MAX: usize = 200;
    if name.trim().is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
        let at = node.map(|node| node.at).unwrap_or_default();
        let reason = format!("a name is 1 to {NAME_MAX} bytes without control characters");
        sink.problem(in_file(&sink.file, at, &[]), path.to_owned(), ProblemKind::Invalid(reason));
    }
}

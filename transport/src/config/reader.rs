//! Walks the tree and takes from it what the schema asks for.
//!
//! There is one description of the schema: the `read` functions of the sections, which ask a [`Section`] for each key with
//! its type, default and bounds. Run over a document, they give the configuration, every problem in it and the
//! origin of every value; run in describing mode, over nothing, they list the keys, and the tests hold the documents against
//! that list. Separate tables for parsing, printing and documentation were rejected: they drift.
//!
//! A key that was not asked for is unknown. A value that is wrong is reported and replaced by its default, so that the
//! rest is still checked; nothing of it is used, since one problem refuses the whole.

mod nested;

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use super::Role;
use super::effective::{Effective, Entry};
use super::env::{Overrides, in_file};
use super::problem::{At, Origin, Problem, ProblemKind, nearest};
use super::schema::{Absent, SchemaKey};
use super::tree::{Content, Finding, Key, Node, Scalar, join};
use super::value::{Value, found, like_a_secret};

/// What is gathered on the walk.
pub(super) struct Sink {
    pub file: Arc<str>,
    overrides: Overrides,
    describing: bool,
    gathered: RefCell<Gathered>,
}

/// The walk's yield beside the configuration.
#[derive(Default)]
pub(super) struct Gathered {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub effective: Effective,
    pub schema: Vec<SchemaKey>,
    /// Files that values were read from.
    pub files: Vec<PathBuf>,
}

impl Sink {
    pub(super) fn new(file: Arc<str>, overrides: Overrides) -> Self {
        let gathered = Gathered { warnings: overrides.warnings.clone(), ..Gathered::default() };
        Self { file, overrides, describing: false, gathered: RefCell::new(gathered) }
    }

    /// A sink that lists keys.
    pub(super) fn describing() -> Self {
        Self { describing: true, ..Self::new("".into(), Overrides::default()) }
    }

    pub(super) fn into_gathered(self) -> Gathered {
        self.gathered.into_inner()
    }

    pub(super) fn problem(&self, origin: Origin, path: String, kind: ProblemKind) {
        self.gathered.borrow_mut().problems.push(Problem { origin, path, kind });
    }

    pub(super) fn findings(&self, findings: Vec<Finding>) {
        for (at, path, kind) in findings {
            self.problem(in_file(&self.file, at, &[]), path, kind);
        }
    }

    fn warn(&self, origin: Origin, path: String, kind: ProblemKind) {
        self.gathered.borrow_mut().warnings.push(Problem { origin, path, kind });
    }
}

/// One mapping of the document, or the place where it would be.
pub(super) struct Section<'a> {
    sink: &'a Sink,
    path: String,
    at: At,
    present: bool,
    entries: &'a [(Key, Node)],
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// Reads the whole document.
    pub(super) fn root<T>(
        sink: &'a Sink,
        node: Option<&'a Node>,
        read: impl FnOnce(&Section<'a>) -> T,
    ) -> T {
        Self::visit(sink, String::new(), node, read)
    }

    fn visit<T>(
        sink: &'a Sink,
        path: String,
        node: Option<&'a Node>,
        read: impl FnOnce(&Section<'a>) -> T,
    ) -> T {
        let entries: &[(Key, Node)] = match node.map(|node| &node.content) {
            Some(Content::Map(entries)) => entries,
            Some(Content::Nothing | Content::Unknown) | None => &[],
            Some(Content::Scalar(_) | Content::List(_)) => {
                let node = node.expect("it was matched as present");
                wrong_shape(sink, node, &path, "a mapping of keys to values");
                &[]
            }
        };
        let at = node.map(|node| node.at).unwrap_or_default();
        let present =
            node.is_some_and(|node| matches!(node.content, Content::Map(_) | Content::Nothing));
        let section = Self { sink, path, at, present, entries, asked: RefCell::default() };
        let value = read(&section);
        section.refuse_unknown();
        value
    }

    fn refuse_unknown(&self) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries.iter().filter(|(key, _)| !asked.contains(&key.text.as_str())) {
            let suggestion = nearest(&key.text, asked.iter().copied());
            let origin = in_file(&self.sink.file, key.at, &[]);
            let name = if like_a_secret(&key.text) { "..." } else { &key.text };
            let kind = ProblemKind::UnknownKey { suggestion };
            self.sink.problem(origin, join(&self.path, name), kind);
        }
    }

    fn node(&self, key: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().push(key);
        self.entries.iter().find(|(given, _)| given.text == key).map(|(_, node)| node)
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Whether the file or an override says anything under `key`.
    pub(super) fn gives(&self, key: &str) -> bool {
        self.entries.iter().any(|(given, _)| given.text == key)
            || self.sink.overrides.get(&self.path_of(key)).is_some()
    }

    /// Reports something about `key`, or about the section where `key` is empty.
    pub(super) fn problem(&self, key: &str, kind: ProblemKind) {
        if self.sink.describing {
            return;
        }
        let path = if key.is_empty() { self.path.clone() } else { self.path_of(key) };
        self.sink.problem(self.origin(key), path, kind);
    }

    /// Reports something about a key further down, or about the nearest section above it that is there.
    pub(super) fn problem_of(&self, keys: &[&str], kind: ProblemKind) {
        let (origin, path, _) = self.place_of(keys);
        self.problem_from(origin, &path, kind);
    }

    /// Where a key further down was said, its path, and whether it is there.
    fn place_of(&self, keys: &[&str]) -> (Origin, String, bool) {
        let (mut at, mut entries, mut path) = (self.at, self.entries, self.path.clone());
        let mut found = true;
        for key in keys {
            path = join(&path, key);
            let Some((key, node)) = entries.iter().find(|(given, _)| given.text == *key) else {
                (entries, found) = (&[], false);
                continue;
            };
            at = key.at;
            entries = match &node.content {
                Content::Map(entries) => entries,
                Content::Nothing | Content::Unknown | Content::Scalar(_) | Content::List(_) => &[],
            };
        }
        (in_file(&self.sink.file, at, &[]), path, found)
    }

    /// Reports something that another place said.
    pub(super) fn problem_from(&self, origin: Origin, path: &str, kind: ProblemKind) {
        if !self.sink.describing {
            self.sink.problem(origin, path.to_owned(), kind);
        }
    }

    /// What `--upstream` said.
    pub(super) fn role(&self) -> Role {
        self.sink.overrides.role
    }

    /// Whether a process that runs reads a file that has changed.
    pub(super) fn is_running(&self) -> bool {
        self.sink.overrides.running
    }

    pub(super) fn upstream_flags(&self) -> &'a [String] {
        &self.sink.overrides.upstreams
    }

    /// Whether there is such a section, or all keys are listed.
    pub(super) fn is_present(&self) -> bool {
        self.present || self.sink.describing
    }

    /// Says that the value in force under `path` is that of `other`.
    pub(super) fn same_as(&self, path: &str, other: &str) {
        let effective = &mut self.sink.gathered.borrow_mut().effective;
        let Some(said) = effective.get(other).cloned() else {
            return;
        };
        if let Some(entry) = effective.entries.iter_mut().find(|entry| entry.path == path) {
            *entry = Entry { path: path.to_owned(), ..said };
        }
    }

    /// Says so when `key` is given: it does nothing in this build.
    pub(super) fn warn_idle(&self, key: &str, why: &'static str) {
        if self.gives(key) {
            let kind = ProblemKind::NoEffect(why);
            self.sink.warn(self.origin(key), self.path_of(key), kind);
        }
    }

    /// Warns about a value that is odd.
    pub(super) fn warn(&self, key: &str, text: String) {
        if !self.sink.describing {
            self.sink.warn(self.origin(key), self.path_of(key), ProblemKind::Invalid(text));
        }
    }

    /// As [`warn`](Self::warn), of a key further down, where the file gives it.
    pub(super) fn warn_of(&self, keys: &[&str], text: String) {
        let (origin, path, found) = self.place_of(keys);
        if found && !self.sink.describing {
            self.sink.warn(origin, path, ProblemKind::Invalid(text));
        }
    }

    /// Where `key` was said; else where its section begins.
    pub(super) fn origin(&self, key: &str) -> Origin {
        if let Some((origin, _)) = self.sink.overrides.get(&self.path_of(key)) {
            return origin.clone();
        }
        let entry = self.entries.iter().find(|(given, _)| given.text == key);
        let at = entry.map_or(self.at, |(key, _)| key.at);
        in_file(&self.sink.file, at, &[])
    }

    /// The value of a key, or its default.
    pub(super) fn get<T: Value>(&self, key: &'static str, default: T) -> T {
        self.describe::<T>(key, Absent::Default(default.show()), None);
        self.leaf(key, &mut |_: &T| None).unwrap_or_else(|| self.default(key, default))
    }

    /// The same, within bounds.
    pub(super) fn between<T: Value + PartialOrd>(
        &self,
        key: &'static str,
        default: T,
        bounds: RangeInclusive<T>,
    ) -> T {
        self.describe::<T>(key, Absent::Default(default.show()), Some(&bounds));
        let given = self.leaf(key, &mut |value: &T| beyond(value, &bounds));
        given.unwrap_or_else(|| self.default(key, default))
    }

    /// A key that may be absent; `meaning` says what that means.
    pub(super) fn maybe<T: Value>(&self, key: &'static str, meaning: &'static str) -> Option<T> {
        self.describe::<T>(key, Absent::Meaning(meaning), None);
        self.leaf(key, &mut |_: &T| None)
    }

    /// The same, within bounds.
    pub(super) fn maybe_between<T: Value + PartialOrd>(
        &self,
        key: &'static str,
        meaning: &'static str,
        bounds: RangeInclusive<T>,
    ) -> Option<T> {
        self.describe::<T>(key, Absent::Meaning(meaning), Some(&bounds));
        self.leaf(key, &mut |value: &T| beyond(value, &bounds))
    }

    /// A key that must be given. `None` is a problem that was reported.
    pub(super) fn required<T: Value>(&self, key: &'static str) -> Option<T> {
        self.describe::<T>(key, Absent::Required, None);
        if !self.gives(key) {
            self.problem(key, ProblemKind::Missing { expected: T::expected() });
        }
        self.leaf(key, &mut |_: &T| None)
    }

    fn leaf<T: Value>(
        &self,
        key: &'static str,
        check: &mut dyn FnMut(&T) -> Option<(String, String)>,
    ) -> Option<T> {
        let path = self.path_of(key);
        // What the file says is checked even where something stronger replaces it: the file should be right as it is.
        let node = self.node(key);
        if let Some(Content::Scalar(scalar)) = node.map(|node| &node.content) {
            self.note_file::<T>(scalar);
        }
        let given = node.and_then(|node| read_leaf(self.sink, node, &path, check));
        let replaced = self.sink.overrides.get(&path);
        let (value, origin) = match replaced {
            Some((origin, scalar)) => {
                self.note_file::<T>(scalar);
                let value = accept(scalar, check);
                let value = value.map_err(|kind| {
                    self.sink.problem(origin.clone(), path.clone(), kind);
                });
                (value.ok()?, origin.clone())
            }
            None => given?,
        };
        self.record(path, value.show(), origin);
        Some(value)
    }

    fn default<T: Value>(&self, key: &str, default: T) -> T {
        self.record(self.path_of(key), default.show(), Origin::Default);
        default
    }

    fn record(&self, path: String, value: String, origin: Origin) {
        if !self.sink.describing {
            let entry = Entry { path, value, origin };
            self.sink.gathered.borrow_mut().effective.entries.push(entry);
        }
    }

    /// Notes the file that a secret is in, whether it can be read or not: it may be, the next time.
    fn note_file<T: Value>(&self, scalar: &Scalar) {
        if let Some(file) = scalar.text.strip_prefix("file:").filter(|_| T::SECRET) {
            self.sink.gathered.borrow_mut().files.push(file.into());
        }
    }

    fn describe<T: Value>(
        &self,
        key: &'static str,
        absent: Absent,
        bounds: Option<&RangeInclusive<T>>,
    ) {
        let bounds = bounds.map(|bounds| (bounds.start().show(), bounds.end().show()));
        self.describe_as(key, &T::expected(), absent, T::SECRET, bounds);
    }

    fn describe_as(
        &self,
        key: &str,
        expected: &str,
        absent: Absent,
        secret: bool,
        bounds: Option<(String, String)>,
    ) {
        if self.sink.describing {
            let (path, expected) = (self.path_of(key), expected.to_owned());
            let described = SchemaKey { path, expected, absent, bounds, secret };
            self.sink.gathered.borrow_mut().schema.push(described);
        }
    }
}

fn beyond<T: Value + PartialOrd>(
    value: &T,
    bounds: &RangeInclusive<T>,
) -> Option<(String, String)> {
    (!bounds.contains(value)).then(|| (bounds.start().show(), bounds.end().show()))
}

type Check<'c, T> = &'c mut dyn FnMut(&T) -> Option<(String, String)>;

fn accept<T: Value>(scalar: &Scalar, check: Check<'_, T>) -> Result<T, ProblemKind> {
    let value = T::read(scalar).map_err(|wrong| wrong.into_kind::<T>(scalar))?;
    match check(&value) {
        Some((low, high)) => {
            Err(ProblemKind::OutOfRange { found: found(scalar, T::SECRET), low, high })
        }
        None => Ok(value),
    }
}

fn read_leaf<T: Value>(
    sink: &Sink,
    node: &Node,
    path: &str,
    check: Check<'_, T>,
) -> Option<(T, Origin)> {
    let Content::Scalar(scalar) = &node.content else {
        wrong_shape(sink, node, path, &T::expected());
        return None;
    };
    let origin = in_file(&sink.file, node.at, &scalar.variables);
    match accept(scalar, check) {
        Ok(value) => Some((value, origin)),
        Err(kind) => {
            sink.problem(origin, path.to_owned(), kind);
            None
        }
    }
}

fn wrong_shape(sink: &Sink, node: &Node, path: &str, expected: &str) {
    let found = match &node.content {
        Content::Unknown => return,
        Content::Nothing => "nothing".to_owned(),
        // Not quoted: a secret that was put one level too high is one.
        Content::Scalar(_) => "a single value".to_owned(),
        Content::Map(_) => "a mapping".to_owned(),
        Content::List(_) => "a list".to_owned(),
    };
    let kind = ProblemKind::WrongType { expected: expected.to_owned(), found };
    sink.problem(in_file(&sink.file, node.at, &[]), path.to_owned(), kind);
}

//! The example and the book say what the code does: every key, every default, every bound.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const EXAMPLE: &str = include_str!("../../../../deploy/pointsman.example.yaml");
const BOOK: &str = include_str!("../../../../docs/configuration.md");

#[test]
fn the_example_is_a_configuration_as_it_is_and_says_nothing_but_defaults() {
    let loaded = parsed(EXAMPLE, &[]).unwrap();
    assert_eq!(loaded.config, load(None, &Flags::default(), &Env::default()).unwrap().config);
    assert_eq!(loaded.warnings, []);
}

#[test]
fn the_example_shows_every_key() {
    let shown: BTreeSet<String> = read_example().into_keys().collect();
    let known: BTreeSet<String> = schema().into_iter().map(|key| key.path).collect();
    assert_eq!(known.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn the_defaults_that_the_example_states_are_those_of_the_code() {
    let mut shown = read_example();
    for key in schema() {
        if let Absent::Default(default) = key.absent {
            assert_eq!(shown.remove(&key.path).as_ref(), Some(&default), "{}", key.path);
        }
    }
}

#[test]
fn with_its_comments_taken_away_the_example_is_refused_for_its_database_alone() {
    let told = parsed(&uncommented(), &EXAMPLE_VARS).unwrap_err();
    let paths: Vec<&str> = told.problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["data.database"], "{told}");
}

#[test]
fn the_book_has_a_row_for_every_key_with_its_default_and_bounds_and_no_other() {
    let mut rows: BTreeMap<&str, &str> = BTreeMap::new();
    let tables = BOOK.split("## Every key").nth(1).unwrap();
    for line in tables.lines().filter(|line| line.starts_with("| `")) {
        rows.insert(line.split('`').nth(1).unwrap(), line);
    }
    for key in schema() {
        let row = rows.remove(key.path.as_str()).unwrap_or_else(|| panic!("no row: {}", key.path));
        let cells: Vec<&str> = row.split(" | ").collect();
        let bounds = key.bounds.map(|(low, high)| format!(", {low} to {high}")).unwrap_or_default();
        assert_eq!(cells[1], format!("{}{bounds}", key.expected), "{row}");
        let default = match key.absent {
            Absent::Default(default) => format!("`{default}`"),
            Absent::Meaning(meaning) => meaning.to_owned(),
            Absent::Required => "required".to_owned(),
        };
        assert_eq!(cells[2], default, "{row}");
        assert_eq!(cells[3].contains("Secret"), key.secret, "{row}");
    }
    assert_eq!(rows, BTreeMap::new(), "rows without a key");
}

#[test]
fn what_needs_a_restart_is_marked_in_the_book() {
    let marked = |path: &str| {
        let row = BOOK.lines().find(|line| line.starts_with(&format!("| `{path}")));
        row.unwrap_or_else(|| panic!("no row: {path}")).contains("*Restart.*")
    };
    let old = config("");
    let new = config(
        "server: {http: {addr: ':1', timeout: 1s, body_bytes_max: 1MiB, drain_grace: 1s, tls: {cert: a, key: b}, connections_max: 1, header_timeout: 1s}, \
         grpc: {addr: ':3', tls: {cert: a, key: b}}, quota: {addr: ':4'}, admin: {addr: ':2', socket: s}}\ndata: {dir: x, redis: {addr: 'r:1'}}\nmonitoring: {prometheus: {enabled: false}, tracing: {service_name: s}}\n\
         journal: {segment_bytes: 1MiB, segments_max: 3, fsync: always}\nlog: {level: debug, format: json}\nstreams: {grace: 1s}\nauth: {grace: 1s}",
    );
    let told = restart_required(&old, &new);
    assert_eq!(told.len(), 23, "{told:?}");
    for path in told {
        assert!(marked(&path), "{path}");
    }
    assert!(!marked("routing.max_retries") && !marked("tenants.<name>.daily_tokens"));
}

const EXAMPLE_VARS: [(&str, &str); 5] = [
    ("OPENAI_API_KEY", "a"),
    ("QWEN_KEY", "b"),
    ("DATABASE_URL", "c"),
    ("REDIS_SECRET", "d"),
    ("CONSUL_TOKEN", "e"),
];

/// The example with its examples in force. Prose has one space after its `#`.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => rest.to_owned(),
        Some(_) | None => line.to_owned(),
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Every key of the example with its value, as the schema names it.
fn read_example() -> BTreeMap<String, String> {
    let (node, findings) = to_tree(uncommented().as_bytes()).unwrap();
    assert_eq!(findings, []);
    let mut node = node;
    let env: Env = EXAMPLE_VARS.into_iter().collect();
    expand::expand(&mut node, &env, "", &mut Vec::new());
    let sink = Sink::new("example".into(), env::Overrides::default());
    Section::root(&sink, Some(&node), read);
    let entries = sink.into_gathered().effective.entries;
    let given = entries.into_iter().filter(|entry| entry.origin != Origin::Default);
    given.map(|entry| (general(&entry.path), entry.value)).collect()
}

/// `models.qwen.endpoints[0].url` is `models.<name>.endpoints[].url`.
fn general(path: &str) -> String {
    let mut names = false;
    let parts = path.split('.').map(|part| {
        let part = part.split_once('[').map_or(part.to_owned(), |(list, _)| format!("{list}[]"));
        let named = std::mem::replace(
            &mut names,
            ["providers", "models", "tenants", "users"].contains(&part.as_str()),
        );
        if named { "<name>".to_owned() } else { part }
    });
    parts.collect::<Vec<_>>().join(".")
}

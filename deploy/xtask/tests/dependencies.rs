//! The dependency policy: licences, duplicates, banned crates, and where packages come from.
//!
//! The lists stand in `deny.toml`, in the form `cargo-deny` reads, so that whoever has that tool and whoever has only
//! this test are told the same. The facts come from `cargo metadata` over the whole workspace, all platforms.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cargo_metadata::{Metadata, MetadataCommand};

/// Two versions of one of these cannot talk to each other (a `Request` of one is none to the other) or would do a
/// dangerous job twice: they are never skipped, whatever `deny.toml` says.
const ONE_VERSION: [&str; 18] = [
    "axum",
    "bytes",
    "h2",
    "http",
    "http-body",
    "hyper",
    "hyper-util",
    "prost",
    "quinn",
    "ring",
    "rustls",
    "rustls-webpki",
    "serde",
    "tokio",
    "tokio-rustls",
    "tonic",
    "tower",
    "tracing",
];

/// Crates this project stands on: TLS is rustls on ring, and nothing else.
const REQUIRED: [&str; 2] = ["ring", "rustls"];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// A package, as far as the policy asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[test]
fn every_licence_is_on_the_list() {
    assert_eq!(unlicensed(&packages(), &Policy::read()), Vec::<String>::new());
}

#[test]
fn no_banned_crate_is_used_and_no_needed_one_missing() {
    assert_eq!(banned(&packages(), &Policy::read()), Vec::<String>::new());
}

#[test]
fn no_crate_is_there_twice_without_a_reason() {
    assert_eq!(duplicates(&packages(), &Policy::read()), Vec::<String>::new());
}

#[test]
fn every_package_is_ours_or_from_the_public_index() {
    assert_eq!(strangers(&packages()), Vec::<String>::new());
    assert_eq!(foreign_hosts(&file("Cargo.lock")), Vec::<String>::new());
}

#[test]
fn a_planted_licence_is_refused() {
    let policy = Policy::of("[licenses]\nallow = [\n    \"MIT\",\n    \"ISC\",\n]\n");
    for fine in ["MIT", "GPL-3.0 OR MIT", "(GPL-3.0/MIT) AND ISC", "MIT AND (ISC OR GPL-3.0)"] {
        assert_eq!(unlicensed(&[package("a", "1", Some(fine))], &policy), Vec::<String>::new());
    }
    for wrong in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH exception", "", "(MIT", "MIT ISC"] {
        assert_eq!(unlicensed(&[package("a", "1", Some(wrong))], &policy).len(), 1, "{wrong:?}");
    }
    assert_eq!(unlicensed(&[package("a", "1", None)], &policy).len(), 1);
}

#[test]
fn a_planted_ban_and_a_missing_need_are_named() {
    let policy = Policy::of(
        "[bans]\ndeny = [\n    { crate = \"openssl\", reason = \"rustls\" },\n    \
         # a remark\n    { crate = \"quiet\" },\n]\n",
    );
    let found = banned(&[package("openssl", "1", None), package("ring", "1", None)], &policy);
    let expected = [
        "deny.toml: `quiet` has no reason",
        "openssl 1 is banned: rustls",
        "`rustls` is needed and missing",
    ];
    assert_eq!(found, expected);
}

#[test]
fn planted_duplicates_need_a_reason_each_and_stale_reasons_go() {
    let policy = Policy::of(
        "[bans]\nskip = [\n    { crate = \"old@1.0.0\", reason = \"sled\" },\n    \
         { crate = \"gone@1.0.0\", reason = \"was\" },\n    \
         { crate = \"http@0.2.0\", reason = \"no\" },\n]\n",
    );
    let mut there = Vec::new();
    for (name, versions) in [
        ("old", &["1.0.0", "2.0.0"][..]),
        ("new", &["1.0.0", "2.0.0"]),
        ("http", &["0.2.0", "1.0.0"]),
        ("once", &["1.0.0"]),
    ] {
        there.extend(versions.iter().map(|version| package(name, version, None)));
    }
    let expected = [
        "http must have one version, has 0.2.0, 1.0.0",
        "new has 1.0.0, 2.0.0: agree on one, or skip one in deny.toml with its reason",
        "deny.toml skips gone@1.0.0, which is not used twice: take it out",
    ];
    assert_eq!(duplicates(&there, &policy), expected);
}

#[test]
fn a_planted_registry_is_named() {
    let mut elsewhere = package("a", "1", None);
    elsewhere.source = Some("git+https://example.org/a".to_owned());
    assert_eq!(strangers(&[elsewhere]), ["a 1 comes from git+https://example.org/a"]);
    let lock = format!("source = \"{CRATES_IO}\"\nsource = \"registry+https://example.org/\"\n");
    assert_eq!(foreign_hosts(&lock), ["Cargo.lock:2: source = \"registry+https://example.org/\""]);
}

fn unlicensed(packages: &[Package], policy: &Policy) -> Vec<String> {
    let refused = packages.iter().filter(|package| {
        let license = package.license.as_deref();
        !license.is_some_and(|expression| satisfied(expression, &policy.licenses))
    });
    refused
        .map(|package| {
            let license = package.license.as_deref().unwrap_or("none named");
            format!("{} {}: the licence ({license}) is not allowed", package.name, package.version)
        })
        .collect()
}

fn banned(packages: &[Package], policy: &Policy) -> Vec<String> {
    let unargued = policy.denied.iter().chain(&policy.skipped).filter(|(_, why)| why.is_empty());
    let mut found: Vec<String> =
        unargued.map(|(name, _)| format!("deny.toml: `{name}` has no reason")).collect();
    for package in packages {
        if let Some(why) = policy.denied.get(&package.name) {
            found.push(format!("{} {} is banned: {why}", package.name, package.version));
        }
    }
    let missing =
        REQUIRED.iter().filter(|needed| packages.iter().all(|package| package.name != **needed));
    found.extend(missing.map(|needed| format!("`{needed}` is needed and missing")));
    found
}

fn duplicates(packages: &[Package], policy: &Policy) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let mut found = Vec::new();
    for (name, versions) in &versions {
        let all = versions.iter().copied().collect::<Vec<_>>().join(", ");
        let counted = versions
            .iter()
            .filter(|version| !policy.skipped.contains_key(&format!("{name}@{version}")));
        if ONE_VERSION.contains(name) {
            found.push(format!("{name} must have one version, has {all}"));
        } else if counted.count() > 1 {
            let advice = "agree on one, or skip one in deny.toml with its reason";
            found.push(format!("{name} has {all}: {advice}"));
        }
    }
    let stale = policy.skipped.keys().filter(|skipped| {
        let (name, version) = skipped.split_once('@').unwrap_or((skipped, ""));
        !versions.get(name).is_some_and(|versions| versions.contains(version))
    });
    let advice = "which is not used twice: take it out";
    found.extend(stale.map(|skipped| format!("deny.toml skips {skipped}, {advice}")));
    found
}

fn strangers(packages: &[Package]) -> Vec<String> {
    let foreign = packages.iter().filter_map(|package| {
        let source = package.source.as_deref().filter(|source| *source != CRATES_IO)?;
        Some(format!("{} {} comes from {source}", package.name, package.version))
    });
    foreign.collect()
}

fn foreign_hosts(lock: &str) -> Vec<String> {
    let lines = lock.lines().enumerate();
    let foreign = lines.filter(|(_, line)| line.replace(CRATES_IO, "").contains("://"));
    foreign.map(|(at, line)| format!("Cargo.lock:{}: {line}", at + 1)).collect()
}

/// What `deny.toml` says.
struct Policy {
    licenses: BTreeSet<String>,
    /// Crate to reason.
    denied: BTreeMap<String, String>,
    /// `crate@version` to reason.
    skipped: BTreeMap<String, String>,
}

impl Policy {
    fn read() -> Self {
        Self::of(&file("deny.toml"))
    }

    /// Reads the plain form ours is written in: a list opens at the end of a line and has one entry on each.
    fn of(text: &str) -> Self {
        let argued = |list: &str| {
            let entries = entries(text, list).into_iter();
            let argued = entries.map(|line| {
                let mut strings = line.split('"').skip(1).step_by(2).map(str::to_owned);
                (strings.next().unwrap_or_default(), strings.next().unwrap_or_default())
            });
            argued.collect()
        };
        let licenses = entries(text, "[licenses] allow").into_iter();
        Self {
            licenses: licenses
                .filter_map(|line| Some(line.split('"').nth(1)?.to_owned()))
                .collect(),
            denied: argued("[bans] deny"),
            skipped: argued("[bans] skip"),
        }
    }
}

/// The entries of the list called `[section] key`.
fn entries<'a>(text: &'a str, wanted: &str) -> Vec<&'a str> {
    let (mut section, mut list) = (String::new(), None);
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some(key) = line.strip_suffix("= [") {
            list = Some(format!("{section} {}", key.trim()));
        } else if line == "]" {
            list = None;
        } else if list.as_deref() == Some(wanted) && line.contains('"') && !line.starts_with('#') {
            found.push(line);
        }
    }
    found
}

/// Whether the SPDX expression can be met from `allowed`. `/` is the old spelling of `OR`; `AND` binds tighter.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = all(rest, allowed)?;
    while let ["OR", tail @ ..] = *rest {
        *rest = tail;
        met |= all(rest, allowed)?;
    }
    Some(met)
}

fn all(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = one(rest, allowed)?;
    while let ["AND", tail @ ..] = *rest {
        *rest = tail;
        met &= one(rest, allowed)?;
    }
    Some(met)
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    if *first == "(" {
        let met = any(rest, allowed)?;
        let (close, tail) = rest.split_first()?;
        *rest = tail;
        return (*close == ")").then_some(met);
    }
    if let ["WITH", exception, tail @ ..] = *rest {
        let met = allowed.contains(&format!("{first} WITH {exception}"));
        *rest = tail;
        return Some(met);
    }
    Some(allowed.contains(*first))
}

fn packages() -> Vec<Package> {
    let manifest = root().join("Cargo.toml");
    let mut command = MetadataCommand::new();
    let metadata: Metadata = command
        .manifest_path(manifest)
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo metadata describes this workspace, and Cargo.lock is up to date");
    let packages = metadata.packages.into_iter().map(|package| Package {
        name: package.name.to_string(),
        version: package.version.to_string(),
        license: package.license,
        source: package.source.map(|source| source.repr),
    });
    packages.collect()
}

fn package(name: &str, version: &str, license: Option<&str>) -> Package {
    let license = license.map(str::to_owned);
    Package { name: name.to_owned(), version: version.to_owned(), license, source: None }
}

fn file(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("the file stands at the repository's root")
}

/// Asked for at run time: clones that share a target directory share this executable.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo test says where we are");
    PathBuf::from(package).join("../..")
}

//! Tests of keys and ids.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::config::{Config, Env, Flags, parse};

fn config(hash: &KeyHash) -> Config {
    let text = format!(
        "version: 1\ntenants: {{acme: {{users: {{bob: {{}}}}}}}}\nkeys:\n  \
         - {{hash: '{hash}', tenant: acme, user: ada, name: laptop, models: [m]}}\n"
    );
    match parse("p.yaml", text.as_bytes(), &Flags::default(), &Env::default()) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("{errors}"),
    }
}

#[test]
fn a_key_has_a_prefix_43_letters_and_a_checksum() {
    let key = Key::from_bytes([0; 32]);
    assert_eq!(&key.expose()[..46], format!("pm-{}", "0".repeat(43)));
    let key = Key::from_bytes([0xff; 32]);
    assert_eq!(key.expose().len(), 3 + 43 + 6);
    assert!(Key::is_well_formed(key.expose()));
    assert_eq!(format!("{key:?}"), "Key(..)");
}

#[test]
fn base62_is_positional_notation() {
    assert_eq!(base62(&[0], 2), "00");
    assert_eq!(base62(&[61], 2), "0z");
    assert_eq!(base62(&[62], 2), "10");
    let digits: Vec<usize> = base62(&[0xff; 4], 6)
        .bytes()
        .map(|digit| LETTERS.iter().position(|letter| *letter == digit).unwrap())
        .collect();
    let value = digits.iter().fold(0_u64, |value, digit| value * 62 + *digit as u64);
    assert_eq!(value, u64::from(u32::MAX), "{digits:?}");
}

#[test]
fn new_keys_differ_and_are_well_formed() {
    let keys: BTreeSet<String> =
        (0..100).map(|_| generate().unwrap().0.expose().to_owned()).collect();
    assert_eq!(keys.len(), 100);
    assert!(keys.iter().all(|key| Key::is_well_formed(key)));
}

#[test]
fn a_hash_is_the_sha256_of_the_key_and_reads_back() {
    let hash = KeyHash::of("abc");
    let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hash.to_string(), known);
    assert_eq!(known.parse(), Ok(hash));
    assert_eq!(known.to_uppercase().replace("SHA256", "sha256").parse(), Ok(hash));
    for text in ["", "sha256:", &known[7..], &known[..70], "sha256:zz", &known.replace('b', "é")] {
        assert_eq!(text.parse::<KeyHash>(), Err(KeyHashError), "{text}");
    }
}

#[test]
fn a_key_is_let_in_by_its_hash_and_a_mistyped_one_is_told_from_a_revoked_one() {
    let (key, hash) = generate().unwrap();
    let ids = AccountIds::new([7; 32]);
    let ring = KeyRing::new(&config(&hash).keys, &ids);
    assert_eq!((ring.len(), ring.is_empty()), (1, false));
    let identity = ring.lookup(key.expose()).unwrap();
    assert_eq!(identity.tenant, "acme");
    assert_eq!(identity.principal, ids.principal("acme", Some("ada"), Some("laptop")));
    assert!(identity.may_call("m") && !identity.may_call("n"));
    let other = generate().unwrap().0;
    assert_eq!(ring.lookup(other.expose()), Err(Refused::Unknown));
    assert_eq!(ring.lookup("sk-of-somebody-else"), Err(Refused::Unknown));
    assert_eq!(ring.lookup(""), Err(Refused::Unknown));
    assert_eq!(ring.lookup(&key.expose()[..51]), Err(Refused::Mistyped));
    let swapped = key.expose().replace(&key.expose()[..4], "pm-~");
    assert_eq!(ring.lookup(&swapped), Err(Refused::Mistyped));
}

#[test]
fn ids_depend_on_the_salt_the_kind_and_the_name() {
    let (ids, others) = (AccountIds::new([1; 32]), AccountIds::new([2; 32]));
    assert_eq!(ids.tenant("a"), ids.clone().tenant("a"));
    assert_ne!(ids.tenant("a"), others.tenant("a"));
    let all =
        [ids.tenant("a"), ids.tenant("b"), ids.key("a"), ids.user("a", "a"), ids.user("a", "b")];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_ne!(ids.session("a", "s"), ids.session("b", "s"), "a session is its tenant's");
    assert_ne!(ids.session("a", "s"), ids.prefix("a", b"s"), "a prefix names no session");
    assert_ne!(ids.digest("d", &[b"ab", b"c"]), ids.digest("d", &[b"a", b"bc"]));
    assert_ne!(ids.idempotency("a", "k"), ids.idempotency("b", "k"));
    assert_ne!(ids.body(b"k"), ids.digest("other", &[b"k"]));
    assert_eq!(format!("{ids:?}"), "AccountIds(..)");
}

#[test]
fn the_salt_of_a_directory_is_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("data");
    let made = AccountIds::open(&inside).unwrap();
    assert_eq!(AccountIds::open(&inside).unwrap().tenant("a"), made.tenant("a"));
    let elsewhere = AccountIds::open(dir.path()).unwrap();
    assert_ne!(elsewhere.tenant("a"), made.tenant("a"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(inside.join("salt")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::write(inside.join("salt"), b"short").unwrap();
    assert!(matches!(AccountIds::open(&inside), Err(SaltError::Damaged(_))));
}

#[test]
fn the_names_of_the_configuration_are_known() {
    let ids = AccountIds::new([3; 32]);
    let mut names = Names::of(&config(&KeyHash::of("x")), &ids);
    assert_eq!(names.get(ids.tenant("acme")), Some("t:acme"));
    assert_eq!(names.get(ids.tenant("default")), Some("t:default"));
    assert_eq!(names.get(ids.user("acme", "ada")), Some("u:acme/ada"));
    assert_eq!(names.get(ids.user("acme", "bob")), Some("u:acme/bob"));
    assert_eq!(names.get(ids.key("laptop")), Some("k:laptop"));
    assert_eq!(names.get(ids.user("acme", "eve")), None);
    names.insert_user(&ids, "acme", "eve");
    assert_eq!(names.get(ids.user("acme", "eve")), Some("u:acme/eve"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_wrong_letter_is_noticed(bytes in any::<[u8; 32]>(), place in 3..52usize, letter in 0..62usize) {
        let key = Key::from_bytes(bytes);
        let mut wrong = key.expose().as_bytes().to_vec();
        wrong[place] = LETTERS[letter];
        let wrong = String::from_utf8(wrong).unwrap();
        prop_assert_eq!(Key::is_well_formed(&wrong), wrong == key.expose());
    }

    #[test]
    fn no_text_is_taken_for_a_key_or_makes_the_ring_panic(text in "\\PC{0,60}") {
        let _ = Key::is_well_formed(&text);
        prop_assert!(KeyRing::default().lookup(&text).is_err());
        let prefixed = ["pm-", &text].concat();
        prop_assert!(KeyRing::default().lookup(&prefixed).is_err());
    }
}

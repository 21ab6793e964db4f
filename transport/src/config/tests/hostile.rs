//! Input that nobody wrote in good faith.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Far above what the budget lets through in a debug build on a busy machine, far below a hang.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn deep_nesting_alias_bombs_and_floods_are_refused_within_a_budget() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 8].join(",");
        bomb += &format!("a{level}: &a{level} [{below}]\n");
    }
    let blocks: String = (0..500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for (what, text, told) in [
        ("brackets", "[".repeat(100_000), "nested deeper than 32 levels"),
        ("braces", "{a: ".repeat(100_000), "nested deeper than 32 levels"),
        ("blocks", blocks, "nested deeper than 32 levels"),
        ("aliases", bomb, "its aliases expand to more than a configuration holds"),
        ("documents", "---\n".repeat(1_000), "a configuration is one document; remove the ---"),
    ] {
        let started = Instant::now();
        let errors = parsed(&text, &[]).unwrap_err().to_string();
        assert!(errors.ends_with(told), "{what}: {errors}");
        assert!(started.elapsed() < PATIENCE, "{what}: {:?}", started.elapsed());
    }
}

#[test]
fn a_flood_of_values_is_cut_off() {
    let started = Instant::now();
    let flood = format!("a: [{}]", "x,".repeat(1_000_000));
    let (_, _, kind) = tree::parse_within(&flood, 5_000).unwrap_err();
    assert_eq!(kind, ProblemKind::Syntax("more than 5000 values".into()));
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[test]
fn a_file_beyond_the_largest_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    std::fs::File::create(&path).unwrap().set_len(tree::BYTES_MAX + 1).unwrap();
    let told = load(Some(&path), &Flags::default(), &Env::default()).unwrap_err().to_string();
    assert!(told.ends_with("16777217 bytes; a configuration has at most 16777216"), "{told}");
}

#[test]
fn more_entries_than_are_held_are_refused() {
    let many: String = (0..101).map(|n| format!("  p{n}: {{base_url: 'http://h'}}\n")).collect();
    assert_eq!(
        errors(&format!("providers:\n{many}")),
        "p.yaml:2:1: providers: 101 entries; at most 100"
    );
}

fn survives(text: &[u8]) {
    let flags =
        Flags { listen: Some(String::from_utf8_lossy(text).into_owned()), ..Flags::default() };
    let env = [("A", "b"), ("GATEWAY", ":x")].into_iter().collect();
    if let Err(errors) = parse("p.yaml", text, &flags, &env) {
        assert!(!errors.problems.is_empty());
        assert!(!errors.to_string().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        survives(&bytes);
    }

    #[test]
    fn no_text_of_yaml_pieces_makes_it_panic(
        pieces in proptest::collection::vec(
            prop::sample::select(vec![
                "version: 1\n", "server:\n", "  http:\n", "    addr: ", "keys:\n", "  - hash: ", "models: ", "{", "}",
                "[", "]", ", ", ": ", "\n", "  ", "- ", "&a ", "*a ", "<<: ", "!t ", "|\n", ">\n", "'", "\"", "# ", "${",
                "${A}", "$${", "}", "---\n", "...\n", "%YAML 1.2\n", "? ", "~", "0x1f", "1e999", ".nan", "-1", "99999999999999999999",
                "1h", "\t", "\u{0}", "\u{feff}", "é", "😀", "tenants: ", "upstreams: ", "url: http://[", "rules: ",
            ]),
            0..40,
        )
    ) {
        survives(pieces.concat().as_bytes());
    }

    #[test]
    fn whatever_a_duration_size_or_amount_prints_reads_back(millis in 0u64..10_000_000_000, bytes in any::<u64>(), micro in any::<u64>()) {
        use super::super::tree::Scalar;
        use super::super::value::Value;
        use control::units::MicroUsd;
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(Duration::read(&Scalar::text(duration.show())), Ok(duration));
        prop_assert_eq!(ByteSize::read(&Scalar::text(ByteSize(bytes).show())), Ok(ByteSize(bytes)));
        prop_assert_eq!(MicroUsd::read(&Scalar::text(MicroUsd(micro).show())), Ok(MicroUsd(micro)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_to_the_example_makes_it_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)
    ) {
        let mut text = include_bytes!("../../../../deploy/pointsman.example.yaml").to_vec();
        for (place, byte) in damage {
            let index = place.index(text.len());
            text[index] = byte;
        }
        survives(&text);
    }
}

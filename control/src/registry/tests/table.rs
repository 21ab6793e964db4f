//! The transition table of the module's documentation, from the registry itself.

use alloc::format;

use super::*;

#[test]
fn every_standing_answers_every_word_of_its_source_as_the_table_says() {
    let expected = "\
unlisted | listed                 | listed
unlisted | left out, others serve | unlisted
unlisted | left out, the last     | unlisted
unlisted | nobody                 | unlisted
unlisted | dark                   | unlisted
unlisted | older answer           | unlisted
unlisted | prune                  | unlisted
listed   | listed                 | listed
listed   | left out, others serve | unlisted
listed   | left out, the last     | kept
listed   | nobody                 | dark
listed   | dark                   | dark
listed   | older answer           | listed
listed   | prune                  | listed
kept     | listed                 | listed
kept     | left out, others serve | unlisted
kept     | left out, the last     | kept
kept     | nobody                 | kept
kept     | dark                   | kept
kept     | older answer           | kept
kept     | prune                  | unlisted
dark     | listed                 | listed
dark     | left out, others serve | unlisted
dark     | left out, the last     | kept
dark     | nobody                 | dark
dark     | dark                   | dark
dark     | older answer           | dark
dark     | prune                  | dark
";
    let mut actual = String::new();
    for standing in ["unlisted", "listed", "kept", "dark"] {
        for word in WORDS {
            let mut world = stand(standing);
            assert_eq!(told(&world), standing);
            hear(&mut world, word);
            world.registry.invariants();
            actual += &format!("{standing:<8} | {word:<22} | {}\n", told(&world));
        }
    }
    assert_eq!(actual, expected, "\n{actual}");
}

const WORDS: [&str; 7] = [
    "listed",
    "left out, others serve",
    "left out, the last",
    "nobody",
    "dark",
    "older answer",
    "prune",
];

/// `x` serves `m`, as far as consul is concerned; `o` is there so that an answer is never of nobody by accident.
fn stand(standing: &str) -> World {
    let mut world = World::new();
    let first: &[&str] = if standing == "unlisted" { &["o n"] } else { &["o n", "x m"] };
    world.apply("consul", Observed, 10, first);
    match standing {
        "kept" => drop(world.apply("consul", Observed, 11, &["o n"])),
        "dark" => world.registry.source_lost(world.now, "consul"),
        _ => {}
    }
    world
}

fn hear(world: &mut World, word: &str) {
    match word {
        "listed" => drop(world.apply("consul", Observed, 20, &["o n", "x m"])),
        "left out, others serve" => drop(world.apply("consul", Observed, 20, &["o n", "y m"])),
        "left out, the last" => drop(world.apply("consul", Observed, 20, &["o n"])),
        "nobody" => drop(world.apply("consul", Observed, 20, &[])),
        "dark" => world.registry.source_lost(world.now, "consul"),
        "older answer" => drop(world.apply("consul", Observed, 9, &["o n", "y m"])),
        "prune" => {
            let id = world.registry.find("x");
            id.and_then(|id| world.registry.prune(id));
        }
        other => panic!("no such word: {other}"),
    }
}

fn told(world: &World) -> &'static str {
    let source = &world.registry.sources[0];
    match source.vouches.get("x") {
        None => "unlisted",
        Some(vouch) if vouch.kept_since.is_some() => "kept",
        Some(_) if source.stale_since.is_some() => "dark",
        Some(_) => "listed",
    }
}

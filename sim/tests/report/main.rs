//! The page about a run: complete when it can be, bounded when it must be, and never what its content wants it to be.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod made;

use std::collections::BTreeSet;
use std::path::Path;

use made::{SMALL, Size, broken, held};
use serde_json::{Value, json};
use sim::report::{EVENTS_MAX, PAGE_BYTES_MAX, QUOTAS_MAX, REQUESTS_MAX, html};
use sim::story::{Mark, Story};

const DATA: &str = "<script type=\"application/json\" id=\"story\">";

#[test]
fn every_request_of_a_small_story_is_in_its_page() {
    let story = broken(1, SMALL);
    let page = html(&story);
    let data = data(&page);
    for (kept, request) in data["requests"].as_array().unwrap().iter().zip(&story.requests) {
        assert_eq!(*kept, serde_json::to_value(request).unwrap());
    }
    assert_eq!(data["requests"].as_array().unwrap().len(), story.requests.len());
    for (list, of) in [
        ("hosts", story.hosts.len()),
        ("faults", story.faults.len()),
        ("breakers", story.breakers.len()),
        ("moves", story.moves.len()),
        ("marks", story.marks.len()),
        ("quotas", story.quotas.len()),
    ] {
        assert!(of > 1, "the story has {list}");
        assert_eq!(data[list].as_array().unwrap().len(), of, "{list}");
    }
    assert!(!page.contains("Left out"));
}

#[test]
fn the_same_story_makes_the_same_bytes() {
    assert!(html(&broken(7, SMALL)) == html(&broken(7, SMALL)));
    assert!(html(&broken(7, SMALL)) != html(&broken(8, SMALL)));
}

#[test]
fn a_seed_beyond_what_a_script_can_count_to_keeps_its_digits() {
    let mut story = held(1, SMALL);
    story.seed = u64::MAX;
    let page = html(&story);
    assert_eq!(data(&page)["seed"], json!("18446744073709551615"));
    assert!(page.contains("seed <b>18446744073709551615</b>"));
}

#[test]
fn what_broke_is_said_first_and_what_held_is_said_as_plainly() {
    let story = broken(3, SMALL);
    let page = html(&story);
    let at = story.violation.as_ref().unwrap().at_ns;
    assert!(page.contains("Invariant 6 broke at "));
    assert!(page.contains(&format!("id=\"jump\" href=\"#t={at}\"")));
    let page = html(&held(3, SMALL));
    assert!(page.contains("<h2>Every invariant held</h2>"));
    assert!(!page.contains("id=\"jump\""));
}

#[test]
fn a_long_run_keeps_what_is_nearest_to_the_failing_moment() {
    let size = Size { requests: 7_000, ..SMALL };
    let story = broken(4, size);
    let page = html(&story);
    assert!(page.contains(&format!("{} of 7000 requests", 7_000 - REQUESTS_MAX)));
    let data = data(&page);
    let kept = ids(&data);
    assert_eq!(kept.len(), REQUESTS_MAX);
    let violation = story.violation.as_ref().unwrap();
    assert!(kept.contains(violation.request.as_deref().unwrap()));
    let away = |id: &str| {
        let request = story.requests.iter().find(|request| request.id == id).unwrap();
        let end = request.ended_ns.unwrap_or(story.duration_ns);
        let after = request.arrived_ns.saturating_sub(violation.at_ns);
        after.max(violation.at_ns.saturating_sub(end))
    };
    let farthest = kept.iter().map(|id| away(id)).max().unwrap();
    let left_out = story.requests.iter().filter(|request| !kept.contains(request.id.as_str()));
    assert!(left_out.map(|request| away(&request.id)).min().unwrap() >= farthest);
    let counted: u64 =
        data["tally"]["arrived"].as_array().unwrap().iter().flat_map(Value::as_u64).sum();
    assert_eq!(counted, 7_000, "the overview counts those left out too");
}

#[test]
fn without_a_failing_moment_failures_stay_and_the_rest_is_thinned_evenly() {
    let mut story = held(5, Size { requests: 10_000, ..SMALL });
    story.requests.iter_mut().for_each(|request| request.good = true);
    for at in [17, 4_000, 9_999] {
        story.requests[at].good = false;
    }
    let data = data(&html(&story));
    let kept = ids(&data);
    for at in [17, 4_000, 9_999] {
        assert!(kept.contains(story.requests[at].id.as_str()), "{at}");
    }
    for tenth in story.requests.chunks(1_000) {
        let share = tenth.iter().filter(|request| kept.contains(request.id.as_str())).count();
        assert!((400..=600).contains(&share), "{share} of a thousand");
    }
}

#[test]
fn no_story_makes_a_page_beyond_its_limit() {
    let mut story = broken(6, SMALL);
    let long = "<&\u{2028}\"".repeat(5_000);
    story.title.clone_from(&long);
    story.command.clone_from(&long);
    story.summary = vec![(long.clone(), long.clone()); 1_000];
    for request in &mut story.requests {
        request.outcome.clone_from(&long);
        request.explanation = vec!["<".repeat(700); 200];
    }
    let text = long[..2_000].to_owned();
    story.marks = (0..20_000).map(|at_ns| Mark { at_ns, host: 10, text: text.clone() }).collect();
    for at in 0..9 {
        story.faults.extend(story.faults.clone());
        story.moves.extend(story.moves.clone());
        story.breakers.extend(story.breakers.clone());
        if at < 6 {
            story.quotas.extend(story.quotas.clone());
        }
    }
    for quota in &mut story.quotas {
        quota.points = (0..20_000).map(|at| (at, at, at)).collect();
    }
    let page = html(&story);
    assert!(page.len() <= PAGE_BYTES_MAX, "{} bytes", page.len());
    let data = data(&page);
    let named = story.violation.unwrap().request.unwrap();
    assert!(ids(&data).contains(named.as_str()), "the request that broke it is always there");
    assert!(data["quotas"].as_array().unwrap().len() <= QUOTAS_MAX);
    assert!(page.matches("<li class=").count() <= EVENTS_MAX);
}

#[test]
fn a_peak_of_an_account_survives_the_thinning() {
    let mut story = held(9, SMALL);
    let quota = &mut story.quotas[0];
    quota.points = (0..50_000).map(|at| (at, 10, 0)).collect();
    quota.points[31_417] = (31_417, 10, 999);
    let data = data(&html(&story));
    let points = data["quotas"][0]["points"].as_array().unwrap();
    assert!(points.len() < 2_000, "{}", points.len());
    assert!(points.contains(&json!([31_417, 10, 999])));
}

#[test]
fn a_story_about_nothing_still_makes_a_page() {
    let mut story = held(1, SMALL);
    story.hosts.clear();
    story.requests.clear();
    story.duration_ns = 0;
    let data = data(&html(&story));
    assert_eq!(data["requests"], json!([]));
}

#[test]
fn content_stays_content() {
    let own = [
        "</script>",
        "</SCRIPT >",
        "<!--",
        "<!--<script>",
        "]]>",
        "\u{2028}\u{2029}",
        "{{data}}",
        "\" onload=\"",
        "&lt;",
        "a\0b",
    ];
    let mut hostile: Vec<String> = own.iter().map(|text| (*text).to_owned()).collect();
    hostile.extend(naughty());
    let page = html(&saying(&hostile));
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile.html");
    std::fs::write(&written, &page).unwrap();
    let harmless = vec!["harmless".to_owned(); hostile.len()];
    assert_eq!(outline(&page), outline(&html(&saying(&harmless))), "{}", written.display());
    let data = data(&page);
    for (request, text) in data["requests"].as_array().unwrap().iter().zip(&hostile) {
        assert_eq!(request["tenant"], json!(text));
        assert_eq!(request["explanation"][0], json!(text));
    }
}

/// What the page embeds. A script element ends at the first `</script`, whatever stands around it.
fn data(page: &str) -> Value {
    let (_, after) = page.split_once(DATA).expect("the page embeds its story");
    let end = after.to_ascii_lowercase().find("</script").expect("the element ends");
    let json = &after[..end];
    assert!(!json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']));
    serde_json::from_str(json).expect("it is JSON")
}

fn ids(data: &Value) -> BTreeSet<&str> {
    data["requests"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|request| request["id"].as_str())
        .collect()
}

/// Every tag of the page, in order, as a browser sees them; of the embedded data only that it is there.
fn outline(page: &str) -> Vec<&str> {
    let tags = page.match_indices('<').map(|(at, _)| &page[at..]);
    tags.map(|tag| tag.split_inclusive('>').next().unwrap_or(tag)).collect()
}

/// A story in which every text is a hostile one.
fn saying(texts: &[String]) -> Story {
    let mut story = broken(10, SMALL);
    let mut next = texts.iter().cycle();
    let mut say = |text: &mut String| next.next().unwrap().clone_into(text);
    say(&mut story.title);
    say(&mut story.command);
    story.hosts.iter_mut().for_each(|host| say(&mut host.name));
    for fault in &mut story.faults {
        say(&mut fault.kind);
        say(&mut fault.text);
    }
    for turn in &mut story.breakers {
        say(&mut turn.from);
        say(&mut turn.to);
        say(&mut turn.why);
    }
    for moved in &mut story.moves {
        say(&mut moved.session);
        say(&mut moved.why);
    }
    story.quotas.iter_mut().for_each(|quota| say(&mut quota.account));
    story.marks.iter_mut().for_each(|mark| say(&mut mark.text));
    story.summary.iter_mut().for_each(|(name, value)| {
        say(name);
        say(value);
    });
    let violation = story.violation.as_mut().unwrap();
    say(&mut violation.name);
    say(&mut violation.text);
    for (request, text) in story.requests.iter_mut().zip(texts.iter().cycle()) {
        request.good = request.attempts.len() < 2;
        for field in [&mut request.tenant, &mut request.model, &mut request.outcome] {
            text.clone_into(field);
        }
        request.session = Some(text.clone());
        request.explanation = vec![text.clone()];
        request.attempts.iter_mut().for_each(|attempt| text.clone_into(&mut attempt.end));
    }
    story
}

fn naughty() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/blns/blns.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!(
            "SKIPPED: {} is not there; only our own hostile strings were tried",
            path.display()
        );
        return Vec::new();
    };
    let strings: Vec<String> = serde_json::from_str(&text).unwrap();
    assert!(strings.len() > 400);
    strings
}

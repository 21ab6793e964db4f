//! What stands in the page as text, script or not: the verdict, the figures, and the list of events.
//!
//! A canvas says nothing to a screen reader, to a search in the page, or to somebody whose browser runs no script. So the
//! events are also a list, written here and not by the script, which only makes its instants lead somewhere.

use std::fmt::Write as _;

use super::cut::clip_text;
use crate::story::{HostId, HostKind, Story, Tier};

/// Events in the list. A reader scrolls no further; those nearest to the failing moment stay.
pub const EVENTS_MAX: usize = 600;

/// Pairs of figures shown: two rows on a small screen.
const SUMMARY_MAX: usize = 16;

/// Markup's own characters as references, for content and for quoted attributes.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write it, and reads it as an error.
            '\0' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// At most as much of a text as the page shows.
pub fn clipped(text: &str) -> String {
    clip_text(text)
}

/// The line below the title.
pub fn facts(story: &Story) -> String {
    let tier = match story.tier {
        Tier::A => 'A',
        Tier::B => 'B',
    };
    let count = |kind| story.hosts.iter().filter(|host| host.kind == kind).count();
    let (gateways, replicas) = (count(HostKind::Gateway), count(HostKind::Replica));
    format!(
        "<span>seed <b>{}</b></span><span>tier {tier}</span><span>{} simulated</span><span>{}</span><span>{}</span>",
        story.seed,
        seconds(story.duration_ns, 1),
        counted(gateways, "gateway"),
        counted(replicas, "replica"),
    )
}

/// Whether all held, and what did not.
pub fn verdict(story: &Story) -> String {
    let Some(violation) = &story.violation else {
        let ran = counted(story.requests.len(), "request");
        let faults = counted(story.faults.len(), "fault");
        let end = match story.requests.iter().filter(|request| !request.good).count() {
            0 => "and every request ended as it should".to_owned(),
            bad => {
                format!("{} ended badly, and none of them broke a promise", counted(bad, "request"))
            }
        };
        return format!(
            "<section class=\"verdict held\" aria-label=\"Verdict\"><h2>Every invariant held</h2>\
             <p>{ran}, {faults}, {end}.</p></section>"
        );
    };
    format!(
        "<section class=\"verdict broken\" aria-label=\"Verdict\"><h2>Invariant {} broke at {}: {}</h2>\
         <p>{}</p><a class=\"button\" id=\"jump\" href=\"#t={}\">Jump to the failing moment <kbd>J</kbd></a></section>",
        violation.invariant,
        seconds(violation.at_ns, 3),
        shown(&violation.name),
        shown(&violation.text),
        violation.at_ns,
    )
}

/// The figures, as a description list's items.
pub fn summary(story: &Story) -> String {
    let items = story.summary.iter().take(SUMMARY_MAX);
    items
        .map(|(name, value)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>", shown(name), shown(value))
        })
        .collect()
}

/// What the page does not hold.
pub fn left_out(sentences: &[String]) -> String {
    if sentences.is_empty() {
        return String::new();
    }
    format!(
        "<p class=\"left-out\" role=\"note\"><b>Left out to keep this file small:</b> {}. The overview counts them all.</p>",
        escaped(&sentences.join("; "))
    )
}

/// The list of events: a sentence about its size, and the list.
pub fn events(story: &Story) -> String {
    let mut events = gathered(story);
    let all = events.len();
    let at = story.violation.as_ref().map_or(0, |violation| violation.at_ns);
    events.sort_by_key(|event| (event.at.abs_diff(at), event.at));
    events.truncate(EVENTS_MAX);
    events.sort_by(|a, b| (a.at, a.kind, &a.text).cmp(&(b.at, b.kind, &b.text)));
    let which = if story.violation.is_some() { "nearest to the failing moment" } else { "first" };
    let note = match all - events.len() {
        0 => format!("All {}, in order of time.", counted(all, "event")),
        _ => format!("The {} {which}, of {all}, in order of time.", events.len()),
    };
    let mut list = format!("<p>{note}</p><ol>");
    for event in events {
        let (at, kind) = (event.at, event.kind);
        let (time, text) = (seconds(at, 3), shown(&event.text));
        let _ = write!(
            list,
            "<li class=\"{kind}\"><a href=\"#t={at}\">{time}</a> <b>{kind}</b> <span>{text}</span></li>"
        );
    }
    list.push_str("</ol>");
    list
}

struct Event {
    at: u64,
    /// A word of ours: it goes into the page as it is.
    kind: &'static str,
    text: String,
}

fn gathered(story: &Story) -> Vec<Event> {
    let mut events = Vec::new();
    let mut add = |at, kind, text| events.push(Event { at, kind, text });
    for fault in &story.faults {
        add(fault.start_ns, "fault", format!("{}: {}", fault.kind, fault.text));
        if let Some(end) = fault.end_ns {
            add(end, "healed", format!("{}: {}", fault.kind, fault.text));
        }
    }
    for mark in &story.marks {
        add(mark.at_ns, "mark", format!("{}: {}", name(story, mark.host), mark.text));
    }
    for turn in &story.breakers {
        let (gateway, replica) = (name(story, turn.gateway), name(story, turn.replica));
        let (from, to, why) = (&turn.from, &turn.to, &turn.why);
        add(turn.at_ns, "breaker", format!("{gateway} on {replica}: {from} to {to}, {why}"));
    }
    for moved in &story.moves {
        let home = |host: Option<HostId>| host.map_or("nowhere".to_owned(), |id| name(story, id));
        let (from, to) = (home(moved.from), home(moved.to));
        let (session, why) = (&moved.session, &moved.why);
        add(moved.at_ns, "move", format!("session {session} from {from} to {to}, {why}"));
    }
    for request in story.requests.iter().filter(|request| !request.good) {
        let ended = request.ended_ns.unwrap_or(story.duration_ns);
        let (id, tenant, outcome) = (&request.id, &request.tenant, &request.outcome);
        add(ended, "failure", format!("request {id} of {tenant}: {outcome}"));
    }
    if let Some(broken) = &story.violation {
        let (number, name, text) = (broken.invariant, &broken.name, &broken.text);
        add(broken.at_ns, "violation", format!("invariant {number}, {name}: {text}"));
    }
    events
}

fn name(story: &Story, id: HostId) -> String {
    let host = story.hosts.iter().find(|host| host.id == id);
    host.map_or_else(|| format!("host {id}"), |host| host.name.clone())
}

fn shown(text: &str) -> String {
    escaped(&clip_text(text))
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Seconds with so many digits behind the point, cut and not rounded: an event stands in the second it happened in.
fn seconds(ns: u64, digits: usize) -> String {
    let whole = ns / 1_000_000_000;
    let rest = format!("{:09}", ns % 1_000_000_000);
    format!("{whole}.{} s", &rest[..digits])
}

//! The picture of a run: one HTML file that needs nothing else.
//!
//! Somebody who is told "seed 4711 breaks invariant 5" wants to see it: who was cut off, which breaker opened, where the
//! request went and why. [`html`] draws a [`Story`] as lanes over time, and carries its own style and script, so that the
//! file can be mailed, attached to a ticket and opened from a disk, years later, without a network.
//!
//! Rejected: a server with a page (nobody keeps it running next to a ticket), a picture (it cannot be asked for the reason
//! of one decision), and a charting library (ten times our size, and none draws arcs between lanes).
//!
//! What is embedded is hostile until shown otherwise: names, models and error texts come from plans that look for trouble.
//! Data goes into a script element as JSON in which `<`, `>`, `&`, U+2028 and U+2029 are escaped, so that nothing can end
//! the element; the script shows it as text and never as markup; text that stands in the page itself is escaped; a content
//! policy in the page forbids whatever would be loaded from elsewhere.
//!
//! The page is bounded ([`PAGE_BYTES_MAX`]): of a longer run it keeps what lies around the failing moment, and says what it
//! left out. Same story, same bytes.

mod cut;
mod text;

#[cfg(test)]
mod tests;

use crate::story::Story;

pub use cut::{
    BREAKERS_MAX, EXPLANATION_MAX, FAULTS_MAX, HOSTS_MAX, MARKS_MAX, MOVES_MAX, POINTS_MAX,
    QUOTAS_MAX, REQUESTS_MAX, TEXT_MAX,
};
pub use text::EVENTS_MAX;

/// No page is larger. It is the sum of what its parts may take (requests 6 MiB, six other lists 1 MiB each) and of
/// 3 MiB for the rest: the list of events, head, style and script. A browser opens that at once, and mail still takes it.
pub const PAGE_BYTES_MAX: usize = 15 << 20;

const TEMPLATE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/style.css");

/// Concatenated in this order into one function: each may use what stands before it.
const SCRIPTS: [&str; 10] = [
    include_str!("report/js/model.js"),
    include_str!("report/js/view.js"),
    include_str!("report/js/lanes.js"),
    include_str!("report/js/paint.js"),
    include_str!("report/js/glyphs.js"),
    include_str!("report/js/overview.js"),
    include_str!("report/js/hover.js"),
    include_str!("report/js/panel.js"),
    include_str!("report/js/input.js"),
    include_str!("report/js/main.js"),
];

/// The story as a page: UTF-8 HTML of at most [`PAGE_BYTES_MAX`] bytes, without any reference to another file.
#[must_use]
pub fn html(story: &Story) -> String {
    let cut = cut::cut(story);
    let script = format!("(() => {{\n'use strict';\n{}\n}})();", SCRIPTS.concat());
    fill(
        TEMPLATE,
        &[
            ("style", STYLE),
            ("title", &text::escaped(&text::clipped(&story.title))),
            ("facts", &text::facts(story)),
            ("verdict", &text::verdict(story)),
            ("command", &text::escaped(&text::clipped(&story.command))),
            ("summary", &text::summary(story)),
            ("left_out", &text::left_out(&cut.left_out)),
            ("events", &text::events(story)),
            ("data", &script_safe(&cut.data.to_string())),
            ("script", &script),
        ],
    )
}

/// JSON that may stand in a script element: the characters that could end it, open a comment in it, or end a line of
/// JavaScript are written as escapes. They occur in JSON only inside strings, where an escape means the same.
fn script_safe(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => safe.push_str("\\u003c"),
            '>' => safe.push_str("\\u003e"),
            '&' => safe.push_str("\\u0026"),
            '\u{2028}' => safe.push_str("\\u2028"),
            '\u{2029}' => safe.push_str("\\u2029"),
            c => safe.push(c),
        }
    }
    safe
}

/// Puts values into the places `{{name}}` of the template, in one pass: what a value holds is never looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(values.iter().map(|(_, value)| value.len()).sum());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("the template closes what it opens");
        let value = values.iter().find(|(known, _)| *known == name);
        page.push_str(before);
        page.push_str(value.expect("the template names only what there is").1);
        rest = after;
    }
    page.push_str(rest);
    page
}

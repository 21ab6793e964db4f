//! Draws a made-up run, to look at the picture itself: `cargo run -p sim --example picture -- broken run.html`.
//!
//! The first argument is `broken`, `held` or `large`; the second the file to write.

#[path = "../tests/report/made.rs"]
mod made;

use made::{SMALL, Size, broken, held};
use sim::story::Story;

const USAGE: &str = "usage: picture broken|held|large FILE";

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, file] = arguments.as_slice() else { return Err(USAGE.to_owned()) };
    let page = sim::report::html(&story(kind).ok_or(USAGE)?);
    std::fs::write(file, &page).map_err(|why| format!("{file}: {why}"))?;
    println!("{file}: {} bytes", page.len());
    Ok(())
}

fn story(kind: &str) -> Option<Story> {
    match kind {
        "broken" => Some(broken(4711, SMALL)),
        "held" => Some(held(4712, SMALL)),
        "large" => {
            let size = Size { gateways: 50, replicas: 500, requests: 6_000, seconds: 120 };
            Some(broken(4713, size))
        }
        _ => None,
    }
}

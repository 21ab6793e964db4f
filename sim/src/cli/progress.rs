//! How far a swarm has come: a bar where somebody looks on, a line now and then where nobody does.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::swarm::Tally;

/// Shows progress on stderr, so that stdout holds results alone.
pub(super) struct Progress {
    terminal: bool,
    started: Instant,
    shown: Option<Instant>,
    total: u64,
}

/// How often a line is written where nobody looks on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Characters of the bar.
const WIDTH: u64 = 24;

impl Progress {
    pub fn new(total: u64) -> Self {
        Self { terminal: stderr().is_terminal(), started: Instant::now(), shown: None, total }
    }

    /// Shows a tally, if it is time to.
    pub fn show(&mut self, tally: &Tally) {
        let now = Instant::now();
        if !self.terminal && now.duration_since(self.shown.unwrap_or(self.started)) < LINE_EVERY {
            return;
        }
        self.shown = Some(now);
        let text = self.text(tally);
        let (before, after) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(stderr(), "{before}{text}{after}");
        let _ = stderr().flush();
    }

    /// Makes room for what is printed next.
    pub fn clear(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    fn text(&self, tally: &Tally) -> String {
        let (done, total) = (tally.seeds, self.total.max(1));
        let minutes = self.started.elapsed().as_secs_f64() / 60.0;
        let rate = done as f64 / minutes.max(1e-6);
        let failures = tally.failures.len();
        let text = format!(
            "{} {done}/{total} seeds, {rate:.0} a minute, {failures} failures",
            bar(done, total)
        );
        match tally.coverage.count() {
            0 => text,
            marks => format!("{text}, {marks} marks"),
        }
    }
}

fn bar(done: u64, total: u64) -> String {
    let full = (done * WIDTH / total.max(1)).min(WIDTH) as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(WIDTH as usize - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_never_longer_than_its_room() {
        for (done, total) in [(0, 10), (5, 10), (10, 10), (12, 10), (0, 0)] {
            assert_eq!(bar(done, total).len(), WIDTH as usize + 2, "{done} of {total}");
        }
        assert_eq!(bar(5, 10).matches('#').count(), WIDTH as usize / 2);
    }

    #[test]
    fn progress_tells_rate_failures_and_coverage() {
        let text = Progress::new(40).text(&Tally { seeds: 10, ..Tally::default() });
        assert!(!text.contains("marks"), "none was hit: {text}");
        let coverage = crate::tier::Tier::A.run(8, true).coverage;
        let text = Progress::new(40).text(&Tally { seeds: 10, coverage, ..Tally::default() });
        for part in ["10/40 seeds", "a minute", "0 failures", "marks"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

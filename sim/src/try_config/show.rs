//! The report, for a terminal.

use std::fmt;

use super::findings::{counted, is_sound, quantile, told};
use super::measure::{Back, Cause, Lived};
use super::scenario::Scenario;
use super::subject::{PREFILL_RATE, SLOTS, WRITE_RATE};
use super::{Report, Tried};

/// Causes named in a row of the table.
const CAUSES_MAX: usize = 3;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assumptions(self, f)?;
        table(&self.tried, f)?;
        hanging(&self.tried, f)?;
        for (scenario, seed, violation) in &self.broken {
            let name = scenario.name();
            writeln!(
                f,
                "\nPointsman itself broke a promise, please report it ({name}, seed {seed}): {violation}"
            )?;
        }
        if self.findings.is_empty() {
            let fine = if self.broken.is_empty() { "Nothing dangerous was found." } else { "" };
            return writeln!(f, "\n{fine}");
        }
        writeln!(f, "\n{}:", counted(self.findings.len(), "finding"))?;
        for (number, finding) in (1..).zip(&self.findings) {
            writeln!(f, "\n {number}. {}", finding.key)?;
            writeln!(f, "    seen: {}", finding.seen)?;
            writeln!(f, "    why:  {}", finding.why)?;
        }
        Ok(())
    }
}

fn assumptions(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let subject = &report.tried.subject;
    writeln!(
        f,
        "Tried: {} ({}, {}, {}), {} for each scenario.",
        report.file,
        counted(subject.endpoints.len(), "endpoint"),
        counted(subject.models.len(), "model"),
        counted(subject.tenants.len(), "tenant"),
        counted(report.seeds as usize, "seed"),
    )?;
    writeln!(
        f,
        "Endpoints are taken to read {PREFILL_RATE} tokens a second, to write {WRITE_RATE} a second for each \
         stream, and to bear {SLOTS} at once; one gateway, its ledger embedded."
    )?;
    for line in subject.notes.iter().chain(&report.tried.described) {
        writeln!(f, "  {line}")?;
    }
    for (model, name) in (0..).zip(&subject.models) {
        if subject.pool(model).len() == 1 {
            writeln!(f, "  {name} has one endpoint: whatever befalls that befalls the model")?;
        }
    }
    Ok(())
}

fn table(tried: &Tried, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "\n{:<15} {:>6} {:>8} {:>21} {:>21} {:>6} {:>7}  not served",
        "scenario", "asked", "served", "first p50/p99", "whole p50/p99", "tries", "back",
    )?;
    let calm = tried.lived.iter().find(|(scenario, _)| *scenario == Scenario::Calm);
    for (scenario, lived) in &tried.lived {
        row(*scenario, lived, calm.map(|(_, lived)| lived), f)?;
    }
    writeln!(f)?;
    for (scenario, _) in &tried.lived {
        writeln!(f, "  {:<15} {}", scenario.name(), scenario.text())?;
    }
    writeln!(
        f,
        "  Requests that arrive while it lasts (calm: all). Times from arrival to the first token of streams and\n  \
         to the end of whole answers, (xN): as many times as in calm. Tries: attempts for each request that was\n  \
         sent. Back: how long after its end half of some model's requests still fail."
    )
}

/// What no setting but one helps against.
fn hanging(tried: &Tried, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hangs = tried.lived.iter().find(|(scenario, _)| *scenario == Scenario::OneHangs);
    let unheard = hangs.and_then(|(_, lived)| lived.all.causes.get(&Cause::Unheard));
    let alone =
        (0..tried.subject.models.len() as u32).all(|model| tried.subject.pool(model).len() < 2);
    let Some(count) = unheard.filter(|_| !alone) else { return Ok(()) };
    let request = tried.subject.config.timeouts.request;
    writeln!(
        f,
        "To know: with one endpoint hanging, {count} requests that do not stream waited {} there (timeouts.request)\n\
         and were told so: until a whole answer comes, it cannot be told from a slow one. Streams are sent elsewhere\n\
         after first_token.",
        told(request),
    )
}

fn row(
    scenario: Scenario,
    lived: &Lived,
    calm: Option<&Lived>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let all = &lived.all;
    let pair = |values: &[u32]| match values.is_empty() {
        true => "-".to_owned(),
        false => format!("{}/{}", seconds(quantile(values, 50)), seconds(quantile(values, 99))),
    };
    let worse = |of: fn(&Lived) -> &Vec<u32>| {
        let (now, then) = (quantile(of(lived), 99), calm.map_or(0, |calm| quantile(of(calm), 99)));
        let times = f64::from(now) / f64::from(then.max(1));
        if then > 0 && times >= 1.5 { format!(" (x{times:.0})") } else { String::new() }
    };
    let first = format!("{}{}", pair(&all.first_ms), worse(|lived| &lived.all.first_ms));
    let whole = format!("{}{}", pair(&all.whole_ms), worse(|lived| &lived.all.whole_ms));
    let back = lived.back_after.values().max().copied().unwrap_or_default();
    let back = match (scenario, back) {
        (Scenario::Calm, _) | (_, Back { after_ms: 0, .. }) => "-".to_owned(),
        // Where calm is broken, nobody can come back to it.
        _ if calm.is_some_and(|calm| !is_sound(&calm.all)) => "?".to_owned(),
        (_, Back { never: true, after_ms }) => format!(">{} s", after_ms / 1_000),
        (_, back) => back.told(),
    };
    writeln!(
        f,
        "{:<15} {:>6} {:>6.1} % {:>21} {:>21} {:>6.2} {:>7}  {}",
        scenario.name(),
        all.asked,
        all.percent(all.served),
        first,
        whole,
        all.attempts as f64 / all.sent.max(1) as f64,
        back,
        causes(lived),
    )
}

fn seconds(millis: u32) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        _ => format!("{:.1} s", f64::from(millis) / 1_000.0),
    }
}

fn causes(lived: &Lived) -> String {
    let mut words: Vec<(&str, u64)> = Vec::new();
    for (cause, count) in &lived.all.causes {
        match words.iter_mut().find(|(word, _)| *word == cause.word()) {
            Some((_, sum)) => *sum += count,
            None => words.push((cause.word(), *count)),
        }
    }
    words.sort_by(|one, other| (other.1, one.0).cmp(&(one.1, other.0)));
    let shown = words.iter().take(CAUSES_MAX);
    let shown: Vec<String> =
        shown.map(|(word, count)| format!("{word} {:.1} %", lived.all.percent(*count))).collect();
    shown.join(", ")
}

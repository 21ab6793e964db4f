//! Words for what happens: faults, refusals, ends.

use std::time::Duration;

use control::outcome::{AttemptEnd, Failure};
use control::plane::{Outcome, Refusal};

use crate::plan::{FaultKind, Host, RegistryLie, ReplicaIllness, StoreTrouble};

/// Hosts that are named one by one; of more, the number.
const NAMED_MAX: usize = 4;

/// A fault's kind in a word or two, what it does in a sentence, and whom it concerns most.
pub(crate) fn fault_words(kind: &FaultKind) -> (&'static str, String, Vec<Host>) {
    let (name, text) = match kind {
        FaultKind::Cut { from, to, both } => return cut(from, to, *both),
        FaultKind::Flap { from, to, period_ms } => {
            let (_, text, hosts) = cut(from, to, true);
            return ("flapping link", format!("{text}, on and off every {period_ms} ms"), hosts);
        }
        FaultKind::Latency { host, add_ms, ramp } => {
            let how = if *ramp { "ever longer, up to" } else { "longer by" };
            ("latency", format!("everything to and from {host} takes {how} {add_ms} ms"))
        }
        FaultKind::Ill { replica, with } => ill(*replica, *with),
        FaultKind::ReplicaCrash { replica, power } => match power {
            true => {
                ("replica off", format!("replica-{replica} loses power: nothing answers there"))
            }
            false => (
                "replica crash",
                format!("replica-{replica} crashes: connections are reset and refused"),
            ),
        },
        FaultKind::Drain { replica } => {
            ("drain", format!("an operator drains replica-{replica} at every gateway"))
        }
        FaultKind::Kill { gateway, again, upgrade } => {
            let again = match again {
                0 => String::new(),
                times => format!(", and {times} times more while it recovers"),
            };
            let comes = if *upgrade { "; another version comes back" } else { "" };
            ("gateway killed", format!("gateway-{gateway} is killed{again}{comes}"))
        }
        FaultKind::PowerLoss { gateway, torn } => {
            let torn = if *torn { ", and the last record is torn" } else { "" };
            (
                "power loss",
                format!("gateway-{gateway} loses power: what was not synced is gone{torn}"),
            )
        }
        FaultKind::Pause { gateway } => {
            ("long pause", format!("gateway-{gateway} stops, and wakes as if nothing had been"))
        }
        FaultKind::ClockJump { gateway, by_ms } => {
            ("clock jump", format!("the wall clock of gateway-{gateway} jumps by {by_ms} ms"))
        }
        FaultKind::DiskFull { gateway } => {
            ("disk full", format!("the disk of gateway-{gateway} is full: it takes no new work"))
        }
        FaultKind::DiskSlow { gateway, write_ms } => {
            ("slow disk", format!("writing takes {write_ms} ms at gateway-{gateway}"))
        }
        FaultKind::SyncFails { gateway } => {
            ("no sync", format!("the disk of gateway-{gateway} does not sync"))
        }
        FaultKind::Registry { lie } => {
            let (name, text) = lie_words(*lie);
            (name, text.to_owned())
        }
        FaultKind::Store { trouble } => trouble_words(*trouble),
        FaultKind::StoreFailover { lose } => (
            "store failover",
            format!("another store takes over; it never heard of the last {lose} entries"),
        ),
        FaultKind::Reload { config } => {
            ("reload", format!("every gateway takes configuration {}", config.version))
        }
    };
    (name, text, kind.hosts())
}

/// The smaller side is whom it happens to.
fn cut(from: &[Host], to: &[Host], both: bool) -> (&'static str, String, Vec<Host>) {
    let (one, other) = (listed(from), listed(to));
    let small = if to.len() < from.len() { to } else { from };
    match both {
        true => ("partition", format!("nothing passes between {one} and {other}"), small.to_vec()),
        false => ("one-way cut", format!("nothing passes from {one} to {other}"), small.to_vec()),
    }
}

fn listed(hosts: &[Host]) -> String {
    let names: Vec<String> = hosts.iter().take(NAMED_MAX).map(Host::to_string).collect();
    match hosts.len().saturating_sub(names.len()) {
        0 if names.is_empty() => "nobody".to_owned(),
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn ill(replica: u32, with: ReplicaIllness) -> (&'static str, String) {
    let (name, what) = match with {
        ReplicaIllness::Slow { times } => ("slow replica", format!("takes {times} times as long")),
        ReplicaIllness::Silent => {
            ("silent replica", "accepts connections and says nothing".to_owned())
        }
        ReplicaIllness::Stalls { after } => {
            ("half-dead replica", format!("stalls after {after} tokens"))
        }
        ReplicaIllness::Garbage => {
            ("garbage", "answers 200, and then what nobody understands".to_owned())
        }
        ReplicaIllness::Dies { after } => {
            ("breaking streams", format!("breaks every stream after {after} tokens"))
        }
        ReplicaIllness::Fails { status, retry_after_ms } => {
            let again = retry_after_ms.map(|ms| format!(" and asks to be left alone for {ms} ms"));
            let name = match status {
                429 | 503 => "full replica",
                401..=404 => "refusing replica",
                _ => "fast failure",
            };
            (name, format!("answers {status} at once{}", again.unwrap_or_default()))
        }
        ReplicaIllness::Lies { usage } => {
            ("lying replica", format!("says it used {usage} tokens, whatever it wrote"))
        }
    };
    (name, format!("replica-{replica} {what}"))
}

const fn lie_words(lie: RegistryLie) -> (&'static str, &'static str) {
    match lie {
        RegistryLie::Stale => {
            ("stale registry", "the registry repeats an old answer under its old version")
        }
        RegistryLie::Partial => ("partial registry", "the registry lists every other replica only"),
        RegistryLie::Empty => ("empty registry", "the registry says that nobody is there"),
        RegistryLie::Silent => ("silent registry", "the registry does not answer"),
    }
}

fn trouble_words(trouble: StoreTrouble) -> (&'static str, String) {
    let (name, text) = match trouble {
        StoreTrouble::Down => ("store down", "the quota store is gone"),
        StoreTrouble::Mute => {
            ("mute store", "the quota store does what it is asked, and its answers are lost")
        }
        StoreTrouble::Twice => {
            ("doubled messages", "messages to the quota store come twice and out of order")
        }
        StoreTrouble::Slow { ms } => {
            return ("slow store", format!("the quota store takes up to {ms} ms longer"));
        }
    };
    (name, text.to_owned())
}

/// How a request was refused, and whether that is what should have happened to it.
pub(super) fn refusal(refusal: &Refusal) -> (String, bool) {
    let (text, good) = match refusal {
        Refusal::UnknownModel => ("rejected: nobody serves the model", true),
        Refusal::QuotaSpent(_) => ("rejected: quota spent", true),
        Refusal::QuotaUnavailable { .. } => ("rejected: the quota store cannot be reached", false),
        Refusal::RateLimited { .. } => ("rejected: rate limit", true),
        Refusal::ModelBusy { .. } => ("rejected: the model takes no more", true),
        Refusal::TurnConflict => ("rejected: another turn of the session runs", true),
        Refusal::IdempotencyInFlight { .. } => ("rejected: the same key is being answered", true),
        Refusal::IdempotencyDone { .. } => ("rejected: the same key was answered", true),
        Refusal::IdempotencyMismatch { .. } => ("rejected: the same key, another body", true),
        Refusal::NobodyLeft { .. } => ("rejected: nobody is left", false),
        Refusal::Failed { failure, attempts, .. } => {
            let tries = if *attempts == 1 { "attempt" } else { "attempts" };
            return (format!("failed after {attempts} {tries}: {failure}"), false);
        }
        Refusal::ClientGone => ("its client left", true),
        Refusal::Overloaded => ("rejected: the gateway is full", false),
        Refusal::Lost => ("lost: its gateway died", false),
    };
    (text.to_owned(), good)
}

/// How a request was answered, and whether that is what should have happened to it.
pub(super) fn outcome(outcome: Outcome) -> (String, bool) {
    match outcome {
        Outcome::Completed => ("completed".to_owned(), true),
        Outcome::Broken(failure) => (format!("broken off: {failure}"), false),
        Outcome::QuotaSpent(_) => ("cut: quota spent".to_owned(), true),
        Outcome::QuotaUnavailable { .. } => {
            ("cut: the quota store cannot be reached".to_owned(), false)
        }
        Outcome::Cancelled => ("its client left".to_owned(), true),
    }
}

/// How an attempt ended, and whether it did what it was made for. One that was stopped did not fail.
pub(super) fn attempt_end(end: &AttemptEnd) -> (String, bool) {
    match end {
        AttemptEnd::Completed { usage, estimated } => {
            let by = if *estimated { ", by our own count" } else { "" };
            (format!("completed: {} tokens{by}", usage.completion.0), true)
        }
        AttemptEnd::Failed { failure, produced, .. } => (failed(*failure, produced.0), false),
        AttemptEnd::Cancelled { produced } => (format!("stopped at token {}", produced.0), true),
    }
}

fn failed(failure: Failure, produced: u64) -> String {
    match produced {
        0 => failure.to_string(),
        produced => format!("{failure}, at token {produced}"),
    }
}

/// A duration as people say it.
pub(super) fn span(duration: Duration) -> String {
    match duration.as_millis() {
        0 if duration.is_zero() => "0 ms".to_owned(),
        0 => format!("{} us", duration.as_micros()),
        millis @ 1..10_000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

//! What is dangerous, told from what happened.
//!
//! Nothing here reads the configuration to find a fault: a finding begins with figures that no operator wants (calm
//! traffic that is refused, one lost endpoint that others could have stood in for, a hiccup that lasts for minutes), and
//! the configuration is asked only why, to name the key. **Rejected:** a list of forbidden values. A number is dangerous
//! or not by its company, and the company is what is simulated.

use std::time::Duration;

use control::id::AccountId;
use control::outcome::Stage;
use control::quota::{Unit, WindowKind};

use super::Tried;
use super::measure::{Cause, Counts, GaveUp, Lived};
use super::scenario::Scenario;
use super::subject::Subject;
use crate::plan::Plan;

/// Something in the configuration that does harm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The key of the file to look at.
    pub key: String,
    /// What clients saw.
    pub seen: String,
    /// Why, and what would help.
    pub why: String,
}

/// Of a hundred requests of calm traffic, so many may fail: anything above is not chance.
const CALM_PERCENT_MAX: f64 = 1.0;
/// While others could stand in for one endpoint, so many of a hundred may fail before their first token.
const SPARED_PERCENT_MAX: f64 = 2.0;
/// Where so many of a hundred fail in calm, whether somebody comes back from trouble cannot be seen.
const UNSOUND_PERCENT_MIN: f64 = 25.0;
/// Fewer than this are an accident.
const REQUESTS_MIN: u64 = 3;
/// A hiccup of two seconds may be felt for so long.
const HICCUP_BACK_MS_MAX: u64 = 30_000;
/// An endpoint that was away for a minute may be missed for two more.
const BACK_MS_MAX: u64 = 120_000;
/// With a failing endpoint among others, each request may cost so many attempts.
const ATTEMPTS_MAX: f64 = 2.0;

/// Everything found, each key once, in the order of the scenarios.
pub(super) fn of(tried: &Tried) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut add = |finding: Option<Finding>| {
        if let Some(finding) = finding
            && !findings.iter().any(|known| known.key == finding.key)
        {
            findings.push(finding);
        }
    };
    let subject = &tried.subject;
    for (scenario, lived) in &tried.lived {
        match scenario {
            Scenario::Calm => calm(subject, lived).into_iter().for_each(|found| add(Some(found))),
            Scenario::OneDies
            | Scenario::OneHangs
            | Scenario::OneFails
            | Scenario::KeyRevoked
            | Scenario::Hiccup
            | Scenario::HalfSlow
            | Scenario::Burst
            | Scenario::Nemesis => {}
        }
        for model in 0..subject.models.len() as u32 {
            let calm = tried.calm(model);
            if scenario.spares_some() {
                spared(subject, *scenario, (lived, &calm), model)
                    .into_iter()
                    .for_each(|found| add(Some(found)));
            }
            if is_sound(&calm) {
                add(stays_away(subject, *scenario, lived, model));
            }
        }
        if *scenario == Scenario::OneFails {
            add(multiplied(lived));
        }
    }
    findings
}

/// Calm traffic that is not served.
fn calm(subject: &Subject, lived: &Lived) -> Vec<Finding> {
    let mut found = Vec::new();
    for (account, counts) in &lived.accounts {
        for (cause, count) in harmful(counts, CALM_PERCENT_MAX) {
            found.extend(limited(subject, *account, counts, &cause, count));
        }
    }
    for (model, counts) in &lived.models {
        for (cause, count) in harmful(counts, CALM_PERCENT_MAX) {
            found.extend(crowded(subject, *model, counts, &cause, count));
        }
    }
    found
}

/// Whether calm is calm enough to tell trouble from it.
pub(super) fn is_sound(calm: &Counts) -> bool {
    let failed = calm.causes.iter().filter(|(cause, _)| !cause.is_policy());
    calm.percent(failed.map(|(_, count)| count).sum()) < UNSOUND_PERCENT_MIN
}

/// The causes that hit too many.
fn harmful(counts: &Counts, percent_max: f64) -> Vec<(Cause, u64)> {
    let causes = counts
        .causes
        .iter()
        .filter(|(_, count)| **count >= REQUESTS_MIN && counts.percent(**count) > percent_max);
    causes.map(|(cause, count)| (cause.clone(), *count)).collect()
}

/// An account whose own limit refuses calm traffic.
fn limited(
    subject: &Subject,
    account: AccountId,
    counts: &Counts,
    cause: &Cause,
    count: u64,
) -> Option<Finding> {
    let needs = format!(
        "its prompt and up to {} tokens of a stream, {} of a whole answer",
        subject.config.quota.slice.0, subject.config.output_default.0,
    );
    let (key, limit, what) = match cause {
        Cause::Quota(of, window, unit) if *of == account => {
            let (key, limit) = quota_key(subject, account, *window, *unit)?;
            (key, limit, format!("before it is sent, a request holds {needs}"))
        }
        Cause::Rate(of, true, limit) if *of == account => {
            ("tpm".to_owned(), format!("{limit} tokens"), format!("a request counts with {needs}"))
        }
        Cause::Rate(of, false, limit) if *of == account => {
            let what = format!("its {} requests came evenly", counts.asked);
            ("rpm".to_owned(), format!("{limit} requests"), what)
        }
        // Another account of the same caller holds it back, or none does.
        Cause::Quota(..)
        | Cause::Rate(..)
        | Cause::Busy
        | Cause::Full
        | Cause::Ejected
        | Cause::NobodyLeft
        | Cause::Timed(_)
        | Cause::Unheard
        | Cause::Failed(_)
        | Cause::Broken
        | Cause::Other(_) => return None,
    };
    Some(Finding {
        key: format!("{}.{key}", subject.key_of(account)),
        seen: format!("in calm, {} of its requests are refused", share(counts, count)),
        why: format!(
            "the limit is {limit}; {what}. Raise it above what one client needs at once, or leave it out"
        ),
    })
}

fn quota_key(
    subject: &Subject,
    account: AccountId,
    window: WindowKind,
    unit: Unit,
) -> Option<(String, String)> {
    let limits = &subject.config.accounts.get(&account)?.limits;
    let (name, cap) = match window {
        WindowKind::Day => ("daily", limits.day),
        WindowKind::Month => ("monthly", limits.month),
        WindowKind::Rolling => return None,
    };
    Some(match unit {
        Unit::Tokens => (format!("{name}_tokens"), format!("{} tokens", cap.tokens?.0)),
        Unit::Money => (format!("{name}_usd"), cap.money?.to_string()),
    })
}

/// A model whose settings do not bear calm traffic.
fn crowded(
    subject: &Subject,
    model: u32,
    counts: &Counts,
    cause: &Cause,
    count: u64,
) -> Option<Finding> {
    let name = &subject.models[model as usize];
    let seen = format!(
        "in calm, {} of the requests for {name} fail: {}",
        share(counts, count),
        cause.word()
    );
    let pool = subject.pool(model);
    let room: u64 = pool
        .iter()
        .map(|at| u64::from(subject.topology.replicas[*at as usize].in_flight_max))
        .sum();
    let longest = quantile(&counts.whole_ms, 99);
    match cause {
        Cause::Full => Some(Finding {
            key: format!("models.{name}.endpoints (in_flight_max)"),
            seen,
            why: format!(
                "its {} take {room} at once in all, and an answer lasts {} at the median: more requests \
                 arrive than fit, and nobody waits in line. Raise in_flight_max to what the server bears",
                counted(pool.len(), "endpoint"),
                told(Duration::from_millis(quantile(&counts.whole_ms, 50).into())),
            ),
        }),
        Cause::Busy => Some(busy(subject, model, seen)),
        Cause::Timed(_) | Cause::Unheard => {
            let stage = if let Cause::Timed(stage) = cause { *stage } else { Stage::Deadline };
            let (part, given) = timeout(subject, model, stage);
            Some(Finding {
                key: timeout_key(subject, model, part),
                seen,
                why: format!(
                    "it is {}, and healthy answers take longer: of those that made it, one in a hundred took {} \
                     or more. Within request an answer must be whole, every attempt and wait included",
                    told(given),
                    told(Duration::from_millis(longest.into())),
                ),
            })
        }
        Cause::Ejected | Cause::Failed(_) | Cause::NobodyLeft | Cause::Broken => Some(Finding {
            key: "routing".to_owned(),
            seen,
            why: "healthy endpoints are not asked, or not long enough".to_owned(),
        }),
        Cause::Quota(..) | Cause::Rate(..) | Cause::Other(_) => None,
    }
}

/// A model that takes no more: by its own limit, by the pace of its endpoints, or because those said that they are full.
fn busy(subject: &Subject, model: u32, seen: String) -> Finding {
    let name = &subject.models[model as usize];
    let own = subject.config.models.get(&*Plan::model_name(model));
    if let Some(most) = own.and_then(|model| model.concurrency_max) {
        let key = format!("models.{name}.concurrency");
        let why = format!("more than {most} run at once at times. Raise it, or leave it out");
        return Finding { key, seen, why };
    }
    let mut pool = subject.pool(model).into_iter();
    let paced = pool.find_map(|at| {
        let most = subject.topology.replicas[at as usize].rps_max?;
        Some((most, &subject.endpoints[at as usize]))
    });
    match paced {
        Some((most, endpoint)) => Finding {
            key: format!("providers.{}.max_rps", endpoint.split(':').next().unwrap_or(endpoint)),
            seen,
            why: format!(
                "{most} a second is a pace of one in {}: what comes closer together is refused where nobody \
                 else serves the model. Raise it to what the provider bears in a clump, or add an endpoint",
                told(Duration::from_secs(1) / most.max(1)),
            ),
        },
        None => Finding {
            key: format!("models.{name}.endpoints"),
            seen,
            why: "its endpoints said that they were full, and fewer requests are let through since. Add endpoints"
                .to_owned(),
        },
    }
}

/// One endpoint is lost, others are there, and still requests fail.
fn spared(
    subject: &Subject,
    scenario: Scenario,
    (lived, calm): (&Lived, &Counts),
    model: u32,
) -> Vec<Finding> {
    let pool = subject.pool(model);
    let Some(counts) = lived.models.get(&model).filter(|_| pool.len() > 1) else {
        return Vec::new();
    };
    let name = &subject.models[model as usize];
    let mut found = Vec::new();
    for (cause, count) in harmful(counts, SPARED_PERCENT_MAX) {
        let before = calm.causes.get(&cause).map_or(0.0, |count| calm.percent(*count));
        if counts.percent(count) - before <= SPARED_PERCENT_MAX
            || (cause.is_consequence() && !is_sound(calm))
        {
            continue;
        }
        let seen = format!(
            "{}: {} of the requests for {name} fail ({}), with {} left to ask",
            scenario.name(),
            share(counts, count),
            cause.word(),
            counted(pool.len() - 1, "other endpoint"),
        );
        let Some((key, why)) = missed(subject, model, &cause) else { continue };
        found.push(Finding { key, seen, why });
    }
    found
}

/// Which setting kept the others from being asked.
fn missed(subject: &Subject, model: u32, cause: &Cause) -> Option<(String, String)> {
    let name = &subject.models[model as usize];
    let config = &subject.config;
    let timeouts = timeouts(subject, model);
    let no_time = || {
        let why = format!(
            "the request's {} are over before a silent endpoint is given up after {} and another asked. Make \
             request several times first_token",
            told(timeouts.request),
            told(timeouts.first_token),
        );
        (timeout_key(subject, model, "request"), why)
    };
    Some(match cause {
        Cause::Failed(GaveUp::AttemptsSpent) => {
            let retries = config.attempt.attempts_max.saturating_sub(1);
            let why = format!(
                "{} allowed: a failed attempt is its client's answer, although another endpoint would have given one",
                match retries {
                    0 => "no retry is".to_owned(),
                    1 => "one retry is".to_owned(),
                    more => format!("{more} retries are"),
                }
            );
            ("routing.max_retries".to_owned(), why)
        }
        Cause::Failed(GaveUp::DeadlineTooNear | GaveUp::SlowFailure)
        | Cause::Timed(Stage::Deadline | Stage::FirstToken) => no_time(),
        Cause::Failed(GaveUp::BudgetSpent) => {
            let attempt = &config.attempt;
            let why = format!(
                "{} retries in a hundred requests and {} a second are earned: fewer than one lost endpoint needs",
                attempt.budget_ratio_percent, attempt.budget_floor_per_second,
            );
            ("routing.retry_budget".to_owned(), why)
        }
        Cause::Full => (
            format!("models.{name}.endpoints (in_flight_max)"),
            "those that are left have no room for the share of the lost one".to_owned(),
        ),
        Cause::Ejected => (
            "routing.breaker".to_owned(),
            "those that are left are ejected too: too few failures eject, for too long".to_owned(),
        ),
        // A whole answer that does not come cannot be told from a slow one: see the notes.
        Cause::Unheard
        | Cause::Timed(Stage::BetweenTokens)
        | Cause::Failed(GaveUp::Hopeless)
        | Cause::NobodyLeft
        | Cause::Broken
        | Cause::Busy
        | Cause::Quota(..)
        | Cause::Rate(..)
        | Cause::Other(_) => return None,
    })
}

/// The trouble is over, and the model is not back.
fn stays_away(subject: &Subject, scenario: Scenario, lived: &Lived, model: u32) -> Option<Finding> {
    let most = match scenario {
        Scenario::Hiccup => HICCUP_BACK_MS_MAX,
        Scenario::OneDies | Scenario::OneFails => BACK_MS_MAX,
        Scenario::Calm
        | Scenario::OneHangs
        | Scenario::KeyRevoked
        | Scenario::HalfSlow
        | Scenario::Burst
        | Scenario::Nemesis => return None,
    };
    let back = lived.back_after.get(&model).copied().filter(|back| back.after_ms > most)?;
    let pool = subject.pool(model);
    let (longest, whose) =
        pool.iter().filter_map(|replica| Some((*lived.ejections.get(replica)?, *replica))).max()?;
    let breaker = &subject.config.breaker;
    // Jitter takes off up to a share of it: what is shorter than the first one is the first one.
    let first = longest <= breaker.ejection_base;
    let (key, what) = match first {
        true => ("ejection_base", "the first ejection lasts as long"),
        false => ("ejection_max", "each ejection is longer than the one before, up to that"),
    };
    Some(Finding {
        key: format!("routing.breaker.{key}"),
        seen: format!(
            "{}: after {} of trouble, {} stays away for {}",
            scenario.name(),
            told(Duration::from_millis(scenario.lasts_ms())),
            subject.models[model as usize],
            back.told(),
        ),
        why: format!(
            "{} was ejected for {} ({} in a row eject), and {}: {what}. Let it return \
             within seconds; a probe costs one request",
            subject.endpoints[whose as usize],
            told(longest),
            counted(breaker.consecutive_failures as usize, "failure"),
            match pool.len() {
                1 => "nobody else serves the model".to_owned(),
                more => format!("so were others of its {more} endpoints"),
            },
        ),
    })
}

/// Retries that multiply.
fn multiplied(lived: &Lived) -> Option<Finding> {
    let each = lived.all.attempts as f64 / lived.all.sent.max(1) as f64;
    (each > ATTEMPTS_MAX).then(|| Finding {
        key: "routing.retry_budget".to_owned(),
        seen: format!("one fails fast: each request costs {each:.1} attempts"),
        why: "retries multiply the load on endpoints that struggle already".to_owned(),
    })
}

/// A duration as an operator writes it, or nearly.
pub(super) fn told(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{} s", (seconds * 10.0).round() / 10.0),
        _ => format!("{} min", (seconds / 6.0).round() / 10.0),
    }
}

fn timeouts(subject: &Subject, model: u32) -> &control::attempt::Timeouts {
    let own = subject.config.models.get(&*Plan::model_name(model));
    own.and_then(|model| model.timeouts.as_ref()).unwrap_or(&subject.config.timeouts)
}

fn timeout(subject: &Subject, model: u32, stage: Stage) -> (&'static str, Duration) {
    let timeouts = timeouts(subject, model);
    match stage {
        Stage::FirstToken => ("first_token", timeouts.first_token),
        Stage::BetweenTokens => ("between_tokens", timeouts.between_tokens),
        Stage::Deadline => ("request", timeouts.request),
    }
}

/// The model's own key where it differs from the general one.
fn timeout_key(subject: &Subject, model: u32, part: &str) -> String {
    match timeouts(subject, model) == &subject.config.timeouts {
        true => format!("routing.timeouts.{part}"),
        false => format!("models.{}.timeouts.{part}", subject.models[model as usize]),
    }
}

fn share(counts: &Counts, count: u64) -> String {
    format!("{:.0} % ({count} of {})", counts.percent(count), counts.asked)
}

pub(super) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// All but so many of a hundred took no longer; 0 for none.
pub(super) fn quantile(values: &[u32], percent: usize) -> u32 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}

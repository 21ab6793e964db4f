//! The answers in words, and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use control::id::AccountId;
use control::plane::View;
use control::quota::{Audit, BalanceKey, Sums, Window, WindowKind};
use control::units::Amount;
use serde::Serialize;
use serde_json::json;

use super::{AccountNames, Said};
use crate::inspect::{Audited, Verified};
use crate::wall::rfc3339;

/// A value as JSON, indented.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
}

/// Endpoints, breakers and load, a line each.
pub(super) fn status(view: &View, running: bool) -> String {
    let mut text = String::new();
    let state = if running { "running" } else { "stopped; as of its last record" };
    let _ = writeln!(text, "{state} at {}, life {}", rfc3339(view.wall), view.incarnation);
    let _ = writeln!(
        text,
        "{} requests under way, {} reservations held, {} sessions at home",
        view.requests, view.reservations, view.sessions
    );
    let width = view.endpoints.iter().map(|e| e.name.len()).max().unwrap_or(0).max(8);
    let _ = writeln!(text, "{:width$}  tier  weight  in flight  breaker", "endpoint");
    for endpoint in &view.endpoints {
        let (name, breaker) = (&endpoint.name, &endpoint.breaker);
        let _ = write!(
            text,
            "{name:width$}  {:>4}  {:>6}  {:>9}  {}",
            endpoint.tier, endpoint.weight, endpoint.in_flight, breaker.phase
        );
        if let Some(until) = breaker.until {
            let _ = write!(text, ", {} s more", until.since(view.now).as_secs());
        }
        if let Some(cause) = breaker.cause {
            let _ = write!(text, ": {cause}");
        }
        if endpoint.draining {
            text.push_str("; draining");
        }
        if let Some(age) = endpoint.stale_for {
            let _ = write!(text, "; its source is silent for {} s", age.as_secs());
        }
        let _ = writeln!(text, "  [{}]", endpoint.models.join(", "));
    }
    text
}

/// Every balance, a line each.
pub(super) fn quota(audit: &Audit, names: &AccountNames) -> String {
    if audit.balances.is_empty() {
        return "nothing has been spent".to_owned();
    }
    let rows = audit.balances.iter().map(|(key, sums)| {
        [
            account(key.account, names),
            window(key.window),
            amount(sums.spent),
            amount(sums.outstanding),
            amount(sums.carried),
        ]
    });
    table(["account", "window", "spent", "outstanding", "carried debt"], rows.collect())
}

/// The same for programs: money in micro-USD.
pub(super) fn quota_json(audit: &Audit, names: &AccountNames) -> String {
    let balances = audit.balances.iter().map(|(key, sums)| {
        json!({
            "account": account(key.account, names),
            "window": window(key.window),
            "tokens": units(sums, |amount| amount.tokens.0),
            "micro_usd": units(sums, |amount| amount.money.0),
        })
    });
    json(&balances.collect::<Vec<_>>())
}

fn units(sums: &Sums, of: impl Fn(Amount) -> u64) -> BTreeMap<&'static str, u64> {
    let named = |(name, amount)| (name, of(amount));
    terms(sums).into_iter().chain([("carried", sums.carried)]).map(named).collect()
}

/// The terms of the algebra, in the order of its equations.
fn terms(sums: &Sums) -> [(&'static str, Amount); 9] {
    [
        ("held", sums.held),
        ("overrun", sums.overrun),
        ("charged", sums.charged),
        ("refunded", sums.refunded),
        ("expired", sums.expired),
        ("outstanding", sums.outstanding),
        ("late", sums.late),
        ("forgiven", sums.forgiven),
        ("spent", sums.spent),
    ]
}

/// The sums of the algebra, and whether they hold.
pub(super) fn audited(audited: &Audited, names: &AccountNames) -> Said {
    let mut text = String::new();
    let audit = &audited.audit;
    for (key, sums) in &audit.balances {
        write_sums(&mut text, &place(*key, names), sums);
    }
    for (id, kind, sums) in &audit.history {
        write_sums(&mut text, &format!("{} {}", account(*id, names), closed(*kind)), sums);
    }
    for (kind, sums) in &audit.retired {
        write_sums(&mut text, &format!("retired accounts {}", closed(*kind)), sums);
    }
    for violation in &audit.violations {
        let _ = writeln!(text, "DOES NOT HOLD: {:?} in {:?}", violation.equation, violation.place);
    }
    for difference in &audited.differences {
        let _ = writeln!(text, "DOES NOT HOLD: {difference}");
    }
    let _ = writeln!(
        text,
        "{} balances recomputed from {} entries: {}; outstanding reservations: {}",
        audit.balances.len(),
        audited.entries,
        if audited.holds() { "all sums hold" } else { "the sums do not hold" },
        audit.live,
    );
    Said { ok: audited.holds(), text }
}

fn write_sums(text: &mut String, place: &str, sums: &Sums) {
    for (unit, of) in [
        ("tokens", (|amount: Amount| amount.tokens.0) as fn(Amount) -> u64),
        ("micro-USD", |amount: Amount| amount.money.0),
    ] {
        let [held, overrun, charged, refunded, expired, outstanding, late, forgiven, spent] =
            terms(sums).map(|(_, amount)| of(amount));
        if held + overrun + late == 0 {
            continue;
        }
        let _ = writeln!(
            text,
            "{place} {unit}: held {held} + overrun {overrun} = charged {charged} + refunded {refunded} + \
             expired {expired} + outstanding {outstanding}; spent {spent} = charged + late {late} - forgiven {forgiven}"
        );
    }
}

/// What a replay found.
pub(super) fn verified(verified: &Verified) -> Said {
    let begin = if verified.from_snapshot { "the snapshot at" } else { "the first step, at" };
    let mut text = format!(
        "{} records from {begin} position {}: every effect reproduced",
        verified.reproduced, verified.from
    );
    if verified.applied > 0 {
        let _ = write!(text, "; {} of another version applied as facts", verified.applied);
    }
    match &verified.failure {
        Some((position, what)) => {
            text = format!(
                "record {position}: {what}\n{} records before it hold",
                verified.reproduced
            );
        }
        None => {
            let _ = write!(text, "\n{}", verified.end);
        }
    }
    Said { ok: verified.holds(), text }
}

/// Puts names in the place of account ids.
pub(super) fn replace_accounts(text: &str, names: &AccountNames) -> String {
    names.iter().fold(text.to_owned(), |text, (id, name)| text.replace(&id.to_string(), name))
}

fn place(key: BalanceKey, names: &AccountNames) -> String {
    format!("{} {}", account(key.account, names), window(key.window))
}

fn account(id: AccountId, names: &AccountNames) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string())
}

fn window(window: Window) -> String {
    match window {
        Window::Day(day) => {
            let (year, month, day) = control::Wall::from_millis(day * 86_400_000).date();
            format!("day {year:04}-{month:02}-{day:02}")
        }
        Window::Month(month) => format!("month {:04}-{:02}", 1970 + month / 12, month % 12 + 1),
        Window::Rolling { start, until } => {
            format!("rolling {} to {}", rfc3339(start), rfc3339(until))
        }
    }
}

fn closed(kind: WindowKind) -> &'static str {
    match kind {
        WindowKind::Day => "closed days",
        WindowKind::Month => "closed months",
        WindowKind::Rolling => "closed rolling windows",
    }
}

fn amount(amount: Amount) -> String {
    match amount.money.0 {
        0 => amount.tokens.0.to_string(),
        _ => format!("{} ({})", amount.tokens.0, amount.money),
    }
}

fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(head[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    let head = head.map(str::to_owned);
    for row in std::iter::once(&head).chain(&rows) {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

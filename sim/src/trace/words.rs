//! What a machine saw and did, in words.
//!
//! A failure is read by somebody who has not read the code. Inputs and effects get a sentence each; what lies inside them
//! (a refusal, a failure, a fact) is its own name taken apart, so that a variant that is added tomorrow is told as well.
//! **Rejected:** a sentence for every variant of every enum, which would be a second copy of the product's vocabulary.

use std::fmt::Debug;

use control::outcome::AttemptEnd;
use control::plane::{Arrival, Durable, Effect, Input};
use control::quota::{Ask, Fact, HoldId, Reply};
use control::shared::{Consult, Consulted, HomeAnswer, Noted};

/// An input as somebody would tell it. What happens all the time and says nothing is `None`.
pub(super) fn input(input: &Input) -> Option<String> {
    Some(match input {
        Input::Restarted { incarnation, .. } => format!("begins its life {incarnation}"),
        Input::WallTime(_) | Input::Timeout => return None,
        Input::Configured(config) => format!("takes configuration {}", config.version),
        Input::Membership { source, version, endpoints, .. } => {
            let count = endpoints.len();
            format!("hears of {count} replicas from {source}, version {version}")
        }
        Input::SourceLost { source } => format!("hears nothing from {source}"),
        Input::Drain { endpoint, on: true } => format!("is told to drain {endpoint}"),
        Input::Drain { endpoint, on: false } => format!("is told to use {endpoint} again"),
        Input::LoadReported { load, .. } => {
            format!("hears of {} running and {} waiting", load.running, load.queued)
        }
        Input::RequestArrived(arrival) => arrived(arrival),
        Input::StoreAnswered(answer) => {
            format!("hears from the store, op {}: {}", answer.op.0, reply(&answer.reply))
        }
        Input::StoreFailed { op } => format!("hears that op {} cannot reach the store", op.0),
        Input::Consulted(answer) => {
            format!("is told by the store, consult {}: {}", answer.op.0, told(answer))
        }
        Input::ConsultFailed { op } => {
            format!("hears that consult {} cannot reach the store", op.0)
        }
        Input::Housed(housed) => {
            format!(
                "is told by the store, note {}: {:?} is {}",
                housed.op.0,
                housed.session,
                home(&housed.home)
            )
        }
        Input::LedgerAsked { op, .. } => format!("is asked by a service: {}", ask(&op.ask)),
        Input::AttemptAccepted { attempt } => format!("{attempt} is accepted"),
        Input::FirstToken { attempt } => format!("{attempt} brings its first token"),
        Input::Progress { attempt, produced } => format!("{attempt} has brought {produced}"),
        Input::AttemptEnded { attempt, end } => format!("{attempt} {}", ended(end)),
        Input::ClientGone { caller } => format!("client {} hangs up", caller.0),
    })
}

/// An effect as somebody would tell it.
pub(super) fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Admitted { caller, request } => format!("calls client {} {request}", caller.0),
        Effect::Reserve(op) => format!("asks the store, op {}: {}", op.op.0, ask(&op.ask)),
        Effect::Dispatch(order) => {
            let (attempt, request, to) = (order.attempt, order.request, &order.endpoint_name);
            let beside = if order.hedge { ", beside another" } else { "" };
            format!("sends {request} to {to} as {attempt} (its no. {}{beside})", order.number)
        }
        Effect::Cancel { attempt, .. } => format!("stops {attempt}"),
        Effect::Persist(Durable::Entry(entry)) => fact(&entry.fact),
        Effect::Persist(Durable::Binding { session, binding }) => {
            let (to, epoch) = (binding.endpoint, binding.epoch);
            format!("binds {session:?} to {to:?}, epoch {epoch}")
        }
        Effect::Persist(Durable::Released { session }) => format!("releases {session:?}"),
        Effect::Persist(Durable::Adopted { session, binding }) => {
            let (to, epoch) = (binding.endpoint, binding.epoch);
            format!("takes over that {session:?} is at {to:?}, epoch {epoch}")
        }
        Effect::Consult(consult) => consulted(consult),
        Effect::Note(note) => format!("tells the store, note {}: {}", note.op.0, noted(&note.what)),
        Effect::Reject { request, refusal, .. } => {
            format!("refuses {request}: {}", plain(refusal))
        }
        Effect::LedgerAnswered { answer, .. } => {
            format!("answers the service: {}", reply(&answer.reply))
        }
        Effect::Finish { request, outcome, charged, attempts, .. } => {
            let (outcome, tokens) = (plain(outcome), charged.tokens);
            format!("ends {request}: {outcome}, charged {tokens} after {attempts} attempts")
        }
    }
}

fn consulted(consult: &Consult) -> String {
    let mut parts = Vec::new();
    parts
        .extend(consult.rates.iter().map(|take| format!("{} {}", plain(&take.unit), take.account)));
    parts.extend(consult.idempotency.map(|claim| format!("key {:?}", claim.idempotency.key)));
    parts.extend(consult.home.map(|session| format!("home of {session:?}")));
    format!("consults the store, {}, for {}: {}", consult.op.0, consult.request, parts.join(", "))
}

fn told(answer: &Consulted) -> String {
    let mut parts = Vec::new();
    parts.extend(answer.rates.map(|rates| plain(&rates)));
    parts.extend(answer.idempotency.map(|key| format!("key {}", plain(&key))));
    parts.extend(answer.home.as_ref().map(home));
    if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") }
}

fn home(home: &HomeAnswer) -> String {
    match home {
        HomeAnswer::Nowhere { epoch } => format!("nowhere, epoch {epoch}"),
        HomeAnswer::At { endpoint, epoch } => format!("at {endpoint}, epoch {epoch}"),
    }
}

fn noted(what: &Noted) -> String {
    match what {
        Noted::Rates(corrections) => format!("{} limits were used otherwise", corrections.len()),
        Noted::Key { idempotency, charged: true, .. } => {
            format!("key {:?} was charged", idempotency.key)
        }
        Noted::Key { idempotency, .. } => format!("key {:?} is free", idempotency.key),
        Noted::Home { session, endpoint, believed, .. } => {
            format!("{session:?} was accepted at {endpoint}, epoch {believed} believed")
        }
        Noted::Homeless { session, believed } => {
            format!("{session:?} has no home, epoch {believed} believed")
        }
    }
}

/// A ledger's fact as somebody would tell it.
pub(super) fn fact(fact: &Fact) -> String {
    match fact {
        Fact::Limits { account, .. } => format!("notes the limits of {account}"),
        Fact::Reserve { hold, amount, .. } => format!("holds {} as {}", amount.tokens, held(hold)),
        Fact::Extend { hold, amount, .. } => {
            format!("holds {} more as {}", amount.tokens, held(hold))
        }
        Fact::Settle { hold, actual, .. } => {
            format!("charges {} for {}", actual.tokens, held(hold))
        }
        Fact::Refund { hold } => format!("returns {}", held(hold)),
        Fact::Expire { hold } => format!("lets {} expire", held(hold)),
        Fact::Late { hold, actual, .. } => {
            format!("charges {} for {}, late", actual.tokens, held(hold))
        }
        Fact::Forgive { amount, .. } => format!("forgives {}", amount.tokens),
        Fact::Close { .. } => "closes a window".to_owned(),
        Fact::Retire { account } => format!("retires {account}"),
        Fact::Acknowledged { hold } => format!("knows that the end of {} is known", held(hold)),
    }
}

fn ask(ask: &Ask) -> String {
    match ask {
        Ask::Probe => "who are you?".to_owned(),
        Ask::Reserve(draw) => format!("may I hold {}", plain(draw)),
        Ask::Extend { hold, total } => format!("may {} be {}?", held(hold), total.tokens),
        Ask::Assert { hold, total, .. } => format!("{} is {}", held(hold), total.tokens),
        Ask::Settle { hold, actual, .. } => format!("charge {} for {}", actual.tokens, held(hold)),
        Ask::Refund { hold } => format!("return {}", held(hold)),
    }
}

fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Granted { hold, total, .. } => format!("{} is {}", held(hold), total.tokens),
        Reply::Denied(denied) => format!("no, {}", plain(denied)),
        Reply::Done => "done".to_owned(),
        Reply::OtherRun => "I am another run than you believe".to_owned(),
        Reply::Here => "here".to_owned(),
    }
}

fn held(hold: &HoldId) -> String {
    let what = if hold.allotment { "allotment " } else { "" };
    format!("{what}{} of owner {}", hold.id, hold.owner.0)
}

/// Anything that can be printed for debugging, without its punctuation, and cut where it gets long.
pub(crate) fn plain(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let mut words = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(length);
        match word {
            "Some" | "{" | "}" | "(" | ")" | "[" | "]" | "\"" | ":" => words.push(' '),
            word if is_id(word) => words.push_str(word),
            word => push_apart(&mut words, word),
        }
        rest = after;
    }
    let spaced: Vec<&str> = words.split_whitespace().collect();
    let text = spaced.join(" ").replace(" ,", ",");
    match text.char_indices().nth(WORDS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Characters of one thing before it is cut: a line of a terminal, and a half.
const WORDS_MAX: usize = 120;

fn arrived(arrival: &Arrival) -> String {
    let Arrival { caller, model, principal, prompt, stream, session, .. } = arrival;
    let how = if *stream { "a stream" } else { "an answer" };
    let session = session.map(|session| format!(" in {:?}", session.key)).unwrap_or_default();
    let who = principal.tenant;
    format!("client {} of {who} asks {model} for {how}, {prompt} long{session}", caller.0)
}

fn ended(end: &AttemptEnd) -> String {
    match end {
        AttemptEnd::Completed { usage, .. } => format!("is complete: {}", plain(usage)),
        AttemptEnd::Failed { failure, produced, .. } => {
            format!("failed after {produced}: {}", plain(failure))
        }
        AttemptEnd::Cancelled { produced } => format!("has stopped after {produced}"),
    }
}

pub(super) fn is_id(word: &str) -> bool {
    ["req_", "att_", "rsv_", "acct_", "sess_"].iter().any(|kind| word.starts_with(kind))
}

/// `QuotaSpent` as ` quota spent`, `retry_after` as `retry after`.
fn push_apart(words: &mut String, word: &str) {
    let mut before_is_small = false;
    for c in word.chars() {
        if c.is_uppercase() && before_is_small {
            words.push(' ');
        }
        before_is_small = c.is_lowercase();
        match c {
            '_' => words.push(' '),
            c => words.extend(c.to_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::id::{Minted, RequestId};
    use control::outcome::{Failure, Stage};
    use control::plane::Refusal;

    #[test]
    fn a_value_is_told_without_its_punctuation() {
        let by = RequestId(Minted { incarnation: 1, counter: 45 });
        assert_eq!(
            plain(&Refusal::IdempotencyDone { by: Some(by) }),
            "idempotency done by req_1-2d"
        );
        assert_eq!(plain(&Failure::Timeout(Stage::FirstToken)), "timeout first token");
        assert_eq!(plain(&Some(Failure::Status(502))), "status 502");
    }

    #[test]
    fn what_gets_long_is_cut() {
        let long = plain(&vec!["word"; 100]);
        assert_eq!(long.chars().count(), WORDS_MAX + 3);
        assert!(long.ends_with("..."), "{long}");
    }
}

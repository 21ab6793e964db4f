//! Whom the clients of a configuration are taken to be, where nobody says.
//!
//! Lengths have the shape of a published trace, prompts a tenth as long. Requests come at a pace that endpoints as they are
//! taken to be serve with ease, and nobody comes near a limit: half of each is used at most, but three requests are
//! always sent, or a limit that lets none through would never be met. What is refused then is refused by the
//! configuration and not by the load.

use control::plane::AccountConfig;
use control::rng::Rng;
use control::units::MicroUsd;

use super::findings::counted;
use super::subject::{Caller, Subject};
use crate::plan::Ask;
use crate::plan::shape::{CHAT_OUTPUT, CHAT_PROMPT, length};

/// What clients ask, and in which words to say so.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    /// In any order.
    pub asks: Vec<Ask>,
    /// How it is described to whoever reads the table.
    pub described: Vec<String>,
}

/// Requests a second for each endpoint of a model: some seven streams at once on each.
const RATE_PER_ENDPOINT: f64 = 1.0;
/// Requests a second in all: a world of hundreds of endpoints need not be loaded to be judged.
const RATE_MAX: f64 = 25.0;
/// The share of a limit that is used.
const USED: f64 = 0.5;
/// Requests that each caller sends whatever its limits.
const REQUESTS_MIN: f64 = 3.0;
/// Tokens of an average request of this shape.
const TOKENS_MEAN: f64 = 1_500.0;
const PROMPT_PART: u64 = 10;
/// In percent.
const STREAMS: u64 = 80;
const IN_SESSIONS: u64 = 50;
const BOUNDED: u64 = 30;

/// The default traffic for so many seconds.
pub(super) fn default(subject: &Subject, seconds: u64, rng: &mut Rng) -> Traffic {
    let wanted: Vec<f64> = (0..subject.models.len() as u32)
        .map(|model| subject.pool(model).len() as f64 * RATE_PER_ENDPOINT)
        .collect();
    let scale = (RATE_MAX / wanted.iter().sum::<f64>().max(1.0)).min(1.0);
    let mut traffic = Traffic { asks: Vec::new(), described: Vec::new() };
    for (model, wanted) in (0..).zip(&wanted) {
        let callers = callers_of(subject, model);
        let share = wanted * scale / callers.len().max(1) as f64;
        let mut sent = 0.0;
        for (tenant, caller) in callers {
            let most = allowed(subject, tenant, caller, model, seconds);
            let rate = share.min(most).max(REQUESTS_MIN / seconds as f64);
            let before = traffic.asks.len();
            fill(&mut traffic.asks, rate, seconds, (tenant as u32, caller, model), rng);
            sent += (traffic.asks.len() - before) as f64 / seconds as f64;
        }
        let missing = wanted * scale - sent;
        traffic.described.push(format!(
            "{}: {sent:.2} requests/s from {}",
            subject.models[model as usize],
            counted(callers_of(subject, model).len(), "caller"),
        ));
        if missing > 0.05 * wanted * scale {
            let others = Caller { user: None, models: Vec::new() };
            let tenant = subject.tenants.len() as u32;
            fill(&mut traffic.asks, missing, seconds, (tenant, &others, model), rng);
            let more =
                format!(" and {missing:.2}/s from others without limits, to load its endpoints");
            traffic.described.last_mut().expect("it was just pushed").push_str(&more);
        }
    }
    traffic.described.push(format!(
        "prompts of {} to {} tokens (half below {}), answers of {} to {} (half below {}); {STREAMS} % stream, \
         {IN_SESSIONS} % in sessions, {BOUNDED} % with max_tokens",
        CHAT_PROMPT[0] / PROMPT_PART,
        CHAT_PROMPT[20] / PROMPT_PART,
        CHAT_PROMPT[10] / PROMPT_PART,
        CHAT_OUTPUT[0],
        CHAT_OUTPUT[20],
        CHAT_OUTPUT[10],
    ));
    traffic
}

/// Everybody who may call a model.
pub(super) fn callers_of(subject: &Subject, model: u32) -> Vec<(usize, &Caller)> {
    let all = subject.tenants.iter().enumerate();
    let callers =
        all.flat_map(|(at, tenant)| tenant.callers.iter().map(move |caller| (at, caller)));
    callers.filter(|(_, caller)| caller.models.contains(&model)).collect()
}

/// Requests a second that leave half of each limit unused. A tenant's limits are shared by its callers and their models.
fn allowed(subject: &Subject, tenant: usize, caller: &Caller, model: u32, seconds: u64) -> f64 {
    let among = subject.tenants[tenant].callers.len() as f64;
    let models = caller.models.len().max(1) as f64;
    let limits = subject.limits_of(tenant, caller);
    let name = crate::plan::Plan::model_name(model);
    let price = subject.config.models.get(&*name).map(|model| model.price).unwrap_or_default();
    let mean = (price.input.0 * 3 + price.output.0).max(1) as f64 / 4.0 * TOKENS_MEAN / 1e6;
    let each = limits.iter().enumerate().map(|(level, (_, account))| {
        let sharers = if level == 0 { among * models } else { models };
        rate_of(account, mean, seconds) * USED / sharers
    });
    each.fold(f64::INFINITY, f64::min)
}

/// Requests a second that an account's limits bear, for as long as the traffic lasts.
fn rate_of(account: &AccountConfig, money_mean: f64, seconds: u64) -> f64 {
    let seconds = seconds as f64;
    let limits = &account.limits;
    let mut least = f64::INFINITY;
    for cap in [limits.day, limits.month] {
        least = cap.tokens.map_or(least, |most| least.min(most.0 as f64 / TOKENS_MEAN / seconds));
        let money = |most: MicroUsd| most.0 as f64 / money_mean / seconds;
        least = cap.money.map_or(least, |most| least.min(money(most)));
    }
    let rates = &account.rates;
    least = rates.rpm.map_or(least, |rpm| least.min(f64::from(rpm) / 60.0));
    rates.tpm.map_or(least, |tpm| least.min(tpm as f64 / TOKENS_MEAN / 60.0))
}

fn fill(
    asks: &mut Vec<Ask>,
    rate: f64,
    seconds: u64,
    (tenant, caller, model): (u32, &Caller, u32),
    rng: &mut Rng,
) {
    // Three requests are three, and not one after rounding.
    let count = (rate * seconds as f64).round() as u64;
    let sessions = 1 + count / 10;
    for number in 0..count {
        // Evenly, with a shift of up to a place: limits a minute are met by the pace and not by chance.
        let place = seconds * 1_000_000 / count.max(1);
        let at_us = number * place + rng.below(place.max(1));
        let output = length(&CHAT_OUTPUT, rng);
        let session = (rng.below(100) < IN_SESSIONS).then(|| rng.below(sessions) as u32);
        let stream = rng.below(100) < STREAMS;
        let output_max = (rng.below(100) < BOUNDED).then_some(output * 2);
        let prompt = length(&CHAT_PROMPT, rng) / PROMPT_PART;
        let session = session.map(|session| session << 8 | model);
        asks.push(Ask {
            session,
            stream,
            output_max,
            ..ask(at_us, (tenant, caller, model), prompt, output)
        });
    }
}

/// A patient client's plain question.
pub(super) fn ask(
    at_us: u64,
    (tenant, caller, model): (u32, &Caller, u32),
    prompt: u64,
    output: u64,
) -> Ask {
    Ask {
        at_us,
        gateway: 0,
        tenant,
        user: caller.user.as_ref().map(|(user, _)| *user),
        model,
        session: None,
        stored: false,
        key: None,
        prompt: prompt.max(1),
        prompt_true: prompt.max(1),
        output: output.max(1),
        output_max: None,
        stream: true,
        patience_ms: None,
        leaves_ms: None,
        again: 0,
        named: false,
        roams: false,
        bad: false,
    }
}

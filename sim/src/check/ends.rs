//! What clients and tenants lived through, in figures; and which effects and observations there were, for coverage.

use std::collections::BTreeMap;
use std::time::Duration;

use control::attempt::NoHedge;
use control::outcome::Failure;
use control::plane::{Durable, Effect, Observation, Outcome, Race, Refusal};
use control::quota::Fact;
use control::registry::Refused as SourceRefused;
use control::units::Amount;
use serde::{Deserialize, Serialize};

use crate::coverage::{self, sometimes};

/// A run in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Answered whole.
    pub completed: u64,
    /// Broken after their first token.
    pub broken: u64,
    /// Cut because quota was spent.
    pub cut: u64,
    /// Left by their clients.
    pub cancelled: u64,
    /// Under way when their gateway died.
    pub lost: u64,
    /// Refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Attempts made.
    pub attempts: u64,
    /// Tokens charged.
    pub tokens: u64,
    /// From arrival to the first token, in milliseconds, of every stream that had one.
    pub first_token_ms: Vec<u32>,
    /// From arrival to the end, in milliseconds, of every whole answer.
    pub whole_ms: Vec<u32>,
}

impl Figures {
    pub(super) fn first_token(&mut self, after: Duration) {
        self.first_token_ms.push(millis(after));
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        let name = refusal_name(refusal);
        coverage::mark(name);
        *self.refused.entry(name.trim_start_matches("refused_").to_owned()).or_default() += 1;
    }

    pub(super) fn finished(
        &mut self,
        outcome: &Outcome,
        charged: Amount,
        waited: Option<Duration>,
    ) {
        self.tokens = self.tokens.saturating_add(charged.tokens.0);
        match outcome {
            Outcome::Completed => {
                sometimes!("finished_completed");
                self.completed += 1;
                self.whole_ms.extend(waited.map(millis));
            }
            Outcome::Broken(_) => {
                sometimes!("finished_broken");
                self.broken += 1;
            }
            Outcome::QuotaSpent(_) => {
                sometimes!("finished_quota_spent");
                self.cut += 1;
            }
            Outcome::QuotaUnavailable { .. } => {
                sometimes!("finished_quota_unavailable");
                self.cut += 1;
            }
            Outcome::Cancelled => {
                sometimes!("finished_cancelled");
                self.cancelled += 1;
            }
        }
    }

    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.broken += other.broken;
        self.cut += other.cut;
        self.cancelled += other.cancelled;
        self.lost += other.lost;
        self.attempts += other.attempts;
        self.tokens = self.tokens.saturating_add(other.tokens);
        for (name, count) in &other.refused {
            *self.refused.entry(name.clone()).or_default() += count;
        }
        self.first_token_ms.extend_from_slice(&other.first_token_ms);
        self.whole_ms.extend_from_slice(&other.whole_ms);
    }

    /// Requests that were taken.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let refused: u64 = self.refused.values().sum();
        self.completed + self.broken + self.cut + self.cancelled + self.lost + refused
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// An effect was asked for.
pub(super) fn performed(effect: &Effect) {
    match effect {
        Effect::Admitted { .. } => sometimes!("effect_admitted"),
        Effect::Reserve(_) => sometimes!("effect_reserve"),
        Effect::Dispatch(_) => sometimes!("effect_dispatch"),
        Effect::Cancel { .. } => sometimes!("effect_cancel"),
        Effect::Persist(Durable::Entry(entry)) => noted(&entry.fact),
        Effect::Persist(Durable::Binding { .. }) => sometimes!("effect_persist_binding"),
        Effect::Persist(Durable::Released { .. }) => sometimes!("effect_persist_released"),
        Effect::Persist(Durable::Adopted { .. }) => sometimes!("effect_persist_adopted"),
        Effect::Consult(_) => sometimes!("effect_consult"),
        Effect::Note(_) => sometimes!("effect_note"),
        Effect::Reject { .. } => sometimes!("effect_reject"),
        Effect::Finish { .. } => sometimes!("effect_finish"),
        // No service asks in these worlds.
        Effect::LedgerAnswered { .. } => {}
    }
}

fn noted(fact: &Fact) {
    sometimes!("effect_persist_entry");
    match fact {
        Fact::Limits { .. } => sometimes!("fact_limits"),
        Fact::Reserve { .. } => sometimes!("fact_reserve"),
        Fact::Extend { .. } => sometimes!("fact_extend"),
        Fact::Settle { .. } => sometimes!("fact_settle"),
        Fact::Refund { .. } => sometimes!("fact_refund"),
        Fact::Expire { .. } => sometimes!("fact_expire"),
        Fact::Late { .. } => sometimes!("fact_late"),
        Fact::Forgive { .. } | Fact::Retire { .. } => {}
        Fact::Close { .. } => sometimes!("fact_close"),
        Fact::Acknowledged { .. } => sometimes!("fact_acknowledged"),
    }
}

/// Something was noticed.
pub(super) fn observed(observation: &Observation) {
    match observation {
        Observation::Ended {
            end: control::outcome::AttemptEnd::Failed { failure, .. }, ..
        } => {
            failed(*failure);
        }
        Observation::GaveUp { why, .. } => coverage::mark(gave_up(*why)),
        Observation::Retrying { .. } => sometimes!("retrying"),
        Observation::Nobody { .. } => sometimes!("nobody"),
        Observation::Hedged { race, .. } => raced(*race),
        Observation::Lost { .. } => sometimes!("lost"),
        Observation::Denied { .. } => sometimes!("quota_denied"),
        Observation::SourceRefused { why, .. } => source_refused(*why),
        Observation::Consulted { awaited: true, .. } => sometimes!("consulted"),
        Observation::Consulted { awaited: false, .. } => sometimes!("consulted_late"),
        Observation::ConsultLost { .. } => sometimes!("consult_lost"),
        Observation::Adopted { .. } => sometimes!("home_adopted"),
        Observation::SharedDegraded(true) => sometimes!("shared_degraded"),
        Observation::SharedDegraded(false) => sometimes!("shared_restored"),
        Observation::QuotaLate => sometimes!("quota_late"),
        Observation::QuotaDegraded(true) => sometimes!("quota_degraded"),
        Observation::QuotaDegraded(false) => sometimes!("quota_restored"),
        Observation::Stale(_) => sometimes!("stale_input"),
        Observation::EndpointRemoved { .. } => sometimes!("endpoint_removed"),
        Observation::EndpointAdded(_) => sometimes!("endpoint_added"),
        Observation::Configured { .. } => sometimes!("configured"),
        Observation::ChargeLost { .. }
        | Observation::Arrived { .. }
        | Observation::Granted { .. }
        | Observation::Picked { .. }
        | Observation::Accepted { .. }
        | Observation::FirstToken { .. }
        | Observation::Ended { .. }
        | Observation::Bound { .. }
        | Observation::Breaker(_)
        | Observation::Refused { .. }
        | Observation::Finished { .. } => {}
    }
}

fn not_hedged(why: NoHedge) {
    match why {
        NoHedge::AttemptsSpent => sometimes!("not_hedged_attempts_spent"),
        NoHedge::DeadlineTooNear => sometimes!("not_hedged_deadline_near"),
        NoHedge::Nobody => sometimes!("not_hedged_nobody"),
        NoHedge::ShareSpent => sometimes!("not_hedged_share_spent"),
        NoHedge::BudgetSpent => sometimes!("not_hedged_budget_spent"),
    }
}

fn raced(race: Race) {
    match race {
        Race::Begun { .. } => sometimes!("hedging"),
        Race::NotBegun { why } => not_hedged(why),
        Race::Won { .. } => sometimes!("hedge_won"),
        Race::Lost { .. } => sometimes!("hedge_lost"),
        Race::Alone { .. } => sometimes!("hedge_alone"),
        Race::Stopped => sometimes!("hedge_stopped"),
    }
}

fn source_refused(why: SourceRefused) {
    match why {
        SourceRefused::OlderVersion => sometimes!("source_older_version"),
        SourceRefused::Empty => sometimes!("source_empty"),
        SourceRefused::VersionReused
        | SourceRefused::TooManyEndpoints
        | SourceRefused::TooManySources => {}
    }
}

fn failed(failure: Failure) {
    match failure {
        Failure::Connect => sometimes!("failed_connect"),
        Failure::ConnectionLost => sometimes!("failed_connection_lost"),
        Failure::Timeout(control::outcome::Stage::FirstToken) => sometimes!("failed_first_token"),
        Failure::Timeout(control::outcome::Stage::BetweenTokens) => sometimes!("failed_gap"),
        Failure::Timeout(control::outcome::Stage::Deadline) => sometimes!("failed_deadline"),
        Failure::Status(_) => sometimes!("failed_status"),
        Failure::Backpressure(_) => sometimes!("failed_backpressure"),
        Failure::EndpointFault(_) => sometimes!("failed_fault"),
        Failure::Truncated => sometimes!("failed_truncated"),
        Failure::Garbage => sometimes!("failed_garbage"),
        Failure::ClientError(_) => sometimes!("failed_client_error"),
        Failure::ErrorInAnswer | Failure::TooLarge | Failure::CannotResume => {}
    }
}

const fn gave_up(why: control::attempt::Why) -> &'static str {
    match why {
        control::attempt::Why::Committed => "gave_up_committed",
        control::attempt::Why::NotRetryable => "gave_up_not_retryable",
        control::attempt::Why::AttemptsSpent => "gave_up_attempts_spent",
        control::attempt::Why::SlowFailure => "gave_up_slow_failure",
        control::attempt::Why::DeadlineTooNear => "gave_up_deadline_too_near",
        control::attempt::Why::BudgetSpent => "gave_up_budget_spent",
    }
}

const fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownModel => "refused_unknown_model",
        Refusal::QuotaSpent(_) => "refused_quota_spent",
        Refusal::QuotaUnavailable { .. } => "refused_quota_unavailable",
        Refusal::RateLimited { .. } => "refused_rate_limited",
        Refusal::ModelBusy { .. } => "refused_model_busy",
        Refusal::TurnConflict => "refused_turn_conflict",
        Refusal::IdempotencyInFlight { .. } => "refused_idempotency_in_flight",
        Refusal::IdempotencyDone { .. } => "refused_idempotency_done",
        Refusal::IdempotencyMismatch { .. } => "refused_idempotency_mismatch",
        Refusal::NobodyLeft { .. } => "refused_nobody_left",
        Refusal::Failed { .. } => "refused_failed",
        Refusal::ClientGone => "refused_client_gone",
        Refusal::Overloaded => "refused_overloaded",
        Refusal::Lost => "refused_lost",
    }
}

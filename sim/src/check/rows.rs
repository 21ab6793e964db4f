//! Which rows of the machines' transition tables a run walks through, as an outsider sees them: for coverage.
//!
//! Phases are told from what was said of a request: nothing is held and nobody was asked for it (it waits for its turn),
//! the store was asked (it reserves), an attempt runs (attempting, hedged, begun, cutting), or none does (backoff).

use control::outcome::AttemptEnd;
use control::plane::{Effect, Input};

use super::Step;
use super::request::Request;
use crate::coverage::sometimes;

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Reserving,
    Attempting,
    Hedged,
    Begun,
    Cutting,
    Backoff,
    Resuming,
}

impl Request {
    /// Where it stands.
    pub(super) fn phase(&self) -> Phase {
        match self.running {
            Some(running) if running.cancelled => Phase::Cutting,
            Some(_) if self.beside.is_some() => Phase::Hedged,
            Some(_) if self.committed.is_some() => Phase::Begun,
            Some(_) => Phase::Attempting,
            None if self.committed.is_some() => Phase::Resuming,
            None if self.attempts > 0 => Phase::Backoff,
            None if self.asked => Phase::Reserving,
            None => Phase::Waiting,
        }
    }
}

/// A request met an input, in a phase.
pub(super) fn met(phase: Phase, input: &Input) {
    match (phase, input) {
        (Phase::Attempting, Input::AttemptAccepted { .. }) => sometimes!("row_attempting_accepted"),
        (Phase::Attempting, Input::FirstToken { .. }) => sometimes!("row_attempting_first_token"),
        (Phase::Hedged, Input::AttemptAccepted { .. }) => sometimes!("row_hedged_accepted"),
        (Phase::Hedged, Input::FirstToken { .. }) => sometimes!("row_hedged_first_token"),
        (Phase::Begun, Input::Progress { .. }) => sometimes!("row_begun_progress"),
        (_, Input::AttemptEnded { end, .. }) => ended(phase, end),
        (Phase::Waiting, Input::ClientGone { .. }) => sometimes!("row_waiting_client_gone"),
        (Phase::Reserving, Input::ClientGone { .. }) => sometimes!("row_reserving_client_gone"),
        (Phase::Attempting, Input::ClientGone { .. }) => sometimes!("row_attempting_client_gone"),
        (Phase::Hedged, Input::ClientGone { .. }) => sometimes!("row_hedged_client_gone"),
        (Phase::Begun, Input::ClientGone { .. }) => sometimes!("row_begun_client_gone"),
        (Phase::Backoff, Input::ClientGone { .. }) => sometimes!("row_backoff_client_gone"),
        (Phase::Resuming, Input::ClientGone { .. }) => sometimes!("row_resuming_client_gone"),
        _ => {}
    }
}

fn ended(phase: Phase, end: &AttemptEnd) {
    match (phase, end) {
        (Phase::Attempting, AttemptEnd::Completed { .. }) => sometimes!("row_attempting_completed"),
        (Phase::Attempting, AttemptEnd::Failed { .. }) => sometimes!("row_attempting_failed"),
        (Phase::Hedged, AttemptEnd::Completed { .. }) => sometimes!("row_hedged_completed"),
        (Phase::Hedged, AttemptEnd::Failed { .. }) => sometimes!("row_hedged_failed"),
        (Phase::Begun, AttemptEnd::Completed { .. }) => sometimes!("row_begun_completed"),
        (Phase::Begun, AttemptEnd::Failed { .. }) => sometimes!("row_begun_failed"),
        (Phase::Cutting, AttemptEnd::Cancelled { .. }) => sometimes!("row_cutting_cancelled"),
        _ => {}
    }
}

/// An effect ended or moved a request that was in a phase.
pub(super) fn moved(phase: Phase, step: &Step<'_>, effect: &Effect) {
    let timer = matches!(step.input, Input::Timeout);
    match (phase, effect) {
        (Phase::Waiting, Effect::Reject { .. }) if timer => sometimes!("row_waiting_timer"),
        (Phase::Reserving, Effect::Reject { .. }) if timer => sometimes!("row_reserving_timer"),
        (Phase::Cutting, Effect::Finish { .. }) if timer => sometimes!("row_cutting_timer"),
        (Phase::Attempting, Effect::Dispatch(_)) if timer => sometimes!("row_hedge_due"),
        (Phase::Backoff, Effect::Dispatch(_)) if timer => sometimes!("row_backoff_timer"),
        (Phase::Backoff, Effect::Dispatch(_)) => sometimes!("row_failed_and_tried_again"),
        (Phase::Backoff, Effect::Reject { .. }) => sometimes!("row_failed_for_good"),
        (Phase::Reserving, Effect::Dispatch(_)) => sometimes!("row_reserving_granted"),
        (Phase::Reserving, Effect::Reject { .. }) => sometimes!("row_reserving_denied"),
        (Phase::Resuming, Effect::Dispatch(_)) => sometimes!("row_resuming_dispatched"),
        (Phase::Resuming, Effect::Finish { .. }) => sometimes!("row_resuming_broken"),
        (Phase::Waiting, Effect::Dispatch(_)) => sometimes!("row_turn_came"),
        (Phase::Begun, Effect::Cancel { .. }) => sometimes!("row_begun_limit_met"),
        _ => {}
    }
}

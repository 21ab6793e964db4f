//! Two attempts of one request beside each other, until one of them answers.
//!
//! Nothing has reached the client while both run, so that whichever brings the first token is the answer, and the other
//! never was: it is stopped in that step, its load given back, its breaker told nothing, and what it reports later names
//! nobody any more. Up to then neither is more than the other: where one fails the other is the attempt, and the
//! request goes on as if there had been only that one. A refusal that any endpoint would give (the request itself is at
//! fault) is an answer, too: nobody waits for the other to say it again. So there is one answer, one bill and one home of the session.
//!
//! | event                          | the two           | the request               |
//! |--------------------------------|-------------------|---------------------------|
//! | first token, or whole answer   | the other stopped | is answered by the one    |
//! | a failure anybody would repeat | the other stopped | is refused                |
//! | one fails otherwise            | the other goes on | no retry, nothing is paid |
//! | client gone, watchdog          | both stopped      | is over                   |
//! | process ends                   | both lost         | is over, refunded         |
//!
//! A turn of a stored session has no second attempt: what it waits for may be another process, and not the replica.
//!
//! Rejected: to blame the loser, or the one that has lost so and so often in a row. Where a pool is slow as a whole, who is
//! second is chance, and blame for it ejects the healthy when they are needed most. So a replica that never answers is hidden
//! as long as each of its requests is hedged; the share bounds that, as what is not hedged times out and counts.
//!
//! Rejected: to let the loser finish and take the cheaper answer, or to let both stream until one breaks. A replica's time
//! is what is short when requests wait.

use super::ControlPlane;
use super::arrive::WATCHDOG_SLACK;
use super::observation::{Observation, Race};
use super::request::{Attempt, Phase};
use crate::attempt::Waiting;
use crate::id::{AttemptId, RequestId};
use crate::outcome::{AttemptEnd, Verdict};
use crate::units::Tokens;

impl ControlPlane {
    /// Whether the timer that fired is that of a second attempt, and not the watchdog behind the deadline.
    pub(super) fn hedge_is_due(&self, id: RequestId) -> bool {
        let request = &self.requests[&id];
        let watchdog = request.deadline + WATCHDOG_SLACK;
        request.hedge.due.is_some_and(|due| due <= self.now) && self.now < watchdog
    }

    /// The attempt that runs has been silent for long: another is made beside it, if that may be.
    pub(super) fn hedge(&mut self, id: RequestId) {
        let request = self.requests.get_mut(&id).expect("a live request has a timer");
        // Asked once for each attempt, whatever the answer.
        request.hedge.due = None;
        let waiting = Waiting {
            attempts: request.attempts,
            deadline: request.deadline,
            other_eligible: self.balance.has_untried(&request.arrival.model, &request.tried),
        };
        let may = self.retry.may_hedge(self.now, &waiting);
        match may.and_then(|()| self.send_hedge(id)) {
            Ok(attempt) => {
                let request = self.requests.get_mut(&id).expect("it was sent just now");
                request.hedge.made = true;
                request.hedge.attempt = Some(attempt);
                request.produced = Tokens::ZERO;
            }
            Err(why) => {
                let race = Race::NotBegun { why };
                self.observe(Observation::Hedged { request: id, race });
            }
        }
        self.set_due(id);
    }

    /// This attempt answers: it is the one that runs, and another beside it is stopped. Nothing where it runs alone.
    pub(super) fn race_won(&mut self, id: RequestId, winner: AttemptId) {
        let request = self.requests.get_mut(&id).expect("its attempt runs");
        // Whoever has begun to answer is not hedged any more.
        request.hedge.due = None;
        if let Some(hedge) = request.hedge.attempt.take()
            && let Phase::Attempting(first) = &mut request.phase
        {
            let won = hedge.id == winner;
            let loser = if won { core::mem::replace(first, hedge) } else { hedge };
            let over = loser.endpoint;
            // Nothing failed there, this time: where the winner breaks off, it may be the one that goes on.
            let spared = request.tried.iter().rposition(|tried| *tried == over);
            request.tried.remove(spared.expect("it was sent there"));
            if planted!(LoserNotStopped) {
                self.release(&loser, Verdict::Neutral);
            } else {
                self.stop(id, &loser, Verdict::Neutral);
            }
            let race = if won { Race::Won { over } } else { Race::Lost { over } };
            self.observe(Observation::Hedged { request: id, race });
        }
        self.set_due(id);
    }

    /// One of two has ended without an answer, and is released: the other is the attempt now.
    pub(super) fn other_goes_on(&mut self, id: RequestId, ended: &Attempt, end: &AttemptEnd) {
        let request = self.requests.get_mut(&id).expect("its attempt ran");
        if let AttemptEnd::Failed { failure, .. } = end {
            request.last_failure = Some(*failure);
        }
        if let Some(hedge) = request.hedge.attempt.take()
            && let Phase::Attempting(first) = &mut request.phase
            && first.id == ended.id
        {
            *first = hedge;
        }
        let race = Race::Alone { without: ended.endpoint };
        self.observe(Observation::Hedged { request: id, race });
    }

    /// Nobody waits for the second attempt any more.
    pub(super) fn stop_hedge(&mut self, id: RequestId) {
        let request = self.requests.get_mut(&id).expect("a live request is stopped");
        request.hedge.due = None;
        if let Some(hedge) = request.hedge.attempt.take() {
            self.stop(id, &hedge, Verdict::Neutral);
            self.observe(Observation::Hedged { request: id, race: Race::Stopped });
        }
    }
}

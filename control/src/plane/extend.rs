//! A stream's reservation grows with it, slice by slice, until the account's true limit is met.

use super::ControlPlane;
use super::arrive::spent_of;
use super::effect::Outcome;
use super::observation::{Observation, Stale};
use super::request::{Phase, Request, request_of, reservation_of};
use crate::id::{RequestId, ReservationId};
use crate::quota::{Denied, DenyReason};
use crate::units::{Amount, Price, Tokens, Usage};

impl ControlPlane {
    /// Asks for the next slice when half of the last one is left, so that the answer is here before it is needed. Never
    /// for more than the client allows: what it will not use must not be what meets the limit.
    pub(super) fn extend(&mut self, id: RequestId) {
        let slice = self.config.quota.slice;
        let Some(request) = self.requests.get(&id) else { return };
        let running = matches!(request.phase, Phase::Attempting(_));
        if !running || !request.arrival.stream || request.extending.is_some() {
            return;
        }
        let Request { produced, covered, .. } = **request;
        let wanted = request.arrival.output_max.map_or(Tokens(u64::MAX), |max| max.max(produced));
        let missing = (covered.max(produced) + slice).min(wanted).saturating_sub(covered);
        if produced + Tokens(slice.0 / 2) >= covered && missing > Tokens::ZERO {
            self.ask_for(id, missing);
        }
    }

    fn ask_for(&mut self, id: RequestId, completion: Tokens) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.extending = Some(completion);
        let amount = request.price.of(Usage { prompt: Tokens::ZERO, completion });
        self.quota.extend(self.now, reservation_of(id), amount);
    }

    pub(super) fn handle_extended(&mut self, reservation: ReservationId, total: Amount) {
        let id = request_of(reservation);
        let Some(request) = self.requests.get_mut(&id) else {
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        };
        request.extending = None;
        self.note_covered(id, total);
        self.observe(Observation::Granted { request: id, total });
        if self.requests.get(&id).is_some_and(|request| request.produced >= request.covered) {
            // It was all that was left, and it is used already: whether there is more is asked now, not a mark later.
            self.extend(id);
        }
    }

    /// A whole slice is more than the account has left. What it has left is asked for; where that is nothing, the limit
    /// is met: what is covered may still be delivered, then the stream is cut.
    pub(super) fn handle_extend_denied(&mut self, reservation: ReservationId, denied: &Denied) {
        let id = request_of(reservation);
        let Some(request) = self.requests.get_mut(&id) else {
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        };
        let asked = request.extending.take().unwrap_or(Tokens::ZERO);
        let affordable = affordable(denied, request.price);
        // Less each time, so that accounts whose limits differ cannot send it back and forth.
        let left = affordable.min(asked.saturating_sub(Tokens(1)));
        let attempting = matches!(request.phase, Phase::Attempting(_));
        let exhausted = request.produced >= request.covered;
        let overrun = request.produced.saturating_sub(request.covered);
        self.observe(Observation::Denied { request: id, denied: *denied });
        match spent_of(denied) {
            // What is left is used already: to ask for it would only let the stream run on until the answer is here.
            Some(spent) if exhausted && overrun >= affordable => {
                self.cut(id, Outcome::QuotaSpent(spent));
            }
            Some(_) if left > Tokens::ZERO && attempting => self.ask_for(id, left),
            Some(spent) if exhausted => self.cut(id, Outcome::QuotaSpent(spent)),
            // Nobody can say whether there is more. A slice is what a stream may overrun by.
            None if overrun >= self.config.quota.slice => {
                let retry_after = denied.retry_after;
                self.cut(id, Outcome::QuotaUnavailable { retry_after });
            }
            // Asked again at the next mark: until then the slice in hand is used up.
            Some(_) | None => {}
        }
    }
}

/// Completion tokens that what is left of the limit pays for.
fn affordable(denied: &Denied, price: Price) -> Tokens {
    let DenyReason::Spent { remaining, .. } = denied.reason else { return Tokens::ZERO };
    let paid = match price.output.0 {
        0 => u64::MAX,
        output => {
            let tokens = u128::from(remaining.money.0) * 1_000_000 / u128::from(output);
            u64::try_from(tokens).unwrap_or(u64::MAX)
        }
    };
    remaining.tokens.min(Tokens(paid))
}

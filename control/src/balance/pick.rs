//! What is asked of the balancer, and what it answers.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{EndpointId, SessionKey};

/// One attempt looks for a replica.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The model asked for.
    pub model: &'a str,
    /// What keeps the request with others of its session, if anything does.
    pub key: Option<SessionKey>,
    /// The replica that holds the session, as `affinity` says.
    pub bound: Option<EndpointId>,
    /// Where this request was tried already. The cost of a pick grows with its length.
    pub tried: &'a [EndpointId],
}

/// The balancer's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pick {
    /// Dispatch it there.
    Chosen(Chosen),
    /// Nobody may take it.
    Nobody(Nobody),
}

/// Whom, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The replica.
    pub endpoint: EndpointId,
    /// Its priority tier.
    pub tier: u8,
    /// What singled it out.
    pub reason: Reason,
    /// So few were admitted that the ejected ones counted too.
    pub panic: bool,
    /// It was tried before, and nobody else was left.
    pub retried_same: bool,
    /// Who was looked at, for `explain`.
    pub considered: Considered,
}

/// What singled a replica out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It holds the session.
    Bound,
    /// It is the first of the key's homes that may take work.
    Home,
    /// The session's home is above the load bound; this one is next. One attempt: it binds nothing by itself.
    Spilled {
        /// The home that was passed over.
        from: EndpointId,
    },
    /// It was its turn.
    InTurn,
    /// It has the least work for its weight.
    LeastLoaded,
    /// It had less work than the other of two.
    TwoChoices,
}

/// Up to [`Considered::MAX`] candidates in the order they were looked at, the chosen one among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    candidates: [Option<Candidate>; Self::MAX],
    len: u8,
}

/// One that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its attempts in flight at that moment.
    pub in_flight: u32,
    /// Work that others gave it, by its own word.
    pub others: u32,
    /// Why not this one; `None` for the chosen.
    pub why_not: Option<WhyNot>,
}

/// Why a candidate was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhyNot {
    /// It does not serve the model, or no longer exists.
    Gone,
    /// It is in a tier that is not in use now.
    OtherTier,
    /// It drains.
    Draining,
    /// The breaker does not admit it.
    Ejected,
    /// It has as many attempts in flight as it may.
    Full,
    /// This request was tried there.
    Tried,
    /// One more would put it above the load bound.
    OverBound,
    /// The other had less work.
    MoreLoaded,
}

/// Why nobody was picked: `members = draining + ejected + full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nobody {
    /// Members of the model's pool, in all tiers.
    pub members: u32,
    /// Of these, draining.
    pub draining: u32,
    /// Of the others, not admitted by the breaker.
    pub ejected: u32,
    /// Of the rest, with as many attempts in flight as they may have.
    pub full: u32,
    /// How many members this request was tried on, whatever they are now.
    pub tried: u32,
    /// No endpoint serves the model.
    pub unknown_model: bool,
}

impl Considered {
    /// Enough for a binding, three attempts and a few homes; what comes later is left out, the chosen one never.
    pub const MAX: usize = 8;

    /// The candidates, in the order they were looked at.
    pub fn iter(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.candidates.iter().flatten().copied()
    }

    /// Notes a candidate; one that was noted before keeps its first reason.
    pub(super) fn note(&mut self, candidate: Candidate) {
        let known = self.iter().any(|noted| noted.endpoint == candidate.endpoint);
        if !known && (self.len as usize) < Self::MAX {
            self.candidates[self.len as usize] = Some(candidate);
            self.len += 1;
        }
    }

    /// Notes the chosen one, last: in its own place if it was seen before, over the last if there is no room.
    pub(super) fn settle(&mut self, chosen: Candidate) {
        let seen = self.iter().position(|noted| noted.endpoint == chosen.endpoint);
        let index = seen.unwrap_or((self.len as usize).min(Self::MAX - 1));
        self.candidates[index] = Some(chosen);
        self.len = self.len.max(index as u8 + 1);
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "it holds the session",
            Self::Home => "it is the session's home",
            Self::Spilled { .. } => "the session's home has more than its share of the load",
            Self::InTurn => "it was its turn",
            Self::LeastLoaded => "it has the least work for its weight",
            Self::TwoChoices => "it had less work than the other of two",
        })
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "it no longer serves the model",
            Self::OtherTier => "it is in another priority tier",
            Self::Draining => "it is draining",
            Self::Ejected => "its breaker is open",
            Self::Full => "it is full",
            Self::Tried => "it was tried already",
            Self::OverBound => "it has more than its share of the load",
            Self::MoreLoaded => "the other had less work",
        })
    }
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unknown_model {
            return f.write_str("no endpoint serves the model");
        }
        write!(
            f,
            "of {} endpoints {} are draining, {} have an open breaker, {} are full",
            self.members, self.draining, self.ejected, self.full
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(slot: u32, why_not: Option<WhyNot>) -> Candidate {
        Candidate { endpoint: EndpointId { slot, generation: 0 }, in_flight: 0, others: 0, why_not }
    }

    #[test]
    fn the_chosen_one_is_always_told_however_many_were_looked_at() {
        let mut considered = Considered::default();
        for slot in 0..20 {
            considered.note(candidate(slot, Some(WhyNot::Full)));
        }
        considered.settle(candidate(99, None));
        assert_eq!(considered.iter().count(), Considered::MAX);
        assert_eq!(considered.iter().last(), Some(candidate(99, None)));
    }

    #[test]
    fn a_candidate_is_told_once() {
        let mut considered = Considered::default();
        considered.note(candidate(1, Some(WhyNot::OverBound)));
        considered.note(candidate(1, Some(WhyNot::MoreLoaded)));
        considered.note(candidate(2, Some(WhyNot::Full)));
        considered.settle(candidate(1, None));
        let told: Vec<_> = considered.iter().collect();
        assert_eq!(told, [candidate(1, None), candidate(2, Some(WhyNot::Full))]);
    }
}

//! Turn order: one turn of a session runs, the next wait for it in order of arrival.
//!
//! | session | begin                    | running turn ends       | waiting turn ends | timer                |
//! |---------|--------------------------|-------------------------|-------------------|----------------------|
//! | idle    | go: running              | nothing                 | nothing           | nothing              |
//! | running | wait, or refused if full | idle, or the next goes  | leaves the line   | overdue ones refused |
//!
//! Whoever waits may leave (his client has gone) or be refused by the timer; both keep the order of the others. A turn
//! that runs has no timer here: its request has a deadline. Beginning a turn that is there already tells again where it
//! stands, so that a repeated input changes nothing.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::id::{RequestId, SessionKey};
use crate::time::Instant;

/// Who of each session runs, and who waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Turns {
    config: Config,
    /// Sessions with a running turn; others are not here.
    sessions: BTreeMap<SessionKey, Session>,
    /// When each waiting turn gives up.
    timers: BTreeSet<(Instant, SessionKey, RequestId)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session {
    running: RequestId,
    waiting: VecDeque<Waiting>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Waiting {
    request: RequestId,
    until: Instant,
}

/// Whether a turn may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// It runs. Its end must be told.
    Go,
    /// It waits, and runs when [`Turns::end_turn`] names it.
    Wait {
        /// Turns before it, the running one not counted.
        position: u32,
    },
    /// It does neither (409).
    Refused(TurnRefused),
}

/// Why a turn may not even wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnRefused {
    /// As many turns of its session wait as may.
    TooManyWaiting,
    /// As many sessions have a turn under way as may.
    TooManySessions,
}

/// How many that waited too long one call refuses: microseconds.
const TIMEOUTS_PER_CALL: usize = 64;

/// No longer line is sensible, whatever the configuration says: leaving it is a search from its head.
const WAITING_CEILING: u32 = 1_024;

impl Turns {
    /// Nobody runs.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config, sessions: BTreeMap::new(), timers: BTreeSet::new() }
    }

    /// Changes the bounds. Who runs or waits goes on, until the time he was given.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// A turn of a session arrives.
    pub fn begin_turn(&mut self, now: Instant, key: SessionKey, request: RequestId) -> Turn {
        let many = self.sessions.len() >= self.config.sessions_max as usize;
        let Some(session) = self.sessions.get_mut(&key) else {
            if many {
                return Turn::Refused(TurnRefused::TooManySessions);
            }
            self.sessions.insert(key, Session { running: request, waiting: VecDeque::new() });
            return Turn::Go;
        };
        if session.running == request {
            return Turn::Go;
        }
        if let Some(position) = session.position(request) {
            return Turn::Wait { position: count(position) };
        }
        let position = session.waiting.len();
        let full = position >= self.config.waiting_max.min(WAITING_CEILING) as usize;
        if full && !planted!(QueueUnbounded) {
            return Turn::Refused(TurnRefused::TooManyWaiting);
        }
        let until = now + self.config.wait_max;
        session.waiting.push_back(Waiting { request, until });
        self.timers.insert((until, key, request));
        Turn::Wait { position: count(position) }
    }

    /// A turn ended, or left the line. Names the turn that runs now, if another was waiting for this one.
    ///
    /// Who is named may have waited too long with its timer still to come: it was not refused yet, so it runs.
    pub fn end_turn(&mut self, key: SessionKey, request: RequestId) -> Option<RequestId> {
        let session = self.sessions.get_mut(&key)?;
        if session.running != request {
            self.leave(key, request);
            return None;
        }
        let Some(next) = session.waiting.pop_front() else {
            self.sessions.remove(&key);
            return None;
        };
        session.running = next.request;
        self.timers.remove(&(next.until, key, next.request));
        Some(next.request)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(until, ..)| *until)
    }

    /// Those that waited too long: refuse them (409). Bounded: a backlog leaves [`poll_timeout`](Self::poll_timeout)
    /// in the past.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<(SessionKey, RequestId)> {
        let mut refused = Vec::new();
        while refused.len() < TIMEOUTS_PER_CALL {
            match self.timers.first() {
                Some(&(until, key, request)) if until <= now => {
                    self.leave(key, request);
                    refused.push((key, request));
                }
                Some(_) | None => break,
            }
        }
        refused
    }

    /// Sessions with a turn under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        let mut timers = 0;
        for (key, session) in &self.sessions {
            assert!(session.waiting.len() <= WAITING_CEILING as usize, "{key:?} has a long line");
            let mut seen = BTreeSet::from([session.running]);
            for Waiting { request, until } in &session.waiting {
                timers += 1;
                assert!(seen.insert(*request), "{request} is in {key:?} twice");
                let timed = self.timers.contains(&(*until, *key, *request));
                assert!(timed, "{request} waits without end");
            }
        }
        assert_eq!(timers, self.timers.len(), "a timer is set for nobody");
    }

    fn leave(&mut self, key: SessionKey, request: RequestId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let Some(position) = session.position(request) else { return };
        if let Some(left) = session.waiting.remove(position) {
            self.timers.remove(&(left.until, key, request));
        }
    }
}

impl Session {
    fn position(&self, request: RequestId) -> Option<usize> {
        self.waiting.iter().position(|waiting| waiting.request == request)
    }
}

fn count(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

impl fmt::Display for TurnRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyWaiting => {
                "too many turns of this session wait already: send the next when one has ended"
            }
            Self::TooManySessions => "too many sessions have a turn under way: try again later",
        })
    }
}

#[cfg(test)]
mod tests;

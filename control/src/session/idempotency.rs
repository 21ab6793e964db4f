//! Idempotency keys: a request that is sent again runs once.
//!
//! | key       | begin, same body | begin, other body | it succeeds | it fails | ttl passes |
//! |-----------|------------------|-------------------|-------------|----------|------------|
//! | unknown   | new: in flight   | new: in flight    | nothing     | nothing  | nothing    |
//! | in flight | in flight        | mismatch          | done        | unknown  | nothing    |
//! | done      | done             | mismatch          | nothing     | nothing  | unknown    |
//!
//! Only success is remembered: a failure frees the key, for it was to be able to try again that the client sent one.
//! Answers are not kept (they would be users' text, and unbounded); whoever repeats a request that is done is told which
//! request did it. A key belongs to its tenant, and finishing asks for the request that holds it: a repetition that
//! was turned away ends too, and must not free the key under the one that runs.
//!
//! Full, the oldest done key is forgotten early: a repetition that late is unlikely. Keys in flight are never
//! forgotten; where they alone fill the room, a new keyed request is refused, because running it unremembered would break the
//! promise silently.

use alloc::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Config;
use crate::id::{AccountId, Digest, RequestId};
use crate::time::Instant;

/// A tenant's key.
type Key = (AccountId, Digest);

/// The keys in use and those that were used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idempotency {
    config: Config,
    entries: BTreeMap<Key, Entry>,
    /// Done keys by when they were done.
    done: BTreeSet<(Instant, Key)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    body: Digest,
    by: RequestId,
    done_at: Option<Instant>,
}

/// What a keyed request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Begun {
    /// The first with its key: run it, and tell its end to [`Idempotency::finish`].
    New,
    /// A repetition of one that runs (409).
    InFlight {
        /// That one.
        by: RequestId,
    },
    /// A repetition of one that succeeded.
    Done {
        /// That one.
        by: RequestId,
    },
    /// The key was used for another body (422).
    Mismatch {
        /// The request that used it.
        by: RequestId,
    },
    /// As many keyed requests run as can be remembered: send it again later, or without a key (503).
    Full,
}

/// How many keys one call forgets: microseconds.
const EXPIRED_PER_CALL: usize = 256;

impl Idempotency {
    /// No key was used.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config, entries: BTreeMap::new(), done: BTreeSet::new() }
    }

    /// Changes the bounds. Too many keys are forgotten as new ones come; a new ttl holds for old keys too.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// A request with a key arrives. `key` and `body` are keyed hashes.
    pub fn begin(
        &mut self,
        now: Instant,
        tenant: AccountId,
        key: Digest,
        body: Digest,
        request: RequestId,
    ) -> Begun {
        let key = (tenant, key);
        if let Some(entry) = self.entries.get(&key).copied() {
            // A timer that is late must not keep a key alive.
            let expired = entry.done_at.is_some_and(|at| at + self.config.idempotency_ttl <= now);
            let ignored = planted!(KeyIgnoredInFlight) && entry.done_at.is_none();
            if !expired && !ignored {
                return entry.begun_again(body);
            }
            self.forget(key);
        }
        if !self.make_room() {
            return Begun::Full;
        }
        self.entries.insert(key, Entry { body, by: request, done_at: None });
        Begun::New
    }

    /// The end of a request that [`begin`](Self::begin) called new. Those it did not change nothing here.
    pub fn finish(
        &mut self,
        now: Instant,
        tenant: AccountId,
        key: Digest,
        request: RequestId,
        succeeded: bool,
    ) {
        let key = (tenant, key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.by != request || entry.done_at.is_some() {
            return;
        }
        if succeeded {
            entry.done_at = Some(now);
            self.done.insert((now, key));
        } else {
            self.entries.remove(&key);
        }
    }

    /// Another version's journal says that this request succeeded: whoever had its key before it has had its end. Where
    /// keys in flight fill the room, it takes one place more: they end with the recovery.
    pub(crate) fn restore(
        &mut self,
        now: Instant,
        tenant: AccountId,
        key: Digest,
        body: Digest,
        request: RequestId,
    ) {
        self.expire(now);
        let key = (tenant, key);
        self.forget(key);
        self.make_room();
        self.entries.insert(key, Entry { body, by: request, done_at: Some(now) });
        self.done.insert((now, key));
    }

    /// When to call [`expire`](Self::expire).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.done.first().map(|(at, _)| *at + self.config.idempotency_ttl)
    }

    /// Forgets done keys whose time is over; says how many. Bounded: a backlog leaves
    /// [`poll_timeout`](Self::poll_timeout) in the past.
    pub fn expire(&mut self, now: Instant) -> usize {
        for expired in 0..EXPIRED_PER_CALL {
            match self.done.first() {
                Some(&(at, key)) if at + self.config.idempotency_ttl <= now => self.forget(key),
                Some(_) | None => return expired,
            }
        }
        EXPIRED_PER_CALL
    }

    /// Keys that are remembered, in flight or done.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        let done = self.entries.iter().filter_map(|(key, entry)| Some((entry.done_at?, *key)));
        let mut count = 0;
        for done in done {
            count += 1;
            assert!(self.done.contains(&done), "{done:?} would never be forgotten");
        }
        assert_eq!(count, self.done.len(), "a key is done that nobody used");
    }

    /// Forgets the oldest done keys until one fits; a few at most, as the bound may have shrunk.
    fn make_room(&mut self) -> bool {
        let most = self.config.idempotency_keys_max as usize;
        for _ in 0..EXPIRED_PER_CALL {
            if self.entries.len() < most {
                return true;
            }
            let Some(&(_, key)) = self.done.first() else { return false };
            self.forget(key);
        }
        self.entries.len() < most
    }

    fn forget(&mut self, key: Key) {
        if let Some(Entry { done_at: Some(at), .. }) = self.entries.remove(&key) {
            self.done.remove(&(at, key));
        }
    }
}

impl Entry {
    fn begun_again(&self, body: Digest) -> Begun {
        let by = self.by;
        if self.body != body {
            Begun::Mismatch { by }
        } else if self.done_at.is_some() {
            Begun::Done { by }
        } else {
            Begun::InFlight { by }
        }
    }
}

#[cfg(test)]
mod tests;

//! The store's side of the idempotency keys: whose they are, and which were charged.
//!
//! | key     | claim, same claimant | claim, same body | claim, other body | charged | freed by its claimant | freed by another | time passes     |
//! |---------|----------------------|------------------|-------------------|---------|-----------------------|------------------|-----------------|
//! | unknown | claimed              | claimed          | claimed           | done    | nothing               | nothing          | nothing         |
//! | claimed | claimed              | in flight        | mismatch          | done    | unknown               | nothing          | unknown (lease) |
//! | done    | done                 | done             | mismatch          | nothing | nothing               | nothing          | unknown (keep)  |
//!
//! A charge is told by whoever made it, whether or not the claim is still its own: a claim whose lease ran out was charged
//! all the same, and one key is one charge.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Claimant, KeyAnswer};
use crate::id::{AccountId, Digest};
use crate::plane::Idempotency;

/// The keys in use and those that were charged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    entries: BTreeMap<(AccountId, Digest), Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    body: Digest,
    /// Whose it is; `None` once it is done.
    by: Option<Claimant>,
    /// Forgotten then.
    until: u64,
}

impl Keys {
    /// A request with a key asks for it, for at most `lease`.
    pub fn claim(
        &mut self,
        now: u64,
        lease: u64,
        tenant: AccountId,
        Idempotency { key, body }: Idempotency,
        by: Claimant,
    ) -> KeyAnswer {
        let live = self.live(now, tenant, key);
        let answer = match live {
            Some(entry) if entry.body != body => KeyAnswer::Mismatch,
            Some(Entry { by: None, .. }) => KeyAnswer::Done,
            Some(Entry { by: Some(other), .. }) if other != by => KeyAnswer::InFlight,
            Some(_) | None => KeyAnswer::Begun,
        };
        if answer == KeyAnswer::Begun {
            let entry = Entry { body, by: Some(by), until: now.saturating_add(lease) };
            self.entries.insert((tenant, key), entry);
        }
        answer
    }

    /// The request of a key is over. Charged: the key is done, and is remembered for `keep`.
    pub fn end(
        &mut self,
        now: u64,
        keep: u64,
        tenant: AccountId,
        (Idempotency { key, body }, by): (Idempotency, Claimant),
        charged: bool,
    ) {
        let live = self.live(now, tenant, key);
        let done = live.is_some_and(|entry| entry.by.is_none());
        if charged && !done {
            let entry = Entry { body, by: None, until: now.saturating_add(keep) };
            self.entries.insert((tenant, key), entry);
        } else if !charged && live.is_some_and(|entry| entry.by == Some(by)) {
            self.entries.remove(&(tenant, key));
        }
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: u64) {
        self.entries.retain(|_, entry| entry.until > now);
    }

    /// How many keys are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn live(&self, now: u64, tenant: AccountId, key: Digest) -> Option<Entry> {
        self.entries.get(&(tenant, key)).copied().filter(|entry| entry.until > now)
    }
}

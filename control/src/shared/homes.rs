//! The store's side of the sessions' homes: one home each, and an epoch that only grows.
//!
//! | session    | accepted there, none higher believed | accepted elsewhere, none higher believed | a higher epoch stands | homeless, none higher | time passes |
//! |------------|--------------------------------------|------------------------------------------|-----------------------|-----------------------|-------------|
//! | nowhere    | at home, epoch believed + 1          | at home, epoch believed + 1              | nothing               | nowhere               | nothing     |
//! | at home    | at home, for longer, epoch believed  | moved, epoch believed + 1                | nothing               | nowhere               | nowhere     |
//!
//! "None higher": the store's own epoch is not above the one the plane believes in. Not "equal": a failover may have lost
//! the last epochs, and a plane that has seen them must not be held up by a store that has not.
//!
//! The epoch outlives the home, by as long again: a plane that hears late that it has moved finds out that it has.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::HomeAnswer;
use crate::id::SessionKey;

/// Where sessions live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homes {
    entries: BTreeMap<SessionKey, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Where, and until when that counts.
    home: Option<(Box<str>, u64)>,
    epoch: u64,
    /// The epoch is forgotten then.
    until: u64,
}

impl Homes {
    /// Where a session lives.
    #[must_use]
    pub fn at(&self, now: u64, session: SessionKey) -> HomeAnswer {
        let Some(entry) = self.entries.get(&session) else {
            return HomeAnswer::Nowhere { epoch: 0 };
        };
        let epoch = if entry.until > now { entry.epoch } else { 0 };
        match &entry.home {
            Some((endpoint, until)) if *until > now => {
                HomeAnswer::At { endpoint: endpoint.clone(), epoch }
            }
            Some(_) | None => HomeAnswer::Nowhere { epoch },
        }
    }

    /// A session was accepted at an endpoint, by a plane that has seen the epoch `believed`. Says where it lives now.
    pub fn accepted(
        &mut self,
        now: u64,
        session: SessionKey,
        endpoint: &str,
        believed: u64,
        ttl: u64,
    ) -> HomeAnswer {
        let (home, epoch) = match self.at(now, session) {
            HomeAnswer::At { endpoint, epoch } => (Some(endpoint), epoch),
            HomeAnswer::Nowhere { epoch } => (None, epoch),
        };
        let same = home.as_deref() == Some(endpoint);
        if same || epoch <= believed {
            let epoch = if same { epoch.max(believed) } else { believed + 1 };
            let home = Some((Box::from(endpoint), now.saturating_add(ttl)));
            let until = now.saturating_add(ttl.saturating_mul(2));
            self.entries.insert(session, Entry { home, epoch, until });
        }
        self.at(now, session)
    }

    /// Nobody could answer a session. Says where it lives now.
    pub fn homeless(&mut self, now: u64, session: SessionKey, believed: u64) -> HomeAnswer {
        let entry = self.entries.get_mut(&session).filter(|entry| entry.until > now);
        if let Some(entry) = entry
            && entry.epoch <= believed
        {
            (entry.home, entry.epoch) = (None, believed);
        }
        self.at(now, session)
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: u64) {
        self.entries.retain(|_, entry| entry.until > now);
    }

    /// How many sessions are kept, those without a home included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

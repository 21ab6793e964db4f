//! Which keys are let in, and whom they name.

use std::collections::BTreeMap;

use control::id::Principal;

use super::{AccountIds, Key, KeyHash, PREFIX};
use crate::config::KeyEntry;

/// The keys of a configuration. A reload makes a new one.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    /// By the hash's first 64 bits. How long this look-up takes tells something about the hash of what was
    /// presented, which whoever presented it knows; the rest of the hash is compared in constant time.
    by_head: BTreeMap<u64, Vec<Identity>>,
    count: usize,
}

/// Whom a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The key's hash.
    pub hash: KeyHash,
    /// The tenant's name.
    pub tenant: String,
    /// The user's, where the key is one's.
    pub user: Option<String>,
    /// The key's own.
    pub name: String,
    /// The same, as the plane knows it.
    pub principal: Principal,
    /// The models it may call; absent, all.
    pub models: Option<Vec<String>>,
}

/// Why a presented key is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its checksum does not fit: letters are missing or wrong.
    #[error("this API key is incomplete or mistyped; copy it again")]
    Mistyped,
    /// Well formed, but none of ours.
    #[error("this API key is not known here; it may have been revoked")]
    Unknown,
}

impl KeyRing {
    /// The ring of these keys.
    #[must_use]
    pub fn new(keys: &[KeyEntry], ids: &AccountIds) -> Self {
        let mut ring = Self::default();
        for key in keys {
            // The auth role has it.
            let Some(hash) = key.hash else { continue };
            let identity = Identity {
                hash,
                tenant: key.tenant.clone(),
                user: key.user.clone(),
                name: key.name.clone(),
                principal: ids.principal(&key.tenant, key.user.as_deref(), Some(&key.name)),
                models: key.models.clone(),
            };
            ring.by_head.entry(hash.head()).or_default().push(identity);
            ring.count += 1;
        }
        ring
    }

    /// Whether no key is known, so that callers come without.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many keys are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whom the key of this hash names.
    #[must_use]
    pub fn find(&self, hash: &KeyHash) -> Option<&Identity> {
        let candidates = self.by_head.get(&hash.head()).map_or(&[][..], Vec::as_slice);
        candidates.iter().find(|identity| identity.hash == *hash)
    }

    /// Whom `presented` names.
    ///
    /// # Errors
    /// See [`Refused`]. A key that is known is let in whatever its form: it may have been made elsewhere.
    pub fn lookup(&self, presented: &str) -> Result<&Identity, Refused> {
        match self.find(&KeyHash::of(presented)) {
            Some(identity) => Ok(identity),
            None if presented.starts_with(PREFIX) && !Key::is_well_formed(presented) => {
                Err(Refused::Mistyped)
            }
            None => Err(Refused::Unknown),
        }
    }
}

impl Identity {
    /// Whether the key may call `model`.
    #[must_use]
    pub fn may_call(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|name| name == model))
    }
}

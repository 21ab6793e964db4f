//! Identities. The plane mints them; whoever meets one later can tell which life of the plane it is from.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A number minted by one life (incarnation) of the plane: unique over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Minted {
    /// Which life of the plane minted it.
    pub incarnation: u32,
    /// Counts up within that life.
    pub counter: u64,
}

macro_rules! minted {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub Minted);

        impl $name {
            /// What a printed id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// Reads back what `Display` prints.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let (incarnation, counter) = text.strip_prefix($prefix)?.split_once('-')?;
                Some(Self(Minted {
                    incarnation: u32::from_str_radix(incarnation, 16).ok()?,
                    counter: u64::from_str_radix(counter, 16).ok()?,
                }))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}-{:x}"), self.0.incarnation, self.0.counter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

minted!(
    /// A client's ask, from arrival to its one outcome. Printed as `req_<incarnation>-<counter>`, in hex.
    RequestId,
    "req_"
);
minted!(
    /// One try of a request on one endpoint. Printed as `att_<incarnation>-<counter>`, in hex.
    AttemptId,
    "att_"
);
minted!(
    /// Quota held for one request (or for an allotment). Printed as `rsv_<incarnation>-<counter>`, in hex.
    ReservationId,
    "rsv_"
);

/// An endpoint of the registry. The slot is reused after removal, the generation then differs: a stale id names nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId {
    /// Dense index, for arrays.
    pub slot: u32,
    /// Counts the occupants of the slot.
    pub generation: u32,
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ep{}.{}", self.slot, self.generation)
    }
}

/// What the driver calls a caller before the plane has minted a [`RequestId`]: opaque, handed back in effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallerToken(pub u64);

/// An account of the quota tree: a keyed hash of its path (tenant, tenant and user, or tenant and key), made by the
/// shell, so that no user's text enters the plane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId(pub u64);

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "acct_{:016x}", self.0)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What keeps requests together: a keyed hash of (tenant, session id), or of (tenant, conversation prefix).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey(pub u64);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sess_{:016x}", self.0)
    }
}

/// A keyed 128-bit hash of something the plane compares but must not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub u128);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Who asks: the accounts that pay, from the root down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// The tenant: the root of the account tree.
    pub tenant: AccountId,
    /// The user within the tenant, where one is named.
    pub user: Option<AccountId>,
    /// The API key that was presented, where keys are in use.
    pub key: Option<AccountId>,
}

impl Principal {
    /// The accounts from the root down.
    pub fn accounts(&self) -> impl Iterator<Item = AccountId> + use<> {
        [Some(self.tenant), self.user, self.key].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_printed_id_reads_back() {
        let id = RequestId(Minted { incarnation: 3, counter: 0xbeef });
        assert_eq!(id.to_string(), "req_3-beef");
        assert_eq!(RequestId::parse("req_3-beef"), Some(id));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in ["", "req_", "req_3", "att_3-beef", "req_x-1", "req_1-", "req_1--1"] {
            assert_eq!(RequestId::parse(text), None, "{text:?}");
        }
    }
}

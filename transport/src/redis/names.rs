//! What the keys are called that gateways share beside the ledger.
//!
//! Some of them are the contract's, byte for byte: `chat:idempotent:<id>`, `session_affinity:<session id>`,
//! `token:<user>:<yyyy-mm-dd>`. A session's id is what its client calls it: it and the name of a user are what Redis sees of
//! people's words.
//!
//! **Two tenants never meet.** The sessions (and users) of the tenant `default` are called as they are; those of any other
//! `<tenant>%:<session>`. A plain colon would not do: the session `acme:1` of `default` would be the session `1` of `acme`.
//! So `%` is written `%25` in either name, and what stands behind a `%` tells a separator from a letter. Braces are written
//! `%7B` and `%7D`: Redis Cluster finds the slot of a key between its first brace and the next, and the home and its epoch
//! must lie in one.

use control::id::{AccountId, Digest};
use control::rate::RateUnit;

use crate::config::DEFAULT_TENANT;

/// What a session, or a user, is called among all that share a Redis.
#[must_use]
pub fn scoped_name(tenant: &str, own: &str) -> String {
    let mut name = String::with_capacity(own.len());
    if tenant != DEFAULT_TENANT {
        escape(tenant, &mut name);
        name.push_str("%:");
    }
    escape(own, &mut name);
    name
}

fn escape(text: &str, name: &mut String) {
    for letter in text.chars() {
        match letter {
            '%' => name.push_str("%25"),
            '{' => name.push_str("%7B"),
            '}' => name.push_str("%7D"),
            other => name.push(other),
        }
    }
}

/// Where a session of that name is, and the epoch of that: two keys of one slot.
#[must_use]
pub fn home_keys(name: &str) -> [String; 2] {
    [format!("session_affinity:{name}"), format!("{{session_affinity:{name}}}:epoch")]
}

/// A tenant's idempotency key.
#[must_use]
pub fn key_key(tenant: AccountId, key: Digest) -> String {
    format!("chat:idempotent:{:016x}.{:032x}", tenant.0, key.0)
}

/// What an account of a tenant has used of a rate. All of a tenant lie in one slot.
#[must_use]
pub fn rate_key(tenant: AccountId, account: AccountId, unit: RateUnit) -> String {
    format!("pointsman:rate:{{{:016x}}}:{:016x}:{}", tenant.0, account.0, unit_name(unit))
}

/// What the scripts call a unit.
pub(super) const fn unit_name(unit: RateUnit) -> &'static str {
    match unit {
        RateUnit::Rpm => "rpm",
        RateUnit::Tpm => "tpm",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_contracts_keys_are_called_as_it_says() {
        let [home, epoch] = home_keys(&scoped_name("default", "order:42/a b"));
        assert_eq!(home, "session_affinity:order:42/a b");
        assert_eq!(epoch, "{session_affinity:order:42/a b}:epoch");
        let key = key_key(AccountId(0xa11ce), Digest(0xff));
        let digest = "000000000000000000000000000000ff";
        assert_eq!(key, format!("chat:idempotent:00000000000a11ce.{digest}"));
    }

    #[test]
    fn no_two_sessions_of_any_tenants_have_one_name() {
        let words = [
            "a", "a:b", "a%:b", "%:b", "a%", "a%25", "b", "{b}", "%7Bb%7D", "default", ":", "%",
            "25:b",
        ];
        let mut names = BTreeSet::new();
        for tenant in words {
            for session in words {
                let name = scoped_name(tenant, session);
                assert!(
                    !name.contains(['{', '}']),
                    "{name} would lie in another slot than its epoch"
                );
                assert!(names.insert(name), "{tenant} {session}");
            }
        }
    }
}

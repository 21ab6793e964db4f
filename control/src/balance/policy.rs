//! The policies by name, and the room's numbers.

use serde::{Deserialize, Serialize};

/// How a replica is picked among those that may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// In turn, smoothly by weight: `round_robin`, also called `weighted_round_robin`.
    RoundRobin,
    /// The least work in flight per weight: `least_load`.
    LeastLoad,
    /// The less loaded of two drawn by weight: `p2c`.
    P2c,
    /// A session stays where it is, under the load bound: `sticky`.
    Sticky {
        /// Where a session goes that is nowhere yet.
        fallback: Fallback,
    },
    /// The session's home under the load bound, and least load without a session: `auto`.
    #[default]
    Auto,
}

/// Where `sticky` places a session that has no replica yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallback {
    /// On the home every gateway computes alike: `rendezvous`.
    #[default]
    Rendezvous,
    /// In turn: `round_robin`. Only what binds it keeps such a session in place.
    RoundRobin,
}

impl Policy {
    /// Reads a policy's name. `sticky` comes with the default fallback.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "round_robin" | "weighted_round_robin" => Some(Self::RoundRobin),
            "least_load" => Some(Self::LeastLoad),
            "p2c" => Some(Self::P2c),
            "sticky" => Some(Self::Sticky { fallback: Fallback::default() }),
            "auto" => Some(Self::Auto),
            _ => None,
        }
    }

    /// The name `parse` reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastLoad => "least_load",
            Self::P2c => "p2c",
            Self::Sticky { .. } => "sticky",
            Self::Auto => "auto",
        }
    }

    /// Whether a session's binding counts. Under the other policies it is ignored: who asks for `round_robin` gets it.
    #[must_use]
    pub const fn is_affine(self) -> bool {
        match self {
            Self::Sticky { .. } | Self::Auto => true,
            Self::RoundRobin | Self::LeastLoad | Self::P2c => false,
        }
    }
}

impl Fallback {
    /// Reads a fallback's name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "rendezvous" => Some(Self::Rendezvous),
            "round_robin" => Some(Self::RoundRobin),
            _ => None,
        }
    }

    /// The name `parse` reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous",
            Self::RoundRobin => "round_robin",
        }
    }
}

/// The room's policy numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The policy of a model that has none of its own.
    pub policy: Policy,
    /// The load bound of `sticky` and `auto`, and of what endpoints report under all policies, in percent of the mean. Below 100 counts as 100: less is not to be had.
    pub bound_percent: u32,
    /// A tier with fewer admitted members than this, in percent, is in panic. 0 switches panic off.
    pub panic_percent: u32,
    /// Tiers with fewer members than this never panic: a lone endpoint must be able to cool down.
    pub panic_members_min: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Auto,
            // Mirrokni, Thorup and Zadimoghaddam (2018): at 1.25 a key rarely leaves home, and no replica is far
            // above its share.
            bound_percent: 125,
            // With nine of ten ejected, the ejections are more likely wrong than the replicas; the one left would
            // only be killed too.
            panic_percent: 10,
            // With one or two members, "fewer than 10 percent" means "none", and that is what ejection is for.
            panic_members_min: 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_reads_its_own_name_back() {
        for name in ["round_robin", "least_load", "p2c", "sticky", "auto"] {
            assert_eq!(Policy::parse(name).map(Policy::name), Some(name));
        }
        for name in ["rendezvous", "round_robin"] {
            assert_eq!(Fallback::parse(name).map(Fallback::name), Some(name));
        }
    }

    #[test]
    fn the_documents_other_name_for_round_robin_is_understood() {
        assert_eq!(Policy::parse("weighted_round_robin"), Some(Policy::RoundRobin));
        assert_eq!(Policy::parse("Round_Robin"), None);
        assert_eq!(Fallback::parse(""), None);
    }
}

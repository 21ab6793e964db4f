//! What is counted: tokens, money, and both at once.

use core::fmt;
use core::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// A count of model tokens.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Tokens(pub u64);

/// Money in millionths of a US dollar.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MicroUsd(pub u64);

/// Tokens and what they cost. Quota is held, charged and returned in both units at once, or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Amount {
    /// Prompt and completion tokens together.
    pub tokens: Tokens,
    /// Their price, as pinned when they were reserved.
    pub money: MicroUsd,
}

/// Prompt and completion tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read by the model.
    pub prompt: Tokens,
    /// Tokens written by the model.
    pub completion: Tokens,
}

/// Price of a model, in micro-USD per 1,000,000 tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Price {
    /// Per 1,000,000 prompt tokens.
    pub input: MicroUsd,
    /// Per 1,000,000 completion tokens.
    pub output: MicroUsd,
}

impl Price {
    /// What `usage` costs, each side rounded up to a whole micro-USD.
    #[must_use]
    pub fn of(self, usage: Usage) -> Amount {
        Amount {
            tokens: usage.prompt + usage.completion,
            money: self.prompt(usage.prompt) + self.completion(usage.completion),
        }
    }

    fn prompt(self, tokens: Tokens) -> MicroUsd {
        per_million(self.input, tokens)
    }

    fn completion(self, tokens: Tokens) -> MicroUsd {
        per_million(self.output, tokens)
    }
}

fn per_million(price: MicroUsd, tokens: Tokens) -> MicroUsd {
    let product = u128::from(price.0) * u128::from(tokens.0);
    MicroUsd(u64::try_from(product.div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

macro_rules! quantity {
    ($name:ident) => {
        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0);

            /// `self - other`, or zero where `other` is larger.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;
            /// Saturates: a count never wraps into a small one.
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }
    };
}

quantity!(Tokens);
quantity!(MicroUsd);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self { tokens: Tokens::ZERO, money: MicroUsd::ZERO };

    /// Unit by unit, `self - other`, or zero where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            money: self.money.saturating_sub(other.money),
        }
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, money: self.money + other.money }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Usage {
    /// Prompt and completion together.
    #[must_use]
    pub fn total(self) -> Tokens {
        self.prompt + self.completion
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0)
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_per_million_tokens_and_rounds_each_side_up() {
        let price = Price { input: MicroUsd(150_000), output: MicroUsd(600_000) };
        let amount = price.of(Usage { prompt: Tokens(1_000), completion: Tokens(1) });
        assert_eq!(amount, Amount { tokens: Tokens(1_001), money: MicroUsd(151) });
    }

    #[test]
    fn a_huge_count_saturates() {
        let price = Price { input: MicroUsd(u64::MAX), output: MicroUsd(0) };
        let usage = Usage { prompt: Tokens(u64::MAX), completion: Tokens(1) };
        assert_eq!(price.of(usage).money, MicroUsd(u64::MAX));
        assert_eq!(usage.total(), Tokens(u64::MAX));
    }
}

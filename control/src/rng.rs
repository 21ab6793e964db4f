//! Chance, from one seed.
//!
//! The generator is xoshiro256++ (Blackman and Vigna, 2019), seeded through SplitMix64. Every room forks a stream of
//! its own by label, so that one more draw in one room never shifts what another room sees. The state is part of the
//! snapshot: a restored plane draws what the stopped one would have drawn.

use serde::{Deserialize, Serialize};

/// A deterministic stream of numbers. Not for secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut splitmix = seed;
        let state = core::array::from_fn(|_| {
            splitmix = splitmix.wrapping_add(GOLDEN);
            mix(splitmix)
        });
        Self { state }
    }

    /// An independent stream for `label`. Leaves `self` as it was.
    #[must_use]
    pub fn fork(&self, label: &str) -> Self {
        Self::new(hash_bytes(self.state[0] ^ self.state[3], label.as_bytes()))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number below `bound`, by multiply and shift (bias below `bound / 2^64`). Zero for a bound of zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64: a bijection that spreads every input bit over all output bits.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A fixed, unkeyed hash of bytes: eight at a time, each folded in by [`mix`]. The same on every machine; not for
/// anything an attacker may choose to collide.
#[must_use]
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = mix(seed ^ GOLDEN);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash.rotate_left(29) ^ u64::from_le_bytes(*word));
    }
    let tail = rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    mix(hash.rotate_left(29) ^ tail ^ ((bytes.len() as u64) << 56))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_algorithm() {
        // xoshiro256++ from the state 1, 2, 3, 4, as its reference implementation prints it.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let drawn = [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(drawn, [41_943_041, 58_720_359, 3_588_806_011_781_223]);
    }

    #[test]
    fn forks_differ_by_label_and_leave_the_parent_alone() {
        let parent = Rng::new(7);
        let (mut one, mut two, mut again) =
            (parent.fork("balance"), parent.fork("breaker"), parent.fork("balance"));
        let first = one.next_u64();
        assert_ne!(first, two.next_u64());
        assert_eq!(first, again.next_u64());
        assert_eq!(parent, Rng::new(7));
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[rng.below(5) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn a_hash_depends_on_length_and_order() {
        assert_ne!(hash_bytes(0, b"ab"), hash_bytes(0, b"ba"));
        assert_ne!(hash_bytes(0, b""), hash_bytes(0, b"\0"));
        assert_ne!(hash_bytes(0, b"12345678"), hash_bytes(0, b"12345678\0"));
        assert_ne!(hash_bytes(0, b"a"), hash_bytes(1, b"a"));
    }
}

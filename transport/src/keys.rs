//! API keys, and the ids that stand for people inside the plane.
//!
//! **Keys.** A key is `pm-`, 32 random bytes in base62 (43 letters), and 6 letters of checksum; the checksum tells a
//! mistyped key from a revoked one, and lets a secret scanner be sure. Only its SHA-256 is stored. A slow hash
//! (argon2, bcrypt) exists to make guessing expensive where people choose passwords; 256 random bits cannot be guessed at any
//! speed, while 100 ms of argon2 on each request would be the gateway's whole latency, and a free way to exhaust it. For
//! the same reason only generated keys should be used: the hash of a word that somebody chose protects nothing.
//!
//! **Ids.** The plane and its journal know tenants, users, keys and sessions by keyed hashes alone (HMAC-SHA-256, cut short),
//! under a secret of the data directory: nobody who finds a journal can test whether a certain user is in it. See
//! [`AccountIds`].

mod accounts;
mod ring;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use accounts::{AccountIds, Names, SaltError};
pub use ring::{Identity, KeyRing, Refused};

/// What every key begins with.
pub const PREFIX: &str = "pm-";

/// Random letters of a key: 43 base62 digits hold 256 bits.
const BODY_LETTERS: usize = 43;
/// 6 base62 digits hold a CRC-32.
const CHECKSUM_LETTERS: usize = 6;
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key, as its owner presents it. Neither `Debug` nor an error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

/// What is stored of a key: its SHA-256. Written `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash([u8; 32]);

/// Why a text is no key hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key's hash is sha256: and 64 hex digits")]
pub struct KeyHashError;

/// A new key and its hash.
///
/// # Errors
/// When the operating system has no entropy to give.
pub fn generate() -> Result<(Key, KeyHash), getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let key = Key::from_bytes(bytes);
    let hash = key.hash();
    Ok((key, hash))
}

impl Key {
    fn from_bytes(bytes: [u8; 32]) -> Self {
        let body = base62(&bytes, BODY_LETTERS);
        let checksum = checksum(&body);
        Self(format!("{PREFIX}{body}{checksum}"))
    }

    /// The key itself, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What to store of it.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }

    /// Whether `text` has the form of a key, checksum included. Says nothing about whether it is let in.
    #[must_use]
    pub fn is_well_formed(text: &str) -> bool {
        let Some(letters) = text.strip_prefix(PREFIX) else {
            return false;
        };
        letters.len() == BODY_LETTERS + CHECKSUM_LETTERS
            && letters.bytes().all(|letter| LETTERS.contains(&letter))
            && checksum(&letters[..BODY_LETTERS]) == letters[BODY_LETTERS..]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl KeyHash {
    /// The hash of what a caller presented.
    #[must_use]
    pub fn of(presented: &str) -> Self {
        Self(Sha256::digest(presented.as_bytes()).into())
    }

    /// The hash itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first 12 hex digits: enough to tell keys apart in a log.
    #[must_use]
    pub fn short(&self) -> String {
        hex(&self.0[..6])
    }

    fn head(&self) -> u64 {
        let mut head = [0; 8];
        head.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(head)
    }
}

impl From<[u8; 32]> for KeyHash {
    fn from(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }
}

impl PartialEq for KeyHash {
    /// Takes the same time wherever they differ.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}...", self.short())
    }
}

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        let digits = text.strip_prefix("sha256:").ok_or(KeyHashError)?.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return Err(KeyHashError);
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |index: usize| char::from(pair[index]).to_digit(16);
            let (high, low) = digit(0).zip(digit(1)).ok_or(KeyHashError)?;
            *byte = u8::try_from(16 * high + low).map_err(|_| KeyHashError)?;
        }
        Ok(Self(hash))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(body: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(PREFIX.as_bytes());
    hasher.update(body.as_bytes());
    base62(&hasher.finalize().to_be_bytes(), CHECKSUM_LETTERS)
}

/// `bytes` as one big-endian number, in `letters` digits of base 62: long division by 62, once for each digit.
fn base62(bytes: &[u8], letters: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; letters];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let dividend = rest * 256 + u32::from(*byte);
            *byte = (dividend / 62) as u8;
            rest = dividend % 62;
        }
        *digit = LETTERS[rest as usize];
    }
    digits.into_iter().map(char::from).collect()
}

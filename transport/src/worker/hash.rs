//! The backend for proofs: each token is a function of everything before it.
//!
//! The state is a hash of the model, the seed, the whole prompt and every token so far; the next token is drawn from it. So
//! an answer continued elsewhere equals the unbroken one, token for token, if and only if the continuation began behind
//! exactly the tokens that were delivered: one lost, repeated or changed token changes all that follow.

use core::time::Duration;

use proto::inference::v1::{Resume, StreamInferenceRequest};
use sha2::{Digest, Sha256};
use tonic::Status;

use super::writer::{Source, Token, text_of};

/// Writes words of two syllables until a token's hash says stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hash {
    /// Before each token.
    pub delay: Duration,
    /// Stands for the sampler's chance where a question names no seed. Workers with different ones answer differently and
    /// can still continue each other's answers.
    pub seed: u64,
}

/// 64 syllables, some of more bytes than letters.
const SYLLABLES: [&str; 64] = [
    "ba",
    "be",
    "bi",
    "bo",
    "bu",
    "da",
    "de",
    "di",
    "do",
    "du",
    "fa",
    "fe",
    "fi",
    "fo",
    "fu",
    "ga",
    "ge",
    "gi",
    "go",
    "gu",
    "ka",
    "ke",
    "ki",
    "ko",
    "ku",
    "la",
    "le",
    "li",
    "lo",
    "lu",
    "ma",
    "me",
    "mi",
    "mo",
    "mu",
    "na",
    "ne",
    "ni",
    "no",
    "nu",
    "pa",
    "pe",
    "pi",
    "po",
    "pu",
    "ra",
    "re",
    "ri",
    "ro",
    "ru",
    "sa",
    "se",
    "si",
    "so",
    "su",
    "ta",
    "te",
    "ti",
    "n\u{e9}",
    "r\u{e4}",
    "\u{3b1}",
    "\u{436}",
    "\u{65e5}",
    "\u{1f642}",
];
const VOCABULARY: u32 = 64 * 64;
/// One token in so many is the last ...
const LAST_OF: u8 = 64;
/// ... and none of the first: an answer that is over at once proves nothing.
const LENGTH_MIN: u32 = 24;

impl Hash {
    pub(super) fn fingerprint(&self, model: &str) -> String {
        // Not of the seed: what was sampled differently is continued all the same.
        let digest = Sha256::new().chain_update("hash-2").chain_update(model).finalize();
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn begin(&self, ask: &StreamInferenceRequest) -> Tokens {
        let seed = ask.parameters.as_ref().and_then(|parameters| parameters.seed);
        let mut state = Sha256::new();
        let mut absorb = |bytes: &[u8]| {
            state.update((bytes.len() as u64).to_be_bytes());
            state.update(bytes);
        };
        absorb(ask.model.as_bytes());
        absorb(&seed.map_or(self.seed.to_be_bytes(), i64::to_be_bytes));
        for message in &ask.messages {
            absorb(message.role.as_bytes());
            absorb(text_of(message).as_bytes());
        }
        Tokens { state: state.finalize().into(), count: 0 }
    }
}

/// The row of tokens behind a prefix.
pub(super) struct Tokens {
    state: [u8; 32],
    count: u32,
}

impl Tokens {
    fn absorb(&mut self, id: u32) {
        let state = Sha256::new().chain_update(self.state).chain_update(id.to_be_bytes());
        self.state = state.finalize().into();
        self.count = self.count.saturating_add(1);
    }
}

impl Source for Tokens {
    fn next(&mut self) -> Option<Token> {
        let [a, b, c, d, last, ..] = self.state;
        if last % LAST_OF == 0 && self.count >= LENGTH_MIN {
            return None;
        }
        let id = u32::from_be_bytes([a, b, c, d]) % VOCABULARY;
        self.absorb(id);
        Some(Token { id: Some(id), text: text(id) })
    }

    fn resume(&mut self, resume: &Resume) -> Result<String, Status> {
        if resume.token_ids.len() as u64 != resume.seq {
            return Err(Status::failed_precondition(format!(
                "to continue, this backend needs the id of each of the {} tokens; there are {}",
                resume.seq,
                resume.token_ids.len()
            )));
        }
        if let Some(id) = resume.token_ids.iter().find(|id| **id >= VOCABULARY) {
            let words = format!("{id} is no token: there are {VOCABULARY}");
            return Err(Status::failed_precondition(words));
        }
        resume.token_ids.iter().for_each(|id| self.absorb(*id));
        Ok(resume.token_ids.iter().map(|id| text(*id)).collect())
    }
}

fn text(id: u32) -> String {
    let syllable = |at: u32| SYLLABLES[(at % 64) as usize];
    format!(" {}{}", syllable(id / 64), syllable(id))
}

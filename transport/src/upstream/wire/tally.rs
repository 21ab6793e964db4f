//! What a stream of chunks has brought so far, and whether it can be believed.

use proto::inference::v1::StreamInferenceResponse as Chunk;

use control::outcome::Failure;
use control::units::{Tokens, Usage};

use crate::convert;
use crate::upstream::failed::Failed;

/// OpenAI allows `n` up to 128; more indices than that are a peer's nonsense.
const CHOICES_MAX: usize = 128;

/// The books of one answer.
#[derive(Debug)]
pub(super) struct Tally {
    /// The most tokens of each choice.
    tokens_max: Option<u32>,
    /// Index, next place and end of each choice.
    choices: Vec<(u32, u64, bool)>,
    produced: Tokens,
    usage: Option<Usage>,
    /// Of the prompt, as told with the usage.
    pub cached: u64,
}

impl Tally {
    pub fn new(tokens_max: Option<u32>) -> Self {
        Self { tokens_max, choices: Vec::new(), produced: Tokens::ZERO, usage: None, cached: 0 }
    }

    /// Of an answer whose first choice has so many tokens already.
    pub fn after(mut self, seq: Tokens) -> Self {
        self.choices.push((0, seq.0, false));
        self.produced = seq;
        self
    }

    /// Takes a chunk into the books; true where it is the first of its choice.
    ///
    /// # Errors
    /// `Garbage` where it cannot be.
    pub fn insert(&mut self, chunk: &Chunk) -> Result<bool, Failed> {
        if let Some((usage, cached)) = chunk.usage.as_ref().and_then(convert::usage) {
            (self.usage, self.cached) = (Some(usage), cached);
        }
        if is_silent(chunk) {
            return Ok(false);
        }
        let known = self.choices.iter().position(|(index, ..)| *index == chunk.choice);
        if known.is_none() && self.choices.len() == CHOICES_MAX {
            return Err(garbage("more than 128 choices"));
        }
        let at = known.unwrap_or_else(|| {
            self.choices.push((chunk.choice, 0, false));
            self.choices.len() - 1
        });
        let (_, next, ended) = &mut self.choices[at];
        if *ended {
            return Err(garbage("a chunk behind the end of its choice"));
        }
        if chunk.seq != *next {
            return Err(garbage(&format!("seq {} where {next} comes next", chunk.seq)));
        }
        let ids = chunk.token_ids.len();
        if ids != 0 && ids as u64 != u64::from(chunk.token_count) {
            return Err(garbage(&format!("{ids} token ids for {} tokens", chunk.token_count)));
        }
        *next += u64::from(chunk.token_count);
        if self.tokens_max.is_some_and(|most| *next > u64::from(most)) {
            return Err(garbage("more tokens than max_tokens allowed"));
        }
        *ended = !chunk.finish_reason.is_empty();
        self.produced += Tokens(u64::from(chunk.token_count));
        if chunk.finish_reason == "error" {
            return Err(Failed::new(Failure::ErrorInAnswer, "finish_reason error"));
        }
        Ok(known.is_none())
    }

    /// As the worker says at the end, else by the count of its chunks.
    pub fn produced(&self) -> Tokens {
        match self.usage {
            Some(usage) if usage.completion > self.produced => usage.completion,
            Some(_) | None => self.produced,
        }
    }

    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    pub fn finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|(_, _, ended)| *ended)
    }
}

/// Whether a chunk says nothing of the answer itself: it brings load, usage or a fingerprint.
pub(super) fn is_silent(chunk: &Chunk) -> bool {
    chunk.token_count == 0
        && chunk.token_ids.is_empty()
        && !has_text(chunk)
        && chunk.finish_reason.is_empty()
        && chunk.extra_json.is_empty()
}

pub(super) fn has_text(chunk: &Chunk) -> bool {
    [&chunk.text, &chunk.reasoning, &chunk.refusal, &chunk.tool_calls_json]
        .iter()
        .any(|text| !text.is_empty())
}

pub(super) fn garbage(detail: &str) -> Failed {
    Failed::new(Failure::Garbage, detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    fn chunk(seq: u64, token_count: u32, finish_reason: &str) -> Chunk {
        let finish_reason = finish_reason.to_owned();
        Chunk { seq, token_count, text: "x".to_owned(), finish_reason, ..Chunk::default() }
    }

    fn refused(chunks: &[Chunk]) -> String {
        let mut tally = Tally::new(Some(4));
        let (last, before) = chunks.split_last().unwrap();
        for chunk in before {
            tally.insert(chunk).unwrap();
        }
        let failed = tally.insert(last).unwrap_err();
        assert_eq!(failed.failure, Failure::Garbage);
        failed.detail
    }

    #[test]
    fn places_must_follow_each_other_in_each_choice() {
        let mut tally = Tally::new(None);
        let other = Chunk { choice: 1, ..chunk(0, 2, "stop") };
        let silent = Chunk { seq: 77, ..Chunk::default() };
        for (chunk, first) in
            [(chunk(0, 1, ""), true), (other, true), (silent, false), (chunk(1, 2, ""), false)]
        {
            assert_eq!(tally.insert(&chunk).unwrap(), first);
        }
        assert!(!tally.finished());
        tally.insert(&chunk(3, 0, "length")).unwrap();
        assert!(tally.finished());
        assert_eq!(tally.produced(), Tokens(5));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(refused(&[chunk(1, 1, "")]).contains("seq 1 where 0"));
        assert!(refused(&[chunk(0, 1, ""), chunk(0, 1, "")]).contains("seq 0 where 1"));
        assert!(refused(&[chunk(0, 1, ""), chunk(2, 1, "")]).contains("seq 2 where 1"));
        assert!(refused(&[chunk(0, 1, "stop"), chunk(1, 1, "")]).contains("behind the end"));
        assert!(refused(&[chunk(0, 5, "")]).contains("max_tokens"));
        let ids = Chunk { token_ids: vec![1, 2], ..chunk(0, 1, "") };
        assert!(refused(&[ids]).contains("2 token ids"));
    }
}

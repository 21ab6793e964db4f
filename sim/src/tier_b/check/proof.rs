//! The proof that a stream which went on at another worker is the unbroken one.
//!
//! A worker's token depends on the model, the prompt and every token before it. So the whole answer is known before it
//! is asked for, and is worked out here by code of our own: one token lost, repeated or changed at a seam changes all that
//! follow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::client::prompt;
use super::super::replica::MODEL;
use super::Checks;
use crate::coverage::sometimes;

/// Answers of workers.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// How long an answer may be, by each worker that was asked: by gateway, request and operation.
    lengths: BTreeMap<(u8, String, usize), BTreeSet<usize>>,
    /// The unbroken answers, by operation.
    unbroken: BTreeMap<usize, Vec<String>>,
    /// What came, by try.
    came: BTreeMap<usize, Came>,
}

/// What a client has of a worker's answer.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    tokens: usize,
    /// How often it went on elsewhere.
    seams: u32,
}

impl Checks {
    /// A worker is asked: for which gateway, how many tokens its prompt can have, and how many the answer has.
    pub fn put_to_worker(
        &mut self,
        ticket: usize,
        request: &str,
        asker: Option<u8>,
        most: Option<u32>,
    ) -> Option<(u8, u32, u32)> {
        let number = self.tickets.get(ticket)?.operation;
        let gateway = asker.unwrap_or(self.plan.operations[number].gateway);
        let said = prompt(&self.plan, number);
        let answer = self.proofs.unbroken.entry(number).or_insert_with(|| unbroken(&said));
        let length = answer.len().min(most.map_or(usize::MAX, |most| most as usize));
        let (of, name) = self.known_as(ticket, gateway, request);
        self.proofs.lengths.entry((of, name, number)).or_default().insert(length);
        // No tokenizer finds more tokens in a text than it has bytes; four more frame it.
        Some((gateway, said.len() as u32 + 4, length as u32))
    }

    /// How long a worker's answer to this try may be. A repetition under the same key gets the first one's answer.
    fn lengths(&self, ticket: usize) -> Option<&BTreeSet<usize>> {
        let of = &self.tickets[ticket];
        let gateway = self.plan.operations[of.operation].gateway;
        let (gateway, name) = self.known_as(ticket, gateway, &of.request);
        self.proofs.lengths.get(&(gateway, name, of.operation))
    }

    /// A client got what is no token of a script: then it is a worker's next one.
    pub(super) fn proven(&mut self, now: Duration, ticket: usize, text: &str) {
        let of = &self.tickets[ticket];
        if of.heard.is_some() || self.lengths(ticket).is_none() {
            return self.nonsense(now, ticket, text);
        }
        let came = self.proofs.came.entry(ticket).or_default();
        let answer = self.proofs.unbroken.get(&of.operation);
        let expected = answer.and_then(|answer| answer.get(came.tokens)).map(String::as_str);
        if expected != Some(text) {
            let (request, at) = (&of.request, came.tokens);
            let text = format!("{request}: token {at} is {text:?}, and {expected:?} was next");
            return self.violated(now, 6, text);
        }
        came.tokens += 1;
    }

    /// Whether a worker's answer is all there; `None` where the answer is none of a worker's.
    pub(super) fn is_proven(&self, ticket: usize) -> Option<bool> {
        let came = self.proofs.came.get(&ticket)?;
        Some(self.lengths(ticket).is_some_and(|lengths| lengths.contains(&came.tokens)))
    }

    /// A client is told that its answer goes on elsewhere, behind so many tokens.
    pub fn seam(&mut self, now: Duration, ticket: usize, after: u64) {
        sometimes!("b_seam");
        let came = self.proofs.came.entry(ticket).or_default();
        came.seams += 1;
        if came.seams > 1 {
            sometimes!("b_seam_twice");
        }
        let has = came.tokens as u64;
        if has != after {
            let request = &self.tickets[ticket].request;
            let text =
                format!("{request}: resumed behind {after} tokens, and its client has {has}");
            self.violated(now, 6, text);
        }
    }

    /// A client is told what its answer cost.
    pub fn billed(&mut self, now: Duration, ticket: usize, completion: u64) {
        let Some(came) = self.proofs.came.get(&ticket) else { return };
        if came.tokens as u64 != completion {
            let (request, came) = (&self.tickets[ticket].request, came.tokens);
            let text = format!("{request}: {completion} tokens are billed of {came} that came");
            self.violated(now, 3, text);
        }
    }
}

/// The longest answer without a limit.
const TOKENS_MAX: usize = 4_096;
/// One token in so many is the last ...
const LAST_OF: u8 = 64;
/// ... and none of the first.
const LENGTH_MIN: usize = 24;

/// The answer to a prompt that nothing interrupts, without a limit.
fn unbroken(said: &str) -> Vec<String> {
    let mut of_all = Sha256::new();
    // The sampler's seed is no text, and is framed like one.
    for part in [MODEL.as_bytes(), &0_u64.to_be_bytes(), b"user", said.as_bytes()] {
        of_all.update((part.len() as u64).to_be_bytes());
        of_all.update(part);
    }
    let mut state: [u8; 32] = of_all.finalize().into();
    let mut tokens = Vec::new();
    while tokens.len() < TOKENS_MAX
        && (!state[4].is_multiple_of(LAST_OF) || tokens.len() < LENGTH_MIN)
    {
        let id = u32::from_be_bytes([state[0], state[1], state[2], state[3]]) % (64 * 64);
        tokens.push(format!("{}{}", syllable(id / 64), syllable(id % 64)));
        state = Sha256::new().chain_update(state).chain_update(id.to_be_bytes()).finalize().into();
    }
    tokens
}

/// 64 of them: a consonant and a vowel, and some of more bytes than letters.
fn syllable(at: u32) -> String {
    const CONSONANTS: &str = "bdfgklmnprst";
    const STRANGE: [&str; 6] =
        ["n\u{e9}", "r\u{e4}", "\u{3b1}", "\u{436}", "\u{65e5}", "\u{1f642}"];
    let at = at as usize;
    match at.checked_sub(58) {
        Some(strange) => STRANGE[strange].to_owned(),
        None => {
            let pick = |of: &str, at: usize| of.chars().nth(at).unwrap_or_default();
            [pick(CONSONANTS, at / 5), pick("aeiou", at % 5)].into_iter().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::TierBPlan;
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn the_unbroken_answer_goes_through_and_is_whole_at_its_length() {
        let mut answer = Answer::of(5);
        (0..5).for_each(|at| answer.token(at));
        answer.checks.billed(NOW, 0, 5);
        answer.checks.clean_end(NOW, 0, Some(9));
        assert_eq!(answer.broken(), None);
        let mut short = Answer::of(5);
        (0..4).for_each(|at| short.token(at));
        short.checks.clean_end(NOW, 0, Some(9));
        assert_eq!(short.broken(), Some(6), "one is missing");
    }

    #[test]
    fn a_token_that_is_lost_repeated_or_anothers_breaks_the_sixth() {
        for wrong in [0, 2, 7] {
            let mut answer = Answer::of(9);
            answer.token(0);
            answer.token(wrong);
            assert_eq!(answer.broken(), Some(6), "token {wrong}");
        }
        let mut answer = Answer::of(9);
        answer.checks.token(NOW, 0, "baba");
        assert_eq!(answer.broken(), Some(6), "of another prompt");
    }

    #[test]
    fn an_answer_that_a_script_goes_on_with_breaks_the_sixth() {
        let mut answer = Answer::of(9);
        answer.token(0);
        answer.checks.token(NOW, 0, "t1.0");
        assert_eq!(answer.broken(), Some(6));
    }

    #[test]
    fn a_seam_elsewhere_breaks_the_sixth_and_a_bill_for_more_the_third() {
        for (after, broken) in [(3, None), (2, Some(6)), (4, Some(6))] {
            let mut answer = Answer::of(9);
            (0..3).for_each(|at| answer.token(at));
            answer.checks.seam(NOW, 0, after);
            assert_eq!(answer.broken(), broken, "{after}");
        }
        let mut answer = Answer::of(9);
        (0..3).for_each(|at| answer.token(at));
        answer.checks.billed(NOW, 0, 4);
        assert_eq!(answer.broken(), Some(3));
    }

    #[test]
    fn a_token_that_no_worker_was_asked_for_breaks_the_sixth() {
        let mut answer = Answer::of(9);
        let other = answer.checks.begins(NOW, 1);
        let text = answer.tokens[0].clone();
        answer.checks.token(NOW, other, &text);
        assert_eq!(answer.broken(), Some(6));
    }

    /// The first try of a plan, put to a worker.
    struct Answer {
        checks: Checks,
        tokens: Vec<String>,
    }

    impl Answer {
        fn of(most: u32) -> Self {
            let plan: TierBPlan = super::super::super::plan(1);
            let mut checks = Checks::new(&plan);
            checks.begins(NOW, 0);
            assert!(checks.put_to_worker(0, "", None, Some(most)).is_some());
            Self { checks, tokens: unbroken(&prompt(&plan, 0)) }
        }

        fn token(&mut self, at: usize) {
            let text = self.tokens[at].clone();
            self.checks.token(NOW, 0, &text);
        }

        fn broken(&self) -> Option<u8> {
            self.checks.violation().map(|violation| violation.invariant)
        }
    }
}

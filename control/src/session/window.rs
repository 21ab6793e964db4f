//! Which messages of a stored session go upstream.
//!
//! A conversation outgrows what a model takes, or what somebody wants to pay for at every turn, so only its end is sent.
//! Cutting by count or by tokens alone would leave the result of a tool without its call, or a call without its results,
//! and servers refuse such a list. So lines are taken whole, from the end backwards, a call together with all of its
//! results; a call whose results never came is left out, and so is a result without a call.
//!
//! | line | goes upstream |
//! |---|---|
//! | the system messages that open the session | always |
//! | what is asked now | always, as it is asked |
//! | the call that what is asked now answers, with results that came before | always |
//! | anything else | while it and all behind it fit |
//!
//! The bound is on estimates and on the prompt alone. What is asked now may pass it: refusing it is the model's business.
//! Dropping lines from the middle was rejected: an answer would follow a question it was not given to.

use alloc::vec::Vec;

use crate::units::Tokens;

/// A message, as far as a window has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub part: Part,
    /// About how much it adds to a prompt.
    pub tokens: Tokens,
}

/// What a message is to those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Tells the model what to be.
    System,
    /// A question or an answer.
    Plain,
    /// Calls tools, so many.
    Call {
        /// How many results have to follow.
        results: u32,
    },
    /// The result of one.
    Result,
}

/// The places of those `lines` that go upstream, in order. Those from `asked` on are what is asked now.
#[must_use]
pub fn window(lines: &[Line], asked: usize, max: Tokens) -> Vec<usize> {
    let asked = asked.min(lines.len());
    let opening = lines[..asked].iter().take_while(|line| line.part == Part::System).count();
    let mut from = asked;
    while from > opening && lines.get(from).is_some_and(|line| line.part == Part::Result) {
        from -= 1;
    }
    let mut used = sum(&lines[..opening]) + sum(&lines[from..]);
    // Backwards; turned round at the end.
    let mut kept: Vec<usize> = (from..lines.len()).rev().collect();
    let mut end = from;
    while end > opening {
        let head = head_of(lines, opening, end);
        let taken = match lines[head].part {
            Part::Call { results } if end - head > results as usize => head..end,
            Part::Call { .. } | Part::Result => head..head,
            // Results behind it belong to no call.
            Part::System | Part::Plain => head..head + 1,
        };
        used += sum(&lines[taken.clone()]);
        if used > max {
            break;
        }
        kept.extend(taken.rev());
        end = head;
    }
    kept.extend((0..opening).rev());
    kept.reverse();
    kept
}

/// The last line before `end` that is no result.
fn head_of(lines: &[Line], opening: usize, end: usize) -> usize {
    let behind = lines[opening..end].iter().rev().take_while(|line| line.part == Part::Result);
    (end - behind.count()).saturating_sub(1).max(opening)
}

fn sum(lines: &[Line]) -> Tokens {
    lines.iter().fold(Tokens::ZERO, |sum, line| sum + line.tokens)
}

#[cfg(test)]
mod tests;

//! What is kept of a stream so that another replica can go on with it.

use control::units::Tokens;

use crate::exchange::{Call, Operation};
use crate::members::Members;
use crate::translate::is_plain;
use crate::upstream::{Origin, Piece, Resume};

/// The most text that is kept of one stream: twice the longest answers that models give.
const TEXT_MAX: usize = 1 << 20;
/// The most ids.
const IDS_MAX: usize = 1 << 18;

/// Whether another replica may go on with the answer to a call.
pub(super) fn is_resumable(call: &Call) -> bool {
    if call.operation != Operation::ChatCompletions || !call.stream {
        return false;
    }
    let members = core::str::from_utf8(&call.body).ok().and_then(Members::read);
    members.is_some_and(|all| is_plain(&all))
}

/// What a client has of an answer.
#[derive(Default)]
pub(super) struct Delivered {
    origin: Option<Origin>,
    seq: Tokens,
    least: Tokens,
    text: String,
    ids: Vec<u32>,
    ids_missing: bool,
    /// Something was delivered that nobody can be told.
    lost: bool,
}

impl Delivered {
    /// Of an answer from there; nothing is kept where it comes from nowhere that could be continued.
    pub fn of(origin: Option<Origin>) -> Self {
        let lost = origin.is_none();
        Self { origin, lost, ..Self::default() }
    }

    /// Some tokens more.
    pub fn add(&mut self, count: Tokens, piece: Option<&Piece>) {
        self.seq += count;
        let is_estimated = piece.is_some_and(|piece| piece.estimated && !piece.text.is_empty());
        self.least += if is_estimated { Tokens(1) } else { count };
        let Some(piece) = piece.filter(|_| !self.lost) else {
            return self.lose();
        };
        self.text.push_str(&piece.text);
        self.ids.extend_from_slice(&piece.token_ids);
        if piece.token_ids.len() as u64 != count.0 {
            self.ids_missing = true;
            self.ids = Vec::new();
        }
        if self.text.len() > TEXT_MAX || self.ids.len() > IDS_MAX {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        (self.text, self.ids) = (String::new(), Vec::new());
    }

    /// For whoever goes on, if anybody can.
    pub fn resume(&self) -> Option<Resume> {
        let origin = self.origin.clone().filter(|_| !self.lost)?;
        let token_ids = if self.ids_missing { Vec::new() } else { self.ids.clone() };
        let (seq, least) = (self.seq, self.least.min(self.seq));
        Some(Resume { seq, least, token_ids, text: self.text.clone(), origin })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn piece(text: &str, ids: &[u32]) -> Piece {
        Piece { text: text.to_owned(), token_ids: ids.to_vec(), estimated: false }
    }

    fn from() -> Option<Origin> {
        Some(Origin { fingerprint: "f".to_owned(), created: 1 })
    }

    #[test]
    fn what_was_delivered_is_handed_over_whole() {
        let mut delivered = Delivered::of(from());
        delivered.add(Tokens(2), Some(&piece("ab", &[1, 2])));
        delivered.add(Tokens(1), Some(&piece("", &[3])));
        let resume = delivered.resume().unwrap();
        assert_eq!(
            (resume.seq, &*resume.text, &*resume.token_ids),
            (Tokens(3), "ab", &[1, 2, 3][..])
        );
        delivered.add(Tokens(1), Some(&piece("c", &[])));
        let resume = delivered.resume().unwrap();
        assert_eq!((&*resume.text, resume.token_ids.len()), ("abc", 0), "all ids or none");
    }

    #[test]
    fn of_estimated_tokens_one_in_a_piece_is_sure() {
        let guessed = |text: &str| Piece { estimated: true, ..piece(text, &[]) };
        let mut delivered = Delivered::of(from());
        delivered.add(Tokens(5), Some(&guessed(" incomprehensibilities")));
        delivered.add(Tokens(0), Some(&guessed("")));
        delivered.add(Tokens(3), Some(&piece(" so it is", &[])));
        let resume = delivered.resume().unwrap();
        assert_eq!((resume.seq, resume.least), (Tokens(8), Tokens(4)));
        // Beyond what was allowed nothing is counted any more.
        delivered.add(Tokens(0), Some(&guessed("more")));
        assert_eq!(delivered.resume().unwrap().least, Tokens(5));
    }

    #[test]
    fn what_cannot_be_told_cannot_be_continued() {
        assert!(Delivered::of(None).resume().is_none());
        let mut delivered = Delivered::of(from());
        delivered.add(Tokens(1), None);
        assert!(delivered.resume().is_none(), "a piece of a tool call, say");
        let mut delivered = Delivered::of(from());
        delivered.add(Tokens(1), Some(&piece(&"x".repeat(TEXT_MAX + 1), &[])));
        assert!(delivered.resume().is_none());
    }
}

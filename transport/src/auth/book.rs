//! What the auth role has said, for as long as it may be used. Bounded, whoever asks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::front::AuthError;
use crate::keys::Identity;

/// A key's SHA-256.
pub(super) type Mark = [u8; 32];

/// As many keys as the file of an auth role may list.
const KNOWN_MAX: usize = 10_000;
/// Keys that were refused. Whoever tries others at random drives out these, and no key that is known; 32 bytes each.
const REFUSED_MAX: usize = 4_096;

/// Answers by key.
#[derive(Default)]
pub(super) struct Book {
    known: HashMap<Mark, Known>,
    refused: HashMap<Mark, (AuthError, Instant)>,
    /// The order in which they were refused: the oldest goes first.
    refused_in: VecDeque<Mark>,
    grace: Duration,
}

struct Known {
    identity: Arc<Identity>,
    /// May be used without asking until then.
    until: Instant,
}

/// What is known of a key without asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is let in.
    Fresh(Arc<Identity>),
    /// It was let in, and is to be asked for again; while nobody answers, it is let in.
    Stale(Arc<Identity>),
    /// It was let in, too long ago to let it in unasked. Whoever comes with it is no stranger.
    Lapsed,
    /// It is not.
    Refused(AuthError),
    /// Nothing, or what is too old.
    Nothing,
}

impl Book {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    pub(super) fn look(&self, mark: &Mark, now: Instant) -> Look {
        match (self.known.get(mark), self.refused.get(mark)) {
            (Some(known), _) if now < known.until => Look::Fresh(Arc::clone(&known.identity)),
            (Some(known), _) if now < known.until + self.grace => {
                Look::Stale(Arc::clone(&known.identity))
            }
            (Some(_), _) => Look::Lapsed,
            (None, Some((error, until))) if now < *until => Look::Refused(*error),
            (None, _) => Look::Nothing,
        }
    }

    /// It is let in until then.
    pub(super) fn insert(&mut self, mark: Mark, identity: Arc<Identity>, until: Instant) {
        self.refused.remove(&mark);
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&mark) {
            self.make_room();
        }
        self.known.insert(mark, Known { identity, until });
    }

    /// It is not.
    pub(super) fn refuse(&mut self, mark: Mark, error: AuthError, until: Instant) {
        self.known.remove(&mark);
        if self.refused.insert(mark, (error, until)).is_some() {
            return;
        }
        self.refused_in.push_back(mark);
        if self.refused_in.len() > REFUSED_MAX
            && let Some(oldest) = self.refused_in.pop_front()
        {
            self.refused.remove(&oldest);
        }
    }

    pub(super) fn known(&self) -> usize {
        self.known.len()
    }

    /// The longest unasked goes. Only who changes all keys of a deployment within the grace comes here.
    fn make_room(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.until);
        if let Some(mark) = oldest.map(|(mark, _)| *mark) {
            self.known.remove(&mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use control::id::{AccountId, Principal};

    use super::*;
    use crate::keys::KeyHash;

    const GRACE: Duration = Duration::from_secs(60);
    const TTL: Duration = Duration::from_secs(10);

    fn mark(number: u64) -> Mark {
        let mut mark = [0; 32];
        mark[..8].copy_from_slice(&number.to_be_bytes());
        mark
    }

    fn somebody() -> Arc<Identity> {
        Arc::new(Identity {
            hash: KeyHash::of("k"),
            tenant: "acme".to_owned(),
            user: None,
            name: "laptop".to_owned(),
            principal: Principal { tenant: AccountId(1), user: None, key: None },
            models: None,
        })
    }

    #[test]
    fn a_key_is_fresh_then_stale_for_the_grace_and_then_lapsed() {
        let (mut book, now, who) = (Book::new(GRACE), Instant::now(), somebody());
        book.insert(mark(1), Arc::clone(&who), now + TTL);
        assert_eq!(book.look(&mark(1), now), Look::Fresh(Arc::clone(&who)));
        assert_eq!(book.look(&mark(1), now + TTL), Look::Stale(Arc::clone(&who)));
        assert_eq!(book.look(&mark(1), now + TTL + GRACE), Look::Lapsed);
        assert_eq!(book.look(&mark(2), now), Look::Nothing);
    }

    #[test]
    fn without_a_grace_a_key_that_was_let_in_is_no_stranger_either() {
        let (mut book, now) = (Book::new(Duration::ZERO), Instant::now());
        book.insert(mark(1), somebody(), now + TTL);
        assert_eq!(book.look(&mark(1), now + TTL), Look::Lapsed);
        book.refuse(mark(1), AuthError::KeyUnknown, now + TTL);
        assert_eq!(book.look(&mark(1), now + TTL), Look::Nothing);
    }

    #[test]
    fn the_last_answer_about_a_key_is_the_one_that_counts() {
        let (mut book, now) = (Book::new(GRACE), Instant::now());
        book.insert(mark(1), somebody(), now + TTL);
        book.refuse(mark(1), AuthError::KeyUnknown, now + TTL);
        assert_eq!(book.look(&mark(1), now), Look::Refused(AuthError::KeyUnknown));
        assert_eq!(book.look(&mark(1), now + TTL), Look::Nothing);
        book.insert(mark(1), somebody(), now + TTL);
        assert_eq!(book.look(&mark(1), now), Look::Fresh(somebody()));
    }

    #[test]
    fn keys_tried_at_random_drive_out_no_key_that_is_known() {
        let (mut book, now) = (Book::new(GRACE), Instant::now());
        book.insert(mark(0), somebody(), now + TTL);
        for number in 1..=3 * REFUSED_MAX as u64 {
            book.refuse(mark(number), AuthError::KeyUnknown, now + TTL);
        }
        assert_eq!(book.look(&mark(0), now), Look::Fresh(somebody()));
        assert_eq!(book.look(&mark(1), now), Look::Nothing);
        assert!(book.refused.len() <= REFUSED_MAX && book.refused_in.len() <= REFUSED_MAX);
    }

    #[test]
    fn keys_that_come_and_go_are_bounded_too() {
        let (mut book, now) = (Book::new(GRACE), Instant::now());
        for number in 0..KNOWN_MAX as u64 + 5 {
            book.insert(mark(number), somebody(), now + Duration::from_millis(number));
        }
        assert_eq!(book.known(), KNOWN_MAX);
        assert_eq!((book.look(&mark(4), now), book.look(&mark(5), now)), {
            (Look::Nothing, Look::Fresh(somebody()))
        });
        for round in 0..3 * REFUSED_MAX {
            let until = now + TTL;
            book.refuse(mark(9), AuthError::KeyUnknown, until);
            book.insert(mark(9), somebody(), until);
            assert!(book.refused_in.len() <= REFUSED_MAX, "{round}");
        }
    }
}

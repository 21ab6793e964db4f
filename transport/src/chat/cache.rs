//! Answers kept for repeated idempotency keys, bounded in count and bytes; the oldest goes first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use control::id::RequestId;

use crate::exchange::{End, Reply, ReplyBody};

/// A client repeats a key within seconds or minutes: at ten keyed requests a second this is over a minute.
const ANSWERS_MAX: usize = 1_024;
/// Together with [`ANSWERS_MAX`], what the process may spend on this: half of the memory it is allowed when idle.
const BYTES_MAX: usize = 16 << 20;

/// Whole answers by the request that got them.
#[derive(Default)]
pub(super) struct Answers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    answers: BTreeMap<RequestId, Answer>,
    order: VecDeque<RequestId>,
    bytes: usize,
}

struct Answer {
    replica: String,
    provider: String,
    attempts: u32,
    content_type: String,
    body: Bytes,
    end: End,
    session: Option<Arc<str>>,
}

impl Answers {
    /// Keeps a whole answer, if it is not larger than all that may be kept.
    pub fn insert(&self, reply: &Reply) {
        let ReplyBody::Whole { bytes: body, end } = &reply.body else { return };
        if body.len() > BYTES_MAX {
            return;
        }
        let answer = Answer {
            replica: reply.replica.clone(),
            provider: reply.provider.clone(),
            attempts: reply.attempts,
            content_type: reply.content_type.clone(),
            body: body.clone(),
            end: end.clone(),
            session: reply.session.clone(),
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += body.len();
        kept.order.push_back(reply.request);
        kept.answers.insert(reply.request, answer);
        while kept.bytes > BYTES_MAX || kept.order.len() > ANSWERS_MAX {
            let Some(oldest) = kept.order.pop_front() else { break };
            let gone = kept.answers.remove(&oldest).map_or(0, |answer| answer.body.len());
            kept.bytes -= gone;
        }
    }

    /// The answer that a request got, under that request's own id.
    pub fn get(&self, request: RequestId) -> Option<Reply> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = kept.answers.get(&request)?;
        Some(Reply {
            request,
            replica: answer.replica.clone(),
            provider: answer.provider.clone(),
            attempts: answer.attempts,
            content_type: answer.content_type.clone(),
            body: ReplyBody::Whole { bytes: answer.body.clone(), end: answer.end.clone() },
            session: answer.session.clone(),
            kept: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::id::Minted;
    use control::plane::Outcome;
    use control::units::Usage;

    fn reply(counter: u64, size: usize) -> Reply {
        let end = End {
            outcome: Outcome::Completed,
            detail: None,
            usage: Usage::default(),
            first_token: None,
            resumed: None,
            error: None,
        };
        Reply {
            request: RequestId(Minted { incarnation: 1, counter }),
            replica: "demo-1".into(),
            provider: "pointsman".into(),
            attempts: 1,
            content_type: "application/json".into(),
            body: ReplyBody::Whole { bytes: vec![0; size].into(), end },
            session: None,
            kept: None,
        }
    }

    fn has(answers: &Answers, counter: u64) -> bool {
        answers.get(RequestId(Minted { incarnation: 1, counter })).is_some()
    }

    #[test]
    fn the_oldest_answer_makes_room_for_a_new_one() {
        let answers = Answers::default();
        for counter in 0..=ANSWERS_MAX as u64 {
            answers.insert(&reply(counter, 10));
        }
        assert!(!has(&answers, 0) && has(&answers, 1) && has(&answers, ANSWERS_MAX as u64));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let answers = Answers::default();
        answers.insert(&reply(1, BYTES_MAX));
        answers.insert(&reply(2, 1));
        assert!(!has(&answers, 1) && has(&answers, 2));
        answers.insert(&reply(3, BYTES_MAX + 1));
        assert!(!has(&answers, 3), "what is larger than all of it is not kept");
    }
}

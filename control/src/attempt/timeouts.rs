//! How long things may take. The request's deadline is set once; an attempt's are cut from it.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// How long each part may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From dispatch until there is a connection.
    pub connect: Duration,
    /// From dispatch until the first token, or the whole answer where it is not streamed.
    pub first_token: Duration,
    /// From one token to the next.
    pub between_tokens: Duration,
    /// The whole request, all attempts and waits included.
    pub request: Duration,
}

/// When one attempt has failed, if nothing is heard. None lies after the request's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptDeadlines {
    /// Without a connection.
    pub connect: Instant,
    /// Without a token.
    pub first_token: Instant,
    /// How long it may pause once it streams; the pause ends at `end` at the latest.
    pub between_tokens: Duration,
    /// In any case: the request's deadline.
    pub end: Instant,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // Three SYNs (at 0, 1 and 3 s) fit in.
            connect: Duration::from_secs(5),
            // A long prompt on a busy replica takes tens of seconds to read.
            first_token: Duration::from_secs(60),
            // The slowest models emit a token a second; half a minute of silence is a hang.
            between_tokens: Duration::from_secs(30),
            // What the official clients of the OpenAI API wait by default.
            request: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// The one deadline of a request that arrives now.
    #[must_use]
    pub fn request_deadline(&self, now: Instant) -> Instant {
        now + self.request
    }

    /// The deadlines of an attempt dispatched now, for a request with this deadline.
    #[must_use]
    pub fn attempt(&self, now: Instant, request_deadline: Instant) -> AttemptDeadlines {
        AttemptDeadlines {
            connect: (now + self.connect.min(self.first_token)).min(request_deadline),
            first_token: (now + self.first_token).min(request_deadline),
            between_tokens: self.between_tokens,
            end: request_deadline,
        }
    }
}

impl AttemptDeadlines {
    /// When a stream that emitted a token now has stalled.
    #[must_use]
    pub fn next_token(&self, now: Instant) -> Instant {
        (now + self.between_tokens).min(self.end)
    }
}

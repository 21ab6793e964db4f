//! A client that resumes a stream whose attempt runs on another gateway: its events are read from the shared log.
//!
//! The log is asked again and again, after pauses that grow while nothing comes: a connection that blocks on it for each
//! reader was rejected, because readers would then be bounded by connections. Beside that the reader says that it is there
//! (or the attempt's gateway would give the stream up), learns whether another reader took over, and looks whether that
//! gateway lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep};

use super::reader::Next;
use super::{Missed, Whose};
use crate::redis::{Beat, Claimed, Logged, StoreError, StreamLog};

/// A gateway says that it lives so often ...
pub(super) const SIGN_EVERY: Duration = Duration::from_secs(1);
/// ... and is believed for so long: two signs may get lost.
pub(super) const SIGN_TTL: Duration = Duration::from_secs(3);

/// A reader says that it is there so often: as often as the attempt's gateway looks.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// Without a sign for so long, a gateway is given up. One that has just started may not have given its first.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// A log that has not answered for so long is given up.
const SILENT_MAX: Duration = Duration::from_secs(5);

/// Pauses while nothing comes: the first is shorter than a token takes, the last costs a reader 12 commands a second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(80));

pub(super) struct Distant {
    log: Arc<StreamLog>,
    id: String,
    claimed: Claimed,
    at: u64,
    /// Read when it was attached.
    waiting: Vec<Logged>,
    ended: bool,
    pause: Duration,
    beat_at: Instant,
    answered_at: Instant,
    /// Since when its gateway has given no sign, or the log knows nothing of the stream.
    dead_since: Option<Instant>,
    /// How long it is kept after a reader was here.
    kept: Duration,
}

impl Distant {
    /// Becomes the stream's reader.
    pub async fn attach(
        log: Arc<StreamLog>,
        id: &str,
        whose: Whose,
        after: u64,
        kept: Duration,
    ) -> Result<Self, Missed> {
        let whose = whose.to_string();
        if log.whose(id).await.map_err(Missed::Away)?.as_ref() != Some(&whose) {
            return Err(Missed::Unknown);
        }
        let waiting = log.read(id, after).await.map_err(Missed::Away)?;
        match waiting.first() {
            Some(first) if first.seq != after + 1 => return Err(Missed::Gone { first: first.seq }),
            Some(_) => {}
            None => {
                let last = log.last(id).await.map_err(Missed::Away)?;
                let (head, is_final) = last.map_or((0, false), |last| (last.seq, last.is_final));
                if after > head {
                    return Err(Missed::Beyond { head });
                }
                if is_final && after == head {
                    return Err(Missed::Complete);
                }
            }
        }
        // Last: who cannot read on cuts nobody off.
        let claimed = log.claim(id, &whose, Some(after), 0).await.map_err(Missed::Away)?;
        let claimed = claimed.ok_or(Missed::Unknown)?;
        let now = Instant::now();
        Ok(Self {
            log,
            id: id.to_owned(),
            claimed,
            at: after,
            waiting,
            ended: false,
            pause: PAUSE.0,
            beat_at: now,
            answered_at: now,
            dead_since: None,
            kept,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The last event it was given, and its epoch.
    pub fn place(&self) -> (u64, u64) {
        (self.at, self.claimed.epoch)
    }

    /// What comes next. Cancel-safe: a question whose answer nobody waits for is asked again.
    pub async fn next(&mut self) -> Next {
        loop {
            if self.ended {
                return Next::Over;
            }
            if !self.waiting.is_empty() {
                return self.take();
            }
            match self.look().await {
                Ok(None) => self.answered_at = Instant::now(),
                Ok(Some(cut)) => return cut,
                Err(error) if self.answered_at.elapsed() >= SILENT_MAX => {
                    tracing::debug!(stream = self.id, "the log of streams is given up: {error}");
                    return Next::Unreachable;
                }
                Err(_) => {}
            }
            if self.waiting.is_empty() {
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSE.1);
            } else {
                self.pause = PAUSE.0;
            }
        }
    }

    /// Reads on. What it finds besides events ends the reading.
    async fn look(&mut self) -> Result<Option<Next>, StoreError> {
        let beats = self.beat_at <= Instant::now();
        let (mut dead, mut patience) = (false, DEAD_AFTER);
        if beats {
            // What is read is kept, however slowly that goes.
            let beat = self.log.beat(&self.id, self.claimed.epoch, self.at, self.kept);
            let (beat, touched) = tokio::join!(beat, self.log.touch(&self.id, self.kept));
            match touched.and(beat)? {
                Beat::Current => {}
                Beat::TakenOver => return Ok(Some(Next::TakenOver)),
                // A log that lost it hears of it again from a gateway that lives.
                Beat::Gone => (dead, patience) = (true, SIGN_TTL),
            }
            // Before the events are read: a gateway that dies now has written what it wrote.
            dead |= !self.log.is_alive(&self.claimed.owner).await?;
        }
        self.waiting = self.log.read(&self.id, self.at).await?;
        if beats {
            self.beat_at = Instant::now() + BEAT_EVERY;
            let since = *self.dead_since.get_or_insert_with(Instant::now);
            if !dead || !self.waiting.is_empty() {
                self.dead_since = None;
            } else if since.elapsed() >= patience {
                return Ok(Some(Next::Lost));
            }
        }
        Ok(None)
    }

    /// The events that were read, as one piece.
    fn take(&mut self) -> Next {
        let mut bytes = BytesMut::new();
        for logged in std::mem::take(&mut self.waiting) {
            if logged.seq != self.at + 1 {
                // What is before the hole goes out first, and the hole is found again.
                if bytes.is_empty() {
                    return Next::Gone(logged.seq);
                }
                break;
            }
            (self.at, self.ended) = (logged.seq, logged.is_final);
            bytes.extend_from_slice(&logged.event);
        }
        Next::Bytes(Bytes::from(bytes))
    }
}

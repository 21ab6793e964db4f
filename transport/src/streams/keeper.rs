//! Keeps one stream: the answer's parts go into the log, whoever reads.
//!
//! The keeper stands where a response's body stood: dropping the parts is what tells the chat role that the client has
//! gone. It drops them when nobody has read for the grace time, or when the gateway stops, and in no other case before the
//! end. It takes no more parts than the log has room for, so that a client who does not read slows the answer down.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::Receiver;

use super::kept::{Kept, Reach};
use super::log::ID;
use super::shipping::{Shipping, Turn};
use super::{Last, Scribe, Streams};
use crate::exchange::{Part, Resumed};
use crate::sse::{self, TooLarge};

pub(super) struct Keeper {
    streams: Arc<Streams>,
    kept: Arc<Kept>,
    parts: Receiver<Part>,
    scribe: Box<dyn Scribe>,
    blocks: sse::Parser,
    shipping: Option<Shipping>,
}

impl Keeper {
    pub fn new(
        streams: Arc<Streams>,
        kept: Arc<Kept>,
        parts: Receiver<Part>,
        scribe: Box<dyn Scribe>,
    ) -> Self {
        let shipping = streams.shared.as_ref().map(|log| {
            let (name, ended) = (streams.name.clone(), streams.limits.kept);
            Shipping::new(Arc::clone(log), &kept, name, streams.limits.grace, ended)
        });
        let blocks = sse::Parser::default();
        Self { streams, kept, parts, scribe, blocks, shipping }
    }

    pub async fn run(mut self) {
        let leaving = Leaving(Arc::clone(&self.streams), Arc::clone(&self.kept));
        let last = self.fill().await;
        let Self { streams, kept, parts, mut scribe, blocks: _, shipping } = self;
        // From here on the chat role knows, where it did not say so itself.
        drop(parts);
        let error = scribe.end(&last);
        kept.end(scribe.used());
        // The request is over, whatever becomes of its log.
        drop(scribe);
        write_end(&kept, error.as_deref());
        if let Some(shipping) = shipping {
            shipping.finish(&kept, &streams.meters).await;
        }
        streams.meters.ended(&last);
        drop(leaving);
    }

    /// Until the answer is over, one way or another.
    async fn fill(&mut self) -> Last {
        loop {
            self.ship();
            let room = self.kept.with(|log| log.has_room());
            let gives_up_at = self.kept.gives_up_at(self.streams.limits.grace);
            let gives_up = async {
                match gives_up_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.streams.stopping.cancelled() => return Last::Stopped,
                // Before the parts: an answer that never pauses is given up, too.
                () = gives_up => return Last::Abandoned,
                turn = turn(&mut self.shipping) => self.shipped(turn),
                part = self.parts.recv(), if room => match part {
                    Some(Part::Bytes(bytes)) => match self.insert(bytes) {
                        Ok(()) => {}
                        // Nobody upstream lets one pass: a bug, and told as such rather than left out.
                        Err(TooLarge { .. }) => return Last::Lost,
                    },
                    Some(Part::End(end)) => return Last::End(end),
                    Some(Part::Unrecorded(end)) => return Last::Unrecorded(end),
                    None => return Last::Lost,
                },
                () = self.kept.moved() => {}
            }
        }
    }

    fn ship(&mut self) {
        if let Some(shipping) = &mut self.shipping {
            shipping.start(&self.kept);
        }
    }

    fn shipped(&mut self, turn: Turn) {
        if let Turn::Shipped(answer) = &turn {
            self.streams.heard(answer);
        }
        if let Some(shipping) = &mut self.shipping {
            shipping.handle(turn, &self.kept, &self.streams.meters);
        }
    }

    /// Some bytes of the answer. What is no event (a comment, a keep-alive) is said and not kept; where an answer went on at
    /// another replica is told in its place.
    fn insert(&mut self, bytes: Bytes) -> Result<(), TooLarge> {
        self.blocks.insert(bytes);
        let shown = self.kept.reach() == Reach::ThisGateway;
        while let Some(event) = self.blocks.poll_event()? {
            let Some(data) = &event.data else {
                match Resumed::read(&event.raw) {
                    Some(_) => self.kept.with(|log| log.note(&event.raw)),
                    None => self.kept.say(event.raw),
                }
                continue;
            };
            // It ends the log, and is written with the end.
            if data.trim_ascii() == DONE {
                continue;
            }
            let block = if event.id.is_some() { without_id(&event.raw) } else { event.raw };
            self.kept.write(|log| {
                let number = log.push(&block);
                if shown {
                    log.show(number);
                }
            });
        }
        Ok(())
    }
}

const DONE: &[u8] = b"[DONE]";

/// The last event: `[DONE]` after a clean end, an error otherwise. What was cut off within an event is dropped, as a client
/// would.
fn write_end(kept: &Kept, error: Option<&str>) {
    let block = format!("data: {}\n\n", error.unwrap_or("[DONE]"));
    let shown = kept.reach() == Reach::ThisGateway;
    kept.write(|log| {
        let number = log.push(block.as_bytes());
        log.end();
        if shown {
            log.show(number);
        }
    });
}

/// A block without the lines that number it: the numbers are ours.
fn without_id(raw: &[u8]) -> Bytes {
    let is_id = |line: &[u8]| {
        let rest = line.strip_prefix(&ID[..2]);
        rest.is_some_and(|rest| matches!(rest.first(), Some(b':' | b'\r' | b'\n') | None))
    };
    let mut block = BytesMut::with_capacity(raw.len());
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        if !is_id(line) {
            block.extend_from_slice(line);
        }
    }
    block.freeze()
}

async fn turn(shipping: &mut Option<Shipping>) -> Turn {
    match shipping {
        Some(shipping) => shipping.turn().await,
        None => std::future::pending().await,
    }
}

/// A keeper that leaves, even one that breaks, leaves no reader waiting and no place taken for ever.
struct Leaving(Arc<Streams>, Arc<Kept>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let Self(streams, kept) = self;
        kept.write(super::log::Log::lose);
        kept.end(None);
        streams.ended(kept);
    }
}

//! Streams in Redis, so that every gateway can resume them.
//!
//! `stream:chat:<id>` is a Redis stream with an entry for each event: `token` (its text), `seq`, `is_final`,
//! `finish_reason`, and `event`, the block of the answer as its client gets it. An entry's id is `<seq>-0`: so a number is
//! written once, whoever repeats himself, and read without an index. `chat:req:meta:<id>` is a hash: who runs the attempt,
//! whose it is, its state, and the epoch of its reader. Both live for a stated time after they were last touched.
//! `pointsman:alive:<life>` is there while a process is.
//!
//! A connection of its own: tokens must not stand in the way of quota, which has a deadline of milliseconds.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::client::{Caller, Settings, SettingsError};
use super::error::StoreError;
use super::script::Source;
use crate::seam::Network;
use answers::{integer, integers, logged, number, several, text};
use words::Words;

mod answers;
mod words;

macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Source> = LazyLock::new(|| Source::new(include_str!($file)));
    };
}

script!(APPEND, "stream_append.lua");
script!(KEEP, "stream_keep.lua");
script!(CLAIM, "stream_claim.lua");
script!(BEAT, "stream_beat.lua");

/// The text of each script with its name and its SHA: for whoever answers in a server's place.
#[must_use]
pub fn stream_scripts() -> [(&'static str, &'static str, &'static str); 4] {
    [
        APPEND.told("stream_append"),
        KEEP.told("stream_keep"),
        CLAIM.told("stream_claim"),
        BEAT.told("stream_beat"),
    ]
}

/// Entries read with one command.
const READ_MAX: usize = 128;

/// The log of all streams of all gateways that share it.
#[derive(Debug)]
pub struct StreamLog {
    caller: Caller,
}

/// Events on their way into the log.
#[derive(Clone, Debug)]
pub struct Shipment {
    /// The number of the first that the writer keeps: what is missing before it stays missing.
    pub kept_from: u64,
    /// The number of the first.
    pub from: u64,
    /// Blocks of the answer.
    pub events: Vec<Bytes>,
    /// The last of them is the stream's last.
    pub is_end: bool,
    /// Entries that stay, at most.
    pub entries_max: u64,
    /// How long they do.
    pub ttl: Duration,
}

/// What the gateway that runs a stream says of it.
#[derive(Clone, Debug)]
pub struct Owned {
    /// Its name: that of its sign of life.
    pub owner: String,
    /// Who may resume it.
    pub whose: String,
    /// More will come.
    pub running: bool,
    /// Of the last reader that the gateway knows of, from 1 on.
    pub epoch: u64,
    /// How long this stands.
    pub ttl: Duration,
}

/// What is known of readers on other gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readers {
    /// Of the last that was heard of.
    pub epoch: u64,
    /// Changes whenever one is.
    pub beat: u64,
    /// The last event it read.
    pub read: u64,
}

/// A stream that was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Of the reader who did.
    pub epoch: u64,
    /// Who runs it.
    pub owner: String,
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its number.
    pub seq: u64,
    /// It is the last.
    pub is_final: bool,
    /// Its block.
    pub event: Bytes,
}

/// What a beat found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The reader still counts.
    Current,
    /// Another took over.
    TakenOver,
    /// The stream is no longer kept.
    Gone,
}

impl StreamLog {
    /// Dials nothing yet.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        Self::over(settings, Network::Real)
    }

    /// The same over a network that may be a simulated one.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn over(settings: Settings, network: Network) -> Result<Self, SettingsError> {
        Ok(Self { caller: Caller::new(settings, network)? })
    }

    /// Writes events, unless some before them are missing that the writer keeps. Returns the number of the last that is there.
    ///
    /// # Errors
    /// [`StoreError`]; they may have been written, and may be written again.
    pub async fn append(&self, id: &str, shipment: &Shipment) -> Result<u64, StoreError> {
        let count = shipment.events.len();
        let answer = self.caller.script_on(&APPEND, stream_key(id), |command| {
            command.arg(shipment.entries_max).arg(millis(shipment.ttl));
            command.arg(shipment.kept_from).arg(shipment.from);
            for (index, event) in shipment.events.iter().enumerate() {
                let is_final = shipment.is_end && index + 1 == count;
                let words = Words::of(event);
                command.arg(&event[..]).arg(words.token.as_bytes()).arg(u8::from(is_final));
                command.arg(words.finish_reason.as_bytes());
            }
        });
        number(&answer.await?)
    }

    /// Says who runs a stream, for so long, and hears of readers elsewhere.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep(&self, id: &str, owned: &Owned) -> Result<Readers, StoreError> {
        let status = if owned.running { "streaming" } else { "ended" };
        let answer = self.caller.script_on(&KEEP, meta_key(id), |command| {
            command.arg(&owned.owner).arg(&owned.whose).arg(status).arg(millis(owned.ttl));
            command.arg(owned.epoch);
        });
        let [epoch, beat, read] = integers(&answer.await?)?;
        Ok(Readers { epoch, beat, read })
    }

    /// Has a stream's events stay for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch(&self, id: &str, ttl: Duration) -> Result<(), StoreError> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(stream_key(id)).arg(millis(ttl));
        self.caller.command(&command).await.map(drop)
    }

    /// Forgets a stream.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, id: &str) -> Result<(), StoreError> {
        // In different slots of a cluster.
        for key in [stream_key(id), meta_key(id)] {
            self.caller.command(redis::cmd("UNLINK").arg(key)).await?;
        }
        Ok(())
    }

    /// Who may resume a stream; `None` where there is no such stream.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn whose(&self, id: &str) -> Result<Option<String>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(meta_key(id)).arg("whose");
        let answer = self.caller.command(&command).await?;
        if answer == Value::Nil { Ok(None) } else { text(&answer).map(Some) }
    }

    /// A reader takes over; `elsewhere` is the last event it has, where it is not on the gateway that runs the stream, and
    /// `behind` an epoch that its own will be above, whatever the log says. `None` where there is no such stream of theirs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim(
        &self,
        id: &str,
        whose: &str,
        elsewhere: Option<u64>,
        behind: u64,
    ) -> Result<Option<Claimed>, StoreError> {
        let read = elsewhere.map(|read| read.to_string()).unwrap_or_default();
        let answer = self.caller.script_on(&CLAIM, meta_key(id), |command| {
            command.arg(whose).arg(&read).arg(behind);
        });
        let answer = answer.await?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let [epoch, owner] = several(&answer)?;
        Ok(Some(Claimed { epoch: number(epoch)?, owner: text(owner)? }))
    }

    /// A reader elsewhere is still there, and has read so far. What is known of the stream stays for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn beat(
        &self,
        id: &str,
        epoch: u64,
        read: u64,
        ttl: Duration,
    ) -> Result<Beat, StoreError> {
        let answer = self.caller.script_on(&BEAT, meta_key(id), |command| {
            command.arg(epoch).arg(read).arg(millis(ttl));
        });
        Ok(match integer(&answer.await?)? {
            1.. => Beat::Current,
            0 => Beat::TakenOver,
            ..0 => Beat::Gone,
        })
    }

    /// Events behind `after`, some of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, id: &str, after: u64) -> Result<Vec<Logged>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(stream_key(id)).arg(format!("{}-0", after + 1)).arg("+");
        command.arg("COUNT").arg(READ_MAX);
        logged(self.caller.command(&command).await?)
    }

    /// The last event.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last(&self, id: &str) -> Result<Option<Logged>, StoreError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(stream_key(id)).arg("+").arg("-").arg("COUNT").arg(1);
        Ok(logged(self.caller.command(&command).await?)?.pop())
    }

    /// A process lives, for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn live(&self, name: &str, ttl: Duration) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(alive_key(name)).arg(1).arg("PX").arg(millis(ttl));
        self.caller.command(&command).await.map(drop)
    }

    /// Whether it does.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_alive(&self, name: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("EXISTS");
        command.arg(alive_key(name));
        Ok(number(&self.caller.command(&command).await?)? == 1)
    }
}

fn stream_key(id: &str) -> String {
    format!("stream:chat:{id}")
}

fn meta_key(id: &str) -> String {
    format!("chat:req:meta:{id}")
}

fn alive_key(name: &str) -> String {
    format!("pointsman:alive:{name}")
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

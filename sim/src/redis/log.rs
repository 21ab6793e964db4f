//! The log of streams that gateways share, as a server has it: Redis streams and hashes, and what the four scripts do to them.
//!
//! There is no pure store to run here, for the product has none: these are the commands themselves, a few lines each, as far as
//! the product uses them. `tests/redis_streams.rs` asks a real server the same.
//!
//! A replica that takes over lacks the last writes, so what each of the last of them replaced is kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::resp::Said;
use super::words::{Unreadable, parsed};

/// The streams and their hashes, and the signs of life.
#[derive(Debug, Default)]
pub(super) struct Logs {
    held: BTreeMap<String, Held>,
    /// What stood where each of the last writes wrote.
    before: VecDeque<(String, Option<Held>)>,
}

#[derive(Clone, Debug)]
struct Held {
    what: What,
    /// In milliseconds; without, it stays.
    until: Option<u64>,
}

#[derive(Clone, Debug)]
enum What {
    Entries(VecDeque<(u64, Arc<Vec<Said>>)>),
    Hash(BTreeMap<String, String>),
    /// A sign of life, whose value nobody reads.
    Sign,
}

/// More than a failover loses.
const WRITES_MAX: usize = 256;

const SCRIPTS: [&str; 4] = ["stream_append", "stream_keep", "stream_claim", "stream_beat"];

impl Logs {
    /// Runs the script of that name; `None` where it is none of these. `now` in milliseconds.
    pub fn run(
        &mut self,
        now: u64,
        script: &str,
        keys: &[&str],
        args: &[Vec<u8>],
    ) -> Option<Result<Said, Unreadable>> {
        if !SCRIPTS.contains(&script) {
            return None;
        }
        let [key] = keys else { return Some(Err(Unreadable)) };
        Some(match script {
            "stream_append" => self.append(now, key, args),
            "stream_keep" => self.keep(now, key, args),
            "stream_claim" => self.claim(now, key, args),
            _ => self.beat(now, key, args),
        })
    }

    /// Answers a command; `None` where it is none of these.
    pub fn answer(&mut self, now: u64, name: &str, words: &[Vec<u8>]) -> Option<Said> {
        let words: Vec<&str> =
            words.iter().map(|word| std::str::from_utf8(word)).collect::<Result<_, _>>().ok()?;
        Some(match (name, &*words) {
            ("PEXPIRE", [key, span]) => {
                let is_there = self.at(now, key).is_some();
                if is_there {
                    self.expire(now, key, span.parse().ok()?);
                }
                Said::Number(is_there.into())
            }
            ("UNLINK", [key]) => {
                let is_there = self.at(now, key).is_some();
                if is_there {
                    self.before.push_back(((*key).to_owned(), self.held.remove(*key)));
                    if self.before.len() > WRITES_MAX {
                        self.before.pop_front();
                    }
                }
                Said::Number(is_there.into())
            }
            ("HGET", [key, field]) => self.field(now, key, field).map_or(Said::Nothing, Said::text),
            ("XRANGE", [key, from, "+", "COUNT", count]) => {
                let from: u64 = from.strip_suffix("-0")?.parse().ok()?;
                let entries = self.entries(now, key);
                let found = entries.filter(|(seq, _)| *seq >= from).take(count.parse().ok()?);
                Said::List(found.map(entry).collect())
            }
            ("XREVRANGE", [key, "+", "-", "COUNT", count]) => {
                let entries: Vec<_> = self.entries(now, key).collect();
                let found = entries.into_iter().rev().take(count.parse().ok()?);
                Said::List(found.map(entry).collect())
            }
            ("SET", [key, _, "PX", span]) => {
                let until = Some(now + span.parse::<u64>().ok()?);
                self.write(key, Held { what: What::Sign, until });
                Said::Word("OK")
            }
            ("EXISTS", [key]) => Said::Number(self.at(now, key).is_some().into()),
            _ => return None,
        })
    }

    /// The last writes are gone.
    pub fn lose(&mut self, writes: usize) {
        for _ in 0..writes {
            let Some((key, before)) = self.before.pop_back() else { return };
            match before {
                Some(held) => drop(self.held.insert(key, held)),
                None => drop(self.held.remove(&key)),
            }
        }
    }

    fn at(&self, now: u64, key: &str) -> Option<&Held> {
        self.held.get(key).filter(|held| held.until.is_none_or(|until| now <= until))
    }

    fn entries(&self, now: u64, key: &str) -> impl Iterator<Item = &(u64, Arc<Vec<Said>>)> {
        let entries = self.at(now, key).and_then(|held| match &held.what {
            What::Entries(entries) => Some(entries),
            What::Hash(_) | What::Sign => None,
        });
        entries.into_iter().flatten()
    }

    fn field(&self, now: u64, key: &str, field: &str) -> Option<String> {
        match &self.at(now, key)?.what {
            What::Hash(fields) => fields.get(field).cloned(),
            What::Entries(_) | What::Sign => None,
        }
    }

    fn write(&mut self, key: &str, held: Held) {
        let before = self.held.insert(key.to_owned(), held);
        if self.before.len() >= WRITES_MAX {
            self.before.pop_front();
        }
        self.before.push_back((key.to_owned(), before));
    }

    /// Part of what was written last.
    fn expire(&mut self, now: u64, key: &str, span: u64) {
        if span == 0 {
            self.held.remove(key);
        } else if let Some(held) = self.held.get_mut(key) {
            held.until = Some(now + span);
        }
    }

    /// What lies there, to be written anew; its time to live goes with it.
    fn hash(&self, now: u64, key: &str) -> (BTreeMap<String, String>, Option<u64>) {
        match self.at(now, key) {
            Some(Held { what: What::Hash(fields), until }) => (fields.clone(), *until),
            Some(_) | None => (BTreeMap::new(), None),
        }
    }

    fn append(&mut self, now: u64, key: &str, args: &[Vec<u8>]) -> Result<Said, Unreadable> {
        let [most, span, kept, first, events @ ..] = args else { return Err(Unreadable) };
        let (most, span) = (whole(most)?, whole(span)?);
        let mut entries: VecDeque<_> = self.entries(now, key).cloned().collect();
        let until = self.at(now, key).and_then(|held| held.until);
        let have = entries.back().map_or(0, |(seq, _)| *seq);
        let mut seq = whole(first)?;
        if have + 1 < seq && whole(kept)? < seq {
            return Ok(Said::Number(have));
        }
        for event in events.chunks(4) {
            let [event, token, is_final, reason] = event else { return Err(Unreadable) };
            if seq > have {
                let named = |name: &str, value: &[u8]| [Said::text(name), Said::Bulk(value.into())];
                let fields = [
                    named("token", token),
                    named("seq", seq.to_string().as_bytes()),
                    named("is_final", is_final),
                    named("finish_reason", reason),
                    named("event", event),
                ];
                entries.push_back((seq, Arc::new(fields.into_iter().flatten().collect())));
                while entries.len() as u64 > most {
                    entries.pop_front();
                }
            }
            seq += 1;
        }
        if have >= seq {
            return Ok(Said::Error("FOREIGN events that nobody here wrote".into()));
        }
        self.write(key, Held { what: What::Entries(entries), until });
        self.expire(now, key, span);
        Ok(Said::Number(seq - 1))
    }

    fn keep(&mut self, now: u64, key: &str, args: &[Vec<u8>]) -> Result<Said, Unreadable> {
        let [owner, whose, status, span, known] = args else { return Err(Unreadable) };
        let (mut fields, until) = self.hash(now, key);
        for (name, value) in [("owner", owner), ("whose", whose), ("status", status)] {
            fields.insert(name.to_owned(), text(value)?.to_owned());
        }
        let epoch: u64 = fields.get("epoch").map_or(Ok(0), |text| parsed(text))?;
        fields.insert("epoch".to_owned(), epoch.max(whole(known)?).to_string());
        let number = |name: &str| fields.get(name).map_or(Ok(0), |text| parsed(text));
        let said = [number("reader")?, number("beat")?, number("read")?];
        self.write(key, Held { what: What::Hash(fields), until });
        self.expire(now, key, whole(span)?);
        Ok(Said::List(said.map(Said::Number).to_vec()))
    }

    fn claim(&mut self, now: u64, key: &str, args: &[Vec<u8>]) -> Result<Said, Unreadable> {
        let [whose, read, behind] = args else { return Err(Unreadable) };
        let (mut fields, until) = self.hash(now, key);
        if fields.get("whose").map(String::as_str) != Some(text(whose)?) {
            return Ok(Said::Nothing);
        }
        let epoch: u64 = fields.get("epoch").map_or(Ok(0), |text| parsed(text))?;
        let epoch = epoch.max(whole(behind)?) + 1;
        fields.insert("epoch".to_owned(), epoch.to_string());
        let read = text(read)?;
        if !read.is_empty() {
            fields.insert("reader".to_owned(), epoch.to_string());
            fields.insert("read".to_owned(), read.to_owned());
            more(&mut fields, "beat")?;
        }
        let owner = Said::text(fields.get("owner").cloned().unwrap_or_default());
        self.write(key, Held { what: What::Hash(fields), until });
        Ok(Said::List(vec![Said::Number(epoch), owner]))
    }

    fn beat(&mut self, now: u64, key: &str, args: &[Vec<u8>]) -> Result<Said, Unreadable> {
        let [epoch, read, span] = args else { return Err(Unreadable) };
        let (mut fields, until) = self.hash(now, key);
        let epoch = text(epoch)?;
        match fields.get("epoch") {
            None => return Ok(Said::MinusOne),
            Some(current) if parsed(current)? > parsed(epoch)? => {
                return Ok(Said::Number(0));
            }
            Some(_) => {}
        }
        fields.insert("epoch".to_owned(), epoch.to_owned());
        fields.insert("reader".to_owned(), epoch.to_owned());
        fields.insert("read".to_owned(), text(read)?.to_owned());
        more(&mut fields, "beat")?;
        self.write(key, Held { what: What::Hash(fields), until });
        self.expire(now, key, whole(span)?);
        Ok(Said::Number(1))
    }
}

fn entry((seq, fields): &(u64, Arc<Vec<Said>>)) -> Said {
    Said::List(vec![Said::text(format!("{seq}-0")), Said::List(fields.to_vec())])
}

/// Counts a field up, from 0 where it is not there.
fn more(fields: &mut BTreeMap<String, String>, name: &str) -> Result<u64, Unreadable> {
    let count = fields.get(name).map_or(Ok(0), |text| parsed(text))? + 1;
    fields.insert(name.to_owned(), count.to_string());
    Ok(count)
}

fn text(word: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(word).map_err(|_| Unreadable)
}

fn whole(word: &[u8]) -> Result<u64, Unreadable> {
    parsed(text(word)?)
}

//! Sessions in the process's own store: for one process, which nobody shares them with.
//!
//! | key | value |
//! |---|---|
//! | `h` session | its head |
//! | `m` session 0 place (8 bytes) | an entry |
//! | `u` owner 0 session | nothing: the list of an owner's sessions |
//! | `r` owner 0 place (8 bytes) | one of the owner's last lines |
//!
//! An owner is his scoped name, in hex, so that no name can hold a separator. A turn is one batch: all of it is there, or
//! nothing.

use std::sync::{Arc, Mutex, PoisonError};

use super::kv::{Change, Kv, Pair, Way};
use super::record::{Entry, Head, HistoryLine, Owner, Totals};
use super::{HISTORY_MAX, SessionError};

/// The embedded store.
#[derive(Clone)]
pub(super) struct Embedded {
    kv: Kv,
    /// Held from the first key that a change looks at until it is flushed: two that looked at once would each undo what the
    /// other did (a head written back, a place in a list taken twice).
    changing: Arc<Mutex<()>>,
    /// Changes that have come as far as waiting for that.
    #[cfg(test)]
    pub begun: Arc<std::sync::atomic::AtomicUsize>,
}

impl Embedded {
    pub fn new(kv: Kv) -> Self {
        Self {
            kv,
            changing: Arc::default(),
            #[cfg(test)]
            begun: Arc::default(),
        }
    }

    /// Lets go of the disk.
    pub fn close(&self) {
        self.kv.close();
    }

    /// Has changes wait until what is returned is dropped, as those of a disk that hangs.
    #[cfg(test)]
    pub fn hang(&self) -> std::sync::mpsc::Sender<()> {
        let (until, dropped) = std::sync::mpsc::channel();
        let (held, is_held) = std::sync::mpsc::channel();
        let changing = Arc::clone(&self.changing);
        std::thread::spawn(move || {
            let _one = changing.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = held.send(());
            let _: Result<(), _> = dropped.recv();
        });
        let _ = is_held.recv();
        until
    }

    /// What changes the store, one after another.
    fn change<T>(
        &self,
        work: impl FnOnce(&Kv) -> Result<T, SessionError> + Send + 'static,
    ) -> impl FnOnce(&Kv) -> Result<T, SessionError> + Send + 'static {
        let changing = Arc::clone(&self.changing);
        #[cfg(test)]
        let begun = Arc::clone(&self.begun);
        move |kv| {
            #[cfg(test)]
            begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _one = changing.lock().unwrap_or_else(PoisonError::into_inner);
            work(kv)
        }
    }

    pub async fn head(&self, id: &str) -> Result<Option<(Head, Totals)>, SessionError> {
        let id = id.to_owned();
        let read = move |kv: &Kv| {
            let Some(head) = kv.get(&head_key(&id))? else { return Ok(None) };
            Ok(Some((parsed(&head)?, last(kv, &id)?)))
        };
        self.kv.with(read).await
    }

    pub async fn create(&self, id: &str, head: &Head, most: u64) -> Result<(), SessionError> {
        let owner = Owner::of(head);
        let changes =
            vec![(head_key(id), Some(written(head)?)), (index_key(&owner, id), Some(Vec::new()))];
        let (from, to) = index_range(&owner);
        let create = move |kv: &Kv| {
            if kv.range(&from, &to, Way::Forward, as_count(most))?.len() >= as_count(most) {
                return Err(SessionError::TooMany(most));
            }
            kv.write(changes)
        };
        self.kv.with(self.change(create)).await
    }

    /// All of a turn. Said twice, it is kept once. It takes as long as the disk does: who gave up before would not know
    /// whether the turn was kept, and could not let the next one begin.
    pub async fn append(
        &self,
        id: &str,
        active: u64,
        entries: &[Entry],
        lines: &[HistoryLine],
    ) -> Result<(), SessionError> {
        let (id, entries, lines) = (id.to_owned(), entries.to_vec(), lines.to_vec());
        let append = move |kv: &Kv| {
            let Some(mut head) =
                kv.get(&head_key(&id))?.map(|head| parsed::<Head>(&head)).transpose()?
            else {
                return Err(SessionError::NotFound);
            };
            let mut place = 0;
            if let Some((key, value)) = newest(kv, &id)? {
                let known: Entry = parsed(&value)?;
                if entries.last().is_some_and(|entry| entry.turn == known.turn) {
                    // It was written, and its flush may have failed.
                    return kv.flush();
                }
                place = place_of(&key) + 1;
            }
            head.active = active;
            let mut changes = vec![(head_key(&id), Some(written(&head)?))];
            for (entry, place) in entries.iter().zip(place..) {
                changes.push((message_key(&id, place), Some(written(entry)?)));
            }
            changes.extend(remembered(kv, &Owner::of(&head), &lines)?);
            kv.write(changes)
        };
        self.kv.finish(self.change(append)).await
    }

    /// At most so many messages from a place on.
    pub async fn page(&self, id: &str, from: u64, count: u64) -> Result<Vec<Entry>, SessionError> {
        let (first, end) = (message_key(id, from), message_key(id, from.saturating_add(count)));
        let read = move |kv: &Kv| {
            let found = kv.range(&first, &end, Way::Forward, usize::MAX)?;
            found.iter().map(|(_, value)| parsed(value)).collect()
        };
        self.kv.with(read).await
    }

    pub async fn clear(&self, id: &str, mark: Totals) -> Result<(), SessionError> {
        let key = head_key(id);
        let clear = move |kv: &Kv| {
            let Some(head) = kv.get(&key)? else { return Err(SessionError::NotFound) };
            let head = Head { cleared: mark, ..parsed(&head)? };
            kv.write(vec![(key, Some(written(&head)?))])
        };
        self.kv.with(self.change(clear)).await
    }

    /// Takes as long as the disk does, as [`append`](Self::append).
    pub async fn purge(&self, owner: &Owner, id: &str) -> Result<(), SessionError> {
        let (owner, id) = (owner.clone(), id.to_owned());
        let purge = move |kv: &Kv| {
            let mut changes = vec![(head_key(&id), None), (index_key(&owner, &id), None)];
            let all = (message_key(&id, 0), message_key(&id, u64::MAX));
            let messages = kv.range(&all.0, &all.1, Way::Forward, usize::MAX)?;
            changes.extend(messages.into_iter().map(|(key, _)| (key, None)));
            let lines = (line_key(&owner, 0), line_key(&owner, u64::MAX));
            for (key, value) in kv.range(&lines.0, &lines.1, Way::Forward, usize::MAX)? {
                if parsed::<HistoryLine>(&value)?.session == id {
                    changes.push((key, None));
                }
            }
            kv.write(changes)
        };
        self.kv.finish(self.change(purge)).await
    }

    /// An owner's sessions, the last used first: part of them, and how many there are.
    pub async fn list(
        &self,
        owner: &Owner,
        before: u64,
        count: u64,
    ) -> Result<(Vec<String>, u64), SessionError> {
        let (from, to) = index_range(owner);
        let list = move |kv: &Kv| {
            let mut all = Vec::new();
            for (key, _) in kv.range(&from, &to, Way::Forward, usize::MAX)? {
                let id = String::from_utf8_lossy(&key[from.len()..]).into_owned();
                if let Some(head) = kv.get(&head_key(&id))? {
                    all.push((parsed::<Head>(&head)?.active, id));
                }
            }
            all.sort_unstable_by(|one, other| other.cmp(one));
            let total = all.len() as u64;
            let (before, count) = (as_count(before), as_count(count));
            let ids = all.into_iter().skip(before).take(count).map(|(_, id)| id).collect();
            Ok((ids, total))
        };
        self.kv.with(list).await
    }

    /// An owner's last lines, oldest first.
    pub async fn history(&self, owner: &Owner) -> Result<Vec<HistoryLine>, SessionError> {
        let (from, to) = (line_key(owner, 0), line_key(owner, u64::MAX));
        let read = move |kv: &Kv| {
            let found = kv.range(&from, &to, Way::Backward, HISTORY_MAX)?;
            found.iter().rev().map(|(_, value)| parsed(value)).collect()
        };
        self.kv.with(read).await
    }
}

impl Owner {
    fn of(head: &Head) -> Self {
        Self { tenant: head.tenant.as_str().into(), user: head.user.as_str().into() }
    }
}

/// The lines of a turn, and those that make room for them.
fn remembered(kv: &Kv, owner: &Owner, lines: &[HistoryLine]) -> Result<Vec<Change>, SessionError> {
    let (from, to) = (line_key(owner, 0), line_key(owner, u64::MAX));
    let newest = kv.range(&from, &to, Way::Backward, 1)?;
    let next = newest.first().map_or(0, |(key, _)| place_of(key) + 1);
    let mut changes = Vec::new();
    for (line, place) in lines.iter().zip(next..) {
        changes.push((line_key(owner, place), Some(written(line)?)));
    }
    let keep = (next + lines.len() as u64).saturating_sub(HISTORY_MAX as u64);
    let old = kv.range(&from, &line_key(owner, keep), Way::Forward, usize::MAX)?;
    changes.extend(old.into_iter().map(|(key, _)| (key, None)));
    Ok(changes)
}

fn last(kv: &Kv, id: &str) -> Result<Totals, SessionError> {
    let newest = newest(kv, id)?;
    newest.map_or(Ok(Totals::default()), |(_, value)| Ok(parsed::<Entry>(&value)?.totals))
}

fn newest(kv: &Kv, id: &str) -> Result<Option<Pair>, SessionError> {
    let (from, to) = (message_key(id, 0), message_key(id, u64::MAX));
    Ok(kv.range(&from, &to, Way::Backward, 1)?.pop())
}

fn head_key(id: &str) -> Vec<u8> {
    [b"h", id.as_bytes()].concat()
}

fn message_key(id: &str, place: u64) -> Vec<u8> {
    [b"m", id.as_bytes(), b"\0", &place.to_be_bytes()].concat()
}

fn index_key(owner: &Owner, id: &str) -> Vec<u8> {
    [b"u", hex(owner).as_bytes(), b"\0", id.as_bytes()].concat()
}

fn index_range(owner: &Owner) -> (Vec<u8>, Vec<u8>) {
    let name = hex(owner);
    ([b"u", name.as_bytes(), b"\0"].concat(), [b"u", name.as_bytes(), b"\x01"].concat())
}

fn line_key(owner: &Owner, place: u64) -> Vec<u8> {
    [b"r", hex(owner).as_bytes(), b"\0", &place.to_be_bytes()].concat()
}

fn hex(owner: &Owner) -> String {
    owner.scoped(&owner.user).bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The place at the end of a key.
fn place_of(key: &[u8]) -> u64 {
    key.last_chunk().copied().map_or(0, u64::from_be_bytes)
}

fn as_count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn parsed<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, SessionError> {
    let damaged = |_| SessionError::Store("a record is damaged".to_owned());
    serde_json::from_slice(bytes).map_err(damaged)
}

fn written(value: &impl serde::Serialize) -> Result<Vec<u8>, SessionError> {
    let refused = |_| SessionError::Store("a record cannot be written".to_owned());
    serde_json::to_vec(value).map_err(refused)
}

//! A gateway's journal, read as it is written, and what must be in it.
//!
//! Records are read from the simulated disk, decoded, and their facts folded into a [`Book`]. After each death the
//! recovered journal is held against what was read before: a kill loses nothing that was written; a loss of power loses
//! nothing where every write was synced, and elsewhere only an end. What a client was told is in the written journal at
//! that moment, and stays there as far as the same promise goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::id::{AccountId, Digest, Minted, RequestId};
use control::journal::decode;
use control::plane::{Durable, Input};
use control::quota::{Entry, Fact, HoldId};
use transport::journal::{Reader, Records};
use transport::seam::Disk;

use super::book::{Book, Broken, Hold};
use super::check::{Acknowledged, Charge};
use super::damage::Spot;
use super::gateway::{DIR, House};
use super::stage::Stage;
use super::tape::Event;
use super::till::of_gateway;

/// One gateway's journal so far.
pub(super) struct Follower {
    house: Arc<House>,
    /// The book before the first record.
    empty: Book,
    history: Vec<Step>,
    book: Book,
    /// Holds by the idempotency key that they were asked under.
    keys: BTreeMap<HoldId, Digest>,
    charged: BTreeMap<Digest, HoldId>,
    settled: BTreeMap<Minted, Settled>,
    /// The ledger is elsewhere.
    shared: bool,
    /// Tokens that were used, by account: by records that were ever written, and by those that are left.
    used_ever: BTreeMap<AccountId, u64>,
    used: BTreeMap<AccountId, u64>,
    /// Since the last look.
    charges: Vec<Charge>,
    records: Option<Records>,
    /// The life that is being read.
    incarnation: u32,
    /// What the last death may have taken.
    may_lose: bool,
    /// What is damaged.
    damaged: Option<Spot>,
}

/// What the death of a process takes of its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing that was written.
    Nothing,
    /// What was not synced.
    Unsynced,
    /// A record is damaged.
    Damaged(Spot),
    /// All of it: the directory was moved aside.
    Everything,
}

/// A record, as far as it matters here.
struct Step {
    digest: u64,
    entries: Vec<Entry>,
    key: Option<Digest>,
}

#[derive(Clone, Copy)]
struct Settled {
    position: u64,
    tokens: u64,
}

impl Follower {
    pub fn new(stage: &Stage, house: Arc<House>) -> Self {
        let shared = stage.plan.shared;
        let empty = of_gateway(&stage.plan, house.index);
        Self {
            house,
            book: empty.clone(),
            empty,
            history: Vec::new(),
            keys: BTreeMap::new(),
            charged: BTreeMap::new(),
            settled: BTreeMap::new(),
            shared,
            used_ever: BTreeMap::new(),
            used: BTreeMap::new(),
            charges: Vec::new(),
            records: None,
            incarnation: 0,
            may_lose: false,
            damaged: None,
        }
    }

    /// The ledger so far.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The process died.
    pub fn died(&mut self, loss: Loss) -> Result<(), Broken> {
        self.records = None;
        match loss {
            Loss::Nothing => {}
            Loss::Unsynced => self.may_lose = true,
            Loss::Damaged(spot) => self.damaged = Some(spot),
            Loss::Everything => {
                self.history.clear();
                self.charges.clear();
                (self.incarnation, self.may_lose, self.damaged) = (0, false, None);
                self.rebuild()?;
            }
        }
        Ok(())
    }

    /// Requests that were lent something that had been drawn ahead.
    pub fn lent(&self) -> u64 {
        let entries = self.history.iter().flat_map(|step| &step.entries);
        let lent: BTreeSet<HoldId> = entries
            .filter_map(|entry| match &entry.fact {
                Fact::Reserve { hold, from: Some(_), .. }
                | Fact::Extend { hold, from: Some(_), .. } => Some(*hold),
                Fact::Reserve { .. }
                | Fact::Extend { .. }
                | Fact::Limits { .. }
                | Fact::Settle { .. }
                | Fact::Refund { .. }
                | Fact::Expire { .. }
                | Fact::Late { .. }
                | Fact::Forgive { .. }
                | Fact::Close { .. }
                | Fact::Retire { .. }
                | Fact::Acknowledged { .. } => None,
            })
            .collect();
        lent.len() as u64
    }

    /// The life that wrote last.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// What was charged since the last call.
    pub fn take_charges(&mut self) -> Vec<Charge> {
        std::mem::take(&mut self.charges)
    }

    /// Whether it has read what a living process has written.
    pub fn is_current(&self) -> bool {
        self.records.is_some() && self.house.gateway().is_some()
    }

    /// Reads what was written since the last look.
    pub fn look(&mut self, stage: &Stage, now: Duration) -> Result<(), Broken> {
        let Some(gateway) = self.house.gateway() else { return Ok(()) };
        let written = gateway.driver().journal().written();
        if self.records.is_some() && written == self.history.len() as u64 {
            return Ok(());
        }
        // A handle that was open may have died with its process, in the middle of a step.
        let kept = self.records.take();
        let kept = kept.and_then(|mut records| records.go_on(written).ok().map(|()| records));
        let mut records = match kept {
            Some(records) => records,
            None => self.open()?.until(written),
        };
        self.read(stage, now, &mut records)?;
        if records.position() < written {
            // A hole: a loss of power took records that are in a snapshot, and recovery went on behind them.
            records = self.open_behind()?.until(written);
            self.read(stage, now, &mut records)?;
        }
        let read = records.position();
        if read < written {
            let text = format!("{written} records are written, and {read} of them can be read");
            return Err((10, text));
        }
        self.records = Some(records);
        Ok(())
    }

    fn read(&mut self, stage: &Stage, now: Duration, records: &mut Records) -> Result<(), Broken> {
        for record in records {
            if record.incarnation > self.incarnation {
                self.begin_life(record.position, record.incarnation)?;
            }
            self.take(stage, now, record.position, &record.payload)?;
        }
        Ok(())
    }

    /// From the newest snapshot on.
    fn open_behind(&self) -> Result<Records, Broken> {
        let disk: Arc<dyn Disk> = Arc::new(self.house.disk.process());
        let reader = Reader::open(disk, Path::new(DIR)).map_err(unreadable)?;
        let (snapshot, _) = reader.snapshot_at(u64::MAX).map_err(unreadable)?;
        let from = snapshot.map_or(0, |snapshot| snapshot.position);
        reader.records(from).map_err(unreadable)
    }

    fn open(&self) -> Result<Records, Broken> {
        let disk: Arc<dyn Disk> = Arc::new(self.house.disk.process());
        let reader = Reader::open(disk, Path::new(DIR)).map_err(unreadable)?;
        let first = reader.retained_from().map_err(unreadable)?.unwrap_or_default();
        // Some of what was read before, to hold against it.
        let known = (self.history.len() as u64).saturating_sub(1_000);
        let known = if self.may_lose || self.damaged.is_some() { 0 } else { known };
        reader.records(first.max(known)).map_err(unreadable)
    }

    /// The first record of a new life: everything from its position on is new.
    fn begin_life(&mut self, position: u64, incarnation: u32) -> Result<(), Broken> {
        let known = self.history.len() as u64;
        let damaged = self.damaged.take();
        if let Some(spot) = damaged {
            spot.accepted(position, self.may_lose)?;
        }
        if position < known && !self.may_lose && damaged.is_none() {
            let text = format!("{known} records were written, and recovery knows {position}");
            return Err((10, text));
        }
        self.incarnation = incarnation;
        self.may_lose = false;
        if position < known {
            self.history.truncate(usize::try_from(position).unwrap_or(usize::MAX));
            self.rebuild()?;
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Result<(), Broken> {
        self.book = self.empty.clone();
        self.keys.clear();
        self.charged.clear();
        self.settled.clear();
        self.used.clear();
        let history = std::mem::take(&mut self.history);
        for (position, step) in history.iter().enumerate() {
            self.fold(position as u64, step)?;
        }
        self.history = history;
        Ok(())
    }

    fn take(
        &mut self,
        stage: &Stage,
        now: Duration,
        position: u64,
        payload: &[u8],
    ) -> Result<(), Broken> {
        let Ok(record) = decode(payload) else {
            return Err((10, format!("record {position} cannot be read back")));
        };
        if let Some(known) = self.history.get(usize::try_from(position).unwrap_or(usize::MAX)) {
            let same = known.digest == record.digest;
            return if same { Ok(()) } else { Err((10, format!("record {position} has changed"))) };
        }
        let gateway = self.house.index;
        let digest = record.digest;
        stage.scene().tape.note(now, Event::Record { gateway, position, digest });
        let key = match &record.input {
            Input::RequestArrived(arrival) => arrival.idempotency.map(|asked| asked.key),
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LoadReported { .. }
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::FirstToken { .. }
            | Input::Progress { .. }
            | Input::AttemptEnded { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => None,
        };
        let entries = record.durables.into_iter().filter_map(|durable| match durable {
            Durable::Entry(entry) => Some(entry),
            Durable::Binding { .. } | Durable::Released { .. } | Durable::Adopted { .. } => None,
        });
        let step = Step { digest, entries: entries.collect(), key };
        let before = self.used.clone();
        self.fold(position, &step)?;
        for (account, used) in &self.used {
            let more = used - before.get(account).copied().unwrap_or_default();
            *self.used_ever.entry(*account).or_default() += more;
        }
        self.history.push(step);
        Ok(())
    }

    fn fold(&mut self, position: u64, step: &Step) -> Result<(), Broken> {
        for entry in &step.entries {
            let (accounts, actual) = self.uses(entry);
            self.book.apply(entry)?;
            for account in accounts {
                *self.used.entry(account).or_default() += actual;
            }
            let (Fact::Reserve { hold, .. } | Fact::Settle { hold, .. }) = &entry.fact else {
                continue;
            };
            if let Some(key) = step.key {
                self.keys.insert(*hold, key);
            }
            if hold.allotment {
                continue;
            }
            let Some(Hold::Settled(sum)) = self.book.holds.get(hold) else { continue };
            self.settled.insert(hold.id.0, Settled { position, tokens: sum.tokens });
            let is_estimate = matches!(entry.fact, Fact::Settle { estimated: true, .. });
            let (gateway, request) = (self.house.index, RequestId(hold.id.0).to_string());
            self.charges.push(Charge { gateway, request, tokens: sum.tokens, is_estimate });
            let key = self.keys.get(hold).filter(|_| sum.tokens > 0);
            if let Some(before) = key.and_then(|key| self.charged.insert(*key, *hold))
                && before != *hold
            {
                return Err((3, format!("{before:?} and {hold:?} are charged for one key")));
            }
        }
        Ok(())
    }

    /// The accounts of a request that ends with this entry, and the tokens it used.
    fn uses(&self, entry: &Entry) -> (Vec<AccountId>, u64) {
        match &entry.fact {
            Fact::Settle { hold, actual, .. } if !hold.allotment => {
                (self.book.accounts_of(*hold), actual.tokens.0)
            }
            Fact::Settle { .. }
            | Fact::Limits { .. }
            | Fact::Reserve { .. }
            | Fact::Extend { .. }
            | Fact::Refund { .. }
            | Fact::Expire { .. }
            | Fact::Late { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => (Vec::new(), 0),
        }
    }

    /// Tokens that were used, by account: by records that were ever written, and by those that are left.
    pub fn used(&self) -> (&BTreeMap<AccountId, u64>, &BTreeMap<AccountId, u64>) {
        (&self.used_ever, &self.used)
    }

    /// A client was told that its answer is whole: its settlement is written, and is what the client was told.
    pub fn acknowledged(&self, told: &Acknowledged) -> Result<(), Broken> {
        let settled = |request: &String| self.settled.get(&RequestId::parse(request)?.0);
        let settled: Vec<Settled> = told.requests.iter().filter_map(settled).copied().collect();
        let named = told.requests.join(" or ");
        let Some(Settled { position, tokens }) = settled.first() else {
            // Lost with the power, together with what it was for.
            let text = format!("{named} ended cleanly and its settlement is not written");
            return Err((10, text));
        };
        let is_charged = |usage| settled.iter().any(|settled| settled.tokens == usage);
        if let Some(usage) = told.usage.filter(|usage| !is_charged(*usage)) {
            let text = format!(
                "{named} (record {position}): {tokens} tokens are charged, its client was told {usage}"
            );
            return Err((1, text));
        }
        Ok(())
    }

    /// The product's sums are ours. For a moment when nothing is under way.
    pub fn reconciles(&self) -> Result<(), Broken> {
        let Some(gateway) = self.house.gateway().filter(|_| !self.shared) else { return Ok(()) };
        let audit = gateway.driver().look(|plane| plane.audit());
        if let Some(violation) = audit.violations.first() {
            return Err((1, format!("the ledger does not add up: {violation:?}")));
        }
        for (key, theirs) in &audit.balances {
            let ours = self.book.balances.get(key).copied().unwrap_or_default();
            let pairs = [
                (ours.held, theirs.held),
                (ours.charged, theirs.charged),
                (ours.refunded, theirs.refunded),
                (ours.expired, theirs.expired),
                (ours.outstanding, theirs.outstanding),
                (ours.overrun, theirs.overrun),
                (ours.late, theirs.late),
            ];
            if pairs.iter().any(|(ours, theirs)| *ours != (*theirs).into()) {
                return Err((1, format!("{key:?}: the journal says {ours:?}, not {theirs:?}")));
            }
        }
        Ok(())
    }
}

fn unreadable(error: impl std::fmt::Display) -> Broken {
    (10, format!("the journal cannot be read: {error}"))
}

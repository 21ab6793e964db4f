//! What is going to happen, in order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use control::outcome::Failure;
use control::quota::{OpId, StoreAnswer, StoreOp};
use control::shared::Note;

use super::clock::Nanos;
use super::sharing::{SharedAnswer, SharedAsk};

/// One thing that happens at an instant. Numbers name gateways, asks, calls and runs of the world.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A client asks: for the first time, or again.
    Ask { ask: u32, nth: u32 },
    /// A client's request is at its gateway.
    Arrive { call: u32 },
    /// A client hangs up.
    Leave { call: u32 },
    /// Its gateway notices.
    Gone { call: u32 },
    /// The client has its answer, or its refusal.
    Answered { call: u32, good: bool },
    /// The client's connection broke.
    Unknown { call: u32 },
    /// An attempt's connection is at its replica.
    Reach { run: u32 },
    /// The head of an answer is at its gateway.
    Head { run: u32 },
    /// So many tokens are at the gateway.
    Mark { run: u32, produced: u64 },
    /// All of an answer is at the gateway.
    Whole { run: u32 },
    /// The gateway learns that an attempt failed.
    Fail { run: u32, failure: Failure },
    /// The gateway stopped an attempt and says what it had.
    Stopped { run: u32 },
    /// A timeout of an attempt may have passed.
    Watch { run: u32 },
    /// The replica learns that nobody waits any more.
    Stop { run: u32 },
    /// A gateway's timer.
    Wake { gateway: u32 },
    /// A gateway looks at its wall clock.
    Tick { gateway: u32 },
    /// A gateway makes a snapshot.
    Snapshot { gateway: u32 },
    /// A gateway asks the registry.
    Poll { gateway: u32 },
    /// An ask is at the quota store.
    StoreAsk { gateway: u32, life: u32, op: Box<StoreOp> },
    /// An answer of the quota store is at its gateway.
    StoreAnswer { gateway: u32, life: u32, answer: Box<StoreAnswer> },
    /// The store's host refuses an ask: nobody listens there.
    StoreRefused { gateway: u32, life: u32, op: OpId },
    /// A consultation or a note is at the store.
    SharedAsk { gateway: u32, life: u32, ask: Box<SharedAsk> },
    /// The store's answer to it is at its gateway.
    SharedAnswer { gateway: u32, life: u32, answer: Box<SharedAnswer> },
    /// A gateway's shell tells a note again.
    NoteTry { gateway: u32, life: u32, note: Box<Note>, nth: u32 },
    /// A fault begins.
    Begin { fault: u32 },
    /// A fault changes.
    Turn { fault: u32 },
    /// A fault ends.
    End { fault: u32 },
    /// A gateway takes the configuration in effect.
    Configure { gateway: u32 },
    /// An operator tells a gateway whether a replica is to be drained.
    Drain { gateway: u32, replica: u32 },
    /// The checkers look at everything that time alone may break.
    Look,
}

/// What is to come. Of equal instants, what was planned first happens first.
#[derive(Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Entry>,
    planned: u64,
}

struct Entry {
    at: Nanos,
    order: u64,
    event: Event,
}

impl Agenda {
    pub fn plan(&mut self, at: Nanos, event: Event) {
        self.planned += 1;
        self.heap.push(Entry { at, order: self.planned, event });
    }

    pub fn next(&mut self) -> Option<(Nanos, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest: the heap gives out its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

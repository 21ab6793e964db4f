//! The driver: stamps time, handles, journals, performs.
//!
//! One plane behind one lock. Under it a step is taken, its effects are drained, its record is encoded into the
//! journal's memory and its effects are handed out; nothing under the lock waits or touches a file. What an effect
//! starts (an upstream call, an answer's bytes) runs in the task of the request it belongs to, which gets its orders
//! through a mailbox; so effects stay in order per request without a queue between requests.
//!
//! A channel from the tasks to one driver task was rejected: it puts a wake-up and a queue into every step, for a
//! critical section of a few microseconds.

mod clock;
mod recovery;
mod shadow;
mod timers;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use control::id::{AttemptId, CallerToken, RequestId};
use control::journal::Recorder;
use control::plane::{
    Arrival, ControlPlane, Dispatch, Effect, Input, Observation, Outcome, Refusal,
};
use control::quota::{StoreAnswer, StoreOp};
use control::shared::{Consult, Note};
use control::units::{Amount, Tokens};
use control::{Machine, Wall};
use tokio::sync::{Notify, mpsc};

pub use clock::Clock;
pub use recovery::{Recovered, RecoveryError, recover};
pub use shadow::{Progress, Shadow};

use crate::journal::Appender;
use crate::seam::disk::append_all;
use crate::seam::{Disk, Process, World};

/// Orders that may wait in a request's mailbox. A request gets one admission, at most fifteen dispatches with a cancel
/// each, and one end: it can never be full.
const MAILBOX_MAX: usize = 2 * control::plane::ATTEMPTS_MAX as usize + 2;

/// What the plane wants done for one request.
#[derive(Debug)]
pub enum Order {
    /// The request has an id.
    Admitted(RequestId),
    /// Make an attempt.
    Dispatch(Box<Dispatch>),
    /// Stop this attempt, if it runs.
    Cancel(AttemptId),
    /// Refuse; nothing was sent.
    Reject {
        /// Which request.
        request: RequestId,
        /// Why.
        refusal: Refusal,
        /// The record that must be written before the client hears of it.
        position: u64,
    },
    /// The answer is over.
    Finish {
        /// How.
        outcome: Outcome,
        /// What was charged.
        charged: Amount,
        /// Attempts made.
        attempts: u32,
        /// The record that must be written before the answer's last byte.
        position: u64,
    },
}

/// Takes what the plane noticed, under the lock: it must not wait.
pub trait Observer: Send + Sync + 'static {
    /// Called for each observation, with the plane as it is after the step.
    fn observe(&self, plane: &ControlPlane, observation: &Observation);
}

/// Takes asks to the shared quota store, under the lock: it must not wait. What it cannot take is lost, as a network might
/// lose it, and asked again by the plane.
pub trait Carrier: Send + Sync + 'static {
    /// Called for each ask, in order.
    fn carry(&self, op: StoreOp);

    /// Called for each consultation, with what its session is called. It is to be answered, or said to have failed.
    fn consult(&self, consult: Box<Consult>, name: Option<Arc<str>>);

    /// Called for each note, with what its session is called. It is to be told, for a bounded time.
    fn note(&self, note: Box<Note>, name: Option<Arc<str>>);

    /// Called for each answer of a user's that was charged, with their name, the moment and the tokens. It may be lost.
    fn spent(&self, user: Arc<str>, at: Wall, tokens: Tokens);
}

/// A plane in production.
pub struct Driver {
    core: Mutex<Core>,
    clock: Clock,
    journal: Appender,
    observer: Box<dyn Observer>,
    wake: Notify,
    process: Arc<dyn Process>,
    /// The way to the shared quota store, where there is one.
    carrier: OnceLock<Box<dyn Carrier>>,
    /// Where the input of a step that panicked is kept.
    crashes: (Arc<dyn Disk>, PathBuf),
}

/// Where a caller gets its orders.
struct Mailbox {
    orders: mpsc::Sender<Order>,
    named: Named,
}

/// What the plane knows keyed hashes of, and a shared store the names: as they are called among all that share it.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The session.
    pub session: Option<Arc<str>>,
    /// The user who pays.
    pub user: Option<Arc<str>>,
}

struct Core {
    plane: ControlPlane,
    recorder: Recorder,
    effects: Vec<Effect>,
    mailboxes: BTreeMap<CallerToken, Mailbox>,
    /// What the ledger answered to who asks beside the requests, in the step that runs.
    answered: Option<StoreAnswer>,
    callers: u64,
    /// When the timer task will wake by itself.
    armed: Option<control::Instant>,
    /// The process ended itself, and its machine is a simulated one: nothing is done any more.
    ended: bool,
}

/// The journal takes no new work: its disk is full or failing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal takes no new work: {0}")]
pub struct JournalUnavailable(pub String);

impl Driver {
    /// Drives `plane` from here on. `clock` continues from the plane's last step; `dir` is the data directory.
    pub fn new(
        plane: ControlPlane,
        clock: Clock,
        journal: Appender,
        observer: Box<dyn Observer>,
        world: &World,
        dir: &Path,
    ) -> Arc<Self> {
        let core = Core {
            plane,
            recorder: Recorder::default(),
            effects: Vec::new(),
            mailboxes: BTreeMap::new(),
            answered: None,
            callers: 0,
            armed: None,
            ended: false,
        };
        let crashes = (Arc::clone(&world.disk), dir.to_owned());
        let (core, wake, process) = (Mutex::new(core), Notify::new(), Arc::clone(&world.process));
        let carrier = OnceLock::new();
        Arc::new(Self { core, clock, journal, observer, wake, process, carrier, crashes })
    }

    /// Names the way to the shared quota store, before the first step: asks made earlier are lost and asked again, notes are
    /// lost for good. A second call changes nothing.
    pub fn set_carrier(&self, carrier: Box<dyn Carrier>) {
        let _ = self.carrier.set(carrier);
    }

    /// A request arrives; `arrival` is given the token under which its orders come. `named` is what it calls whom.
    ///
    /// # Errors
    /// Where the journal takes no new work: then nothing happened.
    pub fn arrive(
        &self,
        named: Named,
        arrival: impl FnOnce(CallerToken) -> Arrival,
    ) -> Result<(CallerToken, mpsc::Receiver<Order>), JournalUnavailable> {
        self.journal.admits().map_err(|error| JournalUnavailable(error.to_string()))?;
        let (sender, orders) = mpsc::channel(MAILBOX_MAX);
        let mut core = self.lock();
        core.callers += 1;
        let caller = CallerToken(core.callers);
        core.mailboxes.insert(caller, Mailbox { orders: sender, named });
        self.step(&mut core, Input::RequestArrived(Box::new(arrival(caller))));
        Ok((caller, orders))
    }

    /// Asks the embedded ledger, for an owner that is not this plane. The answer may be believed once the record at the
    /// position beside it is written. `None` where the ledger is shared, or the process is about to end.
    ///
    /// # Errors
    /// Where the journal takes no new work: then nothing happened.
    pub fn ask_ledger(
        &self,
        op: StoreOp,
    ) -> Result<Option<(StoreAnswer, u64)>, JournalUnavailable> {
        self.journal.admits().map_err(|error| JournalUnavailable(error.to_string()))?;
        let mut core = self.lock();
        core.callers += 1;
        let caller = CallerToken(core.callers);
        core.answered = None;
        let position = self.step(&mut core, Input::LedgerAsked { caller, op: Box::new(op) });
        Ok(core.answered.take().map(|answer| (answer, position)))
    }

    /// Something happened. Returns the position of its record.
    pub fn submit(&self, input: Input) -> u64 {
        self.step(&mut self.lock(), input)
    }

    /// Several things happened, in this order and with nothing between them.
    pub fn submit_all(&self, inputs: impl IntoIterator<Item = Input>) {
        let mut core = self.lock();
        for input in inputs {
            self.step(&mut core, input);
        }
    }

    /// Nothing is taken in any more: the journal is about to be closed. What is still under way ends unheard, as if the
    /// process had been killed, and is settled at the next start.
    pub fn end(&self) {
        self.lock().ended = true;
    }

    /// Looks at the plane between two steps. Keep it short: every request waits.
    pub fn look<T>(&self, at: impl FnOnce(&ControlPlane) -> T) -> T {
        at(&self.lock().plane)
    }

    /// The plane's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The journal, to wait for what is written.
    pub fn journal(&self) -> &Appender {
        &self.journal
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A step that panicked left a state that nobody vouches for, and no record: the process ends and recovers from
        // its journal rather than go on.
        self.core.lock().unwrap_or_else(|poisoned| {
            self.process.abort("a step broke off half-way; stopping");
            let mut core = PoisonError::into_inner(poisoned);
            core.ended = true;
            core
        })
    }

    /// A step that was taken and cannot be recorded must not be acted on. New requests are refused long before the
    /// journal's memory is full (`Appender::admits`), so this is a disk that has failed for as long as the last requests
    /// took to end: the process stops, and recovers from what was written.
    fn append(&self, core: &mut Core) -> Option<u64> {
        match self.journal.append(core.recorder.finish(&core.effects)) {
            Ok(position) => Some(position),
            Err(error) => {
                self.process.abort(&format!("a decision cannot be recorded; stopping: {error}"));
                core.ended = true;
                None
            }
        }
    }

    /// A step that panicked leaves no record, so that recovery does not meet its input again: the input goes to a file of
    /// its own, for whoever mends the bug, and the process ends rather than go on in a state that nobody vouches for.
    fn crash(&self, input: &[u8]) {
        let name = format!("crash-{}.input", self.clock.wall().as_millis());
        let (disk, dir) = &self.crashes;
        let file = disk.open_append(&dir.join(&name));
        let why = match file.and_then(|mut file| append_all(file.as_mut(), input)) {
            Ok(()) => {
                format!("the plane broke; what it was told last is in {name}: please report it")
            }
            Err(error) => {
                format!("the plane broke, and what it was told last cannot be kept: {error}")
            }
        };
        self.process.abort(&why);
    }

    fn step(&self, core: &mut Core, input: Input) -> u64 {
        if core.ended {
            return NEVER;
        }
        let now = self.clock.now();
        core.recorder.begin(now, &input);
        let plane = &mut core.plane;
        if catch_unwind(AssertUnwindSafe(|| plane.handle(now, input))).is_err() {
            self.crash(core.recorder.begun());
            core.ended = true;
            return NEVER;
        }
        core.effects.clear();
        core.effects.extend(std::iter::from_fn(|| core.plane.poll_effect()));
        let Some(position) = self.append(core) else { return NEVER };
        while let Some(observation) = core.plane.poll_observation() {
            self.observer.observe(&core.plane, &observation);
        }
        let mut over = Vec::new();
        for effect in std::mem::take(&mut core.effects) {
            let carrier = self.carrier.get().map(Box::as_ref);
            let answered = &mut core.answered;
            if let (Some(carrier), Effect::Finish { caller, charged, .. }) = (carrier, &effect) {
                self.project(carrier, core.mailboxes.get(caller), charged.tokens);
            }
            over.extend(perform(&mut core.mailboxes, carrier, answered, (effect, position)));
        }
        for caller in over {
            core.mailboxes.remove(&caller);
        }
        let due = core.plane.poll_timeout().map(|(due, _)| due);
        if due.is_some_and(|due| core.armed.is_none_or(|armed| due < armed)) {
            self.wake.notify_one();
        }
        position
    }

    /// What a user was charged is told to whoever projects it.
    fn project(&self, carrier: &dyn Carrier, mailbox: Option<&Mailbox>, tokens: Tokens) {
        let user = mailbox.and_then(|mailbox| mailbox.named.user.as_ref());
        if let Some(user) = user.filter(|_| tokens > Tokens::ZERO) {
            carrier.spent(Arc::clone(user), self.clock.wall(), tokens);
        }
    }
}

/// The position of a record that will never be written.
const NEVER: u64 = u64::MAX;

/// Does what the plane asks for, or hands it to the task that does. A mailbox that has had its last order comes back: a note
/// of the same step may still want its session's name.
fn perform(
    mailboxes: &mut BTreeMap<CallerToken, Mailbox>,
    carrier: Option<&dyn Carrier>,
    answered: &mut Option<StoreAnswer>,
    (effect, position): (Effect, u64),
) -> Option<CallerToken> {
    match effect {
        Effect::Admitted { caller, request } => {
            deliver(mailboxes.get(&caller), Order::Admitted(request));
        }
        Effect::Dispatch(dispatch) => {
            let mailbox = mailboxes.get(&dispatch.caller);
            deliver(mailbox, Order::Dispatch(Box::new(dispatch)));
        }
        Effect::Cancel { caller, attempt } => {
            deliver(mailboxes.get(&caller), Order::Cancel(attempt));
        }
        Effect::Reject { caller, request, refusal } => {
            deliver(mailboxes.get(&caller), Order::Reject { request, refusal, position });
            return Some(caller);
        }
        Effect::Finish { caller, outcome, charged, attempts, .. } => {
            let order = Order::Finish { outcome, charged, attempts, position };
            deliver(mailboxes.get(&caller), order);
            return Some(caller);
        }
        // Its asker holds the lock, and takes it when the step is over.
        Effect::LedgerAnswered { answer, .. } => *answered = Some(answer),
        // The record that has just been appended holds it.
        Effect::Persist(_) => {}
        Effect::Reserve(op) => {
            if let Some(carrier) = carrier {
                carrier.carry(op);
            }
        }
        Effect::Consult(consult) => {
            if let Some(carrier) = carrier {
                let name = name_of(mailboxes, consult.caller);
                carrier.consult(consult, name);
            }
        }
        Effect::Note(note) => {
            if let Some(carrier) = carrier {
                let name = name_of(mailboxes, note.caller);
                carrier.note(note, name);
            }
        }
    }
    None
}

fn name_of(mailboxes: &BTreeMap<CallerToken, Mailbox>, caller: CallerToken) -> Option<Arc<str>> {
    mailboxes.get(&caller)?.named.session.clone()
}

/// Puts an order into a mailbox. A request whose task has gone has no use for it: its client left, and the plane has
/// been told.
fn deliver(mailbox: Option<&Mailbox>, order: Order) {
    if let Some(Mailbox { orders, .. }) = mailbox
        && let Err(mpsc::error::TrySendError::Full(order)) = orders.try_send(order)
    {
        unreachable!(
            "a mailbox holds all the orders a request can get, yet {order:?} found it full"
        );
    }
}

//! One simulated run, told: what happened to whom, when, and why.
//!
//! A trace is made for comparing bytes and a plan for running again; neither is made for reading. A [`Story`] is what is
//! left when somebody asks "and what happened?": requests with their attempts, faults, decisions that changed, the money,
//! and the moment at which something broke. The runner fills it in, [`crate::report`] draws it.
//!
//! The alternative, to draw from the trace itself, would tie the picture to every input and effect of the plane, and the
//! trace of a long run is a hundred times the size of its story.
//!
//! All of it is plain data. Instants are nanoseconds since the run's start. Names and texts are shown as they are and may
//! hold anything: whoever shows them escapes them. An interval without an end lasted until the run ended. Lists need no
//! particular order, except that attempts stand in the order in which they were made and quota points in time. An id that
//! names no host is shown as a number, not refused: a story about a broken run may be broken too.

use serde::{Deserialize, Serialize};

/// A host of the run. Unique within a [`Story`].
pub type HostId = u32;

/// All that is told of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// What the run was, in a few words.
    pub title: String,
    /// What it was made from.
    pub seed: u64,
    /// Which simulator ran it.
    pub tier: Tier,
    /// How long it lasted, in simulated nanoseconds.
    pub duration_ns: u64,
    /// The command line that runs it again.
    pub command: String,
    /// Everybody who took part.
    pub hosts: Vec<Host>,
    /// What clients asked.
    pub requests: Vec<Request>,
    /// What was done to the world.
    pub faults: Vec<Fault>,
    /// Breakers that changed state.
    pub breakers: Vec<Breaker>,
    /// Sessions that changed their home.
    pub moves: Vec<Move>,
    /// What accounts spent.
    pub quotas: Vec<Quota>,
    /// Single moments in a host's life: crashes, restarts, reloads.
    pub marks: Vec<Mark>,
    /// What broke first. `None` when every invariant held.
    pub violation: Option<Violation>,
    /// Figures about the whole run as (name, value), both ready to be shown.
    pub summary: Vec<(String, String)>,
}

/// Which simulator ran it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The machines alone, from event to event.
    A,
    /// The real drivers and wires, on a simulated network.
    B,
}

/// One participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// How the rest of the story refers to it.
    pub id: HostId,
    /// What people call it.
    pub name: String,
    /// What it does.
    pub kind: HostKind,
}

/// What a host does. Lanes are grouped by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// Decides and forwards.
    Gateway,
    /// Runs a model.
    Replica,
    /// Keeps the shared ledger, sessions or history.
    Store,
    /// Tells who is there.
    Registry,
    /// Asks. Usually one host stands for all clients.
    Clients,
}

/// What one client asked, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Unique within the story, as the gateway minted it.
    pub id: String,
    /// Who pays.
    pub tenant: String,
    /// What was asked for.
    pub model: String,
    /// Where it arrived.
    pub gateway: HostId,
    /// When it arrived.
    pub arrived_ns: u64,
    /// When its client knew how it ended. `None`: it never did.
    pub ended_ns: Option<u64>,
    /// How it ended, in the product's own words: `completed`, `rejected: quota`, `broken stream`.
    pub outcome: String,
    /// Whether that is what it should have been. A refusal for a spent quota is good.
    pub good: bool,
    /// What the model generated for it, in tokens.
    pub tokens: u64,
    /// The session it belongs to.
    pub session: Option<String>,
    /// Why it went where it went, one step in each line.
    pub explanation: Vec<String>,
    /// The tries, in the order in which they were made. None when it was refused.
    pub attempts: Vec<Attempt>,
}

/// One try on one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Where it was sent.
    pub replica: HostId,
    /// When it was dispatched.
    pub start_ns: u64,
    /// When its first token reached the gateway.
    pub first_token_ns: Option<u64>,
    /// When the gateway knew that it had ended.
    pub end_ns: Option<u64>,
    /// How it ended: `completed`, `refused`, `broken at token 41`.
    pub end: String,
    /// Whether it delivered what it was sent for.
    pub good: bool,
}

/// Something done to the world on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When it began.
    pub start_ns: u64,
    /// When it was healed. `None`: never.
    pub end_ns: Option<u64>,
    /// Whom it concerned. Empty: everybody.
    pub hosts: Vec<HostId>,
    /// Its kind in a word or two: `partition`, `slow replica`.
    pub kind: String,
    /// What it did, in a sentence.
    pub text: String,
}

/// A breaker that changed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// When.
    pub at_ns: u64,
    /// Whose breaker.
    pub gateway: HostId,
    /// Which replica it stands before.
    pub replica: HostId,
    /// `closed`, `open` or `half-open`.
    pub from: String,
    /// `closed`, `open` or `half-open`.
    pub to: String,
    /// What made it change.
    pub why: String,
}

/// A session that changed its home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// When.
    pub at_ns: u64,
    /// Who decided.
    pub gateway: HostId,
    /// Which session.
    pub session: String,
    /// The replica that held its prefix until then. `None`: nobody, it was bound for the first time.
    pub from: Option<HostId>,
    /// The replica that holds it from then on. `None`: nobody, the binding was dropped.
    pub to: Option<HostId>,
    /// What made it move.
    pub why: String,
}

/// What one account spent over the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Whose.
    pub account: String,
    /// What it may spend in its window, in the ledger's units. `None`: as much as it likes.
    pub limit: Option<u64>,
    /// (instant in ns, spent, outstanding), by time. Spent and outstanding are in the ledger's units; each holds until the
    /// next point.
    pub points: Vec<(u64, u64, u64)>,
}

/// A single moment in a host's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at_ns: u64,
    /// Whose.
    pub host: HostId,
    /// What happened, in a few words.
    pub text: String,
}

/// The first invariant that broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// When the checker saw it.
    pub at_ns: u64,
    /// The invariant's number.
    pub invariant: u8,
    /// Its name in a few words.
    pub name: String,
    /// What was expected and what was seen.
    pub text: String,
    /// Whom it concerns.
    pub hosts: Vec<HostId>,
    /// The id of the [`Request`] it was seen on, where there is one.
    pub request: Option<String>,
}

//! What happens to the plane. Together with its instants, this is all there is to replay.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::balance::Reported;
use crate::id::{AttemptId, CallerToken, Digest, EndpointId, Principal, SessionKey};
use crate::outcome::AttemptEnd;
use crate::quota::{OpId, StoreAnswer, StoreOp};
use crate::registry::{EndpointSpec, SourceKind};
use crate::shared::{Consulted, Housed, SharedOpId};
use crate::time::Wall;
use crate::units::Tokens;

/// One thing that happened.
///
/// An input that names an id which has ended, or was never minted, is a normal race: it is observed and otherwise
/// ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A new life of the process begins. First input of every life, the very first included. Attempts that were in
    /// flight are lost: their requests settle at their last progress mark, what was never dispatched is refunded.
    Restarted {
        /// Counts the lives of this data directory, from 1.
        incarnation: u32,
        /// The wall clock at the start.
        wall: Wall,
    },
    /// The wall clock, as the shell sees it about once a second.
    WallTime(Wall),
    /// A configuration takes effect, whole.
    Configured(Box<Config>),
    /// A source of endpoints answered.
    Membership {
        /// Which source: `config`, or the name of a discovery.
        source: Box<str>,
        /// Whether its removals count.
        kind: SourceKind,
        /// The source's own version of the answer; an older one never replaces a newer one.
        version: u64,
        /// All endpoints it knows.
        endpoints: Vec<EndpointSpec>,
    },
    /// A source of endpoints does not answer: what it said last stands, marked stale.
    SourceLost {
        /// Which source.
        source: Box<str>,
    },
    /// An operator wants an endpoint to get no new picks, or to get them again.
    Drain {
        /// The endpoint's name.
        endpoint: Box<str>,
        /// True to drain, false to undrain.
        on: bool,
    },
    /// A client asks.
    RequestArrived(Box<Arrival>),
    /// The shared store answered.
    StoreAnswered(StoreAnswer),
    /// The endpoint took the attempt: the head of a successful answer arrived.
    AttemptAccepted {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The first token arrived, and goes to the client after this input was handled: from here on the request is
    /// committed to this attempt.
    FirstToken {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// So many completion tokens have arrived in all; coalesced by the shell.
    Progress {
        /// Which attempt.
        attempt: AttemptId,
        /// Completion tokens since the attempt began.
        produced: Tokens,
    },
    /// The attempt is over. The last word about it.
    AttemptEnded {
        /// Which attempt.
        attempt: AttemptId,
        /// How.
        end: AttemptEnd,
    },
    /// The caller went away: nobody waits for the answer any more.
    ClientGone {
        /// Which caller.
        caller: CallerToken,
    },
    /// A timer set by [`poll_timeout`](crate::Machine::poll_timeout) fired, perhaps late.
    Timeout,
    /// The shared store cannot be asked, and this ask will have no answer. It may have been performed. Who says so saves
    /// requests the wait; an ask of which nothing is said is given up in time all the same.
    StoreFailed {
        /// Which ask.
        op: OpId,
    },
    /// The store that gateways share answered what a request was to be let through by.
    Consulted(Box<Consulted>),
    /// The store cannot be consulted, and this consultation will have no answer. It may have been performed.
    ConsultFailed {
        /// Which.
        op: SharedOpId,
    },
    /// The store says where a session lives, after it was told.
    Housed(Box<Housed>),
    /// Somebody beside the gateway asks the embedded ledger, in the words of the shared one: a service that charges the
    /// same accounts. Nothing is answered where the ledger is shared: there, that one is asked.
    LedgerAsked {
        /// Who asks.
        caller: CallerToken,
        /// What. Its owner is another than this plane's own.
        op: Box<StoreOp>,
    },
    /// An endpoint says how busy it is. The shell has seen that it may be true, and says so of one endpoint no more than a
    /// few times a second.
    LoadReported {
        /// Which endpoint.
        endpoint: EndpointId,
        /// What it says.
        load: Reported,
    },
}

/// A request as it arrives: ids, counts and keyed hashes, never a user's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// What the shell calls the caller.
    pub caller: CallerToken,
    /// The public name of the model, one that the shell found in its catalog.
    pub model: Box<str>,
    /// Who asks and who pays.
    pub principal: Principal,
    /// What keeps this request near earlier ones.
    pub session: Option<Session>,
    /// The client's idempotency key with the body it came with.
    pub idempotency: Option<Idempotency>,
    /// The estimated size of the prompt.
    pub prompt: Tokens,
    /// The most completion tokens the client allows, over all choices. `Some(0)` for embeddings.
    pub output_max: Option<Tokens>,
    /// Whether another endpoint may continue its answer where one breaks off: it is one stream of text, and whoever speaks
    /// to the endpoint can hand over what its client already has.
    pub resumable: bool,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// How long the client is willing to wait for the whole answer, where it says so.
    pub patience: Option<Duration>,
}

/// What keeps requests together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The keyed hash.
    pub key: SessionKey,
    /// What its key is a hash of.
    pub kind: SessionKind,
}

impl Session {
    /// Whether its turns are in order.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.kind == SessionKind::Stored
    }

    /// Whether it has a name, under which gateways can share its home.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.kind != SessionKind::Hint
    }
}

/// What a session's key is a hash of. Written as earlier versions wrote whether it is stored: the order stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionKind {
    /// How the conversation opens: a hint where its prefix may be, and no more.
    Hint,
    /// A name under which the session is stored. Only such a session has turn order.
    Stored,
    /// A name that was sent for stickiness. It orders nothing.
    Named,
}

/// An idempotency key and the body it was sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Keyed hash of the header's value.
    pub key: Digest,
    /// Keyed hash of the request's path and body.
    pub body: Digest,
}

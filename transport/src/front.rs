//! The fronts: HTTP, which an OpenAI client talks to, and gRPC ([`rpc`]) over the same routes.
//!
//! A client of the OpenAI API must not notice that it speaks to a gateway, except where the gateway knows better: an
//! error says what to do, a broken stream says that it broke. So bodies are read only as far as routing, quota and
//! stickiness need them ([`ask`]) and go on byte for byte; unknown fields pass. The rejected alternative, full typed
//! requests, would have to follow every change of the API and would lose what it does not know.
//!
//! The front decides nothing: it hands a parsed, authenticated [`Call`](crate::exchange::Call) to a
//! [`Chat`] and writes down what comes back. It never sees a replica and never waits without
//! a deadline: headers, bodies, handshakes and unread writes each have one ([`Limits`]).
//!
//! Who may speak is judged **before** a body is read, so that a stranger cannot make the front hold megabytes.
//! `/health`, `/ready` and `/metrics` are open: they carry no user's text, key or session.
//!
//! Request ids are the plane's (`req_<incarnation>-<counter>`); what was refused before the plane saw it gets
//! `req_local-<process>-<counter>`, which names a log line and nothing that `explain` could know.

mod admit;
mod answer;
mod ask;
pub mod auth;
mod body;
mod claim;
mod error;
pub(crate) mod exposition;
mod guard;
mod head;
mod limits;
mod meta;
mod meters;
mod page;
mod pages;
mod record;
mod refusal;
mod resumable;
mod routes;
pub(crate) mod rpc;
mod scan;
mod server;
mod sessions;
mod stream;
mod unknown;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;

pub use auth::{AuthError, Authenticate, Caller, Judged};
pub use claim::Claim;
pub use limits::Limits;
pub(crate) use meta::wants_text;
pub use meters::Meters;
pub(crate) use meters::{SPANS, SPANS_HELP};
pub(crate) use pages::{Page, pages};
pub(crate) use rpc::serve_routes;
pub use rpc::{RpcDoor, RpcError, RpcTls};
pub use server::{Drained, Listener, Server};
pub(crate) use sessions::UNCONFIRMED;

use crate::exchange::Chat;
use crate::streams::{self, Streams};
use crate::till::Till;
use crate::trace::Tracer;

/// The routes of the front over one [`Chat`].
///
/// ```no_run
/// # use std::{sync::Arc, time::Duration};
/// # use transport::{exchange::Chat, front::{Authenticate, Front, Limits, Listener, Server}};
/// # async fn run(chat: impl Chat, keys: impl Authenticate) -> std::io::Result<()> {
/// let limits = Limits::default();
/// let front = Front::new(Arc::new(chat), Arc::new(keys), limits.clone());
/// let listener = Listener::bind(([127, 0, 0, 1], 8080).into())?;
/// let server = Server::new(limits, front.meters()).listen(listener);
/// let shutdown = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// server.serve(front.router(), shutdown, Duration::from_secs(30)).await;
/// # Ok(()) }
/// ```
pub struct Front<C> {
    shared: Arc<Shared<C>>,
}

/// What a front is made of beside whom it asks.
pub struct Settings {
    /// What it takes from whom, and how long.
    pub limits: Limits,
    /// Where resumable streams are kept.
    pub streams: Arc<Streams>,
    /// What makes a span of each request.
    pub tracer: Tracer,
    /// Whether it is the gateway role's: the chat role is another process, is told who asks, and judges that again.
    pub edge: bool,
    /// The ledger for services beside the gateway, where this process asks one.
    pub till: Option<Arc<Till>>,
}

impl Default for Settings {
    /// Streams are kept in memory, nothing is traced, and the chat role is this process.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            streams: Streams::new(streams::Limits::default()),
            tracer: Tracer::default(),
            edge: false,
            till: None,
        }
    }
}

impl<C: Chat> Front<C> {
    /// A front that asks `chat` on behalf of whom `auth` lets in.
    #[must_use]
    pub fn new(chat: Arc<C>, auth: Arc<dyn Authenticate>, limits: Limits) -> Self {
        Self::with(chat, auth, Settings { limits, ..Settings::default() })
    }

    /// The same with more than limits.
    #[must_use]
    pub fn with(chat: Arc<C>, auth: Arc<dyn Authenticate>, settings: Settings) -> Self {
        let Settings { limits, streams, tracer, edge, till } = settings;
        let (meters, ids) = (Arc::new(Meters::counting(tracer.counts())), LocalIds::new());
        let shared = Shared { chat, auth, limits, streams, meters, ids, tracer, edge, till };
        Self { shared: Arc::new(shared) }
    }

    /// The front's own figures, shared with the [`Server`].
    #[must_use]
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.shared.meters)
    }

    /// The routes, ready to be served.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.shared))
    }

    /// Health, readiness and, where it is `measured`, metrics alone, for the admin port.
    pub fn meta_router(&self, measured: bool) -> Router {
        routes::meta_router(Arc::clone(&self.shared), measured)
    }
}

/// What every handler sees.
struct Shared<C> {
    chat: Arc<C>,
    auth: Arc<dyn Authenticate>,
    limits: Limits,
    streams: Arc<Streams>,
    meters: Arc<Meters>,
    ids: LocalIds,
    tracer: Tracer,
    /// Whether the chat role is another process.
    edge: bool,
    till: Option<Arc<Till>>,
}

/// Ids of requests that never reached the plane.
struct LocalIds {
    process: u32,
    next: AtomicU64,
}

impl LocalIds {
    fn new() -> Self {
        // Two lives of the process must not print the same id; without entropy the process id is the next best.
        let process = getrandom::u32().unwrap_or_else(|_| std::process::id());
        Self { process, next: AtomicU64::new(1) }
    }

    fn mint(&self) -> String {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        format!("req_local-{:08x}-{counter:x}", self.process)
    }
}

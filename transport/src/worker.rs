//! A worker: the process beside a model server that speaks Pointsman's wire, `InferenceService` over gRPC, and
//! over QUIC where it is told to: one desk, one drain for both.
//!
//! A gateway could call an OpenAI-compatible server directly, and does. What a worker adds is what that protocol has no
//! words for: every chunk has its place in the answer (`seq`), the server's load comes with the answer, a full one says
//! when to come back, and an answer that another worker began can be continued where the backend can do that.
//!
//! - **Backends.** `echo` repeats the last user message, `hash` writes tokens that depend on the whole text before them
//!   (the proof that a continued answer is the unbroken one), `openai:URL` passes on to a server.
//! - **Bounds.** So many answers at once; the next is refused with `RESOURCE_EXHAUSTED` and the milliseconds to wait. There
//!   is no queue here: a model server has its own, and a gateway knows other workers.
//! - **Ends.** A caller that cancels, a deadline that passes and a drain whose time is over stop the backend at once: its
//!   work lives in one task, which is dropped.
//! - **Drain.** New questions get `UNAVAILABLE` with a time to come back, health says `NOT_SERVING`, what runs may finish
//!   within the stated grace, and the rest is cut with `UNAVAILABLE`.
//! - **Presence.** Where there is a registry, the worker is known to it while it serves, and leaves when it drains.
//!
//! Nothing here logs a prompt or an answer.

mod answer;
mod backend;
mod desk;
mod echo;
mod hash;
mod incoming;
mod openai;
mod page;
mod presence;
mod quic;
mod record;
mod service;
mod telemetry;
mod watch;
mod witness;
mod writer;

use core::time::Duration;
use std::sync::Arc;

use proto::inference::v1::inference_service_server::InferenceServiceServer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use backend::{Backend, BackendError};
pub use echo::Echo;
pub use hash::Hash;
pub use incoming::Incoming;
pub use openai::OpenAi;
pub(crate) use openai::{Direct, continuing, is_continuable};
pub use presence::{Agent, AgentError, Presence, Registration, service_name};
pub use quic::{QuicDoor, QuicError};
pub use telemetry::Telemetry;
pub use witness::{Begun, Witness};

use desk::Desk;
use service::Service;
pub(crate) use service::patience;

use crate::trace::Tracer;

/// The name by which health is asked for.
const SERVICE: &str = "pointsman.inference.v1.InferenceService";

/// How a worker behaves.
#[derive(Debug)]
pub struct Settings {
    /// The model it serves, as gateways name it.
    pub model: String,
    /// Who writes the answers.
    pub backend: Backend,
    /// The most answers at once, at least 1.
    pub concurrency: u32,
    /// How long what runs may go on after the order to stop.
    pub grace: Duration,
}

/// Why a worker stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What reflection tells cannot be read. A mistake of the build.
    #[error("the service's description is unreadable: {0}")]
    Description(#[from] tonic_reflection::server::Error),
    /// The server failed as a whole.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// How a worker's end went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Answers that were still running when the grace was over, and were cut.
    pub cut: u32,
}

/// The largest question, as it is encoded, of this worker and of the one in Python: above what a gateway takes from its
/// clients unless its `body_bytes_max` is raised. A gateway refuses what is larger before it sends it.
pub(crate) const REQUEST_BYTES_MAX: usize = 32 << 20;
/// Far more than may run: refusals need a stream each, too.
const STREAMS_MAX: u32 = 16_384;
/// Calls that are cancelled before they are looked at. Gateways whose clients all leave at once make many; beyond this the
/// connection is closed as an attack, with everything on it.
const RESETS_MAX: usize = 4_096;
/// How much of one question may be on its way: so that a long prompt does not wait for a round trip every few pages.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same of all questions together. Each is read as it comes, so none holds the others up for long.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// A caller that has vanished without a word is noticed after both together.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// After the drain, connections have this long to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// A server for gateways, which hold one connection each: the chat role's too.
pub(crate) fn bounded(builder: Server) -> Server {
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
}

/// Where callers come in.
pub struct Doors {
    /// Over gRPC.
    pub grpc: Incoming,
    /// Over QUIC, where that is served.
    pub quic: Option<QuicDoor>,
}

impl From<Incoming> for Doors {
    fn from(grpc: Incoming) -> Self {
        Self { grpc, quic: None }
    }
}

/// Serves until `shutdown` resolves, then drains.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    doors: impl Into<Doors>,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Drained, ServeError> {
    let telemetry = Telemetry::new(&settings.model, Tracer::default());
    serve_telling(telemetry, doors, settings, shutdown).await
}

/// The same, with figures and spans that somebody reads.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_telling(
    telemetry: Telemetry,
    doors: impl Into<Doors>,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Drained, ServeError> {
    let Doors { grpc: incoming, quic } = doors.into();
    let (health, health_service) = tonic_health::server::health_reporter();
    let desk = Desk::new(settings.concurrency);
    let backend = Arc::new(settings.backend);
    telemetry.follow(&desk);
    let watching = watch::start(&backend, &desk, &health, &telemetry).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let service = Arc::new(Service::new(settings.model, backend, Arc::clone(&desk), telemetry));
    let inference = InferenceServiceServer::from_arc(Arc::clone(&service))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let closing = CancellationToken::new();
    let over_quic =
        quic.map(|door| AbortOnDropHandle::new(tokio::spawn(door.serve(service, closing.clone()))));
    let mut server = Box::pin(
        bounded(Server::builder())
            .add_service(inference)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(
                incoming.connections(None),
                closing.clone().cancelled_owned(),
            ),
    );
    let drained = tokio::select! {
        ended = &mut server => return ended.map(|()| Drained::default()).map_err(Into::into),
        drained = drain(shutdown, &desk, &health, watching, settings.grace) => drained,
    };
    closing.cancel();
    let closed = async {
        let over_quic = async {
            if let Some(over_quic) = over_quic {
                // It returns nothing; where it panicked, there is nothing left to close.
                let _ = over_quic.await;
            }
        };
        tokio::join!(server, over_quic).0
    };
    match tokio::time::timeout(CLOSE_WITHIN, closed).await {
        Ok(Err(error)) => Err(error.into()),
        // A caller that keeps its connection open has had its answers.
        Ok(Ok(())) | Err(_) => Ok(drained),
    }
}

/// Waits for the order to stop, and then until nothing runs or the grace is over.
async fn drain(
    shutdown: impl Future<Output = ()>,
    desk: &Desk,
    health: &HealthReporter,
    watching: Option<AbortOnDropHandle<()>>,
    grace: Duration,
) -> Drained {
    shutdown.await;
    desk.drain();
    // So that nobody says again that it serves.
    drop(watching);
    say(health, ServingStatus::NotServing).await;
    if tokio::time::timeout(grace, desk.idle()).await.is_ok() {
        return Drained::default();
    }
    let cut = desk.running();
    desk.cut();
    // They only have to say so.
    let _ = tokio::time::timeout(CLOSE_WITHIN, desk.idle()).await;
    Drained { cut }
}

async fn say(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(SERVICE, status).await;
}

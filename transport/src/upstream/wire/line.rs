//! Connections to workers: one each, shared by all calls, made when needed and again when broken.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use proto::inference::v1::Load;
use rustls::RootCertStore;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use control::outcome::Failure;

use super::{WorkerLoad, quic};
use crate::convert;
use crate::seam::Network;
use crate::seam::net::{Connector, Wire};
use crate::upstream::connect::believing;
use crate::upstream::failed::Failed;
use crate::upstream::target::{BaseUrl, Target};

/// A dead peer is noticed after both together, also by a call that waits for its first token.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// A call gives up sooner; this ends an attempt to connect that nobody waits for any more, so that the next can begin.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(10);
/// What a worker may send ahead on one stream: some thousand chunks. Small, because all streams share the connection's
/// window, and clients that do not read must not hold the others up.
pub(super) const STREAM_WINDOW: u32 = 64 << 10;
/// The windows of the thousand streams that an endpoint takes at most, unless told otherwise.
pub(super) const CONNECTION_WINDOW: u32 = 64 << 20;
/// A worker that has not been asked for so long is forgotten, with its connection. Those in the catalog are asked more
/// often.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The lines to all workers, by address.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Workers {
    connector: HttpsConnector<Connector>,
    network: Network,
    public: Arc<RootCertStore>,
    lines: Arc<Mutex<BTreeMap<String, (Instant, Line)>>>,
}

impl Workers {
    /// `connector` speaks TLS with HTTP/2 where the address says `https`; over QUIC, `public` are the authorities that
    /// everybody believes.
    pub(in crate::upstream) fn new(
        connector: HttpsConnector<Connector>,
        network: Network,
        public: Arc<RootCertStore>,
    ) -> Self {
        Self { connector, network, public, lines: Arc::default() }
    }

    /// The line to a worker; it connects when it is first used.
    pub(super) fn line(&self, target: &Target) -> Result<Line, Failed> {
        let now = Instant::now();
        let name = name(target);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((used, line)) = lines.get_mut(&name) {
            *used = now;
            return Ok(line.clone());
        }
        lines.retain(|_, (used, _)| now.duration_since(*used) < FORGOTTEN_AFTER);
        let line = self.made(target)?;
        lines.insert(name, (now, line.clone()));
        Ok(line)
    }

    fn made(&self, target: &Target) -> Result<Line, Failed> {
        let url = &target.base_url;
        if url.is_quic() {
            let (trust, network) = (target.trust.as_deref().cloned(), self.network.clone());
            let (at, trust) = (url.host_and_port(), trust.unwrap_or_default());
            let road = quic::Road::new(at, &trust, &self.public, network)
                .map_err(|error| Failed::new(Failure::Connect, format!("its TLS: {error}")))?;
            return Ok(Line { road: Road::Quic(road), state: Arc::default() });
        }
        let connector = match &target.trust {
            None => self.connector.clone(),
            Some(trust) => {
                let tls = trust.tls(&self.public);
                let tls = tls
                    .map_err(|error| Failed::new(Failure::Connect, format!("its TLS: {error}")))?;
                believing(tls, &self.network)
            }
        };
        Line::new(url, connector)
            .map_err(|_| Failed::new(Failure::Connect, "the endpoint's URL cannot be used"))
    }

    pub(super) fn load(&self, target: &Target) -> Option<WorkerLoad> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(&name(target))?.1.load()
    }

    pub(super) fn loads_refused(&self, target: &Target) -> u64 {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let state = lines.get(&name(target)).map(|(_, line)| &line.state);
        state.map_or(0, |state| state.loads_refused.load(Ordering::Relaxed))
    }
}

/// Who is believed there belongs to it: one that is believed for another reason is not connected to yet.
fn name(target: &Target) -> String {
    match &target.trust {
        Some(trust) => format!("{} {}", target.base_url, trust.mark()),
        None => target.base_url.to_string(),
    }
}

/// A connection to one worker, or the way to it.
#[derive(Clone)]
pub(super) struct Line {
    road: Road,
    state: Arc<State>,
}

/// How a worker is reached.
#[derive(Clone)]
pub(super) enum Road {
    Grpc(Channel),
    Quic(quic::Road),
    /// To another role.
    Chat(Channel),
}

#[derive(Debug, Default)]
struct State {
    /// Of gRPC: sockets that are open: one, or for a moment two.
    open: AtomicUsize,
    /// A call went away while it waited for the connection. How that ended is told to the next one, however much later.
    given_up: AtomicBool,
    load: Mutex<Option<WorkerLoad>>,
    /// How often it said what cannot be.
    loads_refused: AtomicU64,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Line {
    fn new(
        url: &BaseUrl,
        connector: HttpsConnector<Connector>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let state = Arc::new(State::default());
        let (address, tls) = (url.worker(), url.is_tls());
        let mut endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true);
        if tls {
            endpoint = endpoint.origin(format!("https://{address}").parse()?);
        }
        let dialer = Dialer { connector, tls, state: Arc::clone(&state) };
        let channel = endpoint.connect_with_connector_lazy(dialer);
        let road = if url.is_role() { Road::Chat(channel) } else { Road::Grpc(channel) };
        Ok(Self { road, state })
    }

    pub fn road(&self) -> &Road {
        &self.road
    }

    /// To another role.
    pub fn to_role(&self) -> Option<&Channel> {
        match &self.road {
            Road::Chat(channel) => Some(channel),
            Road::Grpc(_) | Road::Quic(_) => None,
        }
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        match &self.road {
            Road::Grpc(_) | Road::Chat(_) => self.state.open.load(Ordering::Relaxed) > 0,
            Road::Quic(road) => road.is_up(),
        }
    }

    /// A call begins that may have to wait for the connection.
    pub fn dial(&self) -> Dialing<'_> {
        Dialing {
            line: self,
            was_given_up: self.state.given_up.swap(false, Ordering::Relaxed),
            // Over QUIC each call dials for itself.
            ended: matches!(self.road, Road::Quic(_)),
        }
    }

    /// The worker says how busy it is.
    pub fn tell(&self, load: &Load) {
        match convert::load(load, Instant::now()) {
            Some(load) => {
                *self.state.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(load);
            }
            None if self.state.loads_refused.fetch_add(1, Ordering::Relaxed) == 0 => {
                tracing::warn!(
                    "a worker reports a load that cannot be, and is not believed: {load:?}"
                );
            }
            None => {}
        }
    }

    fn load(&self) -> Option<WorkerLoad> {
        *self.state.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that may be waiting for the connection. Dropped before its end, it has given that up.
pub(super) struct Dialing<'a> {
    line: &'a Line,
    was_given_up: bool,
    ended: bool,
}

impl Dialing<'_> {
    /// Whether an earlier call did: a failure to connect may be that call's.
    pub fn was_given_up(&self) -> bool {
        self.was_given_up
    }

    pub fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        if !self.ended && !self.line.is_up() {
            self.line.state.given_up.store(true, Ordering::Relaxed);
        }
    }
}

/// Makes the connections of one line. TLS is ours, as for every other upstream, so the address it is given says nothing of
/// it.
struct Dialer {
    connector: HttpsConnector<Connector>,
    tls: bool,
    state: Arc<State>,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Dialer {
    type Response = Socket;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut parts = to.into_parts();
        if self.tls {
            parts.scheme = Some(Scheme::HTTPS);
        }
        let connecting = Uri::from_parts(parts).map(|to| self.connector.call(to));
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            let stream = timeout(CONNECT_MAX, connecting?).await??;
            state.open.fetch_add(1, Ordering::Relaxed);
            Ok(Socket { stream, state })
        })
    }
}

/// A connection that is counted while it lasts.
struct Socket {
    stream: MaybeHttpsStream<Wire>,
    state: Arc<State>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl Write for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }
}

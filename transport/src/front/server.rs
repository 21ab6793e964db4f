//! Sockets: accepting, TLS, and leaving without cutting anybody off.
//!
//! Draining has three steps: the ports close first (a load balancer sees it at once and new clients go elsewhere),
//! then every connection is told to end after what runs (`Connection: close`, GOAWAY), and what still runs after the
//! grace is cut, so that a stuck client cannot hold a deployment.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::claim::Claim;
use super::guard::{Guarded, Traffic, Underway};
use super::limits::Limits;
use super::meters::Meters;
use crate::seam::{Accept, Duplex};

/// A bound port, with or without TLS.
pub struct Listener {
    door: Door,
    tls: Option<TlsAcceptor>,
}

/// What a connection comes in by.
enum Door {
    Real(TcpListener),
    Simulated(Box<dyn Accept>),
}

/// A connection that came in.
enum Arrived {
    Real(TcpStream),
    Simulated(Box<dyn Duplex>),
}

impl Door {
    async fn accept(&self) -> io::Result<Arrived> {
        match self {
            Self::Real(tcp) => tcp.accept().await.map(|(stream, _peer)| Arrived::Real(stream)),
            Self::Simulated(door) => door.accept().await.map(Arrived::Simulated),
        }
    }
}

impl Listener {
    /// Binds and listens. Needs a tokio runtime around it. Port 0 takes a free one.
    ///
    /// # Errors
    /// Where the address cannot be bound: in use, not ours, not permitted.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self::real(Claim::new(addr)?.listen()?))
    }

    /// A port that is listened at.
    #[must_use]
    pub fn real(tcp: TcpListener) -> Self {
        Self { door: Door::Real(tcp), tls: None }
    }

    /// A port of a simulated network.
    #[must_use]
    pub fn simulated(door: Box<dyn Accept>) -> Self {
        Self { door: Door::Simulated(door), tls: None }
    }

    /// Speaks TLS. Where the configuration names no protocols, HTTP/2 and HTTP/1.1 are offered (ALPN).
    #[must_use]
    pub fn with_tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        if config.alpn_protocols.is_empty() {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        self.tls = Some(TlsAcceptor::from(Arc::new(config)));
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.door {
            Door::Real(tcp) => tcp.local_addr(),
            Door::Simulated(door) => door.local_addr(),
        }
    }
}

/// Serves routes on listeners until it is told to stop.
pub struct Server {
    limits: Limits,
    meters: Arc<Meters>,
    listeners: Vec<Listener>,
}

/// How a server's end went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the grace was over, and were cut.
    pub cut: usize,
}

impl Server {
    /// A server without listeners.
    #[must_use]
    pub fn new(limits: Limits, meters: Arc<Meters>) -> Self {
        Self { limits, meters, listeners: Vec::new() }
    }

    /// Adds a listener; all of them share one bound on connections.
    #[must_use]
    pub fn listen(mut self, listener: Listener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Serves `app` until `shutdown` resolves; then stops accepting, lets what runs finish within `grace`, and cuts
    /// the rest.
    pub async fn serve(
        self,
        app: Router,
        shutdown: impl Future<Output = ()>,
        grace: Duration,
    ) -> Drained {
        let http = http(&self.limits);
        let house = Arc::new(House {
            permits: Arc::new(Semaphore::new(self.limits.connections_max)),
            limits: self.limits,
            meters: self.meters,
            http,
            app,
            guests: TaskTracker::new(),
            closing: CancellationToken::new(),
            cutting: CancellationToken::new(),
        });
        let doors = TaskTracker::new();
        for listener in self.listeners {
            doors.spawn(accept(listener, Arc::clone(&house)));
        }
        shutdown.await;
        house.closing.cancel();
        doors.close();
        doors.wait().await;
        house.guests.close();
        let finished = timeout(grace, house.guests.wait()).await;
        let cut = if finished.is_ok() { 0 } else { house.guests.len() };
        house.cutting.cancel();
        house.guests.wait().await;
        Drained { cut }
    }
}

/// What all connections share.
struct House {
    limits: Limits,
    meters: Arc<Meters>,
    http: auto::Builder<TokioExecutor>,
    app: Router,
    permits: Arc<Semaphore>,
    guests: TaskTracker,
    closing: CancellationToken,
    cutting: CancellationToken,
}

fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    // Below this the library refuses to work.
    const BUFFER_MIN: usize = 8_192;
    // As many as may be open: more resets than that before their requests were even looked at is the attack known as
    // rapid reset (CVE-2023-44487), and the connection ends.
    const RESETS_MAX: usize = 250;
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        // Runs while idle, too; heads are timed by `Guarded`.
        .header_read_timeout(limits.idle_time)
        .max_buf_size(limits.header_max.max(BUFFER_MIN));
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(limits.header_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_interval);
    http
}

/// Accepts while there is room and nobody closes.
async fn accept(listener: Listener, house: Arc<House>) {
    // Long enough for a descriptor to come free, short enough to go unnoticed.
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let arrival = async {
            // Room first: whoever finds none waits in the kernel's backlog.
            let permit = Arc::clone(&house.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (permit, listener.door.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            arrival = arrival => arrival,
            () = house.closing.cancelled() => return,
        };
        match accepted {
            Ok(stream) => {
                let tls = listener.tls.clone();
                house.guests.spawn(guest(stream, tls, permit, Arc::clone(&house)));
            }
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that ended before it was accepted, as opposed to ours (no descriptors left).
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// One connection, from its acceptance to its end.
async fn guest(
    stream: Arrived,
    tls: Option<TlsAcceptor>,
    _permit: OwnedSemaphorePermit,
    house: Arc<House>,
) {
    let _counted = Counted::new(&house.meters);
    match stream {
        Arrived::Real(stream) => {
            // Tokens are small and must not wait for each other.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "no TCP_NODELAY");
            }
            receive(stream, tls, &house).await;
        }
        Arrived::Simulated(stream) => receive(stream, tls, &house).await,
    }
}

/// Shakes hands where TLS is spoken.
async fn receive<S>(stream: S, tls: Option<TlsAcceptor>, house: &House)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else { return converse(stream, house).await };
    let handshake = timeout(house.limits.header_time, tls.accept(stream));
    let shaken = tokio::select! {
        biased;
        shaken = handshake => shaken,
        () = house.closing.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => converse(stream, house).await,
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

/// Counts a connection for as long as it lives, however it ends.
struct Counted<'a>(&'a Meters);

impl<'a> Counted<'a> {
    fn new(meters: &'a Meters) -> Self {
        meters.connected();
        Self(meters)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}

/// HTTP over a byte stream, until either side ends it.
async fn converse<S>(stream: S, house: &House)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let traffic = Arc::new(Traffic::default());
    let limits = &house.limits;
    let guarded =
        Guarded::new(stream, Arc::clone(&traffic), limits.header_time, limits.write_stall);
    let service = service_fn(move |request| {
        let (answer, underway) = (house.app.clone().oneshot(request), traffic.begin());
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answered { body, _underway: underway }))
        }
    });
    let mut connection =
        std::pin::pin!(house.http.serve_connection(TokioIo::new(guarded), service));
    let mut told = false;
    loop {
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = house.closing.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            () = house.cutting.cancelled() => return,
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
        return;
    }
}

/// An answer's body that says when it is over.
struct Answered {
    body: Body,
    _underway: Underway,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

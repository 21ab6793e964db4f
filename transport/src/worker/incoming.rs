//! Connections that callers make, on a real network or a simulated one.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::{Either, ready};
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;

use crate::seam::{Accept, Duplex};

/// Callers are gateways, with one connection each: more than this is not a fleet but a mistake. Who comes then waits.
pub(super) const CONNECTIONS_MAX: usize = 4_096;
/// Whoever connects says so much at once: HTTP/2 begins with these 24 bytes. Over TLS they count as they were before they
/// were encrypted: whoever shakes hands has said nothing yet.
const GREETING_BYTES: usize = 24;
/// Who has not said that by then, hands shaken or not, is let go. Pings find out about the silent only behind it; a
/// connection that never says anything would hold its place for ever, and as many as there are places would keep all
/// others out.
const GREETS_WITHIN: Duration = Duration::from_secs(10);
/// After a failed accept (out of descriptors, most likely) nothing gets better by asking at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Where callers come in.
pub enum Incoming {
    /// A port of this machine.
    Real(TcpListener),
    /// A port of a simulated network.
    Simulated(Box<dyn Accept>),
}

impl Incoming {
    /// Binds a port. Port 0 takes a free one.
    ///
    /// # Errors
    /// Where the address cannot be bound: in use, not ours, not permitted.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self::Real(TcpListener::bind(addr).await?))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(tcp) => tcp.local_addr(),
            Self::Simulated(door) => door.local_addr(),
        }
    }

    /// Those who connect, and shake hands where TLS is spoken.
    pub(crate) fn connections(
        self,
        tls: Option<TlsAcceptor>,
    ) -> impl Stream<Item = io::Result<Caller>> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let callers = unfold((self, permits), async |(incoming, permits)| {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            let line = incoming.accept().await;
            Some((Caller::new(line, permit, GREETS_WITHIN), (incoming, permits)))
        });
        let Some(tls) = tls else { return Either::Left(callers.map(Ok)) };
        // Each shakes hands in a task of its own: nobody waits for the slow, or for another's arithmetic.
        let shaking = callers
            .map(move |caller| AbortOnDropHandle::new(tokio::spawn(caller.shake(tls.clone()))));
        let shaken = shaking.buffer_unordered(CONNECTIONS_MAX);
        Either::Right(shaken.filter_map(|shaken| ready(shaken.ok().flatten().map(Ok))))
    }

    async fn accept(&self) -> Box<dyn Duplex> {
        loop {
            let accepted: io::Result<Box<dyn Duplex>> = match self {
                Self::Real(tcp) => tcp.accept().await.map(|(stream, _peer)| {
                    // Chunks are small and each must leave at once. Failing to say so costs latency only.
                    let _ = stream.set_nodelay(true);
                    Box::new(stream) as _
                }),
                Self::Simulated(door) => door.accept().await,
            };
            match accepted {
                Ok(line) => return line,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// A connection, as long as it lasts.
pub(crate) struct Caller {
    line: Box<dyn Duplex>,
    /// Until it has greeted.
    greeting: Option<Greeting>,
    _permit: OwnedSemaphorePermit,
}

struct Greeting {
    bytes_left: usize,
    due: Pin<Box<Sleep>>,
}

impl Caller {
    fn new(line: Box<dyn Duplex>, permit: OwnedSemaphorePermit, within: Duration) -> Self {
        let due = Box::pin(sleep(within));
        let greeting = Greeting { bytes_left: GREETING_BYTES, due };
        Self { line, greeting: Some(greeting), _permit: permit }
    }

    /// The same caller over TLS. `None` where it does not speak it, or not in time.
    async fn shake(mut self, tls: TlsAcceptor) -> Option<Self> {
        let due = self.greeting.as_ref()?.due.deadline();
        match timeout_at(due, tls.accept(self.line)).await {
            Ok(Ok(secured)) => {
                self.line = Box::new(secured);
                return Some(self);
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
        None
    }
}

impl Greeting {
    /// Whether it goes on being waited for, after `read` bytes more, or none yet.
    fn poll(&mut self, read: Poll<usize>, cx: &mut Context<'_>) -> io::Result<bool> {
        if let Poll::Ready(bytes) = read {
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
            return Ok(self.bytes_left > 0);
        }
        match self.due.as_mut().poll(cx) {
            Poll::Pending => Ok(true),
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it connected and did not say what a caller says first",
            )),
        }
    }
}

impl Connected for Caller {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Caller {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let caller = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut caller.line).poll_read(cx, into);
        if let Some(greeting) = &mut caller.greeting {
            let read = match &polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(_) => Poll::Ready(into.filled().len() - before),
            };
            if !greeting.poll(read, cx)? {
                caller.greeting = None;
            }
        }
        polled
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().line).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().line).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.line.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().line).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().line).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::future::pending;
    use std::sync::Mutex;

    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::timeout;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::quic;
    use crate::seam::Connecting;
    use crate::tls::{chain, server_config};

    /// A port at which one caller comes in.
    struct Once(Mutex<Option<DuplexStream>>);

    impl Accept for Once {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }

        fn accept(&self) -> Connecting<'_> {
            let next = self.0.lock().unwrap().take();
            Box::pin(async move {
                match next {
                    Some(stream) => Ok(Box::new(stream) as Box<dyn Duplex>),
                    None => pending().await,
                }
            })
        }
    }

    /// The two ends of TLS, which believe each other.
    fn tls() -> (TlsAcceptor, TlsConnector) {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        quic::Identity::read_or_made(&cert, &key).unwrap();
        let server = server_config(&cert, &key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(chain(&cert).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (TlsAcceptor::from(server), TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_shakes_hands_over_tls_and_says_nothing_then_gives_the_place_back() {
        for said in [0, GREETING_BYTES - 1] {
            let (ours, theirs) = duplex(16_384);
            let (acceptor, connector) = tls();
            let door = Incoming::Simulated(Box::new(Once(Mutex::new(Some(ours)))));
            let mut callers = Box::pin(door.connections(Some(acceptor)));
            let began = tokio::time::Instant::now();
            let name = "localhost".try_into().unwrap();
            let shaking = async {
                let mut theirs = connector.connect(name, theirs).await.unwrap();
                theirs.write_all(&vec![7; said]).await.unwrap();
                theirs
            };
            let (caller, _theirs) = tokio::join!(callers.next(), shaking);
            let mut caller = caller.unwrap().unwrap();
            let mut heard = Vec::new();
            let reading = timeout(10 * GREETS_WITHIN, caller.read_to_end(&mut heard)).await;
            let error = reading.expect("it holds its place").unwrap_err();
            assert_eq!((error.kind(), heard.len()), (io::ErrorKind::TimedOut, said));
            assert!(began.elapsed() < 2 * GREETS_WITHIN, "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_shake_hands_gives_the_place_back() {
        let (ours, mut theirs) = duplex(16_384);
        let (acceptor, _) = tls();
        let door = Incoming::Simulated(Box::new(Once(Mutex::new(Some(ours)))));
        let mut callers = Box::pin(door.connections(Some(acceptor)));
        let closed = async {
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await
        };
        tokio::select! {
            caller = callers.next() => panic!("a caller: {}", caller.is_some()),
            closed = timeout(2 * GREETS_WITHIN, closed) => {
                closed.expect("it holds its place").unwrap();
            }
        }
    }

    async fn called(within: Duration) -> (Arc<Semaphore>, Caller, DuplexStream) {
        let (ours, theirs) = duplex(1_024);
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        (permits, Caller::new(Box::new(ours), permit, within), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_and_says_nothing_or_too_little_gives_the_place_back() {
        for said in [0, 1, GREETING_BYTES - 1] {
            let (permits, mut caller, mut theirs) = called(GREETS_WITHIN).await;
            theirs.write_all(&vec![7; said]).await.unwrap();
            let began = tokio::time::Instant::now();
            let mut heard = Vec::new();
            let error = caller.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!((error.kind(), heard.len()), (io::ErrorKind::TimedOut, said));
            assert!(began.elapsed() < 2 * GREETS_WITHIN, "{:?}", began.elapsed());
            drop(caller);
            assert_eq!(permits.available_permits(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_greeted_may_be_silent_for_as_long_as_pings_are_answered() {
        let (_permits, mut caller, mut theirs) = called(GREETS_WITHIN).await;
        let speaking = async {
            for _ in 0..2 {
                sleep(GREETS_WITHIN / 4).await;
                theirs.write_all(&[7; GREETING_BYTES / 2]).await.unwrap();
            }
            sleep(100 * GREETS_WITHIN).await;
            theirs.write_all(b"hi").await.unwrap();
            drop(theirs);
        };
        let mut heard = Vec::new();
        let (read, ()) = tokio::join!(caller.read_to_end(&mut heard), speaking);
        assert_eq!(read.unwrap(), GREETING_BYTES + 2);
    }
}

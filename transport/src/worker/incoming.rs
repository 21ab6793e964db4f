//! Connections that callers make, on a real network or a simulated one.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::seam::{Accept, Duplex};

/// Callers are gateways, with one connection each: more than this is not a fleet but a mistake. Who comes then waits.
pub(super) const CONNECTIONS_MAX: usize = 4_096;
/// Whoever connects says so much at once: HTTP/2 begins with these 24 bytes, and a TLS greeting is longer.
const GREETING_BYTES: usize = 24;
/// Who has not said that by then is let go. Pings find out about the silent only behind it; a connection that never says
/// anything would hold its place for ever, and as many as there are places would keep all others out.
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

    pub(crate) fn connections(self) -> impl Stream<Item = io::Result<Caller>> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        unfold((self, permits), async |(incoming, permits)| {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            let line = incoming.accept().await;
            Some((Ok(Caller::new(line, permit, GREETS_WITHIN)), (incoming, permits)))
        })
    }

    async fn accept(&self) -> Line {
        loop {
            let accepted = match self {
                Self::Real(tcp) => tcp.accept().await.map(|(stream, _peer)| {
                    // Chunks are small and each must leave at once. Failing to say so costs latency only.
                    let _ = stream.set_nodelay(true);
                    Line::Real(stream)
                }),
                Self::Simulated(door) => door.accept().await.map(Line::Simulated),
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
    line: Line,
    /// Until it has greeted.
    greeting: Option<Greeting>,
    _permit: OwnedSemaphorePermit,
}

struct Greeting {
    bytes_left: usize,
    due: Pin<Box<Sleep>>,
}

enum Line {
    Real(TcpStream),
    Simulated(Box<dyn Duplex>),
}

impl Caller {
    fn new(line: Line, permit: OwnedSemaphorePermit, within: Duration) -> Self {
        let due = Box::pin(sleep(within));
        let greeting = Greeting { bytes_left: GREETING_BYTES, due };
        Self { line, greeting: Some(greeting), _permit: permit }
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
        let polled = match &mut caller.line {
            Line::Real(stream) => Pin::new(stream).poll_read(cx, into),
            Line::Simulated(stream) => Pin::new(stream).poll_read(cx, into),
        };
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
        match &mut self.get_mut().line {
            Line::Real(stream) => Pin::new(stream).poll_write(cx, bytes),
            Line::Simulated(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().line {
            Line::Real(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Line::Simulated(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.line {
            Line::Real(stream) => stream.is_write_vectored(),
            Line::Simulated(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().line {
            Line::Real(stream) => Pin::new(stream).poll_flush(cx),
            Line::Simulated(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().line {
            Line::Real(stream) => Pin::new(stream).poll_shutdown(cx),
            Line::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    async fn called(within: Duration) -> (Arc<Semaphore>, Caller, DuplexStream) {
        let (ours, theirs) = duplex(1_024);
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        (permits, Caller::new(Line::Simulated(Box::new(ours)), permit, within), theirs)
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

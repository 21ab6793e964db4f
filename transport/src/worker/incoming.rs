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
use tonic::transport::server::Connected;

use crate::seam::{Accept, Duplex};

/// Callers are gateways, with one connection each: more than this is not a fleet but a mistake. Who comes then waits.
pub(super) const CONNECTIONS_MAX: usize = 4_096;
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
            Some((Ok(Caller { line, _permit: permit }), (incoming, permits)))
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
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// A connection, as long as it lasts.
pub(crate) struct Caller {
    line: Line,
    _permit: OwnedSemaphorePermit,
}

enum Line {
    Real(TcpStream),
    Simulated(Box<dyn Duplex>),
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
        match &mut self.get_mut().line {
            Line::Real(stream) => Pin::new(stream).poll_read(cx, into),
            Line::Simulated(stream) => Pin::new(stream).poll_read(cx, into),
        }
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

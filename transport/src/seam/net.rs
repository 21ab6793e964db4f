//! Sockets: whom a gateway can call, and who can call it.
//!
//! A byte stream either way, and nothing else: what a stream is made of is the business of whoever made it. The real
//! kinds stay what they were, a socket of the operating system behind one branch of an enum, so that the product pays
//! for the seam with a comparison; only a simulated stream is behind a pointer.
//!
//! A trait over the whole client and server was rejected: their types would then be named in every signature up to the
//! gateway, for a choice that is made once.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

use super::datagram::{Reaching, unsupported};

/// A connection of a simulated network.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// What a connection becomes.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + 'a>>;

/// Who connects on a simulated network.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a host by name.
    fn dial(&self, host: &str, port: u16) -> Connecting<'static>;

    /// A socket for datagrams to a host by name, and where that is. A network that carries none refuses.
    fn reach(&self, host: &str, port: u16) -> Reaching {
        let _ = (host, port);
        unsupported()
    }
}

/// Who is connected to on a simulated network.
pub trait Accept: Send + Sync + 'static {
    /// Where it listens.
    ///
    /// # Errors
    /// Where it does not any more.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection. May be dropped and called again without losing one.
    fn accept(&self) -> Connecting<'_>;
}

/// The network that calls go out to.
#[derive(Clone)]
pub enum Network {
    /// The operating system's.
    Real,
    /// One in memory.
    Simulated(Arc<dyn Dial>),
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "Real",
            Self::Simulated(_) => "Simulated",
        })
    }
}

/// Connects, on either network.
#[derive(Clone)]
pub(crate) enum Connector {
    Real(HttpConnector),
    Simulated(Arc<dyn Dial>),
}

type Failure = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Real(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Self::Simulated(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self {
            Self::Real(tcp) => {
                let connecting = tcp.call(to);
                Box::pin(async move { Ok(Wire::Real(connecting.await?)) })
            }
            Self::Simulated(dial) => {
                let default = if to.scheme_str() == Some("https") { 443 } else { 80 };
                let port = to.port_u16().unwrap_or(default);
                let connecting = dial.dial(to.host().unwrap_or_default(), port);
                Box::pin(async move { Ok(Wire::Simulated(TokioIo::new(connecting.await?))) })
            }
        }
    }
}

/// A connection that was made.
pub(crate) enum Wire {
    Real(TokioIo<TcpStream>),
    Simulated(TokioIo<Box<dyn Duplex>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self {
            Self::Real(tcp) => tcp.connected(),
            Self::Simulated(_) => Connected::new(),
        }
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Simulated(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Simulated(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Simulated(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Real(tcp) => tcp.is_write_vectored(),
            Self::Simulated(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_write_vectored(cx, bytes),
            Self::Simulated(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }
}

//! Turmoil's sockets behind the product's seam, with everything that passes written down.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use transport::seam::{Accept, Connecting, Datagrams, Dial, Duplex, Reaching};
use turmoil::net::{TcpListener, TcpStream};

use super::stage::Stage;
use super::tape::Net;

/// As long as the product's own sockets: a connect that nobody waits for any more ends.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// One host's sockets.
#[derive(Clone)]
pub(super) struct Sockets {
    stage: Arc<Stage>,
    host: u8,
}

impl Sockets {
    pub fn new(stage: &Arc<Stage>, name: &str) -> Self {
        let host = stage.scene().tape.host(name);
        Self { stage: Arc::clone(stage), host }
    }

    pub(super) fn parts(&self) -> (Arc<Stage>, u8) {
        (Arc::clone(&self.stage), self.host)
    }

    /// Connects to a host by name.
    pub async fn connect(&self, to: &str, port: u16) -> io::Result<Wire> {
        let peer = self.stage.scene().tape.host(to);
        let made = timeout(CONNECT_MAX, TcpStream::connect((to, port))).await;
        let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let kind = if made.is_ok() { Net::Connected } else { Net::Refused };
        self.stage.net(self.host, peer, kind, 0);
        Ok(Wire { stream: made?, stage: Arc::clone(&self.stage), host: self.host, peer })
    }

    /// Listens on a port of this host.
    pub async fn listen(&self, port: u16) -> io::Result<Door> {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Door { listener, sockets: self.clone() })
    }
}

impl Dial for Sockets {
    fn dial(&self, host: &str, port: u16) -> Connecting<'static> {
        let (sockets, host) = (self.clone(), host.to_owned());
        Box::pin(async move {
            let wire = sockets.connect(&host, port).await?;
            Ok(Box::new(wire) as Box<dyn Duplex>)
        })
    }

    fn reach(&self, host: &str, port: u16) -> Reaching {
        let (sockets, host) = (self.clone(), host.to_owned());
        Box::pin(async move {
            let socket = sockets.packets(0).await?;
            Ok((SocketAddr::new(turmoil::lookup(host), port), socket as Arc<dyn Datagrams>))
        })
    }
}

/// A port that listens.
pub(super) struct Door {
    listener: TcpListener,
    sockets: Sockets,
}

impl Door {
    /// The next connection.
    pub async fn next(&self) -> io::Result<Wire> {
        let (stream, from) = self.listener.accept().await?;
        let name = turmoil::reverse_lookup(from.ip()).unwrap_or_default();
        let Sockets { stage, host } = self.sockets.clone();
        let peer = stage.scene().tape.host(&name);
        stage.net(host, peer, Net::Accepted, 0);
        Ok(Wire { stream, stage, host, peer })
    }
}

impl Accept for Door {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&self) -> Connecting<'_> {
        Box::pin(async move { Ok(Box::new(self.next().await?) as Box<dyn Duplex>) })
    }
}

/// A connection.
pub(super) struct Wire {
    stream: TcpStream,
    stage: Arc<Stage>,
    host: u8,
    peer: u8,
}

impl Wire {
    /// The host at the other end.
    pub fn peer(&self) -> u8 {
        self.peer
    }

    fn note(&self, kind: Net, length: usize) {
        self.stage.net(self.host, self.peer, kind, length);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut wire.stream).poll_read(cx, into);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Err(_)) => wire.note(Net::Reset, 0),
            Poll::Ready(Ok(())) => match into.filled().len() - before {
                0 => wire.note(Net::Eof, 0),
                length => wire.note(Net::Read, length),
            },
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let polled = Pin::new(&mut wire.stream).poll_write(cx, bytes);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Ok(length)) => wire.note(Net::Wrote, *length),
            Poll::Ready(Err(_)) => wire.note(Net::Reset, 0),
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let polled = Pin::new(&mut wire.stream).poll_shutdown(cx);
        if polled.is_ready() {
            wire.note(Net::Shut, 0);
        }
        polled
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.note(Net::Closed, 0);
    }
}

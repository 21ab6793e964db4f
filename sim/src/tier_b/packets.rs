//! Turmoil's datagrams behind the product's seam, with everything that passes written down.
//!
//! Turmoil's sockets are asked by `async fn`s, QUIC's by polls: so each keeps the question it is at. What is sent into a cut is
//! lost, as on any network; QUIC sends it again, where turmoil's streams do not.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use transport::seam::Datagrams;
use turmoil::net::UdpSocket;

use super::stage::Stage;
use super::tape::Net;
use super::wire::Sockets;

/// A socket for datagrams.
pub(super) struct Packets {
    socket: Arc<UdpSocket>,
    readable: Mutex<Readable>,
    stage: Arc<Stage>,
    host: u8,
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl Sockets {
    /// A socket for datagrams on a port of this host; 0 takes a free one.
    pub async fn packets(&self, port: u16) -> io::Result<Arc<Packets>> {
        let socket = Arc::new(UdpSocket::bind(("0.0.0.0", port)).await?);
        let readable = Mutex::new(readable(Arc::clone(&socket)));
        let (stage, host) = self.parts();
        Ok(Arc::new(Packets { socket, readable, stage, host }))
    }
}

fn readable(socket: Arc<UdpSocket>) -> Readable {
    Box::pin(async move { socket.readable().await })
}

impl Packets {
    fn note(&self, peer: SocketAddr, kind: Net, length: usize) {
        let name = turmoil::reverse_lookup(peer.ip()).unwrap_or_default();
        let peer = self.stage.scene().tape.host(&name);
        self.stage.net(self.host, peer, kind, length);
    }
}

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packets({:?})", self.socket.local_addr())
    }
}

impl Datagrams for Packets {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.note(to, Net::Sent, datagram.len());
        // A network that has no way there loses what is sent: nobody is told.
        let _ = self.socket.try_send_to(datagram, to);
        Ok(())
    }

    fn poll_room(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut waiting = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            ready!(waiting.as_mut().poll(cx))?;
            *waiting = readable(Arc::clone(&self.socket));
            match self.socket.try_recv_from(into) {
                Ok((length, from)) => {
                    self.note(from, Net::Got, length);
                    return Poll::Ready(Ok((length, from)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

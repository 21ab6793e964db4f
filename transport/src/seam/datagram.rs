//! Datagrams: the sockets under QUIC, of the operating system or of a simulated network.
//!
//! A caller's socket is connected to the one address that it calls. So the kernel tells when nobody listens there (a
//! worker that was killed), which QUIC by itself learns only from a long silence; and it takes that word from the path
//! to this address alone, for this port alone.

use std::fmt;
use std::future::{Future, ready};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready as poll_ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::net::Network;

/// A host with more addresses than this is asked at the first of them that can be called.
const ADDRESSES_MAX: usize = 4;

/// A socket of a simulated network.
pub trait Datagrams: fmt::Debug + Send + Sync + 'static {
    /// Where it is bound.
    ///
    /// # Errors
    /// Where it is not any more.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Sends one datagram, or none where there is no room ([`io::ErrorKind::WouldBlock`]).
    ///
    /// # Errors
    /// As said; anything else ends the socket.
    fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()>;

    /// Resolves when there may be room.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The next datagram: its length, and whom it is from.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>>;
}

/// What a call to [`Dial::reach`](super::Dial::reach) becomes.
pub type Reaching =
    Pin<Box<dyn Future<Output = io::Result<(SocketAddr, Arc<dyn Datagrams>)>> + Send>>;

pub(super) fn unsupported() -> Reaching {
    Box::pin(ready(Err(io::ErrorKind::Unsupported.into())))
}

/// A socket to one address.
#[derive(Debug)]
pub(crate) struct Reach {
    pub to: SocketAddr,
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// Becomes true when the host says that nobody listens there.
    pub refused: watch::Receiver<bool>,
}

impl Network {
    /// A socket for each address of `host`, to be tried in turn. At least one.
    pub(crate) async fn reach(&self, host: &str, port: u16) -> io::Result<Vec<Reach>> {
        match self {
            Self::Real => {
                let addresses = tokio::net::lookup_host((host, port)).await?;
                reached(addresses)
            }
            Self::Simulated(dial) => {
                let (to, socket) = dial.reach(host, port).await?;
                let (_, refused) = watch::channel(false);
                Ok(vec![Reach { to, socket: Arc::new(Simulated(socket)), refused }])
            }
        }
    }
}

/// A socket for each address that can be called from here: a host may have one, as of IPv6, that no route leads to.
fn reached(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<Reach>> {
    let mut why = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut reached = Vec::new();
    for to in addresses {
        if reached.len() == ADDRESSES_MAX {
            break;
        }
        match connected(to) {
            Ok(reach) => reached.push(reach),
            Err(error) => why = error,
        }
    }
    if reached.is_empty() { Err(why) } else { Ok(reached) }
}

fn connected(to: SocketAddr) -> io::Result<Reach> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(to)?;
    let (tell, refused) = watch::channel(false);
    let state = UdpSocketState::new((&socket).into())?;
    let io = Arc::new(UdpSocket::from_std(socket)?);
    let failing = Mutex::new(failing(Arc::clone(&io)));
    Ok(Reach { to, socket: Arc::new(Connected { io, failing, state, refused: tell }), refused })
}

/// Resolves when the kernel has bad news, which makes a socket neither readable nor writable.
fn failing(io: Arc<UdpSocket>) -> Failing {
    Box::pin(async move { drop(io.ready(Interest::ERROR).await) })
}

type Failing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A socket of this machine that is connected to one address.
struct Connected {
    io: Arc<UdpSocket>,
    failing: Mutex<Failing>,
    state: UdpSocketState,
    refused: watch::Sender<bool>,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connected").field(&self.io).finish()
    }
}

impl Connected {
    fn poll_failing(&self, cx: &mut Context<'_>) {
        let mut waiting = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.as_mut().poll(cx).is_ready() {
            if let Ok(Some(error)) = self.io.take_error() {
                self.note(&error);
            }
            // Seen: wait for the next.
            let seen = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.io.try_io(Interest::ERROR, seen);
            *waiting = failing(Arc::clone(&self.io));
        }
    }

    fn note(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            self.refused.send_replace(true);
        }
    }
}

impl AsyncUdpSocket for Connected {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self
            .io
            .try_io(Interest::WRITABLE, || self.state.try_send((&*self.io).into(), transmit));
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // What was not sent is lost, as any datagram may be: QUIC sends it again, or gives up in its own time.
                self.note(&error);
                Ok(())
            }
            other => other,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = self.io.poll_recv_ready(cx);
            if ready.is_pending() {
                self.poll_failing(cx);
            }
            poll_ready!(ready)?;
            let read = self
                .io
                .try_io(Interest::READABLE, || self.state.recv((&*self.io).into(), into, meta));
            match read {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => self.note(&error),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits until the socket takes more.
#[derive(Debug)]
struct Room(Arc<Connected>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.io.poll_send_ready(cx)
    }
}

/// A simulated socket, as QUIC wants one: a datagram at a time.
#[derive(Clone, Debug)]
pub(crate) struct Simulated(pub Arc<dyn Datagrams>);

impl AsyncUdpSocket for Simulated {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Self::clone(&self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit.destination, transmit.contents)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(into), Some(meta)) = (into.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let (len, addr) = poll_ready!(self.0.poll_recv(cx, into))?;
        *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl UdpPoller for Simulated {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_room(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    /// Nobody may send there without asking for it: an address that cannot be connected, on any machine.
    const EVERYBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::BROADCAST), 1);

    #[tokio::test]
    async fn an_address_that_cannot_be_called_does_not_hide_the_others() {
        let here: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
        let reached = reached([EVERYBODY, here, EVERYBODY].into_iter()).unwrap();
        assert_eq!(reached.iter().map(|one| one.to).collect::<Vec<_>>(), [here]);
    }

    #[tokio::test]
    async fn where_none_can_be_called_the_last_error_says_why() {
        let why = reached([EVERYBODY].into_iter()).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(reached([].into_iter()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

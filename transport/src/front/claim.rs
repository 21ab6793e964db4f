//! A port that is taken before it is served.
//!
//! A start takes a while: a journal to recover, a store to join, endpoints to ask. Who is in the way is found before that, and
//! a client that comes meanwhile is refused, and asks elsewhere, rather than left to wait in a queue that nobody looks at.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// A bound port at which nobody listens yet: connecting to it is refused.
pub struct Claim {
    socket: Socket,
    addr: SocketAddr,
}

impl Claim {
    /// Binds. Port 0 takes a free one.
    ///
    /// # Errors
    /// Where the address cannot be bound: in use, not ours, not permitted.
    pub fn new(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the last life's connections to time out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let bound = socket.local_addr()?.as_socket();
        Ok(Self { socket, addr: bound.unwrap_or(addr) })
    }

    /// Where it will listen.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// Where somebody else who claimed the address listens there by now.
    pub fn listen(self) -> io::Result<TcpListener> {
        // Whoever connects while all connections are taken waits here; the kernel's own bound is usually 4,096.
        const BACKLOG: i32 = 1_024;
        self.socket.listen(BACKLOG)?;
        TcpListener::from_std(self.socket.into())
    }
}

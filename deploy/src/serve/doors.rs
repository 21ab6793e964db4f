//! Where a process listens, by its role.
//!
//! Addresses are claimed first of all and listened at last, when whoever comes is served at once: see [`Claim`].

use std::net::SocketAddr;

use tokio::net::TcpListener;
use transport::config::{Config, Role};
use transport::front::{Claim, Listener, RpcDoor, RpcTls};
use transport::worker::Incoming;

use super::StartError;

/// The ports for clients, or for gateways, where nobody listens yet.
pub struct Claims {
    http: Option<Claimed<Listener>>,
    grpc: Option<Claimed<RpcDoor>>,
    quota: Option<Claimed<RpcDoor>>,
}

/// The same ports, open.
pub struct Doors {
    pub http: Option<Listener>,
    pub grpc: Option<RpcDoor>,
    /// `QuotaService` alone.
    pub quota: Option<RpcDoor>,
    /// The first of them.
    pub addr: SocketAddr,
}

/// One of them, and what is made of it.
struct Claimed<T> {
    claim: Claim,
    key: &'static str,
    made: Box<dyn FnOnce(TcpListener) -> T>,
}

impl<T> Claimed<T> {
    fn new(
        (addr, key): (SocketAddr, &'static str),
        made: impl FnOnce(TcpListener) -> T + 'static,
    ) -> Result<Self, StartError> {
        let claim = Claim::new(addr).map_err(|source| StartError::Listen { addr, key, source })?;
        Ok(Self { claim, key, made: Box::new(made) })
    }

    fn open(self) -> Result<T, StartError> {
        let (addr, key) = (self.claim.addr(), self.key);
        let listening = self.claim.listen();
        let tcp = listening.map_err(|source| StartError::Listen { addr, key, source })?;
        Ok((self.made)(tcp))
    }
}

impl Claims {
    /// Takes the addresses and reads certificates.
    pub fn take(config: &Config) -> Result<Self, StartError> {
        let http = match config.role {
            Role::All | Role::Gateway => Some(http(config)?),
            Role::Chat | Role::Auth => None,
        };
        let grpc = rpc(config, config.server.grpc_addr, "server.grpc.addr")?;
        let quota = rpc(config, config.server.quota_addr, "server.quota.addr")?;
        Ok(Self { http, grpc, quota })
    }

    fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        let http = self.http.iter().map(|door| door.claim.addr());
        http.chain([&self.grpc, &self.quota].into_iter().flatten().map(|door| door.claim.addr()))
    }

    fn first(&self) -> SocketAddr {
        self.addrs().next().expect("a role without HTTP always has an address for gRPC")
    }

    /// The address of one that is open beyond this machine, where any is; else the first.
    pub fn widest(&self) -> SocketAddr {
        self.addrs().find(|addr| !addr.ip().is_loopback()).unwrap_or_else(|| self.first())
    }

    /// Listens at all of them.
    pub fn open(self) -> Result<Doors, StartError> {
        Ok(Doors {
            addr: self.first(),
            http: self.http.map(Claimed::open).transpose()?,
            grpc: self.grpc.map(Claimed::open).transpose()?,
            quota: self.quota.map(Claimed::open).transpose()?,
        })
    }
}

fn rpc(
    config: &Config,
    addr: Option<SocketAddr>,
    key: &'static str,
) -> Result<Option<Claimed<RpcDoor>>, StartError> {
    let Some(addr) = addr else { return Ok(None) };
    let tls = config.server.grpc_tls.as_ref().map(RpcTls::read).transpose()?;
    let claimed = Claimed::new((addr, key), |tcp| match tls {
        None => RpcDoor::plain(Incoming::Real(tcp)),
        Some(tls) => RpcDoor::secured(Incoming::Real(tcp), tls),
    });
    claimed.map(Some)
}

fn http(config: &Config) -> Result<Claimed<Listener>, StartError> {
    let http = &config.server.http;
    let tls = http.tls.as_ref().map(|tls| transport::tls::server_config(&tls.cert, &tls.key));
    let tls = tls.transpose()?;
    Claimed::new((http.addr, "server.http.addr"), |tcp| match tls {
        None => Listener::real(tcp),
        Some(tls) => Listener::real(tcp).with_tls(tls),
    })
}

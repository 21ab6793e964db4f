//! Where a process listens, by its role.

use std::net::SocketAddr;

use transport::config::{Config, Role};
use transport::front::{Listener, RpcDoor};
use transport::worker::Incoming;

use super::StartError;

/// The bound ports for clients, or for gateways.
pub struct Doors {
    pub http: Option<Listener>,
    pub grpc: Option<RpcDoor>,
    /// `QuotaService` alone.
    pub quota: Option<RpcDoor>,
    /// The first of them.
    pub addr: SocketAddr,
}

impl Doors {
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let http = match config.role {
            Role::All | Role::Gateway => Some(http(config)?),
            Role::Chat | Role::Auth => None,
        };
        let grpc = rpc(config, config.server.grpc_addr, "server.grpc.addr").await?;
        let quota = rpc(config, config.server.quota_addr, "server.quota.addr").await?;
        let addr = match (&http, &grpc) {
            (Some(http), _) => http.local_addr(),
            (None, Some(grpc)) => grpc.local_addr(),
            (None, None) => unreachable!("a role without HTTP always has an address for gRPC"),
        };
        Ok(Self { addr: addr.map_err(StartError::Runtime)?, http, grpc, quota })
    }

    /// The address of one that is open beyond this machine, where any is; else the first.
    pub fn widest(&self) -> SocketAddr {
        let rpc = [&self.grpc, &self.quota].into_iter().flatten();
        let rpc = rpc.filter_map(|door| door.local_addr().ok());
        let mut all = [self.addr].into_iter().chain(rpc);
        all.find(|addr| !addr.ip().is_loopback()).unwrap_or(self.addr)
    }
}

async fn rpc(
    config: &Config,
    addr: Option<SocketAddr>,
    key: &'static str,
) -> Result<Option<RpcDoor>, StartError> {
    let Some(addr) = addr else { return Ok(None) };
    let taken = |source| StartError::Listen { addr, key, source };
    let bound = Incoming::bind(addr).await.map_err(taken)?;
    Ok(Some(match &config.server.grpc_tls {
        None => RpcDoor::plain(bound),
        Some(tls) => RpcDoor::with_tls(bound, tls)?,
    }))
}

fn http(config: &Config) -> Result<Listener, StartError> {
    let addr = config.server.http.addr;
    let bound = Listener::bind(addr).map_err(|source| StartError::Listen {
        addr,
        key: "server.http.addr",
        source,
    })?;
    match &config.server.http.tls {
        None => Ok(bound),
        Some(tls) => Ok(bound.with_tls(transport::tls::server_config(&tls.cert, &tls.key)?)),
    }
}

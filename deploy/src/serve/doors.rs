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
    /// The first of them.
    pub addr: SocketAddr,
}

impl Doors {
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let http = match config.role {
            Role::All | Role::Gateway => Some(http(config)?),
            Role::Chat | Role::Auth => None,
        };
        let grpc = match config.server.grpc_addr {
            None => None,
            Some(addr) => {
                let taken = |source| StartError::Listen { addr, key: "server.grpc.addr", source };
                let bound = Incoming::bind(addr).await.map_err(taken)?;
                Some(match &config.server.grpc_tls {
                    None => RpcDoor::plain(bound),
                    Some(tls) => RpcDoor::with_tls(bound, tls)?,
                })
            }
        };
        let addr = match (&http, &grpc) {
            (Some(http), _) => http.local_addr(),
            (None, Some(grpc)) => grpc.local_addr(),
            (None, None) => unreachable!("a role without HTTP always has an address for gRPC"),
        };
        Ok(Self { addr: addr.map_err(StartError::Runtime)?, http, grpc })
    }
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

//! Three built-in replicas of a model named `demo`, for a first try without anything else installed.
//!
//! They are servers on loopback like any others: a request to them walks the whole way.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use transport::config::{Config, Model};

use crate::demo::{self, Options};

/// The model they serve.
pub const MODEL: &str = "demo";
/// Enough to see a balance, a failover and a session that stays.
const REPLICAS: usize = 3;

/// Replicas that end with the process.
pub struct DemoFleet {
    replicas: Vec<(String, SocketAddr, JoinHandle<io::Result<()>>)>,
}

impl DemoFleet {
    pub async fn start() -> io::Result<Self> {
        let mut replicas = Vec::new();
        for number in 1..=REPLICAS {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let addr = listener.local_addr()?;
            let options = Options { models: vec![MODEL.to_owned()], ..Options::default() };
            let task = tokio::spawn(demo::serve(listener, options, std::future::pending()));
            replicas.push((format!("{MODEL}-{number}"), addr, task));
        }
        Ok(Self { replicas })
    }

    /// Puts the replicas into a configuration that names nobody.
    pub fn join(&self, config: &mut Config) {
        let addresses = self.replicas.iter().map(|(name, addr, _)| (name.as_str(), *addr));
        let model = Model::of_replicas(addresses, config.routing.timeouts);
        config.models.insert(MODEL.to_owned(), model);
    }
}

impl Drop for DemoFleet {
    fn drop(&mut self) {
        for (_, _, task) in &self.replicas {
            task.abort();
        }
    }
}

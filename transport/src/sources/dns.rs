//! DNS: every address behind a name is a worker, as behind a headless service of Kubernetes.
//!
//! The operating system resolves, with its own cache and its own rules, and tells no time to live: a name is asked again
//! every [`EVERY`]. A name that resolves to nothing is not believed; one that does not resolve is a source that is lost.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Instance, Protocol, Told, listed};

/// How often a name is asked for.
pub const EVERY: Duration = Duration::from_secs(10);
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// A name, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name.
    pub host: String,
    /// The port of every address behind it.
    pub port: u16,
    /// The model that all of them serve.
    pub model: String,
    /// How they are spoken to.
    pub protocol: Protocol,
}

/// Asks until the receiver is gone, and says what came of it, each time: who hears the same again knows how old it is.
pub async fn watch(settings: Settings, tell: mpsc::Sender<Told>) {
    loop {
        if tell.send(ask(&settings).await).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            () = tell.closed() => return,
            () = sleep(EVERY) => {}
        }
    }
}

async fn ask(settings: &Settings) -> Told {
    let Settings { host, port, .. } = settings;
    let found = match timeout(WITHIN, tokio::net::lookup_host((host.as_str(), *port))).await {
        Err(_) => return Told::Lost(format!("DNS does not say who {host} is within {WITHIN:?}")),
        Ok(Err(why)) => return Told::Lost(format!("DNS does not know {host}: {why}")),
        Ok(Ok(found)) => found,
    };
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
    if addresses.is_empty() {
        return Told::Lost(format!("DNS knows no address of {host}"));
    }
    Told::Instances(listed(addresses.into_iter().map(|ip| settings.instance(ip)).collect()))
}

impl Settings {
    fn instance(&self, ip: IpAddr) -> Instance {
        Instance {
            name: format!("{}/{ip}:{}", self.host, self.port),
            model: self.model.clone(),
            protocol: self.protocol,
            host: ip.to_string(),
            port: self.port,
            weight: 100,
            pin: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn settings(host: &str) -> Settings {
        Settings { host: host.into(), port: 50_055, model: "m".into(), protocol: Protocol::Grpc }
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_a_worker() {
        let (tell, mut told) = mpsc::channel(1);
        let watching = tokio::spawn(watch(settings("127.0.0.1"), tell));
        let Some(Told::Instances(found)) = told.recv().await else { panic!("nobody found") };
        assert_eq!(found[0].url(), "grpc://127.0.0.1:50055");
        assert_eq!(found[0].name, "127.0.0.1/127.0.0.1:50055");
        drop(told);
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_answer_is_told_each_time() {
        let (tell, mut told) = mpsc::channel(1);
        let watching = tokio::spawn(watch(settings("127.0.0.1"), tell));
        let first = told.recv().await.unwrap();
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(told.recv().await.unwrap(), first);
        }
        assert!(began.elapsed() >= 2 * EVERY);
        drop(told);
        watching.await.unwrap();
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_a_source_that_is_lost() {
        let told = ask(&settings("no-such-name.invalid")).await;
        assert!(matches!(told, Told::Lost(why) if why.contains("no-such-name.invalid")));
    }
}

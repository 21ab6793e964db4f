//! Where workers are found: service registries that are watched while the gateway runs.
//!
//! A source says who is there, again whenever that changes, and says when it cannot tell. What follows from either is the
//! plane's business (a source that goes dark, or says "nobody", never empties a pool that serves); a source only must not
//! lie: an answer is all that the registry lists at one moment, or it is not given.

pub mod consul;
pub mod dns;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most workers one source may list. More are cut off, by name, and told.
pub const INSTANCES_MAX: usize = 4_096;

/// How a worker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Pointsman's own wire over gRPC.
    Grpc,
    /// The same over QUIC.
    Quic,
    /// The OpenAI API over HTTP.
    Http,
}

impl Protocol {
    /// By its name, as registries write it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "grpc" => Some(Self::Grpc),
            "quic" => Some(Self::Quic),
            "http" => Some(Self::Http),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
            Self::Http => "http",
        })
    }
}

/// One worker, as a source describes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    /// Its name: unique within the source, and the same for as long as it lives.
    pub name: String,
    /// The model it serves.
    pub model: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Its host: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its weight among its peers; 100 is usual.
    pub weight: u32,
    /// The fingerprint of its certificate, where it is reached over QUIC and the registry says it.
    #[serde(default)]
    pub pin: Option<String>,
}

impl Instance {
    /// Its address as an endpoint's URL: `grpc://10.0.0.7:50055`, an IPv6 address in brackets.
    #[must_use]
    pub fn url(&self) -> String {
        let Self { protocol, host, port, .. } = self;
        if host.contains(':') && !host.starts_with('[') {
            return format!("{protocol}://[{host}]:{port}");
        }
        format!("{protocol}://{host}:{port}")
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// These, sorted by name, and nobody else.
    Instances(Vec<Instance>),
    /// It cannot tell; why, in words for an operator. What it said before stands.
    Lost(String),
}

/// All of a source's workers in order, no name twice, no more than may be.
fn listed(mut instances: Vec<Instance>) -> Vec<Instance> {
    instances.sort();
    instances.dedup_by(|one, other| one.name == other.name);
    if instances.len() > INSTANCES_MAX {
        let cut = instances.len() - INSTANCES_MAX;
        tracing::warn!("a source lists {cut} workers more than the {INSTANCES_MAX} it may");
        instances.truncate(INSTANCES_MAX);
    }
    instances
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, host: &str) -> Instance {
        let (model, protocol) = ("m".to_owned(), Protocol::Grpc);
        Instance {
            name: name.into(),
            model,
            protocol,
            host: host.into(),
            port: 1,
            weight: 100,
            pin: None,
        }
    }

    #[test]
    fn an_address_becomes_a_url() {
        assert_eq!(instance("a", "10.0.0.7").url(), "grpc://10.0.0.7:1");
        assert_eq!(instance("a", "fe80::1").url(), "grpc://[fe80::1]:1");
        assert_eq!(instance("a", "[fe80::1]").url(), "grpc://[fe80::1]:1");
    }

    #[test]
    fn a_name_counts_once() {
        let names: Vec<_> =
            listed(vec![instance("b", "2"), instance("a", "1"), instance("b", "1")])
                .into_iter()
                .map(|one| (one.name, one.host))
                .collect();
        assert_eq!(names, [("a".into(), "1".into()), ("b".into(), "1".into())]);
    }
}

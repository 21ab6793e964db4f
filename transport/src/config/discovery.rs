//! `discovery`: registries that know where workers are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::problem::ProblemKind;
use super::reader::Section;
use super::trust::own;
use super::units::{Secret, Url};
use super::value::choices;
use crate::sources::Protocol;

/// DNS names that are asked for.
const NAMES_MAX: usize = 1_000;

/// Where workers are found beside those that the file lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Consul, where one is asked.
    pub consul: Option<Consul>,
    /// Names whose addresses are workers.
    pub dns: Vec<DnsName>,
}

/// A Consul agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consul {
    /// Its HTTP API.
    pub addr: Url,
    /// Its ACL token, where it wants one.
    pub token: Option<Secret>,
    /// Over `https://`: authorities to believe beside the public ones, a PEM file.
    pub ca: Option<PathBuf>,
    /// Over `https://`: what we show, where it asks: a certificate chain and its private key, PEM files.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The datacenter to look in.
    pub datacenter: Option<String>,
    /// How the names of the services begin.
    pub service_prefix: String,
}

/// A name in DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName {
    /// The name.
    pub host: String,
    /// The port of every address behind it.
    pub port: u16,
    /// The model that all of them serve.
    pub model: String,
    /// How they are spoken to.
    pub protocol: Protocol,
}

choices!(Protocol, Grpc = "grpc", Quic = "quic", Http = "http");

impl Discovery {
    /// Whether any registry is asked.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.consul.is_some() || !self.dns.is_empty()
    }

    pub(super) fn read(section: &Section<'_>) -> Self {
        let consul = section.section("consul", Consul::read);
        let dns = section.list("dns", NAMES_MAX, DnsName::read);
        let mut seen = BTreeSet::new();
        if let Some(twice) = dns.iter().find(|name| !seen.insert((&name.host, name.port))) {
            let reason = format!("{}:{} is listed twice", twice.host, twice.port);
            section.problem("dns", ProblemKind::Invalid(reason));
        }
        Self { consul, dns }
    }
}

impl Consul {
    fn read(section: &Section<'_>) -> Option<Self> {
        let addr = section.maybe::<Url>("addr", "Consul is not asked");
        let token = section.maybe("token", "no ACL token is sent");
        let ca = section.maybe("ca", "the public authorities alone");
        let own = own(section);
        let datacenter = section.maybe("datacenter", "the agent's own");
        let service_prefix = section.get("service_prefix", "llm-".to_owned());
        let addr = addr?;
        if addr.is_worker() {
            section
                .problem("addr", ProblemKind::Invalid("Consul speaks http:// or https://".into()));
        }
        if !addr.is_tls() {
            for key in ["ca", "cert", "key"].into_iter().filter(|key| section.gives(key)) {
                let reason = "is of use where `addr` is https:// alone: write that, or remove this";
                section.problem(key, ProblemKind::Invalid(reason.into()));
            }
        }
        Some(Self { addr, token, ca, own, datacenter, service_prefix })
    }
}

impl DnsName {
    fn read(section: &Section<'_>) -> Option<Self> {
        let (host, model) = (section.required("host"), section.required("model"));
        let protocol = section.get("protocol", Protocol::Grpc);
        let port = section.between("port", 50_055_u32, 1..=65_535);
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        Some(Self { host: host?, port, model: model?, protocol })
    }
}

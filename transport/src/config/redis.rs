//! `data.redis`: the store that gateways share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::ProblemKind;
use super::reader::Section;
use super::server::{MILLI, seconds};
use super::tree::Scalar;
use super::units::Secret;
use super::value::{Value, Wrong, text};

/// A Redis, or a cluster of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Where. Several are several ways to one store: a primary with its replicas, or nodes of a cluster.
    pub addr: HostPorts,
    /// They are nodes of a cluster.
    pub cluster: bool,
    /// Who we are there; `None` is the default user.
    pub user: Option<String>,
    /// How we prove it.
    pub password: Option<Secret>,
    /// Which database.
    pub db: u32,
    /// TLS, with the authorities in this PEM file.
    pub tls_ca: Option<PathBuf>,
    /// The longest a connection may take.
    pub dial_timeout: Duration,
    /// The longest an answer may take.
    pub read_timeout: Duration,
    /// The longest a command may take on its way. A call's deadline is the longer of the two.
    pub write_timeout: Duration,
    /// How long a request waits for it that can do without it: one of which enough was drawn ahead, and any for rates, keys and
    /// homes.
    pub fallback_after: Duration,
}

/// One or more of `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts(pub Vec<(String, u16)>);

/// More than this many ways to one store are a mistake.
const ADDRESSES_MAX: usize = 16;

/// What a request waits for the ledger that cannot do without it: to fall back later than that is no fallback.
const FALLBACK_MAX: Duration = Duration::from_millis(250);

impl Redis {
    pub(super) fn read(section: &Section<'_>) -> Option<Self> {
        let addr = section.required::<HostPorts>("addr");
        let redis = Self {
            addr: addr.unwrap_or_else(|| HostPorts(Vec::new())),
            cluster: section.get("cluster", false),
            user: section.maybe("user", "the default user"),
            password: section.maybe("password", "none"),
            db: section.between("db", 0, 0..=15),
            tls_ca: section.maybe("tls_ca", "no TLS"),
            dial_timeout: section.between("dial_timeout", seconds(1), MILLI..=seconds(60)),
            // Both below what a request waits for the ledger that cannot do without it (250 ms).
            read_timeout: section.between("read_timeout", 200 * MILLI, MILLI..=seconds(60)),
            write_timeout: section.between("write_timeout", 200 * MILLI, MILLI..=seconds(60)),
            fallback_after: section.between("fallback_after", 50 * MILLI, MILLI..=FALLBACK_MAX),
        };
        if redis.cluster && redis.db != 0 {
            let reason = "a cluster has database 0 alone: remove this key".to_owned();
            section.problem("db", ProblemKind::Invalid(reason));
        }
        (!redis.addr.0.is_empty()).then_some(redis)
    }

    /// The same but for what a running process takes on.
    pub(super) fn is_joined_as(&self, other: &Self) -> bool {
        *self == Self { fallback_after: self.fallback_after, ..other.clone() }
    }
}

impl Value for HostPorts {
    fn expected() -> String {
        "host:port, several joined by commas".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let parts: Vec<&str> = text(scalar)?.split(',').map(str::trim).collect();
        let address = |part: &str| {
            let (host, port) = part.rsplit_once(':')?;
            let host =
                host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let named = !host.is_empty() && !host.contains(['/', '@', ' ']);
            let port = port.parse().ok().filter(|port| *port != 0)?;
            named.then(|| (host.to_owned(), port))
        };
        if parts.len() > ADDRESSES_MAX {
            return Err(Wrong::Because(format!("more than {ADDRESSES_MAX} addresses")));
        }
        let addresses: Option<Vec<_>> = parts.into_iter().map(address).collect();
        addresses.map(Self).ok_or_else(|| {
            Wrong::Because("each address is host:port, without a scheme or a password".into())
        })
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (host, port)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{host}{close}:{port}")?;
        }
        Ok(())
    }
}

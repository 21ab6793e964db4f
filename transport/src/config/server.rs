//! `server`, `data`, `journal`: where the process listens and keeps things.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::Role;
use super::problem::ProblemKind;
use super::reader::Section;
use super::redis::Redis;
use super::tree::Scalar;
use super::units::{ByteSize, Secret};
use super::value::{Value, Wrong, choices};

/// What is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The HTTP front.
    pub http: Http,
    /// The gRPC front; `None` where it is not served.
    pub grpc_addr: Option<SocketAddr>,
    /// Its TLS, where it is spoken.
    pub grpc_tls: Option<GrpcTls>,
    /// A port for `QuotaService` alone, with the same TLS; `None` where it is served beside `ChatService` only.
    pub quota_addr: Option<SocketAddr>,
    /// Administration and metrics.
    pub admin: Admin,
}

/// The HTTP front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The longest one exchange may take, streams included.
    pub timeout: Duration,
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
    /// The largest request body.
    pub body_bytes_max: ByteSize,
    /// Connections held at once.
    pub connections_max: u32,
    /// The longest a client may take to send a request's headers.
    pub header_timeout: Duration,
    /// How long running streams may go on after SIGTERM.
    pub drain_grace: Duration,
}

/// Certificate and key of a TLS listener, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// TLS of the gRPC front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcTls {
    /// What it shows.
    pub own: Tls,
    /// The authorities of its callers, a PEM file: who shows no certificate of theirs is not let in.
    pub client_ca: Option<PathBuf>,
}

/// Administration and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where metrics are served (see `monitoring.prometheus`).
    pub addr: SocketAddr,
    /// The Unix socket that `pointsman status` and its like talk to. `None`: `admin.sock` in the data directory.
    pub socket: Option<PathBuf>,
}

/// Where things are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The data directory.
    pub dir: PathBuf,
    /// The Redis that holds the quota ledger all gateways share; `None` where it is in the data directory.
    pub redis: Option<Redis>,
}

/// The journal's ring of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// The size of one segment.
    pub segment_bytes: ByteSize,
    /// How many there are at most.
    pub segments_max: u32,
    /// When written records are forced to the disk.
    pub fsync: Fsync,
}

/// When written records are forced to the disk. `kill -9` loses nothing under any of them; this is about power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// When the operating system likes to.
    Never,
    /// Before anything is acknowledged.
    Always,
    /// In groups, so often.
    Every(Duration),
}

impl Server {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let http = section.section("http", Http::read);
        let (grpc_addr, grpc_tls) = section.section("grpc", |grpc| {
            grpc.warn_idle("timeout", "a call over gRPC brings its own deadline");
            grpc.maybe_between("timeout", "the caller's deadline", MILLI..=seconds(86_400));
            let tls = grpc.maybe_section("tls", |tls| {
                let client_ca = tls.maybe("client_ca", "callers show no certificate");
                let (cert, key) = (tls.required("cert"), tls.required("key"));
                Some(GrpcTls { own: Tls { cert: cert?, key: key? }, client_ca })
            });
            (grpc.maybe("addr", "gRPC is not served; with --role chat, 127.0.0.1:8081, with --role auth, 127.0.0.1:8082"), tls)
        });
        let alone = "it is served at server.grpc.addr alone";
        let quota_addr = section.section("quota", |quota| quota.maybe("addr", alone));
        let admin = section.section("admin", Admin::read);
        Self { http, grpc_addr, grpc_tls, quota_addr, admin }
    }
}

impl Http {
    fn read(section: &Section<'_>) -> Self {
        Self {
            addr: section.get("addr", loopback(8080)),
            // As long as a request may take under `routing.timeout`.
            timeout: section.between("timeout", seconds(600), seconds(1)..=seconds(86_400)),
            tls: section.maybe_section("tls", |tls| {
                let (cert, key) = (tls.required("cert"), tls.required("key"));
                Some(Tls { cert: cert?, key: key? })
            }),
            // A conversation of 128 K tokens is half a MiB, images in base64 are the rest.
            body_bytes_max: section.between(
                "body_bytes_max",
                ByteSize::mib(10),
                ByteSize(1 << 10)..=ByteSize::mib(1_024),
            ),
            // About 20 KiB each.
            connections_max: section.between("connections_max", 10_000, 1..=1_000_000),
            header_timeout: section.between("header_timeout", seconds(10), MILLI..=seconds(600)),
            // What orchestrators wait before they kill.
            drain_grace: section.between("drain_grace", seconds(30), seconds(0)..=seconds(3_600)),
        }
    }
}

impl Admin {
    fn read(section: &Section<'_>) -> Self {
        Self {
            addr: section.get("addr", Self::default_addr(section.role())),
            socket: section.maybe("socket", "`admin.sock` in the data directory"),
        }
    }
}

const EMBEDDED_ONLY: &str =
    "this build has no database: its data is in data.dir; remove this section";

impl Data {
    pub(super) fn read(section: &Section<'_>) -> Self {
        section.maybe_section("database", |database| {
            database.maybe::<String>("driver", "no database");
            database.maybe::<Secret>("source", "no database");
            database.problem("", ProblemKind::NotSupported(EMBEDDED_ONLY));
            Some(())
        });
        let redis = section.maybe_section("redis", Redis::read);
        Self { dir: section.get("dir", PathBuf::from("./pointsman-data")), redis }
    }
}

impl Journal {
    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            // Some 100,000 records; a snapshot is due about as often as a segment is full.
            segment_bytes: section.between(
                "segment_bytes",
                ByteSize::mib(64),
                ByteSize::mib(1)..=ByteSize::mib(1_024),
            ),
            // 1 GiB together; two are the least with which one can be reclaimed while the other is written.
            segments_max: section.between("segments_max", 16, 2..=1_024),
            fsync: section.get("fsync", Fsync::Every(Duration::from_millis(100))),
        }
    }
}

choices!(FsyncName, Never = "never", Always = "always");

enum FsyncName {
    Never,
    Always,
}

impl Value for Fsync {
    fn expected() -> String {
        "never, always or an interval like 100ms".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        match FsyncName::read(scalar) {
            Ok(FsyncName::Never) => return Ok(Self::Never),
            Ok(FsyncName::Always) => return Ok(Self::Always),
            Err(_) => {}
        }
        match Duration::read(scalar)? {
            every if (MILLI..=seconds(60)).contains(&every) => Ok(Self::Every(every)),
            _ => Err(Wrong::Because("an interval is from 1ms to 1m".into())),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Never => "never".into(),
            Self::Always => "always".into(),
            Self::Every(every) => every.show(),
        }
    }
}

/// The shortest time that is told apart from none.
pub(super) const MILLI: Duration = Duration::from_millis(1);

pub(super) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Admin {
    /// Where it listens unless told otherwise.
    #[must_use]
    pub fn default_addr(role: Role) -> SocketAddr {
        loopback(if role == Role::Auth { 8083 } else { 9090 })
    }
}

/// Where the auth role is asked unless told otherwise.
pub(super) fn auth_addr() -> SocketAddr {
    loopback(8082)
}

/// Where the chat role listens unless told otherwise.
pub(super) fn chat_addr() -> SocketAddr {
    loopback(8081)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

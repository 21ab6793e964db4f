//! `session`, `monitoring`, `log`.

use std::net::SocketAddr;
use std::time::Duration;

use control::units::Tokens;

use super::reader::Section;
use super::server::seconds;
use super::tracing::Tracing;
use super::units::ByteSize;
use super::value::choices;

/// Stored sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The context window of a stored session.
    pub max_tokens: Tokens,
    /// Messages of one; it takes no turn that would begin beyond.
    pub messages_max: u32,
    /// The same in bytes.
    pub bytes_max: ByteSize,
    /// Sessions of one user.
    pub sessions_max: u32,
    /// After how long without a turn it is shown as idle.
    pub ttl: Duration,
    /// From how many tokens on it is compressed.
    pub compression_threshold: Tokens,
    /// Who writes the summary.
    pub summary_model: Option<String>,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitoring {
    /// Whether `/metrics` is served on the admin address.
    pub prometheus_enabled: bool,
    /// Another name of `server.admin.addr`, which holds the address in force.
    pub(super) prometheus_addr: Option<SocketAddr>,
    /// Spans and where they go.
    pub tracing: Tracing,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// From which level on.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// How grave a line must be to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What happens.
    Info,
    /// What should not, and was dealt with.
    Warn,
    /// What somebody must look at.
    Error,
}

choices!(
    LogLevel,
    Trace = "trace",
    Debug = "debug",
    Info = "info",
    Warn = "warn" | "warning",
    Error = "error",
);

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

choices!(LogFormat, Auto = "auto", Json = "json", Text = "text");

const NO_SUMMARY: &str =
    "sessions are not summarized: what does not fit session.max_tokens is not sent";

const JAEGER: &str = "Jaeger takes OTLP now: name its port for that, usually http://HOST:4317, as monitoring.tracing.endpoint";

impl Session {
    pub(super) fn read(section: &Section<'_>) -> Self {
        for key in ["compression_threshold", "summary_model"] {
            section.warn_idle(key, NO_SUMMARY);
        }
        let tokens = Tokens(1)..=Tokens(10_000_000);
        Self {
            max_tokens: section.between("max_tokens", Tokens(4_000), tokens.clone()),
            messages_max: section.between("messages_max", 2_000, 2..=1_000_000),
            bytes_max: section.between(
                "bytes_max",
                ByteSize::mib(4),
                ByteSize(64 << 10)..=ByteSize::mib(64),
            ),
            sessions_max: section.between("sessions_max", 1_000, 1..=100_000),
            ttl: section.between("ttl", seconds(3_600), seconds(1)..=seconds(31_536_000)),
            compression_threshold: section.between("compression_threshold", Tokens(3_000), tokens),
            summary_model: section.maybe("summary_model", "the session's own model"),
        }
    }
}

impl Monitoring {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let (prometheus_enabled, prometheus_addr) = section.section("prometheus", |prometheus| {
            (prometheus.get("enabled", true), prometheus.maybe("addr", "`server.admin.addr`"))
        });
        let tracing = section.section("tracing", Tracing::read);
        section.section("jaeger", |jaeger| {
            jaeger.warn_idle("endpoint", JAEGER);
            jaeger.maybe::<String>("endpoint", "no traces")
        });
        Self { prometheus_enabled, prometheus_addr, tracing }
    }
}

impl Log {
    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            level: section.get("level", LogLevel::Info),
            format: section.get("format", LogFormat::Auto),
        }
    }
}

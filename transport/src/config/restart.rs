//! Which changes a running server cannot take on.

use super::{Config, Redis};

/// The keys that differ between the configuration a process was started with and a new one and that take effect only after a
/// restart: what it listens on, what its ports take, where it keeps things, how the journal is laid out, the logs. All others
/// apply at once.
#[must_use]
pub fn restart_required(old: &Config, new: &Config) -> Vec<String> {
    let (o, n) = (&old.server, &new.server);
    let differ = [
        ("server.http.addr", o.http.addr != n.http.addr),
        ("server.http.timeout", o.http.timeout != n.http.timeout),
        ("server.http.tls", o.http.tls != n.http.tls),
        ("server.http.body_bytes_max", o.http.body_bytes_max != n.http.body_bytes_max),
        ("server.http.connections_max", o.http.connections_max != n.http.connections_max),
        ("server.http.header_timeout", o.http.header_timeout != n.http.header_timeout),
        ("server.http.drain_grace", o.http.drain_grace != n.http.drain_grace),
        ("server.grpc.addr", o.grpc_addr != n.grpc_addr),
        ("server.grpc.tls", o.grpc_tls != n.grpc_tls),
        ("server.quota.addr", o.quota_addr != n.quota_addr),
        ("server.admin.addr", o.admin.addr != n.admin.addr),
        ("server.admin.socket", o.admin.socket != n.admin.socket),
        ("auth", old.auth != new.auth),
        ("discovery", old.discovery != new.discovery),
        ("streams", old.streams != new.streams),
        ("data.dir", old.data.dir != new.data.dir),
        ("data.redis", !joins_alike(old.data.redis.as_ref(), new.data.redis.as_ref())),
        ("journal.segment_bytes", old.journal.segment_bytes != new.journal.segment_bytes),
        ("journal.segments_max", old.journal.segments_max != new.journal.segments_max),
        ("journal.fsync", old.journal.fsync != new.journal.fsync),
        (
            "monitoring.prometheus.enabled",
            old.monitoring.prometheus_enabled != new.monitoring.prometheus_enabled,
        ),
        ("monitoring.tracing", old.monitoring.tracing != new.monitoring.tracing),
        ("log.level", old.log.level != new.log.level),
        ("log.format", old.log.format != new.log.format),
    ];
    differ.into_iter().filter(|(_, differ)| *differ).map(|(key, _)| key.to_owned()).collect()
}

fn joins_alike(old: Option<&Redis>, new: Option<&Redis>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.is_joined_as(new),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

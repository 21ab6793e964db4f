//! What a start prints: what is served, and a line to try it.

use transport::catalog::Catalog;
use transport::config::{Config, Role};

use super::doors::Doors;
use super::own_key::OwnKey;
use crate::out::say;

/// Models named in the greeting; more are counted.
const NAMED_MAX: usize = 8;

pub fn print(
    config: &Config,
    doors: &Doors,
    catalog: &Catalog,
    own_key: Option<&OwnKey>,
    demo: bool,
) {
    let addr = doors.addr;
    let scheme = if config.server.http.tls.is_some() { "https" } else { "http" };
    let models = catalog.models();
    let chat = if config.server.grpc_tls.is_some() { "chats" } else { "chat" };
    let place = match config.role {
        Role::All | Role::Gateway => format!("{scheme}://{addr}/v1"),
        Role::Chat | Role::Auth => format!("{chat}://{addr} (gRPC)"),
    };
    say!("pointsman {} serves {place}", env!("CARGO_PKG_VERSION"));
    print_beside(doors);
    match models.first() {
        None => say!("  models: none yet; its endpoints have not said what they serve"),
        Some(_) => say!("  models: {}", named(&models)),
    }
    say!("  endpoints: {}", catalog.routes().map(|(name, _)| name).collect::<Vec<_>>().join(", "));
    say!("  data: {}", config.data.dir.display());
    if demo {
        say!("  the demo replicas are built in: `serve --upstream URL` asks your own server");
    }
    let key = match own_key.map(|own| &own.fresh) {
        None if config.auth.remote.is_some() => {
            let url = config.auth.remote.as_ref().map(|role| role.url.to_string());
            say!("  keys: those of the auth role at {}", url.unwrap_or_default());
            Some("YOUR_KEY")
        }
        None if config.keys.is_empty() => {
            say!("  keys: none in use; only this machine can reach it");
            None
        }
        None => Some("YOUR_KEY"),
        Some(None) => {
            say!(
                "  keys: the one made at the first start; delete own-key.hash in the data directory for a new one"
            );
            Some("YOUR_KEY")
        }
        Some(Some(fresh)) => {
            say!("  keys: this one was made for you, and is shown only now: {}", fresh.expose());
            Some(fresh.expose())
        }
    };
    if config.role == Role::Chat {
        say!("gateways: pointsman serve --role gateway --upstream {chat}://{addr}");
        return;
    }
    let model = models.first().map_or("MODEL", |model| model.name.as_str());
    let header = key.map(|key| format!(" -H 'authorization: Bearer {key}'")).unwrap_or_default();
    say!("try it:");
    say!(
        "  curl -N {scheme}://{addr}/v1/chat/completions{header} -H 'content-type: application/json' \\\n    \
         -d '{{\"model\":\"{model}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'"
    );
}

/// The ports over gRPC that stand beside the first one.
fn print_beside(doors: &Doors) {
    for (what, door) in [("gRPC", &doors.grpc), ("QuotaService", &doors.quota)] {
        let addr = door.as_ref().and_then(|door| door.local_addr().ok());
        if let Some(addr) = addr.filter(|addr| *addr != doors.addr) {
            say!("  {what}: {addr}");
        }
    }
}

fn named(models: &[transport::exchange::Model]) -> String {
    let names: Vec<_> = models.iter().take(NAMED_MAX).map(|model| model.name.as_str()).collect();
    match models.len().saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

//! `pointsman check`: a configuration file, before it is served.

use std::process::ExitCode;

use transport::auth;
use transport::config::{self, Config, Env, Flags, Loaded, Role};
use transport::convert;
use transport::gateway::discovery_limits;
use transport::upstream::{Client, Settings};

use crate::cli::CheckArgs;
use crate::out::say;

pub fn run(args: &CheckArgs) -> ExitCode {
    let flags = Flags { role: args.role.into(), ..Flags::default() };
    let loaded = match config::load(Some(&args.config), &flags, &Env::process()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    if args.print {
        print_effective(&loaded);
    }
    let online = if args.online { check_online(&loaded.config) } else { true };
    if !online {
        return ExitCode::FAILURE;
    }
    let file = args.config.display();
    match loaded.config.routes().len() {
        _ if loaded.config.role == Role::Auth => {
            say!("{file}: fine ({} keys)", loaded.config.keys.len());
        }
        0 if loaded.config.discovery.is_some() => {
            say!("{file}: fine; whom to ask is found by its discovery");
        }
        0 => say!("{file}: fine; it names nobody to ask, so the built-in demo model is served"),
        routes => say!("{file}: fine ({routes} routes)"),
    }
    ExitCode::SUCCESS
}

fn print_effective(loaded: &Loaded) {
    for entry in &loaded.effective.entries {
        say!("{}: {}  # {}", entry.path, entry.value, entry.origin);
    }
}

/// Asks every endpoint for its models, as a gateway would, and the auth role whether it is there.
fn check_online(config: &Config) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match (runtime, convert::routes(config), Client::new(&Settings::default())) {
        (Ok(runtime), Ok(routes), Ok(client)) => runtime.block_on(async {
            let mut fine = true;
            for (name, route) in &routes {
                fine &= ask(&client, name, route).await;
            }
            fine & ask_for_keys(&client, config).await
        }),
        (Err(error), _, _) => complain(&error),
        (_, Err(error), _) => complain(&error),
        (_, _, Err(error)) => complain(&error),
    }
}

fn complain(error: &dyn std::error::Error) -> bool {
    eprintln!("{error}");
    false
}

/// Where another role judges keys: whether it answers. Names it cannot be asked for.
async fn ask_for_keys(client: &Client, config: &Config) -> bool {
    match auth::probe(client, config).await {
        Ok(None) => true,
        Err(error) => complain(&error),
        Ok(Some(at)) => {
            say!("auth ({at}): answers");
            if !config.keys.is_empty() {
                let names = config.keys.len();
                say!(
                    "auth ({at}): whether it knows the names in `keys` ({names}) cannot be asked: compare with its own file"
                );
            }
            true
        }
    }
}

async fn ask(client: &Client, name: &str, route: &transport::catalog::Route) -> bool {
    let address = &route.target.base_url;
    match client.discover(&route.target, discovery_limits()).await {
        Err(failed) => {
            eprintln!("{name} ({address}): {}: {}", failed.failure, failed.detail);
            false
        }
        Ok(found) => {
            let missing: Vec<&str> = route
                .models
                .iter()
                .map(|(public, upstream)| &**upstream.as_ref().unwrap_or(public))
                .filter(|wanted| found.models.iter().all(|model| model.id != *wanted))
                .collect();
            if missing.is_empty() {
                say!("{name} ({address}): answers, {} models", found.models.len());
            } else {
                eprintln!("{name} ({address}): answers, but does not list {}", missing.join(", "));
            }
            missing.is_empty()
        }
    }
}

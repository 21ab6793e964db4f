//! `pointsman worker`.

mod consul;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use transport::config::{Env, Errors, Tracing};
use transport::front::{Limits, Listener, Server};
use transport::logs;
use transport::quic::{Identity, IdentityError};
use transport::worker::{
    Backend, BackendError, Doors, Echo, Hash, Incoming, QuicDoor, QuicError, ServeError, Settings,
    Telemetry, serve_telling,
};

use self::consul::{ConsulError, Wanted, instance};
use crate::cli::WorkerArgs;
use crate::spans::{Spans, SpansError};

/// Where a model's worker listens.
const PORT: u16 = 50055;
/// Where its figures are, as those of the worker in Python.
const METRICS_PORT: u16 = 9464;

/// A name and a commit take less than half of it.
const REVISION_MAX: usize = 200;

/// Probes and scrapes come from a handful of places.
const PAGES_MAX: usize = 64;

/// What stops a worker, and says what to do.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("--backend: {0}")]
    Backend(#[from] BackendError),
    #[error("--{flag} is of use with --backend {backend} alone: leave it out")]
    Idle { flag: &'static str, backend: &'static str },
    #[error(
        "--backend-continues names what the server runs, in at most {REVISION_MAX} characters, like qwen2.5-7b@a09a354"
    )]
    Revision,
    #[error("{from} must be an address with a port, like 0.0.0.0:{PORT}: {text:?} is none")]
    Address { from: &'static str, text: String },
    #[error("LLM must be a port, like {PORT}: {0:?} is none")]
    Port(String),
    #[error("cannot listen on {addr}: {source}; give another address with --listen")]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error(
        "--quic-listen must be an address with a port, like 0.0.0.0:50056, or a port: {0:?} is none"
    )]
    QuicAddress(String),
    #[error(
        "--metrics-listen must be an address with a port, like 0.0.0.0:{METRICS_PORT}, or off: {0:?} is neither"
    )]
    MetricsAddress(String),
    #[error("cannot listen on {addr}: {source}; give another address with --metrics-listen")]
    Metrics { addr: SocketAddr, source: std::io::Error },
    #[error("{0}")]
    Variables(#[from] Errors),
    #[error("{0}")]
    Spans(#[from] SpansError),
    #[error("--quic-cert, --quic-key: {0}")]
    Identity(#[from] IdentityError),
    #[error("cannot serve QUIC on {addr}: {source}")]
    Quic { addr: SocketAddr, source: QuicError },
    #[error("{0}")]
    Consul(#[from] ConsulError),
    #[error("{0}")]
    Logs(#[from] logs::SettingsError),
    #[error("{0}")]
    Serve(#[from] ServeError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

pub fn run(args: &WorkerArgs) -> ExitCode {
    match start(args, &Env::process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman worker cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &WorkerArgs, env: &Env) -> Result<(), WorkerError> {
    let logs = logs::Settings::new(env.var("LOG_LEVEL"), env.var("LOG_FORMAT"))?;
    // Only a second start in one process could fail here, and there is none.
    let _ = logs::init(logs);
    let settings = Settings {
        model: args.model.clone(),
        backend: backend(args, env)?,
        concurrency: args.concurrency,
        grace: args.grace,
    };
    let (addr, metrics) = (address(args, env)?, metrics_address(args)?);
    let name = instance(args, env)?;
    let wanted = Wanted::of(args, env, &name)?;
    let (tracing, odd) = Tracing::of_env(env)?;
    for warning in odd {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let spans = Spans::start(&tracing, "pointsman-worker", env)?;
        let telemetry = Telemetry::new(&settings.model, spans.tracer()).named(&name);
        let pages = pages(metrics, &telemetry)?;
        let served = serve_on(addr, settings, (args, wanted), telemetry).await;
        drop(pages);
        spans.stop().await;
        served
    })
}

/// Serves figures until it is dropped. A default port that another worker has is no reason not to serve.
fn pages(
    addr: Option<SocketAddr>,
    telemetry: &Telemetry,
) -> Result<Option<AbortOnDropHandle<()>>, WorkerError> {
    let Some(addr) = addr else { return Ok(None) };
    let listener = match Listener::bind(addr) {
        Ok(listener) => listener,
        Err(error) if addr == default_metrics() => {
            tracing::warn!(%error, "no metrics on {addr}: somebody else listens there; give --metrics-listen another address");
            return Ok(None);
        }
        Err(source) => return Err(WorkerError::Metrics { addr, source }),
    };
    let limits = Limits { connections_max: PAGES_MAX, ..Limits::default() };
    let server = Server::new(limits, Arc::default()).listen(listener);
    let router = telemetry.router();
    let serving = async move {
        server.serve(router, std::future::pending(), Duration::ZERO).await;
    };
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(serving))))
}

fn default_metrics() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], METRICS_PORT))
}

fn metrics_address(args: &WorkerArgs) -> Result<Option<SocketAddr>, WorkerError> {
    match args.metrics_listen.as_deref().filter(|text| !text.is_empty()) {
        None => Ok(Some(default_metrics())),
        Some("off") => Ok(None),
        Some(text) => {
            let wrong = |_| WorkerError::MetricsAddress(text.to_owned());
            text.parse().map(Some).map_err(wrong)
        }
    }
}

async fn serve_on(
    addr: SocketAddr,
    settings: Settings,
    (args, wanted): (&WorkerArgs, Option<Wanted>),
    telemetry: Telemetry,
) -> Result<(), WorkerError> {
    let bound = Incoming::bind(addr).await;
    let grpc = bound.map_err(|source| WorkerError::Listen { addr, source })?;
    let quic = quic(args)?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let grace = settings.grace;
    let draining = CancellationToken::new();
    let stop = {
        let draining = draining.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("draining: no new answers; what runs may finish within {grace:?}");
            draining.cancel();
        }
    };
    let addr = grpc.local_addr()?;
    let (model, backend) = (&settings.model, &args.backend);
    match &quic {
        None => tracing::info!(model, backend, "worker ready at grpc://{addr}"),
        Some(door) => {
            let (quic, pin) = (door.local_addr()?, door.pin());
            tracing::info!(
                model,
                backend,
                "worker ready at grpc://{addr} and quic://{quic} with the certificate {pin}"
            );
        }
    }
    let presence = match wanted {
        None => None,
        Some(wanted) => {
            let quic =
                quic.as_ref().map(|door| Ok::<_, std::io::Error>((door.local_addr()?, door.pin())));
            let at = (addr, quic.transpose()?);
            Some(wanted.join(&settings, args, at, telemetry.clone())?)
        }
    };
    // Nobody is to be sent here while what runs finishes, so leaving does not wait for that.
    let leaving = async {
        draining.cancelled().await;
        if let Some(presence) = presence {
            presence.leave().await;
        }
    };
    let serving = async {
        let served = serve_telling(telemetry, Doors { grpc, quic }, settings, stop).await;
        draining.cancel();
        served
    };
    let drained = tokio::join!(serving, leaving).0?;
    match drained.cut {
        0 => tracing::info!("stopped; everything that ran has finished"),
        cut => tracing::warn!(answers = cut, "stopped; the grace time was over and these were cut"),
    }
    Ok(())
}

/// The door for QUIC, where one is wanted.
fn quic(args: &WorkerArgs) -> Result<Option<QuicDoor>, WorkerError> {
    let Some(text) = &args.quic_listen else { return Ok(None) };
    let of_port = || Some(SocketAddr::from(([0, 0, 0, 0], text.parse::<u16>().ok()?)));
    let addr = text.parse().ok().or_else(of_port);
    let addr = addr.ok_or_else(|| WorkerError::QuicAddress(text.clone()))?;
    let own = match (&args.quic_cert, &args.quic_key) {
        (Some(cert), Some(key)) => Identity::read_or_made(cert, key)?,
        // The command line lets nobody give one of them.
        (None, _) | (_, None) => Identity::made()?,
    };
    let door = QuicDoor::bind(addr, &own, args.quic_client_ca.as_deref());
    door.map(Some).map_err(|source| WorkerError::Quic { addr, source })
}

fn backend(args: &WorkerArgs, env: &Env) -> Result<Backend, WorkerError> {
    let idle = |flag, backend| Err(WorkerError::Idle { flag, backend });
    let backend = match args.backend.parse::<Backend>()? {
        Backend::Echo(_) => Backend::Echo(Echo { delay: args.delay }),
        Backend::Hash(_) => Backend::Hash(Hash { delay: args.delay, seed: args.seed }),
        Backend::OpenAi(_) if !args.delay.is_zero() => return idle("delay", "echo or hash"),
        Backend::OpenAi(server) => {
            let mut server = *server;
            if let Some(key) = env.var("WORKER_BACKEND_KEY").filter(|key| !key.is_empty()) {
                server = server.with_key(key)?;
            }
            if let Some(name) = &args.backend_model {
                server = server.with_model(name.clone());
            }
            if let Some(revision) = revision(args)? {
                server = server.continuing(revision);
            }
            Backend::OpenAi(Box::new(server))
        }
    };
    match backend {
        Backend::Echo(_) | Backend::OpenAi(_) if args.seed != 0 => idle("seed", "hash"),
        Backend::Echo(_) | Backend::Hash(_) if args.backend_model.is_some() => {
            idle("backend-model", "openai:URL")
        }
        Backend::Echo(_) | Backend::Hash(_) if args.backend_continues.is_some() => {
            idle("backend-continues", "openai:URL")
        }
        backend @ (Backend::Echo(_) | Backend::Hash(_) | Backend::OpenAi(_)) => Ok(backend),
    }
}

/// What the server is said to run, where it is said to continue answers.
fn revision(args: &WorkerArgs) -> Result<Option<String>, WorkerError> {
    let Some(text) = args.backend_continues.as_deref() else { return Ok(None) };
    let fits = !text.trim().is_empty() && text.len() <= REVISION_MAX;
    if fits && !text.chars().any(char::is_control) {
        Ok(Some(text.trim().to_owned()))
    } else {
        Err(WorkerError::Revision)
    }
}

/// The flag, else the address in the environment, else the port there, else the usual port.
fn address(args: &WorkerArgs, env: &Env) -> Result<SocketAddr, WorkerError> {
    let said = |name| env.var(name).filter(|text| !text.is_empty());
    let address = args.listen.as_deref().map(|text| ("--listen", text));
    if let Some((from, text)) = address.or_else(|| Some(("LLM_ADDR", said("LLM_ADDR")?))) {
        let wrong = |_| WorkerError::Address { from, text: text.to_owned() };
        return text.parse().map_err(wrong);
    }
    let port = match said("LLM") {
        Some(text) => text.parse().map_err(|_| WorkerError::Port(text.to_owned()))?,
        None => PORT,
    };
    Ok(SocketAddr::from(([0, 0, 0, 0], port)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    pub(super) fn args(line: &str) -> WorkerArgs {
        let line = format!("pointsman worker --model m {line}");
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Some(Command::Worker(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_goes_before_an_address_before_a_port_before_the_default() {
        let (plain, given) = (args("--backend echo"), args("--backend echo --listen 127.0.0.1:7"));
        let all = Env::from_iter([("LLM_ADDR", "10.0.0.1:8"), ("LLM", "9")]);
        let port = Env::from_iter([("LLM_ADDR", ""), ("LLM", "9")]);
        let at = |args, env| address(args, env).unwrap().to_string();
        assert_eq!(at(&given, &all), "127.0.0.1:7");
        assert_eq!(at(&plain, &all), "10.0.0.1:8");
        assert_eq!(at(&plain, &port), "0.0.0.0:9");
        assert_eq!(at(&plain, &Env::default()), "0.0.0.0:50055");
        let wrong = Env::from_iter([("LLM", "port")]);
        assert!(address(&plain, &wrong).unwrap_err().to_string().contains("LLM must be a port"));
        let wrong = address(&args("--backend echo --listen here"), &all).unwrap_err();
        assert!(wrong.to_string().contains("--listen must be an address"), "{wrong}");
    }

    #[test]
    fn figures_are_where_the_flag_says_or_nowhere() {
        let at = |line| metrics_address(&args(line)).map(|addr| addr.map(|addr| addr.to_string()));
        let plain = at("--backend echo").unwrap();
        assert!(plain.as_deref() == Some("0.0.0.0:9464") || std::env::var("METRICS_ADDR").is_ok());
        let given = at("--backend echo --metrics-listen 127.0.0.1:7").unwrap();
        assert_eq!(given.as_deref(), Some("127.0.0.1:7"));
        assert_eq!(at("--backend echo --metrics-listen off").unwrap(), None);
        let wrong = at("--backend echo --metrics-listen here").unwrap_err().to_string();
        assert!(wrong.contains("--metrics-listen must be an address"), "{wrong}");
    }

    #[test]
    fn a_backend_takes_its_own_settings_and_no_others() {
        for (line, word) in [
            ("--backend what", "openai:URL"),
            ("--backend openai:ftp://x", "must begin with"),
            ("--backend openai:grpc://x", "model server"),
            ("--backend openai:http://x --delay 5ms", "--delay"),
            ("--backend echo --seed 5", "--seed"),
            ("--backend hash --backend-model x", "--backend-model"),
            ("--backend hash --backend-continues x", "--backend-continues"),
            ("--backend openai:http://x --backend-continues \t", "like qwen2.5"),
        ] {
            let error = backend(&args(line), &Env::default()).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
        for line in [
            "--backend echo --delay 5ms",
            "--backend hash --seed 5",
            "--backend openai:http://x --backend-continues m@1",
        ] {
            assert!(backend(&args(line), &Env::default()).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_door_for_quic_has_an_address_and_a_certificate_has_its_key() {
        let line = "pointsman worker --model m --backend echo";
        for more in
            ["--quic-cert a --quic-key b", "--quic-listen 1 --quic-cert a", "--quic-client-ca a"]
        {
            let line = format!("{line} {more}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{more}");
        }
        let told = |line| quic(&args(line)).map(|door| door.is_some()).map_err(|e| e.to_string());
        assert_eq!(told("--backend echo"), Ok(false));
        let wrong = told("--backend echo --quic-listen here").unwrap_err();
        assert!(wrong.contains("--quic-listen must be an address"), "{wrong}");
        let wrong =
            told("--backend echo --quic-listen 1 --quic-cert /dev/null --quic-key /dev/null");
        let wrong = wrong.unwrap_err();
        assert!(wrong.contains("--quic-cert") && wrong.contains("/dev/null"), "{wrong}");
    }
}

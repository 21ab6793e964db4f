//! Where a worker is registered, and as what: flags first, then the variables that the worker in Python reads too.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use transport::config::{BadSecret, Env, Secret};
use transport::quic::Pin;
use transport::sources::Protocol;
use transport::upstream::{BadUrl, BaseUrl, Client, Settings as ClientSettings, SetupError};
use transport::worker::{Agent, AgentError, Presence, Registration, Settings, Telemetry};

use crate::cli::WorkerArgs;

/// What names are allowed to have.
const INSTANCE_MAX: usize = 128;

/// Why a worker cannot be registered, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    #[error(
        "{from} is where Consul's agent is, like http://127.0.0.1:8500: {text:?} is not ({why})"
    )]
    Url { from: &'static str, text: String, why: BadUrl },
    #[error("{0}")]
    Agent(#[from] AgentError),
    #[error(
        "--consul-token must be file:/path: the command line is read by everybody on the machine; a token itself may stand in CONSUL_HTTP_TOKEN"
    )]
    TokenShown,
    #[error("{from}: {source}")]
    Token { from: &'static str, source: BadSecret },
    #[error("--consul-ca, --consul-cert, --consul-key: {0}")]
    Certificates(#[from] SetupError),
    #[error(
        "--consul-cert and --consul-key (CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY) go together: one of the two is missing"
    )]
    Half,
    #[error("{0} is of use with --consul alone: leave it out")]
    Idle(&'static str),
    #[error(
        "{from} must be a name of at most {INSTANCE_MAX} letters, digits and ._:-, no other worker's: {text:?} is none"
    )]
    Instance { from: &'static str, text: String },
    #[error(
        "{from} must be a host and, where it is not the one listened on, a port that others reach this worker at, like 10.0.0.7 or 10.0.0.7:50055: {text:?} is none"
    )]
    Advertise { from: &'static str, text: String },
    #[error(
        "{from} says {text:?}, and nobody can call that: give the host and port that others reach this worker at"
    )]
    Unreachable { from: &'static str, text: String },
    #[error("{from} says quic://, and QUIC is not served: give --quic-listen")]
    NoQuic { from: &'static str },
    #[error(
        "gateways that find a worker in Consul have no certificate to show for --quic-client-ca: register gRPC with --advertise grpc://HOST, or leave --consul out and name the worker in the gateways' file"
    )]
    NoCertificates,
    #[error(
        "this machine does not tell which of its addresses others reach: give --advertise HOST:PORT"
    )]
    NoAddress,
}

/// Where a worker is to be registered.
#[derive(Debug)]
pub struct Wanted {
    addr: BaseUrl,
    token: Option<Secret>,
    ca: Option<PathBuf>,
    own: Option<(PathBuf, PathBuf)>,
    instance: String,
    advertise: Option<Advertised>,
}

/// How others reach it, as far as that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Advertised {
    from: &'static str,
    protocol: Option<Protocol>,
    host: String,
    port: Option<u16>,
}

impl Wanted {
    /// What was asked for, under this name; nothing where no Consul was named.
    pub fn of(args: &WorkerArgs, env: &Env, instance: &str) -> Result<Option<Self>, ConsulError> {
        let chosen = |flag, name, variable| chosen(env, flag, (name, variable));
        let Some((from, text)) = chosen(&args.consul, "--consul", "CONSUL_HTTP_ADDR") else {
            let idle = [
                ("--consul-token", args.consul_token.is_some()),
                ("--consul-ca", args.consul_ca.is_some()),
                ("--consul-cert", args.consul_cert.is_some()),
                ("--consul-key", args.consul_key.is_some()),
                ("--advertise", args.advertise.is_some()),
            ];
            let given = idle.into_iter().find(|(_, given)| *given);
            return given.map_or(Ok(None), |(flag, _)| Err(ConsulError::Idle(flag)));
        };
        // As Consul's own tools write it.
        let url = if text.contains("://") { text.clone() } else { format!("http://{text}") };
        let addr = url.parse().map_err(|why| ConsulError::Url { from, text, why })?;
        // Beside http:// the variables are meant for other programs.
        let is_tls = url.starts_with("https://");
        let file = |flag: &Option<PathBuf>, variable| {
            flag.clone().or_else(|| Some(said(env, variable).filter(|_| is_tls)?.into()))
        };
        let ca = file(&args.consul_ca, "CONSUL_CACERT");
        let own = match (
            file(&args.consul_cert, "CONSUL_CLIENT_CERT"),
            file(&args.consul_key, "CONSUL_CLIENT_KEY"),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(ConsulError::Half),
        };
        let advertise = chosen(&args.advertise, "--advertise", "ADVERTISE_ADDR");
        Ok(Some(Self {
            addr,
            token: token(args, env)?,
            ca,
            own,
            instance: instance.to_owned(),
            advertise: advertise.map(|(from, text)| read(from, &text)).transpose()?,
        }))
    }

    /// Registers the worker that listens there, and keeps it registered.
    pub fn join(
        self,
        settings: &Settings,
        args: &WorkerArgs,
        (grpc, quic): (SocketAddr, Option<(SocketAddr, Pin)>),
        telemetry: Telemetry,
    ) -> Result<Presence, ConsulError> {
        let at = reached(self.advertise.as_ref(), grpc, quic.map(|(addr, _)| addr), own_address)?;
        if at.0 == Protocol::Quic && args.quic_client_ca.is_some() {
            return Err(ConsulError::NoCertificates);
        }
        let is_local = |host: &str| {
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        };
        if is_local(&at.1) && !is_local(self.addr.host_and_port().0) {
            tracing::warn!(
                "{} is registered with a Consul elsewhere, and only this machine reaches it: give --advertise",
                at.1
            );
        }
        let (instance, pin) = (self.instance, quic.map(|(_, pin)| pin));
        let what = Registration::new(instance, (&settings.model, &settings.backend), at, pin);
        let (extra_ca, own) = (self.ca, self.own);
        let client = Client::new(&ClientSettings { extra_ca, own, ..Default::default() })?;
        let token = self.token.as_ref().map(Secret::expose);
        Ok(Presence::start(Agent::new(client, self.addr, token, what)?, telemetry))
    }
}

/// An empty variable counts as absent, as compose files leave them.
fn said<'a>(env: &'a Env, name: &str) -> Option<&'a str> {
    env.var(name).map(str::trim).filter(|text| !text.is_empty())
}

fn token(args: &WorkerArgs, env: &Env) -> Result<Option<Secret>, ConsulError> {
    let (from, text) = match (&args.consul_token, said(env, "CONSUL_HTTP_TOKEN")) {
        (Some(text), _) if !text.starts_with("file:") => return Err(ConsulError::TokenShown),
        (Some(text), _) => ("--consul-token", text.as_str()),
        (None, Some(text)) => ("CONSUL_HTTP_TOKEN", text),
        (None, None) => return Ok(None),
    };
    Secret::given(text).map(Some).map_err(|source| ConsulError::Token { from, source })
}

fn checked(from: &'static str, text: String) -> Result<String, ConsulError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if text.is_empty() || text.len() > INSTANCE_MAX || !text.chars().all(fits) {
        return Err(ConsulError::Instance { from, text });
    }
    Ok(text)
}

/// The worker's name: as told, else a draw.
pub fn instance(args: &WorkerArgs, env: &Env) -> Result<String, ConsulError> {
    match chosen(env, &args.instance_id, ("--instance-id", "INSTANCE_ID")) {
        Some((from, text)) => checked(from, text),
        None => Ok(own_name()),
    }
}

/// A flag, else a variable, and which of them it is.
fn chosen(
    env: &Env,
    flag: &Option<String>,
    (name, variable): (&'static str, &'static str),
) -> Option<(&'static str, String)> {
    let flag = flag.as_ref().map(|text| (name, text.clone()));
    flag.or_else(|| Some((variable, said(env, variable)?.to_owned())))
}

/// The machine's name and a draw: two workers on one machine are two.
fn own_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let host: String = host.chars().filter(fits).take(INSTANCE_MAX / 2).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{:08x}", getrandom::u32().unwrap_or_else(|_| std::process::id()))
}

/// `[grpc://|quic://]HOST[:PORT]`, an IPv6 address in brackets.
fn read(from: &'static str, text: &str) -> Result<Advertised, ConsulError> {
    let wrong = || ConsulError::Advertise { from, text: text.to_owned() };
    let unreachable = || ConsulError::Unreachable { from, text: text.to_owned() };
    let (protocol, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("grpc", rest)) => (Some(Protocol::Grpc), rest),
        Some(("quic", rest)) => (Some(Protocol::Quic), rest),
        Some(_) => return Err(wrong()),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            let port = port.strip_prefix(':').or(port.is_empty().then_some(""));
            (host.parse::<Ipv6Addr>().map(|_| host).map_err(|_| wrong())?, port.ok_or_else(wrong)?)
        }
        None => rest.rsplit_once(':').unwrap_or((rest, "")),
    };
    let port = match port {
        "" if rest.ends_with(':') => return Err(wrong()),
        "" => None,
        port => Some(port.parse::<u16>().map_err(|_| wrong())?),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if host.is_empty() || !host.chars().all(fits) || (host.contains(':') && !rest.starts_with('['))
    {
        return Err(wrong());
    }
    let nobody = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    if nobody || port == Some(0) {
        return Err(unreachable());
    }
    Ok(Advertised { from, protocol, host: host.to_owned(), port })
}

/// How others reach a worker that listens there: over QUIC where that is served, for who opens that door wants it used.
fn reached(
    said: Option<&Advertised>,
    grpc: SocketAddr,
    quic: Option<SocketAddr>,
    own_address: impl Fn() -> Option<IpAddr>,
) -> Result<(Protocol, String, u16), ConsulError> {
    let usual = if quic.is_some() { Protocol::Quic } else { Protocol::Grpc };
    let protocol = said.and_then(|said| said.protocol).unwrap_or(usual);
    let listens = match (protocol, quic, said) {
        (Protocol::Quic, Some(quic), _) => quic,
        (Protocol::Quic, None, Some(said)) => return Err(ConsulError::NoQuic { from: said.from }),
        (Protocol::Quic, None, None) | (Protocol::Grpc | Protocol::Http, _, _) => grpc,
    };
    let host = match said {
        Some(said) => said.host.clone(),
        None if listens.ip().is_unspecified() => {
            own_address().ok_or(ConsulError::NoAddress)?.to_string()
        }
        None => listens.ip().to_string(),
    };
    Ok((protocol, host, said.and_then(|said| said.port).unwrap_or(listens.port())))
}

/// The address that this machine sends from. Asks the routing table and sends nothing: the peers are kept for
/// documentation (RFC 5737, RFC 3849) and never hosts.
fn own_address() -> Option<IpAddr> {
    let peers: [(IpAddr, &str); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), "192.0.2.1:9"),
        (Ipv6Addr::UNSPECIFIED.into(), "[2001:db8::1]:9"),
    ];
    peers.into_iter().find_map(|(own, peer)| {
        let socket = UdpSocket::bind((own, 0)).ok()?;
        socket.connect(peer).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_unspecified()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::super::tests::args;
    use super::*;

    fn wanted(line: &str, env: &Env) -> Result<Option<Wanted>, String> {
        let line = format!("--backend echo {line}");
        let args = args(line.trim());
        let wanted = instance(&args, env).and_then(|name| Wanted::of(&args, env, &name));
        wanted.map_err(|why| why.to_string())
    }

    #[test]
    fn a_flag_goes_before_a_variable_and_without_either_nobody_is_told() {
        let env = Env::from_iter([
            ("CONSUL_HTTP_ADDR", "10.0.0.1:8500"),
            ("CONSUL_HTTP_TOKEN", "very-secret"),
            ("INSTANCE_ID", "w-1"),
            ("ADVERTISE_ADDR", "10.0.0.7:1"),
        ]);
        let of_env = wanted("", &env).unwrap().unwrap();
        assert_eq!(of_env.addr.authority(), "10.0.0.1:8500");
        assert_eq!(of_env.instance, "w-1");
        assert_eq!(of_env.token.as_ref().unwrap().expose(), "very-secret");
        assert!(!format!("{of_env:?}").contains("very-secret"));
        let line = "--consul https://c:1 --instance-id w-2 --advertise h:2";
        let of_flags = wanted(line, &env).unwrap().unwrap();
        assert!(of_flags.addr.is_tls() && of_flags.instance == "w-2");
        assert_eq!(of_flags.advertise.unwrap().host, "h");
        assert!(wanted("", &Env::from_iter([("CONSUL_HTTP_ADDR", "")])).unwrap().is_none());
        let half = [("CONSUL_HTTP_ADDR", "https://c"), ("CONSUL_CLIENT_KEY", "k.pem")];
        assert!(wanted("", &Env::from_iter(half)).unwrap_err().contains("go together"));
        let one = wanted("--consul http://c", &Env::default()).unwrap().unwrap().instance;
        let other = wanted("--consul http://c", &Env::default()).unwrap().unwrap().instance;
        assert_ne!(one, other, "two workers on one machine");
    }

    #[test]
    fn what_could_not_work_is_refused_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = format!("--consul http://c --consul-token file:{}", file.path().display());
        for (line, words) in [
            ("--consul ftp://c", "http://127.0.0.1:8500"),
            ("--consul http://c --consul-token abc", "file:/path"),
            ("--consul http://c --consul-token file:/nowhere/at/all", "/nowhere/at/all"),
            (empty.as_str(), "one line that is not empty"),
            ("--advertise h", "--consul alone"),
            ("--consul-token file:/x", "--consul alone"),
            ("--consul-cert a --consul-key b", "--consul alone"),
            ("--consul http://c --instance-id a/b", "no other worker's"),
            ("--consul http://c --advertise 0.0.0.0:50055", "nobody can call that"),
            ("--consul http://c --advertise grpc://[::]:1", "nobody can call that"),
            ("--consul http://c --advertise h:0", "nobody can call that"),
            ("--consul http://c --advertise http://h", "is none"),
            ("--consul http://c --advertise fe80::1", "is none"),
            ("--consul http://c --advertise [fe80::1", "is none"),
            ("--consul http://c --advertise [fe80::1]1", "is none"),
            ("--consul http://c --advertise h:port", "is none"),
            ("--consul http://c --advertise h:", "is none"),
            ("--consul http://c --advertise h/x", "is none"),
            ("--consul http://c --advertise :1", "is none"),
        ] {
            let why = wanted(line, &Env::default()).unwrap_err();
            assert!(why.contains(words), "{line}: {why}");
        }
    }

    #[test]
    fn one_door_is_registered_and_as_others_reach_it() {
        let (grpc, any) = ("10.0.0.7:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        let quic = Some("10.0.0.7:2".parse().unwrap());
        let own = || Some("10.9.9.9".parse().unwrap());
        let at = |text: &str, grpc, quic| {
            let said = (!text.is_empty()).then(|| read("--advertise", text).unwrap());
            let (protocol, host, port) = reached(said.as_ref(), grpc, quic, own).unwrap();
            format!("{protocol} {host} {port}")
        };
        assert_eq!(at("", grpc, None), "grpc 10.0.0.7 1");
        assert_eq!(at("", any, None), "grpc 10.9.9.9 1");
        assert_eq!(at("", any, quic), "quic 10.0.0.7 2");
        assert_eq!(at("h", any, quic), "quic h 2");
        assert_eq!(at("grpc://h", any, quic), "grpc h 1");
        assert_eq!(at("grpc://[fe80::1]:7", any, quic), "grpc fe80::1 7");
        assert_eq!(at("quic://h:9", any, quic), "quic h 9");
        let said = read("--advertise", "quic://h").unwrap();
        let why = reached(Some(&said), grpc, None, own).unwrap_err();
        assert!(why.to_string().contains("--quic-listen"), "{why}");
        let why = reached(None, any, None, || None).unwrap_err();
        assert!(why.to_string().contains("--advertise"), "{why}");
    }
}

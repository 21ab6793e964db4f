//! Certificates that are over, or another's: over TLS, over QUIC and between roles, each is refused in words that name it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::outcome::Failure;
use http::HeaderMap;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use transport::config::Role;
use transport::quic::{Identity, Pin, Trust};
use transport::upstream::{Ask, Client, Failed, Limits, Path, Settings, Target};
use transport::worker::{Backend, Doors, Echo, Incoming, QuicDoor, Settings as Worked, serve};

use crate::world::{SECOND, Worker, World};

/// A certificate in files, which vouches for itself.
struct Signed {
    cert: PathBuf,
    key: PathBuf,
    _dir: TempDir,
}

/// For `name`, until the first day of a year.
fn signed(name: &str, until: i32) -> Signed {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key_pair = KeyPair::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&cert, params.self_signed(&key_pair).unwrap().pem()).unwrap();
    std::fs::write(&key, key_pair.serialize_pem()).unwrap();
    Signed { cert, key, _dir: dir }
}

impl Signed {
    fn own(&self) -> Identity {
        Identity::read_or_made(&self.cert, &self.key).unwrap()
    }

    fn pin(&self) -> Pin {
        self.own().pin()
    }
}

/// Those that must not be believed, with the word that says why.
fn bad() -> [(Signed, &'static str); 2] {
    [(signed("localhost", 2001), "expired"), (signed("somebody.else", 2999), "not valid for name")]
}

async fn refused(client: &Client, target: &Target) -> Failed {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    let ask = Ask {
        resume: None,
        behalf: None,
        path: Path::ChatCompletions,
        body: Bytes::from(body.to_string()),
        stream: false,
        request_id: "req_1-2".to_owned(),
        headers: HeaderMap::new(),
    };
    let limits = Limits {
        connect: 5 * SECOND,
        first_token: 10 * SECOND,
        between_tokens: 10 * SECOND,
        whole_answer: 10 * SECOND,
        deadline: Instant::now() + 10 * SECOND,
        answer_bytes_max: 1 << 20,
    };
    client.call(target, ask, limits).await.unwrap_err()
}

/// TLS in front of a worker, as a proxy would do it.
async fn tls(worker: &Worker, own: &Signed) -> (String, AbortOnDropHandle<()>) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (cert, key) = (
        CertificateDer::from_pem_file(&own.cert).unwrap(),
        PrivateKeyDer::from_pem_file(&own.key).unwrap(),
    );
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpcs://localhost:{}", listener.local_addr().unwrap().port());
    let behind = worker.addr;
    let task = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                let mut behind = TcpStream::connect(behind).await.unwrap();
                let _ = copy_bidirectional(&mut socket, &mut behind).await;
            });
        }
    });
    (url, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn over_tls_a_certificate_that_is_over_or_anothers_is_refused() {
    let worker = Worker::echo(Duration::ZERO);
    for (own, words) in bad() {
        let (url, _proxy) = tls(&worker, &own).await;
        let settings = Settings { extra_ca: Some(own.cert.clone()), ..Settings::default() };
        let target = Target::new(url.parse().unwrap());
        let failed = refused(&Client::new(&settings).unwrap(), &target).await;
        assert_eq!(failed.failure, Failure::Connect, "{failed}");
        assert!(failed.detail.contains("certificate") && failed.detail.contains(words), "{failed}");
    }
}

#[tokio::test]
async fn over_quic_a_certificate_that_is_over_or_anothers_is_refused_unless_it_is_pinned() {
    for (own, words) in bad() {
        let any = ([127, 0, 0, 1], 0).into();
        let door = QuicDoor::bind(any, &own.own(), None).unwrap();
        let url = format!("quic://localhost:{}", door.local_addr().unwrap().port());
        let grpc = Incoming::bind(any).await.unwrap();
        let backend = Backend::Echo(Echo::default());
        let settings = Worked { model: "m".to_owned(), backend, concurrency: 4, grace: SECOND };
        let served = serve(Doors { grpc, quic: Some(door) }, settings, std::future::pending());
        let _served = AbortOnDropHandle::new(tokio::spawn(async move { drop(served.await) }));
        let client = Client::new(&Settings::default()).unwrap();
        let mut target = Target::new(url.parse().unwrap());
        target.trust = Some(Arc::new(Trust::authorities(&own.cert).unwrap()));
        let failed = refused(&client, &target).await;
        assert_eq!(failed.failure, Failure::Connect, "{failed}");
        assert!(failed.detail.contains("certificate") && failed.detail.contains(words), "{failed}");
        // A pin is this one certificate, whatever stands in it.
        let world = World::of(&format!(
            "models: {{m: {{endpoints: [{{url: '{url}', name: w0, tls: {{pin: '{}'}}}}]}}}}",
            own.pin()
        ))
        .await;
        assert_eq!(world.ask("hi", json!({})).await.status, 200);
    }
}

#[tokio::test]
async fn between_roles_a_certificate_that_is_over_or_anothers_is_refused_on_either_side() {
    let worker = Worker::echo(Duration::ZERO);
    let good = signed("localhost", 2999);
    let callers = signed("gateway", 2999);
    let chat = async |own: &Signed, clients: &Signed| {
        let text = format!(
            "server: {{grpc: {{addr: '127.0.0.1:0', tls: {{cert: '{}', key: '{}', client_ca: '{}'}}}}}}\n\
             models: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}",
            own.cert.display(),
            own.key.display(),
            clients.cert.display(),
            worker.url()
        );
        World::playing(Role::Chat, &text).await
    };
    let gateway = async |chat: &World, ca: &Signed, own: &Signed| {
        let port = chat.rpc.unwrap().port();
        let text = format!(
            "chats: [{{url: 'chats://localhost:{port}', name: c0, \
             tls: {{ca: '{}', cert: '{}', key: '{}'}}}}]",
            ca.cert.display(),
            own.cert.display(),
            own.key.display()
        );
        World::playing(Role::Gateway, &text).await
    };
    let behind = chat(&good, &callers).await;
    let world = gateway(&behind, &good, &callers).await;
    assert_eq!(world.ask("hi", json!({})).await.status, 200);
    for (own, words) in bad() {
        let behind = chat(&own, &callers).await;
        let world = gateway(&behind, &own, &callers).await;
        assert!(!world.get("/v1/models").await.contains("\"m\""), "{words}: believed");
        let health = world.get("/health").await;
        assert!(health.contains("certificate") && health.contains(words), "{words}: {health}");
    }
    let over = signed("gateway", 2001);
    let behind = chat(&good, &over).await;
    let world = gateway(&behind, &good, &over).await;
    assert!(!world.get("/v1/models").await.contains("\"m\""), "a caller whose certificate is over");
    assert!(world.get("/health").await.contains("\"healthy\":false"));
}

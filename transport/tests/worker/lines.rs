//! The connection to a worker: TLS, what travels with a call, and a peer that is gone without a word.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use control::outcome::{Failure, Stage};
use futures_util::future::join_all;
use http::HeaderMap;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use transport::upstream::{Answer, Ask, Client, Failed, Limits, Path, Settings, Target};

use transport::seam::{Accept, Connecting, Dial, Duplex, Network};
use transport::worker::{Backend, Echo, Incoming, Settings as Worked, serve};

use crate::world::{LONG, SECOND, Worker, words};

fn limits() -> Limits {
    Limits {
        connect: 5 * SECOND,
        first_token: 60 * SECOND,
        between_tokens: 60 * SECOND,
        whole_answer: 60 * SECOND,
        deadline: Instant::now() + 60 * SECOND,
        answer_bytes_max: 1 << 20,
    }
}

fn ask(text: &str) -> Ask {
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    Ask {
        resume: None,
        behalf: None,
        path: Path::ChatCompletions,
        body: Bytes::from(body.to_string()),
        stream: false,
        request_id: "req_1-2".to_owned(),
        headers: HeaderMap::new(),
    }
}

async fn whole(client: &Client, url: &str, limits: Limits) -> Result<String, Failed> {
    whole_of(client, url, limits, "hello").await
}

async fn whole_of(
    client: &Client,
    url: &str,
    limits: Limits,
    text: &str,
) -> Result<String, Failed> {
    let target = Target::new(url.parse().unwrap());
    match client.call(&target, ask(text), limits).await? {
        Answer::Whole(whole) => Ok(String::from_utf8(whole.body.to_vec()).unwrap()),
        Answer::Stream(_) => panic!("no stream was asked for"),
    }
}

/// TLS in front of a worker, as a proxy would do it, and the file of the authority it must be trusted by.
async fn tls(worker: SocketAddr) -> (u16, tempfile::NamedTempFile, AbortOnDropHandle<()>) {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut ca = tempfile::NamedTempFile::new().unwrap();
    ca.write_all(signed.cert.pem().as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                let mut behind = TcpStream::connect(worker).await.unwrap();
                let _ = copy_bidirectional(&mut socket, &mut behind).await;
            });
        }
    });
    (port, ca, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn tls_is_spoken_where_the_url_says_so_and_strangers_are_not_trusted() {
    let worker = Worker::echo(Duration::ZERO);
    let (port, ca, _proxy) = tls(worker.addr).await;
    let url = format!("grpcs://localhost:{port}");
    let settings = Settings { extra_ca: Some(ca.path().to_owned()), ..Settings::default() };
    let trusting = Client::new(&settings).unwrap();
    assert!(whole(&trusting, &url, limits()).await.unwrap().contains("hello"));
    let strict = Client::new(&Settings::default()).unwrap();
    let failed = whole(&strict, &url, limits()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Connect, "{failed}");
    assert!(failed.detail.contains("certificate"), "{failed}");
}

/// A proxy that can be told to swallow everything from then on, without closing anything.
async fn swallowing(worker: SocketAddr) -> Swallowing {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    let (swallow, swallows) = watch::channel(false);
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            let mut swallows = swallows.clone();
            tokio::spawn(async move {
                let mut behind = TcpStream::connect(worker).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut socket, &mut behind) => {}
                    () = async { drop(swallows.wait_for(|swallows| *swallows).await) } => {
                        // Both stay open, and nobody reads them.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    Swallowing { url, swallow, connections, _task: AbortOnDropHandle::new(task) }
}

struct Swallowing {
    url: String,
    swallow: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

#[tokio::test]
async fn a_peer_that_vanished_without_a_word_is_noticed_by_its_pings() {
    let worker = Worker::echo(LONG);
    let Swallowing { url, swallow, _task, .. } = swallowing(worker.addr).await;
    let client = Client::new(&Settings::default()).unwrap();
    let asking = async { whole(&client, &url, limits()).await.unwrap_err() };
    let cutting = async {
        worker.runs(1).await;
        swallow.send(true).unwrap();
        Instant::now()
    };
    let asked = async { tokio::join!(asking, cutting) };
    let (failed, cut) = timeout(40 * SECOND, Box::pin(asked)).await.unwrap();
    let broken = matches!(failed.failure, Failure::ConnectionLost | Failure::Truncated);
    assert!(broken, "{failed}");
    // Ten seconds to the ping and five for its answer; the first-token timer would have been a minute.
    assert!(cut.elapsed() < 25 * SECOND, "{:?}", cut.elapsed());
}

#[tokio::test]
async fn an_address_that_never_answers_is_no_connection_within_its_own_time() {
    // A port whose backlog is full takes no more connections and refuses none.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let held: Vec<_> = (0..3)
        .map(|_| std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)))
        .collect();
    let client = Client::new(&Settings::default()).unwrap();
    let limits = Limits { connect: Duration::from_millis(300), ..limits() };
    let began = Instant::now();
    let url = format!("grpc://{addr}");
    let failed = whole(&client, &url, limits).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Connect, "{failed}");
    assert!(began.elapsed() < 5 * SECOND);
    // By now the connection that nobody waited for has failed by itself. The next call must not be told so.
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    drop((socket, held));
    let _worker = Worker::at(addr);
    assert!(whole(&client, &url, self::limits()).await.unwrap().contains("hello"));
}

#[tokio::test]
async fn one_connection_carries_all_calls_and_limits_hold_for_each() {
    let worker = Worker::echo(Duration::from_millis(30));
    let Swallowing { url, connections, swallow: _swallow, _task } = swallowing(worker.addr).await;
    let client = Client::new(&Settings::default()).unwrap();
    let text = words(100);
    let short = Limits { deadline: Instant::now() + SECOND, ..limits() };
    let small = Limits { answer_bytes_max: 3, ..limits() };
    let stalled = Limits { between_tokens: Duration::from_millis(5), ..limits() };
    let hasty = Limits { first_token: Duration::from_millis(5), ..limits() };
    let of = |limits| whole_of(&client, &url, limits, &text);
    let ended =
        tokio::join!(of(short), of(small), of(stalled), of(hasty), whole(&client, &url, limits()));
    let failure = |ended: Result<String, Failed>| ended.unwrap_err().failure;
    assert_eq!(failure(ended.0), Failure::Timeout(Stage::Deadline));
    assert_eq!(failure(ended.1), Failure::TooLarge);
    assert_eq!(failure(ended.2), Failure::Timeout(Stage::BetweenTokens));
    assert_eq!(failure(ended.3), Failure::Timeout(Stage::FirstToken));
    assert!(ended.4.unwrap().contains("hello"));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn five_thousand_answers_at_once_share_one_connection() {
    const MANY: u32 = 5_000;
    // Nobody gets a word before all are there.
    let worker = Worker::with(Backend::Echo(Echo { delay: 600 * SECOND }), MANY, SECOND);
    let Swallowing { url, connections, swallow: _swallow, _task } = swallowing(worker.addr).await;
    let client = Client::new(&Settings::default()).unwrap();
    let patient =
        Limits { first_token: 600 * SECOND, deadline: Instant::now() + 600 * SECOND, ..limits() };
    let asking = join_all((0..MANY).map(|_| whole(&client, &url, patient)));
    tokio::select! {
        ended = asking => panic!("an answer to nobody: {:?}", ended[0]),
        () = worker.runs_within(MANY, 120 * SECOND) => {}
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    // All have left by now.
    worker.runs_within(0, 120 * SECOND).await;
}

/// A network in memory: one host, called `worker`.
struct Hall(mpsc::Sender<DuplexStream>);

impl Dial for Hall {
    fn dial(&self, host: &str, port: u16) -> Connecting<'static> {
        let known = (host, port) == ("worker", 50055);
        let (here, there) = duplex(1 << 16);
        let sent = known && self.0.try_send(there).is_ok();
        Box::pin(async move {
            let made = sent.then_some(Box::new(here) as Box<dyn Duplex>);
            made.ok_or_else(|| std::io::ErrorKind::ConnectionRefused.into())
        })
    }
}

struct Door(Mutex<mpsc::Receiver<DuplexStream>>);

impl Accept for Door {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 50055).into())
    }

    fn accept(&self) -> Connecting<'_> {
        Box::pin(async {
            let arrived = self.0.lock().await.recv().await;
            let arrived = arrived.map(|stream| Box::new(stream) as Box<dyn Duplex>);
            arrived.ok_or_else(|| std::io::ErrorKind::ConnectionAborted.into())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn worker_and_line_run_over_a_network_that_is_not_real_in_time_that_is_not_either() {
    let (sender, receiver) = mpsc::channel(4);
    let network = Network::Simulated(Arc::new(Hall(sender)));
    let settings = Worked {
        model: "m".to_owned(),
        backend: Backend::Echo(Echo { delay: 10 * SECOND }),
        concurrency: 1,
        grace: SECOND,
    };
    let door = Incoming::Simulated(Box::new(Door(Mutex::new(receiver))));
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(door, settings, stop.clone().cancelled_owned()));
    let client = Client::over(&Settings::default(), &network).unwrap();
    let began = Instant::now();
    let told = whole_of(&client, "grpc://worker", limits(), "a b c").await.unwrap();
    assert!(told.contains("a b c"), "{told}");
    assert!((30..35).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let failed = whole(&client, "grpc://nobody", limits()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Connect, "{failed}");
    stop.cancel();
    served.await.unwrap().unwrap();
}

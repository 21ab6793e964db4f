//! The QUIC connection itself: who is believed, what travels, silence, and peers that do not keep to the wire.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use control::outcome::Failure;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::HeaderMap;
use prost::Message;
use proto::inference::v1::{CallEnd, CallHead, CallMethod, Parameters};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use transport::quic::{Identity, Trust};
use transport::seam::{Connecting, Datagrams, Dial, Network, Reaching};
use transport::upstream::{
    Answer, Ask, Client, EventKind, Failed, Limits, Path as ApiPath, Settings, Target,
};
use transport::worker::{Backend, Doors, Echo, QuicDoor, Settings as Worked, serve};

use crate::world::{LONG, SECOND, Worker, question, words};

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

fn ask(text: &str, stream: bool) -> Ask {
    let messages = serde_json::json!([{"role": "user", "content": text}]);
    let body = serde_json::json!({"model": "m", "stream": stream, "messages": messages});
    Ask {
        resume: None,
        behalf: None,
        path: ApiPath::ChatCompletions,
        body: Bytes::from(body.to_string()),
        stream,
        request_id: "req_1-2".to_owned(),
        headers: HeaderMap::new(),
    }
}

pub fn target(url: &str, trust: Trust) -> Target {
    let mut target = Target::new(url.parse().unwrap());
    target.trust = Some(Arc::new(trust));
    target
}

pub async fn whole(client: &Client, target: &Target) -> Result<String, Failed> {
    match client.call(target, ask("hello", false), limits()).await? {
        Answer::Whole(whole) => Ok(String::from_utf8(whole.body.to_vec()).unwrap()),
        Answer::Stream(_) => panic!("no stream was asked for"),
    }
}

pub fn client() -> Client {
    Client::new(&Settings::default()).unwrap()
}

/// A certificate in files, which vouches for itself.
pub struct Files {
    pub own: Identity,
    cert: PathBuf,
    _dir: tempfile::TempDir,
}

pub fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    Files { own: Identity::read_or_made(&cert, &key).unwrap(), cert, _dir: dir }
}

/// A worker with this certificate, and where it is by name.
async fn worker(own: &Identity, clients: Option<&Path>) -> (String, AbortOnDropHandle<()>) {
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let grpc = transport::worker::Incoming::bind(addr).await.unwrap();
    let door = QuicDoor::bind(addr, own, clients).unwrap();
    let url = format!("quic://localhost:{}", door.local_addr().unwrap().port());
    let backend = Backend::Echo(Echo::default());
    let settings = Worked { model: "m".to_owned(), backend, concurrency: 4, grace: SECOND };
    let served = tokio::spawn(async move {
        let doors = Doors { grpc, quic: Some(door) };
        serve(doors, settings, std::future::pending()).await.unwrap();
    });
    (url, AbortOnDropHandle::new(served))
}

#[tokio::test]
async fn authorities_are_believed_by_name_and_strangers_are_not() {
    let known = files();
    let (url, _served) = worker(&known.own, None).await;
    let trusting = target(&url, Trust::authorities(&known.cert).unwrap());
    assert!(whole(&client(), &trusting).await.unwrap().contains("hello"));
    let other = files();
    for (url, trust) in [
        (url.clone(), Trust::authorities(&other.cert).unwrap()),
        (url.clone(), Trust::default()),
        // The certificate names localhost.
        (url.replace("localhost", "127.0.0.1"), Trust::authorities(&known.cert).unwrap()),
    ] {
        let failed = whole(&client(), &target(&url, trust)).await.unwrap_err();
        assert_eq!(failed.failure, Failure::Connect, "{failed}");
        assert!(failed.detail.contains("certificate"), "{failed}");
    }
}

#[tokio::test]
async fn a_worker_that_asks_who_calls_believes_its_own_authorities_alone() {
    let (own, callers, stranger) = (files(), files(), files());
    let (url, _served) = worker(&own.own, Some(&callers.cert)).await;
    let trust = || Trust::pinned(own.own.pin());
    let known = target(&url, trust().showing(callers.own.clone()));
    assert!(whole(&client(), &known).await.unwrap().contains("hello"));
    let nobody = whole(&client(), &target(&url, trust())).await.unwrap_err();
    assert_eq!(nobody.failure, Failure::Connect, "{nobody}");
    assert!(nobody.detail.contains("tls.cert"), "{nobody}");
    let other = target(&url, trust().showing(stranger.own.clone()));
    let failed = whole(&client(), &other).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Connect, "{failed}");
    assert!(failed.detail.contains("refused the TLS handshake"), "{failed}");
}

/// Passes datagrams on until it is told to swallow them.
async fn swallowing(worker: &str) -> (String, watch::Sender<bool>, AbortOnDropHandle<()>) {
    let worker: SocketAddr = worker.strip_prefix("quic://").unwrap().parse().unwrap();
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let url = format!("quic://{}", front.local_addr().unwrap());
    let (swallow, swallows) = watch::channel(false);
    let task = tokio::spawn(async move {
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (mut out, mut home, mut caller) = ([0; 65_536], [0; 65_536], None);
        loop {
            let swallows = || *swallows.borrow();
            tokio::select! {
                read = front.recv_from(&mut out) => {
                    let (length, from) = read.unwrap();
                    caller = Some(from);
                    if !swallows() {
                        back.send_to(&out[..length], worker).await.unwrap();
                    }
                }
                read = back.recv_from(&mut home) => {
                    let (length, _) = read.unwrap();
                    if let (Some(caller), false) = (caller, swallows()) {
                        front.send_to(&home[..length], caller).await.unwrap();
                    }
                }
            }
        }
    });
    (url, swallow, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn a_peer_that_is_silent_is_noticed_on_both_sides() {
    let worker = Worker::echo(LONG);
    let at = worker.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let (url, swallow, _task) = swallowing(url).await;
    let target = target(&url, Trust::pinned(pin.parse().unwrap()));
    let client = client();
    let asking = async { whole(&client, &target).await.unwrap_err() };
    let cutting = async {
        worker.runs(1).await;
        swallow.send(true).unwrap();
        Instant::now()
    };
    let both = Box::pin(async { tokio::join!(asking, cutting) });
    let (failed, cut) = timeout(LONG, both).await.unwrap();
    assert_eq!(failed.failure, Failure::ConnectionLost, "{failed}");
    assert!(failed.detail.contains("silent"), "{failed}");
    // Three seconds of silence; the first-token timer would have been a minute.
    let took = cut.elapsed();
    println!("a silent worker was given up after {took:?}");
    assert!((2 * SECOND..7 * SECOND).contains(&took), "{took:?}");
    // The worker waits eight.
    worker.runs_within(0, 15 * SECOND).await;
}

/// A worker that says nothing for six seconds, and how it is called.
fn slow_worker() -> (Worker, Target) {
    let worker = Worker::with(Backend::Echo(Echo { delay: 6 * SECOND }), 4, SECOND);
    let at = worker.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let target = target(url, Trust::pinned(pin.parse().unwrap()));
    (worker, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_slow_is_not_taken_for_silence_though_the_runtime_is_busy() {
    let (_worker, target) = slow_worker();
    let client = client();
    // Each of these holds one of the two threads for a while, again and again: whatever else runs here waits for them.
    let held: Vec<_> = (0..4)
        .map(|_| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    std::thread::sleep(Duration::from_millis(100));
                    tokio::task::yield_now().await;
                }
            }))
        })
        .collect();
    let began = Instant::now();
    let said = whole(&client, &target).await;
    drop(held);
    assert!(said.unwrap().contains("hello"));
    assert!(began.elapsed() >= 6 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_was_held_up_himself_takes_nobody_for_silent() {
    let (worker, target) = slow_worker();
    let client = client();
    let asking = async { whole(&client, &target).await };
    let held_up = async {
        worker.runs(1).await;
        // All of this runtime stands still: longer than a worker may be silent.
        std::thread::sleep(5 * SECOND);
    };
    let both = Box::pin(async { tokio::join!(asking, held_up) });
    let (said, ()) = timeout(LONG, both).await.unwrap();
    assert!(said.unwrap().contains("hello"));
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_the_backend_up_and_loses_nothing() {
    const MANY: usize = 30_000;
    let worker = Worker::echo(Duration::ZERO);
    let at = worker.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let target = target(url, Trust::pinned(pin.parse().unwrap()));
    let limits = Limits { answer_bytes_max: 64 << 20, ..limits() };
    let client = client();
    let mut asked = ask(&words(MANY), true);
    let mut body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
    body["max_tokens"] = MANY.into();
    asked.body = body.to_string().into();
    let answer = client.call(&target, asked, limits).await.unwrap();
    let Answer::Stream(mut stream) = answer else { panic!("a stream was asked for") };
    // Many times what it takes to write all of it, where nothing holds it up.
    sleep(SECOND).await;
    assert_eq!(worker.running_now().await, 1, "it wrote on although nobody reads");
    let (mut tokens, mut done) = (0, false);
    while let Some(event) = timeout(LONG, stream.next()).await.unwrap() {
        match event.unwrap().kind {
            EventKind::Tokens { count } => tokens += count.0,
            EventKind::Done => done = true,
            EventKind::Opening | EventKind::Finish | EventKind::Usage | EventKind::Other => {}
        }
    }
    assert_eq!((tokens, done), (MANY as u64, true));
    worker.runs_within(0, 5 * SECOND).await;
}

#[tokio::test]
async fn five_thousand_answers_at_once_share_one_connection() {
    const MANY: u32 = 5_000;
    const WAVES: u32 = 10;
    // Nobody gets a word before all are there.
    let worker = Worker::with(Backend::Echo(Echo { delay: 600 * SECOND }), MANY, SECOND);
    let at = worker.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let target = target(url, Trust::pinned(pin.parse().unwrap()));
    let client = client();
    let limits =
        Limits { first_token: 600 * SECOND, deadline: Instant::now() + 600 * SECOND, ..limits() };
    let mut asking = FuturesUnordered::new();
    // One after the other: a worker of one thread that reads all the questions at once looks gone meanwhile.
    for wave in 1..=WAVES {
        let more = (0..MANY / WAVES).map(|_| client.call(&target, ask("a", false), limits));
        asking.extend(more);
        tokio::select! {
            ended = asking.next() => panic!("an answer to nobody: {ended:?}"),
            () = worker.runs_within(wave * MANY / WAVES, 120 * SECOND) => {}
        }
    }
    drop(asking);
    // All have left by now.
    worker.runs_within(0, 120 * SECOND).await;
}

/// A worker with this certificate on a runtime of its own, and where it is.
fn killable(own: &Identity, addr: SocketAddr) -> (Worker, SocketAddr) {
    let (own, stop) = (own.clone(), CancellationToken::new());
    let stopped = stop.clone().cancelled_owned();
    let (tell, told) = std::sync::mpsc::channel();
    let worker = Worker::running(stop, async move |grpc| {
        let began = Instant::now();
        let door = loop {
            match QuicDoor::bind(addr, &own, None) {
                Ok(door) => break door,
                Err(error) => assert!(began.elapsed() < LONG, "{error}"),
            }
            sleep(Duration::from_millis(1)).await;
        };
        tell.send(door.local_addr().unwrap()).unwrap();
        let backend = Backend::Echo(Echo::default());
        let settings = Worked { model: "m".to_owned(), backend, concurrency: 4, grace: SECOND };
        serve(Doors { grpc, quic: Some(door) }, settings, stopped).await.unwrap()
    });
    (worker, told.recv().unwrap())
}

#[tokio::test]
async fn a_worker_that_was_restarted_at_once_says_that_the_connection_is_gone() {
    let own = files().own;
    for _ in 0..3 {
        let (mut worker, addr) = killable(&own, ([127, 0, 0, 1], 0).into());
        let (client, target) =
            (client(), target(&format!("quic://{addr}"), Trust::pinned(own.pin())));
        assert!(whole(&client, &target).await.is_ok());
        worker.kill();
        let _again = killable(&own, addr);
        let began = Instant::now();
        let failed = whole(&client, &target).await.unwrap_err();
        assert_eq!(failed.failure, Failure::ConnectionLost, "{failed}");
        assert!(began.elapsed() < 4 * SECOND, "it waited for the silence to be long enough");
        assert!(whole(&client, &target).await.is_ok(), "and the next call connects again");
        if failed.detail.contains("restarted") {
            return;
        }
        // A sign of life may have met the closed port before.
    }
    panic!("three times it was not told of the restart");
}

/// A caller of our own making.
async fn stranger(own: &Files, url: &str, early: bool) -> (quinn::Endpoint, SocketAddr) {
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(&own.cert).unwrap();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"pointsman-inference/1".to_vec()];
    tls.enable_early_data = early;
    let config = QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    (endpoint, url.replace("quic://localhost", "127.0.0.1").parse().unwrap())
}

pub fn frame(kind: u8, message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = vec![kind];
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

#[tokio::test]
async fn no_early_data_is_ever_taken() {
    let own = files();
    let (url, _served) = worker(&own.own, None).await;
    let (endpoint, addr) = stranger(&own, &url, true).await;
    for turn in 0..3 {
        let connecting = endpoint.connect(addr, "localhost").unwrap();
        let connection = match connecting.into_0rtt() {
            Ok(_) => panic!("the worker gave out a ticket for early data"),
            Err(connecting) => connecting.await.unwrap(),
        };
        // Tickets come behind the handshake: give them the time.
        let (mut to, mut from) = connection.open_bi().await.unwrap();
        let head = CallHead { method: CallMethod::Describe.into(), ..CallHead::default() };
        to.write_all(&[frame(1, &head), frame(2, &CallEnd::default())].concat()).await.unwrap();
        to.finish().unwrap();
        let said = from.read_to_end(1 << 16).await.unwrap();
        assert_eq!(said[0], 2, "turn {turn}: {said:?}");
    }
}

#[tokio::test]
async fn a_caller_that_does_not_keep_to_the_wire_is_told_so_and_hurts_nobody() {
    let own = files();
    let (url, _served) = worker(&own.own, None).await;
    let (endpoint, addr) = stranger(&own, &url, false).await;
    let connection = endpoint.connect(addr, "localhost").unwrap().await.unwrap();
    let head = |method: i32| CallHead { method, ..CallHead::default() };
    let asked = question("a b", Parameters::default());
    let good = [frame(1, &head(1)), frame(2, &asked)].concat();
    let huge = [frame(1, &head(1)), vec![2, 255, 255, 255, 255]].concat();
    for (sent, code, word) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 3, "begins with 71"),
        (vec![], 3, "ended before"),
        (good[..good.len() - 1].to_vec(), 3, "inside a frame"),
        (frame(2, &asked), 3, "belongs"),
        ([frame(1, &head(1)), frame(3, &asked)].concat(), 3, "belongs"),
        ([frame(1, &head(77)), frame(2, &asked)].concat(), 12, "no such call"),
        (vec![1, 0, 0, 0, 2, 0xff, 0xff], 3, "no such message"),
        (huge, 11, "above the limit"),
    ] {
        let (mut to, mut from) = connection.open_bi().await.unwrap();
        to.write_all(&sent).await.unwrap();
        let _ = to.finish();
        let said = timeout(LONG, from.read_to_end(1 << 16)).await.unwrap().unwrap();
        assert_eq!(said[0], 3, "{said:?}");
        let end = CallEnd::decode(&said[5..]).unwrap();
        assert_eq!(end.code, code, "{end:?}");
        assert!(end.message.contains(word), "{end:?}");
    }
    let (mut to, mut from) = connection.open_bi().await.unwrap();
    to.write_all(&good).await.unwrap();
    to.finish().unwrap();
    let said = from.read_to_end(1 << 16).await.unwrap();
    assert_eq!(said[0], 2, "still served: {said:?}");
    assert!(said.ends_with(&frame(3, &CallEnd::default())), "{said:?}");
}

/// What a lying worker writes instead of an answer, and whether it then resets the stream.
pub async fn liar(own: &Files, answer: Vec<u8>, reset: bool) -> (String, AbortOnDropHandle<()>) {
    let key = own.cert.with_file_name("k.pem");
    let pem = |path: &Path| std::fs::read(path).unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(&pem(&key)).unwrap();
    let cert = rustls::pki_types::pem::PemObject::from_pem_slice(&pem(&own.cert)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    tls.alpn_protocols = vec![b"pointsman-inference/1".to_vec()];
    let config = Arc::new(QuicServerConfig::try_from(tls).unwrap());
    let config = quinn::ServerConfig::with_crypto(config);
    let endpoint = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
    let url = format!("quic://{}", endpoint.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.unwrap();
            while let Ok((mut to, mut from)) = connection.accept_bi().await {
                let _ = from.read_to_end(1 << 20).await;
                let _ = to.write_all(&answer).await;
                // So that the answer is there before the reset.
                sleep(Duration::from_millis(100)).await;
                if reset {
                    let _ = to.reset(7_u32.into());
                }
            }
        }
    });
    (url, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn a_worker_that_does_not_keep_to_the_wire_is_never_taken_for_a_clean_end() {
    let own = files();
    let chunk = |finish: &str| {
        let chunk = proto::inference::v1::StreamInferenceResponse {
            token_count: 1,
            text: "a".to_owned(),
            finish_reason: finish.to_owned(),
            ..Default::default()
        };
        frame(2, &chunk)
    };
    let end =
        |code| frame(3, &CallEnd { code, message: "a secret".to_owned(), ..CallEnd::default() });
    for (answer, reset, expected) in [
        (vec![], false, Failure::ConnectionLost),
        (vec![], true, Failure::ConnectionLost),
        (end(0), false, Failure::Truncated),
        (chunk("stop"), false, Failure::Truncated),
        (chunk("stop"), true, Failure::Truncated),
        ([chunk(""), end(0)].concat(), false, Failure::Truncated),
        ([chunk(""), vec![2, 0, 0, 0, 9, 1]].concat(), false, Failure::Truncated),
        ([chunk(""), b"HTTP".to_vec()].concat(), false, Failure::Garbage),
        ([chunk(""), frame(1, &CallEnd::default())].concat(), false, Failure::Garbage),
        ([chunk(""), vec![2, 0, 0, 0, 1, 0xff]].concat(), false, Failure::Garbage),
        ([chunk(""), vec![2, 127, 0, 0, 0]].concat(), false, Failure::TooLarge),
        ([chunk(""), end(13)].concat(), false, Failure::ErrorInAnswer),
        (end(14), false, Failure::Status(502)),
        (end(8), false, Failure::Backpressure(429)),
        (end(4_000_000_000), false, Failure::Status(500)),
    ] {
        let (url, _task) = liar(&own, answer.clone(), reset).await;
        let target = target(&url, Trust::pinned(own.own.pin()));
        let failed = whole(&client(), &target).await.unwrap_err();
        assert_eq!(failed.failure, expected, "{answer:?}, reset {reset}: {failed}");
        assert!(!failed.detail.contains("secret"), "{failed}");
    }
}

/// A cable between two sockets of a simulated network.
#[derive(Debug)]
struct Cable {
    own: SocketAddr,
    to: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    from: Mutex<mpsc::Receiver<(SocketAddr, Vec<u8>)>>,
}

fn cable() -> (Arc<Cable>, Arc<Cable>) {
    let ((to, one), (back, other)) = (mpsc::channel(64), mpsc::channel(64));
    let end = |port, to, from| {
        Arc::new(Cable { own: ([10, 0, 0, 1], port).into(), to, from: Mutex::new(from) })
    };
    (end(1, to, other), end(2, back, one))
}

impl Datagrams for Cable {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.own)
    }

    fn try_send(&self, _: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        // Whoever has left does not hear it, and what is too much is lost.
        let _ = self.to.try_send((self.own, datagram.to_vec()));
        Ok(())
    }

    fn poll_room(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        match self.from.lock().unwrap().poll_recv(cx) {
            Poll::Ready(Some((from, datagram))) => {
                into[..datagram.len()].copy_from_slice(&datagram);
                Poll::Ready(Ok((datagram.len(), from)))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// A network with one host, `worker`, that can be called once.
struct Hall(Mutex<Option<Arc<Cable>>>);

impl Dial for Hall {
    fn dial(&self, _: &str, _: u16) -> Connecting<'static> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }

    fn reach(&self, host: &str, port: u16) -> Reaching {
        assert_eq!((host, port), ("worker", 50_056));
        let cable = self.0.lock().unwrap().take();
        Box::pin(async move {
            let cable = cable.ok_or(io::ErrorKind::HostUnreachable)?;
            Ok((([10, 0, 0, 1], 2).into(), cable as Arc<dyn Datagrams>))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn worker_and_line_run_over_datagrams_that_are_not_real_in_time_that_is_not_either() {
    let (here, there) = cable();
    let own = Identity::made().unwrap();
    let door = QuicDoor::simulated(there, &own).unwrap();
    let grpc = transport::worker::Incoming::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let backend = Backend::Echo(Echo { delay: 10 * SECOND });
    let settings = Worked { model: "m".to_owned(), backend, concurrency: 4, grace: SECOND };
    let stop = CancellationToken::new();
    let doors = Doors { grpc, quic: Some(door) };
    let served = tokio::spawn(serve(doors, settings, stop.clone().cancelled_owned()));
    let network = Network::Simulated(Arc::new(Hall(Mutex::new(Some(here)))));
    let client = Client::over(&Settings::default(), &network).unwrap();
    let target = target("quic://worker", Trust::pinned(own.pin()));
    let began = Instant::now();
    let asked = client.call(&target, ask("a b c", false), limits()).await.unwrap();
    let Answer::Whole(told) = asked else { panic!("no stream was asked for") };
    assert!(String::from_utf8_lossy(&told.body).contains("a b c"), "{told:?}");
    // Longer than the silence that ends a connection: it is kept alive.
    assert!((30..35).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    stop.cancel();
    served.await.unwrap().unwrap();
}

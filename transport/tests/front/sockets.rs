//! Slow, many, old and new clients, and the end of the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use control::plane::Outcome;
use http::{Method, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use transport::exchange::Part;
use transport::front::{Drained, Limits};

use crate::world::{
    ANSWER, Act, HELLO, World, bearer, client, end, read_all, request, script, streaming,
};

const GRACE: Duration = Duration::from_secs(5);

fn impatient() -> Limits {
    Limits { header_time: Duration::from_millis(200), ..Limits::default() }
}

#[tokio::test]
async fn slow_heads_are_cut_wherever_they_stop() {
    let world = World::with(impatient(), GRACE, None, |_| Act::Whole(ANSWER));
    for head in
        ["", "P", "POST /v1/chat/comp", "GET /health HTTP/1.1\r\nhost: x\r\nx-a: ", "PRI * HTTP/2"]
    {
        let mut socket = world.raw(head).await;
        let began = Instant::now();
        let answer = read_all(&mut socket, Duration::from_secs(5)).await;
        assert!(answer.is_some(), "{head:?} was held for {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_slow_head() {
    let limits = Limits { idle_time: Duration::from_millis(1_500), ..impatient() };
    let world = World::with(limits, GRACE, None, |_| Act::Whole(ANSWER));
    let get = b"GET /health HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n";
    let mut socket = world.raw(get).await;
    for _ in 0..2 {
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") {
            assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0, "closed too early");
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        socket.write_all(&get[..5]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.write_all(&get[5..]).await.unwrap();
    }
    let began = Instant::now();
    assert!(read_all(&mut socket, GRACE).await.is_some(), "but not for ever");
    assert!(began.elapsed() > Duration::from_secs(1));
    let mut slow = world.raw([&get[..], b"GET"].concat()).await;
    assert!(read_all(&mut slow, GRACE).await.is_some());
}

#[tokio::test]
async fn a_slow_answer_is_not_a_slow_head() {
    let (parts, play) = script();
    let world = World::with(impatient(), GRACE, None, play);
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", bearer())
        .body(Full::from(streaming(HELLO)))
        .unwrap();
    let mut body = client().request(asked).await.unwrap().into_body();
    tokio::time::sleep(Duration::from_millis(600)).await;
    parts.send(Part::Bytes(Bytes::from_static(b"data: x\n\n"))).await.unwrap();
    let frame = timeout(GRACE, body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "data: x\n\n");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let (parts, play) = script();
    let limits = Limits { write_stall: Duration::from_millis(200), ..Limits::default() };
    let world = World::with(limits, GRACE, None, play);
    let body = streaming(HELLO);
    let _unread = world
        .raw(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n{body}",
            bearer(),
            body.len()
        ))
        .await;
    let big = Bytes::from(vec![b'x'; 1 << 20]);
    let flood = async { while parts.send(Part::Bytes(big.clone())).await.is_ok() {} };
    timeout(GRACE, flood).await.expect("the receiver is dropped");
    world.quiet().await;
}

#[tokio::test]
async fn beyond_the_cap_clients_wait_until_somebody_leaves() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let world = World::with(limits, GRACE, None, |_| Act::Whole(ANSWER));
    let first = TcpStream::connect(world.addr).await.unwrap();
    let _second = TcpStream::connect(world.addr).await.unwrap();
    while world.meters.connections() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut third = world.raw("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(read_all(&mut third, Duration::from_millis(200)).await.is_none(), "it waits");
    drop(first);
    let answer = read_all(&mut third, GRACE).await.expect("and then it is served");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_running_stream_finishes_while_the_door_is_closed() {
    let (parts, play) = script();
    let world = World::new(play);
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", bearer())
        .body(Full::from(streaming(HELLO)))
        .unwrap();
    let body = client().request(asked).await.unwrap().into_body();
    let idle = TcpStream::connect(world.addr).await.unwrap();
    world.stop.cancel();
    while TcpStream::connect(world.addr).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    parts.send(Part::Bytes(Bytes::from_static(b"data: late\n\n"))).await.unwrap();
    parts.send(Part::End(end(Outcome::Completed))).await.unwrap();
    let whole = body.collect().await.unwrap().to_bytes();
    assert_eq!(whole, "data: late\n\n");
    let drained = timeout(Duration::from_secs(2), world.served).await.unwrap().unwrap();
    assert_eq!(drained, Drained { cut: 0 }, "idle connections do not hold it up");
    drop(idle);
}

#[tokio::test]
async fn what_still_runs_after_the_grace_is_cut() {
    let (parts, play) = script();
    let grace = Duration::from_millis(100);
    let world = World::with(Limits::default(), grace, None, play);
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", bearer())
        .body(Full::from(streaming(HELLO)))
        .unwrap();
    let body = client().request(asked).await.unwrap().into_body();
    world.stop.cancel();
    let drained = timeout(GRACE, world.served).await.unwrap().unwrap();
    assert_eq!(drained, Drained { cut: 1 });
    timeout(GRACE, parts.closed()).await.expect("the exchange learns of it");
    assert!(body.collect().await.is_err(), "the client sees a broken body, not a clean end");
    assert_eq!(world.meters.requests_in_flight(), 0);
}

#[tokio::test]
async fn http2_works_with_prior_knowledge_and_many_streams_at_once() {
    let world = World::new(|_| Act::Whole(ANSWER));
    let http2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let ask = || {
        let asked = request(Method::POST, world.url("/v1/chat/completions"))
            .header("authorization", bearer());
        http2.request(asked.body(Full::from(HELLO)).unwrap())
    };
    for answer in futures_util::future::join_all((0..50).map(|_| ask())).await {
        let answer = answer.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
        assert_eq!(answer.headers()["x-request-id"], "req_1-beef");
    }
    assert_eq!(world.meters.connections(), 1);
}

#[tokio::test]
async fn tls_speaks_http2_and_http1() {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key.into())
        .unwrap();
    let world = World::with(impatient(), GRACE, Some(Arc::new(server)), |_| Act::Whole(ANSWER));
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let trusting = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = || {
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(trusting.clone()).https_only()
    };
    let url = format!("https://localhost:{}/health", world.addr.port());
    for (connector, version) in [
        (builder().enable_http1().enable_http2().build(), Version::HTTP_2),
        (builder().enable_http1().build(), Version::HTTP_11),
    ] {
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
        let asked = request(Method::GET, url.parse().unwrap());
        let answer = client.request(asked.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
    let mut silent = TcpStream::connect(world.addr).await.unwrap();
    assert!(read_all(&mut silent, GRACE).await.is_some(), "a handshake has a deadline, too");
    let mut plain = world.raw("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = read_all(&mut plain, GRACE).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP is not served on a TLS port");
}

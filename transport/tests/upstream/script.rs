//! Servers that follow a script.

use core::future::pending;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use transport::upstream::Target;

/// What a server does, after it has read a request.
#[derive(Clone)]
pub enum Step {
    Send(Bytes),
    Wait(Duration),
    /// Read another request on the same connection.
    NextRequest,
    /// Do nothing until the client closes.
    Hang,
    Close,
}

impl Step {
    pub fn send(text: &str) -> Self {
        Self::Send(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// A running server, and what it has seen.
pub struct Scripted {
    pub target: Target,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    closed: watch::Receiver<bool>,
}

impl Scripted {
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// Waits until the client has closed a connection on which the server was hanging.
    pub async fn closed(&self, within: Duration) {
        let mut closed = self.closed.clone();
        timeout(within, closed.wait_for(|closed| *closed)).await.unwrap().unwrap();
    }
}

/// Plays `steps` on every connection.
pub async fn serve(steps: Vec<Step>) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, closed) = watch::channel(false);
    let (requests, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let server = Scripted {
        target: Target::new(url.parse().unwrap()),
        requests: Arc::clone(&requests),
        connections: Arc::clone(&connections),
        closed,
    };
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            *connections.lock().unwrap() += 1;
            tokio::spawn(play(socket, steps.clone(), Arc::clone(&requests), tell.clone()));
        }
    });
    server
}

async fn play(
    mut socket: TcpStream,
    steps: Vec<Step>,
    requests: Arc<Mutex<Vec<String>>>,
    tell: watch::Sender<bool>,
) {
    socket.set_nodelay(true).unwrap();
    let hangs_at_once = matches!(steps.first(), Some(Step::Hang));
    if !hangs_at_once {
        let Some(request) = read_request(&mut socket).await else { return };
        requests.lock().unwrap().push(request);
    }
    for step in steps {
        match step {
            // The client may have gone: then the next read says so.
            Step::Send(bytes) => drop(socket.write_all(&bytes).await),
            Step::Wait(time) => sleep(time).await,
            Step::NextRequest => {
                let Some(request) = read_request(&mut socket).await else { return };
                requests.lock().unwrap().push(request);
            }
            Step::Hang => {
                let mut rest = [0; 1024];
                while let Ok(1..) = socket.read(&mut rest).await {}
                tell.send_replace(true);
            }
            Step::Close => return,
        }
    }
    // The script is over, and the connection stays until the client has enough of it.
    let mut rest = [0; 1024];
    while let Ok(1..) = socket.read(&mut rest).await {}
}

async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(text);
        }
    }
}

/// One chunk of a chunked body.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A stream's answer, whole and properly ended.
pub fn sse(blocks: &str) -> String {
    let body = if blocks.is_empty() { String::new() } else { chunk(blocks) };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked";
    format!("{head}\r\n\r\n{body}0\r\n\r\n")
}

pub fn with_length(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// An HTTP/2 server by prior knowledge that sends `first` and then nothing; the receiver hears when the client reset the
/// stream.
pub async fn http2(first: Bytes) -> (Target, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut target =
        Target::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    target.http2_only = true;
    let (tell, dropped) = oneshot::channel();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let body = Mutex::new(Some(Endless { first: Some(first), tell: Some(tell) }));
        let service = service_fn(move |_: Request<Incoming>| {
            let body = body.lock().unwrap().take().expect("one request only");
            async move { Ok::<_, core::convert::Infallible>(Response::new(body)) }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(socket), service).await.unwrap();
    });
    (target, dropped)
}

/// A body that goes on until somebody drops it, and says when that was.
struct Endless {
    first: Option<Bytes>,
    tell: Option<oneshot::Sender<()>>,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = core::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Poll::Pending,
        }
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(());
        }
    }
}

/// A TLS server that answers every request with `answer`, and the file of the authority it must be trusted by.
pub async fn tls(answer: String) -> (Target, tempfile::NamedTempFile) {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut ca = tempfile::NamedTempFile::new().unwrap();
    ca.write_all(signed.cert.pem().as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                if read_request(&mut socket).await.is_some() {
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
                pending::<()>().await;
            });
        }
    });
    (Target::new(format!("https://localhost:{port}").parse().unwrap()), ca)
}

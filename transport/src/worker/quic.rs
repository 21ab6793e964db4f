//! The same service over QUIC: `docs/quic.md` describes the wire.

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use prost::Message;
use proto::inference::v1::{
    CallEnd, CallHead, CallMethod, DescribeRequest, StreamInferenceRequest,
};
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, Runtime as _, SendStream, TokioRuntime, WriteError,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::backend::{Caller, Job};
use super::incoming::CONNECTIONS_MAX;
use super::service::{ANSWER_MAX, Service};
use super::{CONNECTION_WINDOW, REQUEST_BYTES_MAX, STREAM_WINDOW};
use crate::quic::frame::{Broken, Frames, Kind, framed};
use crate::quic::{Ends, Identity, IdentityError, Pin, code};
use crate::seam::Datagrams;
use crate::seam::datagram::Simulated;

/// More than may run, so that refusals have a stream; fewer than over HTTP/2, because here each is paid for ahead, with
/// some hundred bytes. Who opens more waits.
const STREAMS_MAX: u32 = 8_192;
const ENDS: Ends = Ends {
    streams_max: STREAMS_MAX,
    stream_window: STREAM_WINDOW,
    connection_window: CONNECTION_WINDOW,
    says_alive: false,
};
/// A question is there within this time, or it is refused: it comes with the call.
const QUESTION_WITHIN: Duration = Duration::from_secs(30);
/// The words of a status, as over gRPC, where they stand in a header.
const WORDS_MAX: usize = 2_048;

/// Where callers come in over QUIC.
#[derive(Debug)]
pub struct QuicDoor {
    endpoint: Endpoint,
    pin: Pin,
}

/// Why a port does not serve QUIC.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Certificate, key or authorities.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The address cannot be bound.
    #[error("{0}")]
    Bind(#[from] io::Error),
}

impl QuicDoor {
    /// Binds a UDP port of this machine; port 0 takes a free one. With `clients`, a PEM file, callers must show a
    /// certificate of those authorities. Call it within a Tokio runtime.
    ///
    /// # Errors
    /// See [`QuicError`].
    pub fn bind(
        addr: SocketAddr,
        own: &Identity,
        clients: Option<&Path>,
    ) -> Result<Self, QuicError> {
        let socket = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind(addr)?)?;
        Self::on(socket, own, clients)
    }

    /// The same on a socket of a simulated network.
    ///
    /// # Errors
    /// As for [`Self::bind`].
    pub fn simulated(socket: Arc<dyn Datagrams>, own: &Identity) -> Result<Self, QuicError> {
        Self::on(Arc::new(Simulated(socket)), own, None)
    }

    fn on(
        socket: Arc<dyn AsyncUdpSocket>,
        own: &Identity,
        clients: Option<&Path>,
    ) -> Result<Self, QuicError> {
        let mut config = own.server(clients)?;
        config.transport_config(ENDS.transport());
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(own.endpoint(), Some(config), socket, runtime)?;
        Ok(Self { endpoint, pin: own.pin() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The fingerprint of its certificate, for callers to pin.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Serves until `closing`, and then until what was written has arrived.
    pub(super) async fn serve(self, service: Arc<Service>, closing: CancellationToken) {
        let tasks = TaskTracker::new();
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = closing.cancelled() => None,
            };
            let Some(incoming) = incoming else { break };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let (service, answers) = (Arc::clone(&service), tasks.clone());
            // Not among the tasks that are waited for: it lasts as long as its caller likes.
            tokio::spawn(async move {
                match incoming.await {
                    Ok(connection) => calls(&connection, &service, &answers).await,
                    Err(error) => tracing::debug!(%error, "a QUIC connection was not made"),
                }
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
        self.endpoint.close(code::DONE, b"");
        self.endpoint.wait_idle().await;
    }
}

impl Drop for QuicDoor {
    fn drop(&mut self) {
        self.endpoint.close(code::DONE, b"");
    }
}

/// The calls of one connection, side by side. Each ends by itself when the connection does.
async fn calls(connection: &Connection, service: &Arc<Service>, answers: &TaskTracker) {
    while let Ok((to, from)) = connection.accept_bi().await {
        let call = Call { service: Arc::clone(service), to };
        answers.spawn(call.answer(Frames::new(from, REQUEST_BYTES_MAX)));
    }
}

/// One stream.
struct Call {
    service: Arc<Service>,
    to: SendStream,
}

/// Nobody listens any more.
struct Gone;

impl From<WriteError> for Gone {
    fn from(_: WriteError) -> Self {
        Self
    }
}

/// What was asked.
enum Asked {
    Inference(Box<Job>),
    Description,
}

impl Call {
    async fn answer(mut self, mut from: Frames) {
        let asked = timeout(QUESTION_WITHIN, asked(&mut from)).await;
        // Where the stream's own end is here too, nothing of it needs to be stopped.
        let _ = from.next().now_or_never();
        let asked = asked.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded("the question did not come within 30 seconds"))
        });
        // A caller that does not read holds its stream, and nothing else: the seat comes back with the deadline.
        let patience = match &asked {
            Ok(Asked::Inference(job)) => job.patience.min(ANSWER_MAX),
            Ok(Asked::Description) | Err(_) => QUESTION_WITHIN,
        };
        let done = timeout(patience + QUESTION_WITHIN, self.write(asked)).await;
        if !matches!(done, Ok(Ok(()))) {
            let _ = self.to.reset(code::CANCELLED);
        }
        // Of a question that was refused early, the rest.
        from.stop(code::DONE);
    }

    async fn write(&mut self, asked: Result<Asked, Status>) -> Result<(), Gone> {
        let ended = match asked {
            Ok(Asked::Inference(job)) => self.infer(*job).await?,
            Ok(Asked::Description) => {
                let said = framed(Kind::Message, &self.service.description());
                self.to.write_chunk(said).await?;
                Ok(())
            }
            Err(status) => Err(status),
        };
        self.to.write_chunk(framed(Kind::End, &end(ended))).await?;
        let _ = self.to.finish();
        // A worker that ends waits for this: what has not arrived would be lost with the connection.
        let _ = self.to.stopped().await;
        Ok(())
    }

    /// Returns with the backend stopped.
    async fn infer(&mut self, job: Job) -> Result<Result<(), Status>, Gone> {
        let mut answer = match self.service.begin(job) {
            Ok(answer) => answer,
            Err(status) => return Ok(Err(status)),
        };
        let stopped = self.to.stopped();
        tokio::pin!(stopped);
        loop {
            let chunk = tokio::select! {
                biased;
                _ = &mut stopped => return Err(Gone),
                chunk = answer.next() => chunk,
            };
            match chunk {
                Some(Ok(chunk)) => self.to.write_chunk(framed(Kind::Message, &chunk)).await?,
                Some(Err(status)) => return Ok(Err(status)),
                None => return Ok(Ok(())),
            }
        }
    }
}

/// Reads a question.
async fn asked(from: &mut Frames) -> Result<Asked, Status> {
    let head: CallHead = message(from, Kind::Head).await?;
    match head.method() {
        CallMethod::StreamInference => {
            let ask: StreamInferenceRequest = message(from, Kind::Message).await?;
            let patience = head.timeout_micros.map_or(ANSWER_MAX, Duration::from_micros);
            let caller = Caller::read(|name| head.metadata.get(name).map(String::as_str));
            Ok(Asked::Inference(Box::new(Job::new(ask, caller, patience))))
        }
        CallMethod::Describe => {
            let _: DescribeRequest = message(from, Kind::Message).await?;
            Ok(Asked::Description)
        }
        CallMethod::Unspecified => Err(Status::unimplemented(
            "this worker knows no such call; it may be of an older version",
        )),
    }
}

async fn message<T: Message + Default>(from: &mut Frames, expected: Kind) -> Result<T, Status> {
    let wrong = |words: String| Status::invalid_argument(words);
    match from.next().await {
        Ok(Some((kind, bytes))) if kind == expected => {
            T::decode(bytes).map_err(|_| wrong("a frame holds no such message".to_owned()))
        }
        Ok(Some((kind, _))) => Err(wrong(format!("a {kind:?} frame where {expected:?} belongs"))),
        Ok(None) => Err(wrong("the stream ended before its question".to_owned())),
        Err(broken @ Broken::TooLarge(..)) => Err(Status::out_of_range(broken.to_string())),
        Err(broken @ (Broken::Kind(_) | Broken::Cut | Broken::Read(_))) => {
            Err(wrong(broken.to_string()))
        }
    }
}

fn end(ended: Result<(), Status>) -> CallEnd {
    let Err(status) = ended else { return CallEnd::default() };
    let words = status.message();
    let words = &words[..words.floor_char_boundary(WORDS_MAX)];
    let retry_after = status.metadata().get("retry-after-ms");
    CallEnd {
        // A status that is none would read as success.
        code: u32::try_from(i32::from(status.code())).unwrap_or(Code::Unknown as u32),
        message: words.to_owned(),
        retry_after_ms: retry_after.and_then(|millis| millis.to_str().ok()?.parse().ok()),
    }
}

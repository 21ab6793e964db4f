//! Calls over QUIC: see [`crate::quic`] for the wire.
//!
//! A connection is made by the first call that needs one, while the others wait for the same; whoever gives up waiting
//! leaves nothing behind, and the next in line dials. A call that finds its connection gone before it has sent anything is
//! put on a new one, once; what may have been read is never sent again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::HeaderMap;
use prost::Message;
use proto::inference::v1::{CallEnd, CallHead, CallMethod};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, ReadError, RecvStream, SendStream,
    TokioRuntime, TransportErrorCode, WriteError,
};
use rustls::RootCertStore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::{Code, Status};

use control::outcome::Failure;

use super::line::{CONNECT_MAX, CONNECTION_WINDOW, STREAM_WINDOW};
use super::refusal;
use crate::quic::frame::{Broken, Frames, Kind, framed};
use crate::quic::{Ends, Trust, code};
use crate::seam::Network;
use crate::seam::datagram::Reach;
use crate::upstream::Limits;
use crate::upstream::failed::Failed;

/// What this side takes ahead: as over HTTP/2.
const ENDS: Ends = Ends {
    // A worker opens none.
    streams_max: 0,
    stream_window: STREAM_WINDOW,
    connection_window: CONNECTION_WINDOW,
    says_alive: true,
};

/// A host's next address is tried after so long: a call waits for a connection for some seconds in all.
const NEXT_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked whether a worker was heard of, and in how many looks in a row it must not have been before it is
/// held for gone: three seconds, in which it was asked for a sign of life several times.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const SILENT_LOOKS: u32 = 6;

/// The way to one worker.
#[derive(Clone)]
pub(super) struct Road(Arc<Shared>);

struct Shared {
    host: String,
    port: u16,
    network: Network,
    config: quinn::ClientConfig,
    /// Held by who dials.
    dialing: tokio::sync::Mutex<()>,
    connection: Mutex<Option<Connection>>,
}

impl fmt::Debug for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Road({}:{})", self.0.host, self.0.port)
    }
}

impl Road {
    /// Connects when it is first used.
    pub fn new(
        (host, port): (&str, u16),
        trust: &Trust,
        public: &Arc<RootCertStore>,
        network: Network,
    ) -> Result<Self, rustls::Error> {
        let mut config = trust.client(public)?;
        config.transport_config(ENDS.transport());
        let (dialing, connection) = Default::default();
        let host = host.to_owned();
        Ok(Self(Arc::new(Shared { host, port, network, config, dialing, connection })))
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.current().is_some()
    }

    fn current(&self) -> Option<Connection> {
        let mut known = self.0.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // A broken one would hold its socket.
        known.take_if(|known| known.close_reason().is_some());
        known.clone()
    }

    async fn connection(&self) -> Result<Connection, Failed> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let _dialing = self.0.dialing.lock().await;
        // Whoever dialed before may have been lucky.
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let connection = self.dial().await?;
        *self.0.connection.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(connection.clone());
        tokio::spawn(listen(Arc::downgrade(&self.0), connection.stable_id()));
        Ok(connection)
    }

    /// Tries the host's addresses in turn.
    async fn dial(&self) -> Result<Connection, Failed> {
        let Shared { host, port, network, .. } = &*self.0;
        let reached = network.reach(host, *port).await;
        let reached = reached.map_err(|error| Failed::new(Failure::Connect, error.to_string()))?;
        let mut failed = Failed::new(Failure::Connect, "the host has no address");
        let mut others = reached.len();
        for reach in reached {
            others -= 1;
            let within = if others > 0 { NEXT_AFTER } else { CONNECT_MAX };
            match timeout(within, self.connect(reach)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(why)) => failed = Failed::new(Failure::Connect, why),
                Err(_) => failed = Failed::new(Failure::Connect, "nobody answers there"),
            }
        }
        Err(failed)
    }

    async fn connect(&self, reach: Reach) -> Result<Connection, String> {
        let Reach { to, socket, mut refused } = reach;
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)
                .map_err(|error| error.to_string())?;
        let connecting = endpoint
            .connect_with(self.0.config.clone(), to, &self.0.host)
            .map_err(|error| error.to_string())?;
        let connection = tokio::select! {
            made = connecting => made.map_err(|error| words(&error))?,
            Ok(_) = refused.wait_for(|refused| *refused) => {
                return Err("nobody listens at the worker's port".to_owned());
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                // An error: there is nobody who could say so.
                Ok(_) = refused.wait_for(|refused| *refused) => endpoint.close(code::DONE, b""),
                () = endpoint.wait_idle() => {}
            }
        });
        Ok(connection)
    }
}

/// Gives a connection up whose worker has not been heard for so many looks in a row, while it is the road's own.
///
/// Not by QUIC's own limit for silence, which counts what a busy machine has not yet read: whoever was held up himself for
/// some seconds would take all his workers for gone. Here he has looked once in that time.
async fn listen(road: Weak<Shared>, id: usize) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut silent) = (0, 0);
    loop {
        looks.tick().await;
        let Some(connection) = road.upgrade().and_then(|shared| Road(shared).current()) else {
            return;
        };
        if connection.stable_id() != id {
            return;
        }
        let now = connection.stats().udp_rx.datagrams;
        silent = if now == heard { silent + 1 } else { 0 };
        heard = now;
        if silent >= SILENT_LOOKS {
            return connection.close(code::DONE, b"");
        }
    }
}

/// Sends a question. The answer may be a refusal yet.
pub(super) async fn ask(
    road: &Road,
    method: CallMethod,
    headers: &HeaderMap,
    question: &impl Message,
    limits: &Limits,
) -> Result<Answer, Failed> {
    let (to, from) = open(road).await?;
    // From here on, giving up tells the worker so.
    let mut answer = Answer { frames: Frames::new(from, limits.answer_bytes_max), to };
    let head = head(method, headers, limits);
    for bytes in [framed(Kind::Head, &head), framed(Kind::Message, question)] {
        match answer.to.write_chunk(bytes).await {
            Ok(()) => {}
            // It has answered without reading on: what it says is what counts.
            Err(WriteError::Stopped(_)) => break,
            Err(WriteError::ConnectionLost(error)) => return Err(lost(&error, false)),
            Err(error @ (WriteError::ClosedStream | WriteError::ZeroRttRejected)) => {
                return Err(broke_off(false, error.to_string()));
            }
        }
    }
    // A stream that was stopped is at its end already.
    let _ = answer.to.finish();
    Ok(answer)
}

async fn open(road: &Road) -> Result<(SendStream, RecvStream), Failed> {
    // Waits where the worker permits no more streams; whoever asks has timers.
    match road.connection().await?.open_bi().await {
        Ok(streams) => Ok(streams),
        // It broke while it lay idle, or while we waited: nothing was sent.
        Err(_) => {
            let streams = road.connection().await?.open_bi().await;
            streams.map_err(|error| lost(&error, false))
        }
    }
}

fn head(method: CallMethod, headers: &HeaderMap, limits: &Limits) -> CallHead {
    let patience = limits.deadline.saturating_duration_since(Instant::now());
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    let told = headers.iter().filter_map(|(name, value)| Some((name.to_string(), text(value)?)));
    CallHead {
        method: method.into(),
        timeout_micros: Some(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX)),
        metadata: told.collect(),
    }
}

/// An answer on its way. Dropped before its end, it tells the worker to stop.
#[derive(Debug)]
pub(super) struct Answer {
    frames: Frames,
    to: SendStream,
}

impl Answer {
    /// The next message; `None` at a clean end.
    pub async fn next<T: Message + Default>(
        &mut self,
        begun: bool,
        limits: &Limits,
    ) -> Result<Option<T>, Failed> {
        let frame = self.frames.next().await.map_err(|broken| of_broken(&broken, begun))?;
        let unreadable = |_| Failed::new(Failure::Garbage, "a frame holds no such message");
        match frame {
            Some((Kind::Message, bytes)) => T::decode(bytes).map(Some).map_err(unreadable),
            Some((Kind::End, bytes)) => {
                let end = CallEnd::decode(bytes).map_err(unreadable)?;
                // Where the stream's own end is here too, nothing of it needs to be stopped.
                let _ = self.frames.next().now_or_never();
                if end.code == 0 { Ok(None) } else { Err(refusal::of(&status(end), begun, limits)) }
            }
            Some((Kind::Head, _)) => {
                Err(Failed::new(Failure::Garbage, "an answer has no head frame"))
            }
            None => Err(broke_off(begun, "the stream ended without its last frame")),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.frames.stop(code::CANCELLED);
        // Nothing of it is left to be sent, most likely.
        let _ = self.to.reset(code::CANCELLED);
    }
}

fn status(end: CallEnd) -> Status {
    let mut status = Status::new(Code::from_i32(end.code.try_into().unwrap_or(2)), end.message);
    if let Some(millis) = end.retry_after_ms
        && let Ok(millis) = millis.to_string().parse()
    {
        status.metadata_mut().insert("retry-after-ms", millis);
    }
    status
}

fn of_broken(broken: &Broken, begun: bool) -> Failed {
    match broken {
        Broken::TooLarge(..) => Failed::new(Failure::TooLarge, broken.to_string()),
        Broken::Kind(_) => Failed::new(Failure::Garbage, broken.to_string()),
        Broken::Read(ReadError::ConnectionLost(error)) => lost(error, begun),
        Broken::Cut | Broken::Read(_) => broke_off(begun, broken.to_string()),
    }
}

/// An answer that is over before it is whole.
pub(super) fn broke_off(begun: bool, words: impl Into<String>) -> Failed {
    Failed::new(if begun { Failure::Truncated } else { Failure::ConnectionLost }, words)
}

fn lost(error: &ConnectionError, begun: bool) -> Failed {
    // A worker that wants another certificate of ours says so when we believe to be connected.
    let refused =
        matches!(error, ConnectionError::ConnectionClosed(close) if tls(close.error_code));
    if refused && !begun {
        return Failed::new(Failure::Connect, words(error));
    }
    broke_off(begun, words(error))
}

/// In our own words, where those of the library would pass on what a peer has written.
fn words(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionClosed(close) if tls(close.error_code) => {
            let alert = u64::from(close.error_code) & 0xff;
            let words = match alert {
                116 => {
                    "it wants a certificate of ours, and none is configured: tls.cert and tls.key"
                }
                120 => "it speaks another protocol than a worker does",
                _ => "it believes our certificate as little as we may believe its own",
            };
            format!("the worker refused the TLS handshake (alert {alert}): {words}")
        }
        ConnectionError::ConnectionClosed(close) => {
            format!("the worker's side closed the connection ({})", close.error_code)
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("the worker closed the connection ({})", close.error_code)
        }
        ConnectionError::LocallyClosed => {
            "nobody listens at the worker's port any more, or the worker is silent".to_owned()
        }
        ConnectionError::Reset => "the worker was restarted".to_owned(),
        ConnectionError::TimedOut => "the worker is silent".to_owned(),
        ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => error.to_string(),
    }
}

/// Whether a connection ended by a TLS alert.
fn tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

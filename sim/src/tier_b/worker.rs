//! A worker: the product's own, over simulated sockets, with the backend whose tokens are a hash of everything before them.
//!
//! What a script of ours could not show is here: that an answer which breaks off in the middle goes on at another worker
//! behind exactly what was delivered, that a cancel reaches a backend behind the wire's buffers, that a drain cuts what its
//! grace does not cover. The judge sees each answer begin and end through the worker's witness.
//!
//! A worker errs in ways of its own. To behave in another way it is told to stop, drains, and is started anew: so each such
//! fault is a rolling restart as well.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use transport::quic::Identity;
use transport::seam::Datagrams;
use transport::trace::Tracer;
use transport::worker::{
    Backend, Begun, Doors, Hash, Incoming, QuicDoor, Settings, Telemetry, Witness, serve_telling,
};

use super::check::Work;
use super::packets::Packets;
use super::plan::{Mode, Speaks, TierBPlan, replica};
use super::replica::{MODEL, ticket_of};
use super::stage::Stage;
use super::wire::{Door, Sockets, Wire};
use crate::coverage::sometimes;

/// The port workers listen on.
pub(super) const PORT: u16 = 50_055;
/// And over QUIC.
pub(super) const QUIC_PORT: u16 = 50_056;

/// Where a gateway reaches a worker, over gRPC and over QUIC. Behind doors nothing that a worker hears says which of them asks:
/// there each has ports of its own.
pub(super) fn ports(plan: &TierBPlan, gateway: u8) -> (u16, u16) {
    let step = if plan.doors > 0 && !plan.is_door(gateway) { 2 * u16::from(gateway) } else { 0 };
    (PORT + step, QUIC_PORT + step)
}

/// Who every worker is: an Ed25519 key, whose signatures are all of one length and depend on no chance.
pub(super) fn identity() -> Identity {
    let (certificate, key) =
        (include_bytes!("../../keys/worker.crt"), include_bytes!("../../keys/worker.key"));
    Identity::of_pem(certificate, key).expect("the committed certificate and its key are sound")
}

/// Answers at once: more than a burst of a plan.
const SEATS: u32 = 256;
/// Shorter than many an answer: some are cut by a drain.
const GRACE: Duration = Duration::from_millis(400);
/// How often a port that is in use is asked for.
const AGAIN: Duration = Duration::from_millis(20);
/// Longer than a run.
const NEVER: Duration = Duration::from_secs(3_600);

/// Serves until the host goes down.
pub(super) async fn serve(stage: Arc<Stage>, index: u8) -> turmoil::Result {
    let sockets = Sockets::new(&stage, &replica(index));
    loop {
        let mode = stage.mode(index);
        let changed = stage.behaves_otherwise(index, mode);
        note(mode);
        match mode {
            // The machine is there, and the process is not.
            Mode::Fails(500..) => changed.await,
            Mode::Garbage => {
                let (door, port) =
                    (sockets.listen(PORT).await?, port_of_quic(&sockets, QUIC_PORT).await?);
                tokio::select! {
                    () = changed => {}
                    never = babble(&door) => never?,
                    never = babble_in_packets(&port) => never?,
                }
            }
            Mode::DiesAfter(tokens) | Mode::EndsAfter(tokens) => {
                let lasts = pace(&stage, mode) * (tokens + 1);
                let stopped = async {
                    tokio::select! { () = changed => {} () = sleep(lasts) => {} }
                };
                work(&stage, index, mode, Duration::ZERO, stopped).await?;
            }
            Mode::Healthy
            | Mode::Slow(_)
            | Mode::Stalls
            | Mode::StallsAfter(_)
            | Mode::Fails(_) => work(&stage, index, mode, GRACE, changed).await?,
        }
    }
}

fn note(mode: Mode) {
    match mode {
        Mode::Healthy => {}
        Mode::Slow(_) => sometimes!("b_worker_slow"),
        Mode::Stalls | Mode::StallsAfter(_) => sometimes!("b_worker_stalls"),
        Mode::Garbage => sometimes!("b_worker_garbage"),
        Mode::DiesAfter(_) | Mode::EndsAfter(_) => sometimes!("b_worker_dies"),
        Mode::Fails(500..) => sometimes!("b_worker_absent"),
        Mode::Fails(429) => sometimes!("b_worker_full"),
        Mode::Fails(_) => sometimes!("b_worker_other_model"),
    }
}

/// One life of the process, until it is told to stop.
async fn work(
    stage: &Arc<Stage>,
    index: u8,
    mode: Mode,
    grace: Duration,
    stop: impl Future<Output = ()> + Send,
) -> turmoil::Result {
    if stage.plan.doors == 0 {
        return at_work(stage, (index, None), mode, grace, stop).await;
    }
    // One for each gateway, all at once.
    let (mut stopping, mut all) = (Vec::new(), JoinSet::new());
    for gateway in 0..stage.plan.gateways {
        let stage = Arc::clone(stage);
        // Each has its own: whom a shared one wakes first is left to chance.
        let (tell, told) = oneshot::channel::<()>();
        stopping.push(tell);
        all.spawn(async move {
            let stop = async { drop(told.await) };
            let worked = at_work(&stage, (index, Some(gateway)), mode, grace, stop).await;
            worked.map_err(|error| error.to_string())
        });
    }
    tokio::select! {
        biased;
        Some(ended) = all.join_next() => return Ok(ended??),
        () = stop => drop(stopping),
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(())
}

/// The same for whom asks at one pair of ports: a gateway that is known, or any.
async fn at_work(
    stage: &Arc<Stage>,
    (index, asker): (u8, Option<u8>),
    mode: Mode,
    grace: Duration,
    stop: impl Future<Output = ()> + Send,
) -> turmoil::Result {
    let doors = doors(stage, index, asker.unwrap_or_default()).await?;
    let settings = Settings {
        model: if matches!(mode, Mode::Fails(..=428)) { "another" } else { MODEL }.to_owned(),
        backend: Backend::Hash(Hash { delay: pace(stage, mode), seed: 0 }),
        concurrency: if matches!(mode, Mode::Fails(429)) { 1 } else { SEATS },
        grace,
    };
    let eyes = Arc::new(Eyes { stage: Arc::clone(stage), replica: index, asker });
    let telemetry = Telemetry::new(&settings.model, Tracer::default()).seen_by(eyes);
    let drained = serve_telling(telemetry, doors, settings, stop).await?;
    if drained.cut > 0 {
        sometimes!("b_worker_cuts");
    }
    stage.word(format!("{} ends its process, {} answers cut", replica(index), drained.cut));
    Ok(())
}

/// Where gateways come in. Over QUIC the life before may hold its port for a moment, until its last words have arrived.
async fn doors(stage: &Arc<Stage>, index: u8, asker: u8) -> turmoil::Result<Doors> {
    let sockets = Sockets::new(stage, &replica(index));
    let (grpc, quic) = ports(&stage.plan, asker);
    let grpc = Incoming::Simulated(Box::new(sockets.listen(grpc).await?));
    let quic = match stage.plan.speaks(index) {
        Speaks::Http | Speaks::Grpc => None,
        Speaks::Quic => {
            let port = port_of_quic(&sockets, quic).await?;
            Some(QuicDoor::simulated(port, &identity())?)
        }
    };
    Ok(Doors { grpc, quic })
}

async fn port_of_quic(sockets: &Sockets, port: u16) -> io::Result<Arc<Packets>> {
    loop {
        match sockets.packets(port).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(AGAIN).await,
            made => return made,
        }
    }
}

/// What each token takes.
fn pace(stage: &Stage, mode: Mode) -> Duration {
    let each = Duration::from_millis(stage.plan.knobs.each_ms);
    match mode {
        Mode::Slow(times) => each * times,
        // It says how busy it is, every second, and nothing else.
        Mode::Stalls | Mode::StallsAfter(_) => NEVER,
        Mode::Healthy
        | Mode::Garbage
        | Mode::DiesAfter(_)
        | Mode::EndsAfter(_)
        | Mode::Fails(_) => each,
    }
}

/// Somebody else took the port.
async fn babble(door: &Door) -> turmoil::Result {
    loop {
        tokio::spawn(mumble(door.next().await?));
    }
}

async fn mumble(mut wire: Wire) {
    let mut heard = [0; 1_024];
    while let Ok(1..) = wire.read(&mut heard).await {
        if wire.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

async fn babble_in_packets(port: &Packets) -> turmoil::Result {
    let mut heard = [0; 2_048];
    loop {
        let (length, from) = poll_fn(|cx| port.poll_recv(cx, &mut heard)).await?;
        // What came, backwards: of the right length, and nothing that could be meant.
        heard[..length].reverse();
        port.try_send(from, &heard[..length])?;
    }
}

/// The judge at a worker.
struct Eyes {
    stage: Arc<Stage>,
    replica: u8,
    /// The gateway that asks here, where that is known.
    asker: Option<u8>,
}

impl fmt::Debug for Eyes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Eyes({})", replica(self.replica))
    }
}

impl Witness for Eyes {
    fn begins(&self, begun: &Begun<'_>) -> Box<dyn Send> {
        sometimes!("b_worker_asked");
        if begun.resumes_at.is_some() {
            sometimes!("b_worker_resumes");
        }
        let now = self.stage.now();
        let mut scene = self.stage.scene();
        scene.nonces += 1;
        let nonce = scene.nonces;
        let ticket = begun.trace.as_deref().and_then(ticket_of);
        let asked = ticket.and_then(|ticket| {
            scene.checks.put_to_worker(ticket, begun.request_id, self.asker, begun.tokens_max)
        });
        if let Some((gateway, prompt, tokens)) = asked {
            let (replica, request) = (self.replica, begun.request_id.to_owned());
            let work = Work { replica, gateway, request, ticket, prompt, tokens };
            scene.checks.asked(now, nonce, work);
        } else {
            let text = format!("a worker is asked {begun:?}, which no client asks");
            scene.checks.violated(now, 6, text);
        }
        drop(scene);
        Box::new(InHand { stage: Arc::clone(&self.stage), nonce })
    }
}

/// An answer that a backend is at.
struct InHand {
    stage: Arc<Stage>,
    nonce: u64,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.stage.scene().checks.rested(self.nonce);
    }
}

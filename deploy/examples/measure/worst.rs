//! The wire to a worker at its worst: thousands of streams at once, a worker that is killed, a line that loses packets.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::Result;
use crate::line::{ask, connect, quantile, watched};
use crate::program::{Program, Quic};

/// Streams at once before one worker.
const MANY: usize = 5_000;
/// Times that a worker is killed.
const KILLS: usize = 30;
/// Streams at once over a line that loses, pieces in each, and between two pieces.
const LOSSY_STREAMS: usize = 50;
const LOSSY_PIECES: usize = 500;
const LOSSY_GAP: &str = "20ms";
/// Set where the network is one of our own.
const OWN_NETWORK: &str = "POINTSMAN_MEASURE_OWN_NETWORK";

/// A worker that serves both wires, and a gateway over each.
struct Both {
    worker: Program,
    quic: Quic,
    over_grpc: Program,
    over_quic: Program,
}

impl Both {
    async fn new(backend: &str) -> Result<Self> {
        let quic = Quic::new()?;
        let worker = Program::worker(&format!("--backend {backend} {}", quic.flags())).await?;
        let over_grpc = Program::gateway_over(&format!("grpc://127.0.0.1:{}", worker.port)).await?;
        let over_quic = Program::gateway_of(&quic.configuration()).await?;
        Ok(Self { worker, quic, over_grpc, over_quic })
    }

    fn gateways(&self) -> [(&'static str, &Program); 2] {
        [("gRPC", &self.over_grpc), ("QUIC", &self.over_quic)]
    }
}

/// Memory for each of thousands of streams: the gateway's (with its client's connection) and the worker's.
pub async fn many() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 500ms --tokens 60").await?;
    let over_http = Program::gateway(Some(replica.port)).await?;
    many_over("HTTP", &over_http, &replica).await?;
    drop((over_http, replica));
    for wire in [0, 1] {
        let both = Both::new("echo --delay 500ms --concurrency 8000").await?;
        let (name, gateway) = both.gateways()[wire];
        many_over(name, gateway, &both.worker).await?;
    }
    Ok(())
}

async fn many_over(name: &str, gateway: &Program, behind: &Program) -> Result<()> {
    let prompt = "word ".repeat(60);
    ask(&mut connect(gateway.port).await?, 3, &prompt).await?;
    let before = (gateway.resident()?, behind.resident()?);
    let (begun, mut all_begun) = tokio::sync::mpsc::channel(MANY);
    let mut streams = JoinSet::new();
    for _ in 0..MANY {
        let (port, prompt, begun) = (gateway.port, prompt.clone(), begun.clone());
        streams.spawn(async move {
            let mut line = connect(port).await?;
            watched(&mut line, 60, &prompt, |streamed| {
                if streamed.gaps.is_empty() {
                    let _ = begun.try_send(());
                }
            })
            .await
        });
        // They come one after the other: what a listener does with thousands at one moment is not asked here.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut live = 0;
    while live < MANY {
        tokio::select! {
            Some(()) = all_begun.recv() => live += 1,
            Some(ended) = streams.join_next() => drop(ended??),
        }
    }
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / MANY as f64;
    println!(
        "{MANY} streams at once over {name}: {:.1} KiB each in the gateway, {:.1} KiB behind it",
        each(gateway.resident()?, before.0),
        each(behind.resident()?, before.1)
    );
    let mut pieces = 0;
    while let Some(streamed) = streams.join_next().await {
        pieces += streamed??.pieces;
    }
    println!("    {pieces} pieces came");
    Ok(())
}

/// How long a stream stands still whose worker is killed in its middle.
pub async fn failover() -> Result<()> {
    for wire in ["gRPC", "QUIC"] {
        let mut gaps = Vec::new();
        for _ in 0..KILLS {
            gaps.push(killed_in_the_middle(wire).await?.as_secs_f64() * 1e3);
        }
        let [p50, p90, most] = [0.5, 0.9, 1.0].map(|share| quantile(&gaps, share));
        println!(
            "{KILLS} workers killed under a stream over {wire}, 10 ms between pieces: it stood still for p50 {p50:.0} ms, \
             p90 {p90:.0} ms, at most {most:.0} ms, and came whole"
        );
    }
    Ok(())
}

async fn killed_in_the_middle(wire: &str) -> Result<Duration> {
    const WORDS: usize = 60;
    let mut workers = Vec::new();
    let mut upstreams = Vec::new();
    for _ in 0..2 {
        let quic = Quic::new()?;
        let flags = format!("--backend echo --delay 10ms {}", quic.flags());
        let worker = Program::worker(&flags).await?;
        let (upstream, port) = match wire {
            "QUIC" => (quic.upstream(), quic.port),
            _ => (format!("{{url: 'grpc://127.0.0.1:{0}'}}", worker.port), worker.port),
        };
        upstreams.push(upstream);
        workers.push((format!(":{port}"), worker, quic));
    }
    let configuration = format!("version: 1\nupstreams: [{}]\n", upstreams.join(", "));
    let gateway = Program::gateway_of(&configuration).await?;
    let mut line = connect(gateway.port).await?;
    let mut failure = None;
    let streamed = watched(&mut line, WORDS, &"word ".repeat(WORDS), |streamed| {
        if streamed.pieces == WORDS / 2 {
            let at = workers.iter_mut().find(|(port, ..)| streamed.replica.ends_with(port));
            failure = match at {
                Some((_, worker, _)) => worker.crash().err(),
                None => Some(format!("nobody is {}", streamed.replica).into()),
            };
        }
    })
    .await?;
    match failure {
        Some(failure) => Err(failure),
        None if streamed.pieces != WORDS => Err(format!("{} pieces", streamed.pieces).into()),
        None => Ok(streamed.gaps.into_iter().max().unwrap_or_default()),
    }
}

/// The wait between two tokens where the line to the worker loses one packet in a hundred, both ways: over one connection
/// of each kind. Runs itself again in a network of its own, where a rule may drop; that needs root.
pub async fn loss() -> Result<()> {
    if std::env::var_os(OWN_NETWORK).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--net", "--"]).arg(std::env::current_exe()?).arg("loss").env(OWN_NETWORK, "1");
        let ended = again.status().map_err(|error| format!("cannot run unshare: {error}"))?;
        return if ended.success() { Ok(()) } else { Err("unshare --net: needs root".into()) };
    }
    run("ip", &["link", "set", "lo", "up"])?;
    let both = Both::new(&format!("echo --delay {LOSSY_GAP}")).await?;
    for percent in [0, 1] {
        lose(percent, both.worker.port, both.quic.port)?;
        for (name, gateway) in both.gateways() {
            let gaps = gaps(gateway.port).await?;
            let [p50, p99, p999, most] =
                [0.5, 0.99, 0.999, 1.0].map(|share| quantile(&gaps, share));
            println!(
                "{LOSSY_STREAMS} streams over {name} with {percent} % loss, {LOSSY_GAP} between pieces: waits p50 {p50:.1} ms, \
                 p99 {p99:.1} ms, p99.9 {p999:.1} ms, at most {most:.0} ms"
            );
        }
    }
    Ok(())
}

/// Drops so many in a hundred of what goes to and from these ports.
fn lose(percent: u32, tcp: u16, udp: u16) -> Result<()> {
    run("nft", &["flush", "ruleset"])?;
    if percent == 0 {
        return Ok(());
    }
    let drop = format!("numgen random mod 100 < {percent} drop");
    let rules = format!(
        "table inet line {{ chain losses {{ type filter hook input priority 0\n\
         tcp sport {tcp} {drop}\ntcp dport {tcp} {drop}\nudp sport {udp} {drop}\nudp dport {udp} {drop}\n}}\n}}"
    );
    run("nft", &[&rules])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let ended = command.args(arguments).stdin(Stdio::null()).status();
    let ended = ended.map_err(|error| format!("cannot run {program}: {error}"))?;
    if ended.success() { Ok(()) } else { Err(format!("{program} failed").into()) }
}

async fn gaps(port: u16) -> Result<Vec<f64>> {
    let prompt = "word ".repeat(LOSSY_PIECES);
    let mut streams = JoinSet::new();
    for _ in 0..LOSSY_STREAMS {
        let prompt = prompt.clone();
        streams.spawn(async move { ask(&mut connect(port).await?, LOSSY_PIECES, &prompt).await });
    }
    let mut gaps = Vec::new();
    while let Some(streamed) = streams.join_next().await {
        gaps.extend(streamed??.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3));
    }
    Ok(gaps)
}

//! What the gateway costs: memory, latency, throughput and CPU, against a replica asked directly.
//!
//! `cargo build --release -p pointsman && cargo run --release -p pointsman --example measure -- \
//! [idle] [ttft] [rate] [chunk] [wire] [streams] [many] [failover] [loss] [ledger]`
//!
//! It starts the `pointsman` beside itself as replica and gateway, each a process of its own, and asks both in turn, so
//! that whatever else the machine does falls on both alike. Linux only: memory and CPU time are read from `/proc`.

mod ledger;
mod line;
mod program;
mod streams;
mod wire;
mod worst;

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use line::{Line, connect, quantile, stream, whole};
use program::Program;
use streams::many_streams;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Pairs of requests for the latency to the first token: enough for a 99th percentile from 50 values.
const PAIRS: usize = 5_000;
/// Clients at once for throughput.
const CLIENTS: usize = 64;
/// Turns of each side, and how long one takes.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_secs(2);
/// Streams at once, and pieces in each, for the CPU time of a piece.
const STREAMS: usize = 32;
const PIECES: usize = 1_000;
const PROMPT: &str = "How much does a gateway cost?";

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|want| want == name);
    if is_wanted("idle") {
        idle().await?;
    }
    if is_wanted("ttft") {
        first_token().await?;
    }
    if is_wanted("rate") {
        rate().await?;
    }
    if is_wanted("chunk") {
        chunk("0ms").await?;
        chunk("2ms").await?;
    }
    if is_wanted("wire") {
        wire::wire().await?;
    }
    if is_wanted("streams") {
        streams::streams().await?;
    }
    if is_wanted("many") {
        worst::many().await?;
    }
    if is_wanted("failover") {
        worst::failover().await?;
    }
    if is_wanted("loss") {
        worst::loss().await?;
    }
    if is_wanted("ledger") {
        ledger::ledger().await?;
    }
    Ok(())
}

/// Memory of a gateway that has just started, with and without the built-in replicas.
async fn idle() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 0ms").await?;
    let demo = Program::gateway(None).await?;
    let plain = Program::gateway(Some(replica.port)).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (name, program) in [("with three demo replicas", &demo), ("with --upstream", &plain)] {
        let (now, peak) = (program.status("VmRSS:")?, program.status("VmHWM:")?);
        let threads = program.status("Threads:")?;
        println!(
            "idle {name}: {:.1} MiB resident, {:.1} MiB at most, {threads} threads",
            now as f64 / 1024.0,
            peak as f64 / 1024.0
        );
    }
    Ok(())
}

/// Time to the first token, directly and through the gateway, one after the other.
async fn first_token() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 0ms --tokens 4").await?;
    let gateway = Program::gateway(Some(replica.port)).await?;
    let lines = [connect(replica.port).await?, connect(gateway.port).await?];
    pairs(["direct", "through the gateway"], lines).await
}

/// Time to the first token over two lines, one after the other.
async fn pairs(names: [&str; 2], [mut direct, mut through]: [Line; 2]) -> Result<()> {
    let (mut directly, mut through_it, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS + PAIRS / 10 {
        let (one, two) = if pair % 2 == 0 {
            let one = stream(&mut direct, 4).await?.first;
            (one, stream(&mut through, 4).await?.first)
        } else {
            let two = stream(&mut through, 4).await?.first;
            (stream(&mut direct, 4).await?.first, two)
        };
        // The first tenth warms up.
        if pair >= PAIRS / 10 {
            directly.push(one.as_secs_f64() * 1e6);
            through_it.push(two.as_secs_f64() * 1e6);
            added.push((two.as_secs_f64() - one.as_secs_f64()) * 1e6);
        }
    }
    let sides = [(names[0], directly), (names[1], through_it), ("the difference by pair", added)];
    for (name, times) in sides {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| quantile(&times, share));
        println!("first token {name}: p50 {p50:.0} us, p90 {p90:.0} us, p99 {p99:.0} us");
    }
    Ok(())
}

/// Whole answers a second with many clients, in turns.
async fn rate() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 0ms --tokens 8").await?;
    let gateway = Program::gateway(Some(replica.port)).await?;
    let (mut directly, mut through_it) = (Vec::new(), Vec::new());
    turn(gateway.port).await?;
    let before = (gateway.cpu()?, replica.cpu()?);
    let mut answers = 0;
    for _ in 0..TURNS {
        directly.push(turn(replica.port).await? as f64 / TURN.as_secs_f64());
        let through = turn(gateway.port).await?;
        answers += through;
        through_it.push(through as f64 / TURN.as_secs_f64());
    }
    let spent = (gateway.cpu()? - before.0).as_secs_f64() * 1e6 / answers as f64;
    let ratios: Vec<f64> = through_it.iter().zip(&directly).map(|(a, b)| a / b).collect();
    println!("answers a second, {CLIENTS} clients, direct: {:.0}", quantile(&directly, 0.5));
    println!(
        "answers a second, {CLIENTS} clients, through the gateway: {:.0}",
        quantile(&through_it, 0.5)
    );
    println!(
        "ratio: {:.2} (from {:.2} to {:.2})",
        quantile(&ratios, 0.5),
        quantile(&ratios, 0.0),
        quantile(&ratios, 1.0)
    );
    println!("CPU of the gateway: {spent:.0} us an answer");
    Ok(())
}

async fn turn(port: u16) -> Result<usize> {
    let until = Instant::now() + TURN;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let (mut connection, mut count) = (connect(port).await?, 0);
            while Instant::now() < until {
                whole(&mut connection).await?;
                count += 1;
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(count)
        });
    }
    let mut sum = 0;
    while let Some(count) = clients.join_next().await {
        sum += count??;
    }
    Ok(sum)
}

/// CPU time of the gateway for each piece of a stream.
async fn chunk(gap: &str) -> Result<()> {
    let replica = Program::replica(&format!("--ttft 0ms --gap {gap} --tokens {PIECES}")).await?;
    let gateway = Program::gateway(Some(replica.port)).await?;
    stream(&mut connect(gateway.port).await?, 10).await?;
    let before = (gateway.cpu()?, replica.cpu()?);
    let pieces = many_streams(gateway.port, false).await?;
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / pieces as f64;
    println!(
        "{pieces} pieces in {STREAMS} streams, {gap} apart: {:.1} us of CPU each in the gateway, {:.1} us in the replica",
        each(gateway.cpu()? - before.0),
        each(replica.cpu()? - before.1)
    );
    Ok(())
}

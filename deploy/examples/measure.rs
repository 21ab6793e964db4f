//! What the gateway costs: memory, latency, throughput and CPU, against a replica asked directly.
//!
//! `cargo build --release -p pointsman && cargo run --release -p pointsman --example measure -- [idle] [ttft] [rate] [chunk] [wire] [streams]`
//!
//! It starts the `pointsman` beside itself as replica and gateway, each a process of its own, and asks both in turn, so
//! that whatever else the machine does falls on both alike. Linux only: memory and CPU time are read from `/proc`.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use transport::gateway::discovery_limits;
use transport::quic::{Identity, Trust};
use transport::upstream::{Answer, Ask, BadUrl, Client, EventKind, Settings, Target};

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
        wire().await?;
    }
    if is_wanted("streams") {
        streams().await?;
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

/// The same gateway before the same kind of answer: from an HTTP server, and from a worker over gRPC and over QUIC.
async fn wire() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 0ms --tokens 4").await?;
    let quic = Quic::new()?;
    let worker = Program::worker(&format!("--backend echo {}", quic.flags())).await?;
    let over_http = Program::gateway(Some(replica.port)).await?;
    let over_grpc = Program::gateway_over(&format!("grpc://127.0.0.1:{}", worker.port)).await?;
    let over_quic = Program::gateway_of(&quic.configuration()).await?;
    let target = |url: String| Ok::<_, BadUrl>(Target::new(url.parse()?));
    asked_directly(&target(format!("http://127.0.0.1:{}", replica.port))?).await?;
    asked_directly(&target(format!("grpc://127.0.0.1:{}", worker.port))?).await?;
    asked_directly(&quic.target()?).await?;
    pairs(
        ["through a gateway over HTTP", "through a gateway over gRPC"],
        [connect(over_http.port).await?, connect(over_grpc.port).await?],
    )
    .await?;
    pairs(
        ["through a gateway over gRPC", "through a gateway over QUIC"],
        [connect(over_grpc.port).await?, connect(over_quic.port).await?],
    )
    .await?;
    drop(replica);
    let many = Program::replica(&format!("--ttft 0ms --gap 0ms --tokens {PIECES}")).await?;
    let over_http = Program::gateway(Some(many.port)).await?;
    let prompt = "word ".repeat(PIECES);
    for (name, gateway) in [("HTTP", &over_http), ("gRPC", &over_grpc), ("QUIC", &over_quic)] {
        ask(&mut connect(gateway.port).await?, 10, &prompt).await?;
        let before = gateway.cpu()?;
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let (port, prompt) = (gateway.port, prompt.clone());
            streams.spawn(async move { ask(&mut connect(port).await?, PIECES, &prompt).await });
        }
        let mut pieces = 0;
        while let Some(streamed) = streams.join_next().await {
            pieces += streamed??.pieces;
        }
        let each = (gateway.cpu()? - before).as_secs_f64() * 1e6 / pieces as f64;
        println!(
            "{pieces} pieces in {STREAMS} streams over {name}: {each:.1} us of CPU each in the gateway"
        );
    }
    Ok(())
}

/// Time to the first token as the gateway's own client sees it: what both sides need without a gateway, the replica's
/// timers of a millisecond included.
async fn asked_directly(target: &Target) -> Result<()> {
    let (client, url) = (Client::new(&Settings::default())?, &target.base_url);
    let mut times = Vec::new();
    for _ in 0..PAIRS / 2 {
        let body = format!(
            "{{\"model\":\"demo\",\"stream\":true,\"max_tokens\":4,\"messages\":[{{\"role\":\"user\",\"content\":\"{PROMPT}\"}}]}}"
        );
        let ask = Ask {
            resume: None,
            behalf: None,
            path: transport::upstream::Path::ChatCompletions,
            body: Bytes::from(body),
            stream: true,
            request_id: "measure".to_owned(),
            headers: http::HeaderMap::new(),
        };
        let began = Instant::now();
        let Answer::Stream(mut stream) = client.call(target, ask, discovery_limits()).await? else {
            return Err("no stream".into());
        };
        let mut first = None;
        while let Some(event) = stream.next().await {
            if matches!(event?.kind, EventKind::Tokens { .. }) {
                first.get_or_insert_with(|| began.elapsed());
            }
        }
        times.push(first.ok_or("a stream without a token")?.as_secs_f64() * 1e6);
    }
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| quantile(&times, share));
    println!("first token directly of {url}: p50 {p50:.0} us, p90 {p90:.0} us, p99 {p99:.0} us");
    Ok(())
}

/// What it costs to keep a stream for a client that might come back: in memory, and in Redis. The same gateway with the same
/// replica serves plain streams beside.
async fn streams() -> Result<()> {
    let replica = Program::replica("--ttft 0ms --gap 0ms --tokens 4").await?;
    let redis = Program::redis().await?;
    let behind =
        |port: u16| format!("version: 1\nupstreams: [{{url: 'http://127.0.0.1:{port}'}}]\n");
    let limits = "streams: {streams_max: 100000, kept: 0s}\n";
    let shared = format!("data: {{redis: {{addr: '127.0.0.1:{}'}}}}\n", redis.port);
    let alone = Program::gateway_of(&(behind(replica.port) + limits)).await?;
    let sharing = Program::gateway_of(&(behind(replica.port) + limits + &shared)).await?;
    for (names, port) in [
        (["plain", "kept in memory"], alone.port),
        (["plain, before Redis", "kept in Redis"], sharing.port),
    ] {
        pairs(names, [connect(port).await?, connect(port).await?.resumable()]).await?;
    }
    drop((replica, alone, sharing));
    for gap in ["0ms", "2ms"] {
        let many = format!("--ttft 0ms --gap {gap} --tokens {PIECES}");
        let many = Program::replica(&many).await?;
        let alone = Program::gateway_of(&(behind(many.port) + limits)).await?;
        let sharing = Program::gateway_of(&(behind(many.port) + limits + &shared)).await?;
        for (name, gateway, kept) in [
            ("plain", &alone, false),
            ("kept in memory", &alone, true),
            ("kept in Redis", &sharing, true),
        ] {
            ask(&mut connect(gateway.port).await?, 10, PROMPT).await?;
            let (before, stored) = (gateway.cpu()?, redis.cpu()?);
            let pieces = many_streams(gateway.port, kept).await?;
            let each = |spent: Duration| spent.as_secs_f64() * 1e6 / pieces as f64;
            println!(
                "{pieces} pieces, {gap} apart, {name}: {:.1} us of CPU each in the gateway, {:.1} us in Redis",
                each(gateway.cpu()? - before),
                each(redis.cpu()? - stored)
            );
        }
    }
    Ok(())
}

/// Many long streams at once; their pieces.
async fn many_streams(port: u16, kept: bool) -> Result<usize> {
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        streams.spawn(async move {
            let mut line = connect(port).await?;
            line.resumable = kept;
            ask(&mut line, PIECES, PROMPT).await
        });
    }
    let mut pieces = 0;
    while let Some(streamed) = streams.join_next().await {
        pieces += streamed??.pieces;
    }
    Ok(pieces)
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

/// A stream as its reader saw it.
struct Streamed {
    first: Duration,
    pieces: usize,
}

async fn stream(connection: &mut Line, tokens: usize) -> Result<Streamed> {
    ask(connection, tokens, PROMPT).await
}

async fn ask(connection: &mut Line, tokens: usize, prompt: &str) -> Result<Streamed> {
    let began = Instant::now();
    let mut body = send(connection, true, tokens, prompt).await?;
    let (mut first, mut pieces) = (None, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let arrived = count(&data, b"\"content\":\"") - count(&data, b"\"content\":\"\"");
        if arrived > 0 {
            first.get_or_insert_with(|| began.elapsed());
        }
        pieces += arrived;
    }
    let first = first.ok_or("a stream without a token")?;
    Ok(Streamed { first, pieces })
}

async fn whole(connection: &mut Line) -> Result<()> {
    send(connection, false, 8, PROMPT).await?.collect().await?;
    Ok(())
}

async fn send(
    connection: &mut Line,
    stream: bool,
    tokens: usize,
    prompt: &str,
) -> Result<hyper::body::Incoming> {
    let body = format!(
        "{{\"model\":\"demo\",\"stream\":{stream},\"max_tokens\":{tokens},\
         \"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}"
    );
    let request = Request::post("/v1/chat/completions")
        .header("host", "localhost")
        .header("x-pointsman-resumable", connection.resumable.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    connection.sender.ready().await?;
    let response = connection.sender.send_request(request).await?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()).into());
    }
    Ok(response.into_body())
}

/// A connection, and how streams are asked for on it.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    resumable: bool,
}

impl Line {
    fn resumable(self) -> Self {
        Self { resumable: true, ..self }
    }
}

async fn connect(port: u16) -> Result<Line> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(Line { sender, resumable: false })
}

fn count(data: &[u8], what: &[u8]) -> usize {
    data.windows(what.len()).filter(|window| *window == what).count()
}

/// The value below which this share of the values lies.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// A worker's port for QUIC, and the certificate it will show.
struct Quic {
    port: u16,
    dir: PathBuf,
    own: Identity,
}

impl Quic {
    fn new() -> Result<Self> {
        let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = std::env::temp_dir().join(format!("pointsman-measure-quic-{port}"));
        std::fs::create_dir_all(&dir)?;
        let own = Identity::read_or_made(&dir.join("cert.pem"), &dir.join("key.pem"))?;
        Ok(Self { port, dir, own })
    }

    fn flags(&self) -> String {
        let Self { port, dir, .. } = self;
        let dir = dir.display();
        format!(
            "--quic-listen 127.0.0.1:{port} --quic-cert {dir}/cert.pem --quic-key {dir}/key.pem"
        )
    }

    fn configuration(&self) -> String {
        let (port, pin) = (self.port, self.own.pin());
        format!(
            "version: 1\nupstreams: [{{url: 'quic://127.0.0.1:{port}', tls: {{pin: '{pin}'}}}}]\n"
        )
    }

    fn target(&self) -> Result<Target> {
        let mut target = Target::new(format!("quic://127.0.0.1:{}", self.port).parse()?);
        target.trust = Some(Arc::new(Trust::pinned(self.own.pin())));
        Ok(target)
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A `pointsman` that ends when it is dropped.
struct Program {
    child: Child,
    port: u16,
    /// Its data directory.
    data: Option<PathBuf>,
}

impl Program {
    async fn replica(flags: &str) -> Result<Self> {
        let port = free_port()?;
        let line = format!("demo-replica --listen 127.0.0.1:{port} {flags}");
        Self::start(&line, port, None).await
    }

    async fn worker(flags: &str) -> Result<Self> {
        let port = free_port()?;
        let line = format!("worker --model demo --listen 127.0.0.1:{port} {flags}");
        Self::start(&line, port, None).await
    }

    /// A Redis that keeps nothing on disk.
    async fn redis() -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]).arg(port.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Self { child, port, data: None }.listening("redis-server").await
    }

    /// Over one replica, or over its own.
    async fn gateway(upstream: Option<u16>) -> Result<Self> {
        let url = upstream.map(|port| format!("http://127.0.0.1:{port}"));
        Self::gateway_over(&url.unwrap_or_default()).await
    }

    /// Over what is at this URL; over its own replicas where it is empty.
    async fn gateway_over(url: &str) -> Result<Self> {
        let port = free_port()?;
        let data = std::env::temp_dir().join(format!("pointsman-measure-{port}"));
        let upstream = if url.is_empty() { String::new() } else { format!("--upstream {url}") };
        let line = format!("serve --listen 127.0.0.1:{port} --data {} {upstream}", data.display());
        Self::start(&line, port, Some(data)).await
    }

    /// With this configuration.
    async fn gateway_of(text: &str) -> Result<Self> {
        let port = free_port()?;
        let data = std::env::temp_dir().join(format!("pointsman-measure-{port}"));
        std::fs::create_dir_all(&data)?;
        let config = data.join("pointsman.yaml");
        std::fs::write(&config, text)?;
        let (at, config) = (data.join("data"), config.display().to_string());
        let line =
            format!("serve --listen 127.0.0.1:{port} --data {} --config {config}", at.display());
        Self::start(&line, port, Some(data)).await
    }

    async fn start(line: &str, port: u16, data: Option<PathBuf>) -> Result<Self> {
        let here = std::env::current_exe()?;
        let folder = here.ancestors().nth(2).unwrap_or(Path::new("."));
        let mut command = Command::new(folder.join("pointsman"));
        command.args(line.split_whitespace()).env("LOG_LEVEL", "warn").stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Self { child, port, data }.listening(line).await
    }

    async fn listening(self, line: &str) -> Result<Self> {
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                // Discovery, so that the first request finds its model.
                tokio::time::sleep(Duration::from_millis(500)).await;
                return Ok(self);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("`{line}` does not listen").into())
    }

    /// A figure of the process, in KiB or as it is.
    fn status(&self, name: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with(name)).ok_or("no such figure")?;
        let figure = line.split_whitespace().nth(1).ok_or("no such figure")?;
        Ok(figure.parse()?)
    }

    /// CPU time so far, of all threads, in user and system mode.
    fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // The first figure is the nanoseconds on a CPU.
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().ok_or("no such figure")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(data) = &self.data {
            let _ = std::fs::remove_dir_all(data);
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

//! What the wire to a worker costs.

use std::time::Instant;

use bytes::Bytes;
use tokio::task::JoinSet;
use transport::gateway::discovery_limits;
use transport::upstream::{Answer, Ask, BadUrl, Client, EventKind, Settings, Target};

use crate::line::{ask, connect, quantile};
use crate::program::{Program, Quic};
use crate::{PAIRS, PIECES, PROMPT, Result, STREAMS, pairs};

/// The same gateway before the same kind of answer: from an HTTP server, and from a worker over gRPC and over QUIC.
pub async fn wire() -> Result<()> {
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

//! What streams cost that are kept for a client that might come back.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::line::{ask, connect};
use crate::program::Program;
use crate::{PIECES, PROMPT, Result, STREAMS, pairs};

/// What it costs to keep a stream for a client that might come back: in memory, and in Redis. The same gateway with the same
/// replica serves plain streams beside.
pub async fn streams() -> Result<()> {
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
pub async fn many_streams(port: u16, kept: bool) -> Result<usize> {
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

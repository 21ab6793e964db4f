//! A client that notes when each piece of an answer comes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{PROMPT, Result};

/// A stream as its reader saw it.
pub struct Streamed {
    /// Until its first piece.
    pub first: Duration,
    pub pieces: usize,
    /// Between one piece and the next; nothing between those that came together.
    pub gaps: Vec<Duration>,
    /// Who answered first.
    pub replica: String,
}

pub async fn stream(connection: &mut Line, tokens: usize) -> Result<Streamed> {
    ask(connection, tokens, PROMPT).await
}

pub async fn ask(connection: &mut Line, tokens: usize, prompt: &str) -> Result<Streamed> {
    watched(connection, tokens, prompt, |_| {}).await
}

/// The same; whenever pieces have come, `seen` hears how many there are.
pub async fn watched(
    connection: &mut Line,
    tokens: usize,
    prompt: &str,
    mut seen: impl FnMut(&Streamed),
) -> Result<Streamed> {
    let began = Instant::now();
    let response = send(connection, true, tokens, prompt).await?;
    let replica = response.headers().get("x-pointsman-replica");
    let replica = replica.and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
    let mut body = response.into_body();
    let mut streamed = Streamed { first: Duration::ZERO, pieces: 0, gaps: Vec::new(), replica };
    let mut last = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if count(&data, b"\"error\"") > 0 {
            return Err(String::from_utf8_lossy(&data).into());
        }
        let arrived = count(&data, b"\"content\":\"") - count(&data, b"\"content\":\"\"");
        if arrived == 0 {
            continue;
        }
        let now = Instant::now();
        match last.replace(now) {
            None => streamed.first = now - began,
            Some(last) => streamed.gaps.push(now - last),
        }
        streamed.gaps.extend(std::iter::repeat_n(Duration::ZERO, arrived - 1));
        streamed.pieces += arrived;
        seen(&streamed);
    }
    last.ok_or("a stream without a token")?;
    Ok(streamed)
}

pub async fn whole(connection: &mut Line) -> Result<()> {
    send(connection, false, 8, PROMPT).await?.into_body().collect().await?;
    Ok(())
}

async fn send(
    connection: &mut Line,
    stream: bool,
    tokens: usize,
    prompt: &str,
) -> Result<http::Response<hyper::body::Incoming>> {
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
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(response)
}

/// A connection, and how streams are asked for on it.
pub struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Streams are to outlive it.
    pub resumable: bool,
}

impl Line {
    pub fn resumable(self) -> Self {
        Self { resumable: true, ..self }
    }
}

pub async fn connect(port: u16) -> Result<Line> {
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
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

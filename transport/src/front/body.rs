//! Reading a body within its bounds, and reading away one that is refused.
//!
//! A server that answers early and closes makes the kernel reset the connection while the client still writes, and
//! the client then never reads the answer (the 413 it needs most). So a refused body is read away, within bounds,
//! before the answer goes out.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::error::{self, ApiError};
use super::limits::Limits;

/// A refused body is read away for at most so long: a client on a working line has sent it by then.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// And at most so many times the allowed size: whoever sends more is not helped by an answer.
const DISCARD_FACTOR: usize = 4;

/// The whole body.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: &Limits,
) -> Result<Bytes, ApiError> {
    let declared = declared(headers);
    if declared.is_some_and(|len| len > limits.body_max) {
        discard(headers, body, limits).await;
        return Err(too_large(limits));
    }
    match timeout(limits.body_time, collect(&mut body, declared, limits.body_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Broken::TooLarge)) => {
            discard(headers, body, limits).await;
            Err(too_large(limits))
        }
        Ok(Err(Broken::Lost)) => {
            Err(error::invalid("body_incomplete", "The body ended early. Send it again, whole."))
        }
        Err(_) => Err(too_slow(limits)),
    }
}

/// Reads a body away, so that the answer about it is read by whoever sent it.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body, limits: &Limits) {
    let most = limits.body_max.saturating_mul(DISCARD_FACTOR);
    // A client that waits for "100 Continue" has sent nothing yet, and one with a gigabyte is not waited for.
    if headers.contains_key(EXPECT) || declared(headers).is_some_and(|len| len > most) {
        return;
    }
    let drain = async {
        let mut seen = 0_usize;
        while let Some(Ok(frame)) = body.frame().await {
            seen = seen.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if seen > most {
                break;
            }
        }
    };
    // Late or not, the answer goes out now.
    let _ = timeout(DISCARD_TIME, drain).await;
}

enum Broken {
    TooLarge,
    Lost,
}

async fn collect(body: &mut Body, declared: Option<usize>, most: usize) -> Result<Bytes, Broken> {
    let Some(first) = data(body).await? else { return Ok(Bytes::new()) };
    if first.len() > most {
        return Err(Broken::TooLarge);
    }
    if declared == Some(first.len()) {
        // Most bodies arrive in one piece: no copy.
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    while let Some(piece) = data(body).await? {
        if whole.len() + piece.len() > most {
            return Err(Broken::TooLarge);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// The next piece of data; trailers end a body.
async fn data(body: &mut Body) -> Result<Option<Bytes>, Broken> {
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_| Broken::Lost)?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => return Ok(Some(data)),
            Err(_trailers) => return Ok(None),
        }
    }
    Ok(None)
}

fn declared(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limits: &Limits) -> ApiError {
    let words = format!(
        "The body is larger than {} bytes. Send less, or ask the gateway's operator for a higher limit.",
        limits.body_max
    );
    error::new(StatusCode::PAYLOAD_TOO_LARGE, error::INVALID, "body_too_large", words)
}

fn too_slow(limits: &Limits) -> ApiError {
    let words = format!(
        "The body did not arrive within {} seconds. Send it again over a faster line.",
        limits.body_time.as_secs_f64()
    );
    error::new(StatusCode::REQUEST_TIMEOUT, error::INVALID, "body_timeout", words)
}

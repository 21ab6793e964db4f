//! Deadlines that the HTTP library has no knob for.
//!
//! Before it can time a head, the server must know whether HTTP/1.1 or HTTP/2 is spoken, and waits for that without a
//! limit: a client that sends one letter of the HTTP/2 preface (`P`, as in `POST`) and then nothing would be held for
//! ever. And a client that stops reading its answer holds the answer's buffers, its tokens and its connection. Both
//! are bounded here, around the bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection with a deadline for its first bytes and one for writes that do not move.
pub(super) struct Guarded<S> {
    inner: S,
    opening: Option<Opening>,
    stall_time: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// While it is not yet known which protocol is spoken.
struct Opening {
    deadline: Pin<Box<Sleep>>,
    matched: usize,
}

impl<S> Guarded<S> {
    /// Starts the clock for the first bytes now.
    pub(super) fn new(inner: S, opening_time: Duration, stall_time: Duration) -> Self {
        let opening = Opening { deadline: Box::pin(sleep(opening_time)), matched: 0 };
        Self { inner, opening: Some(opening), stall_time, stalled: None }
    }

    /// Notes what arrived: at the first byte that differs from the preface, or after all of it, the protocol is known.
    fn note(&mut self, bytes: &[u8]) {
        let Some(opening) = &mut self.opening else { return };
        let rest = &PREFACE[opening.matched..];
        let same = rest.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        opening.matched += same;
        if same < bytes.len() || opening.matched == PREFACE.len() {
            self.opening = None;
        }
    }

    /// Gives up on a write that has not moved for too long.
    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.stalled = None;
            return moved;
        }
        let stall_time = self.stall_time;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall_time)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out("the client stopped reading"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn timed_out(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, words)
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            this.note(&buf.filled()[before..]);
            return Poll::Ready(read);
        }
        let Some(opening) = &mut this.opening else { return Poll::Pending };
        let late = opening.deadline.as_mut().poll(cx);
        late.map(|()| Err(timed_out("nothing was asked in time")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.watched(cx, moved)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.watched(cx, moved)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.inner).poll_flush(cx);
        this.watched(cx, moved)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.watched(cx, moved)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const SOON: Duration = Duration::from_millis(30);
    const NEVER: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn half_a_preface_is_not_waited_for() {
        let (mut client, server) = duplex(64);
        let mut guarded = Guarded::new(server, SOON, NEVER);
        client.write_all(b"P").await.unwrap();
        let mut buf = [0; 16];
        assert_eq!(guarded.read(&mut buf).await.unwrap(), 1);
        let error = guarded.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn once_the_protocol_is_known_reads_wait_as_long_as_they_like() {
        for first in [&b"PO"[..], b"GET", PREFACE] {
            let (mut client, server) = duplex(64);
            let mut guarded = Guarded::new(server, SOON, NEVER);
            client.write_all(first).await.unwrap();
            let mut buf = [0; 64];
            assert_eq!(guarded.read(&mut buf).await.unwrap(), first.len());
            let more = tokio::time::timeout(SOON * 3, guarded.read(&mut buf)).await;
            assert!(more.is_err(), "still waiting");
        }
    }

    #[tokio::test]
    async fn a_write_that_does_not_move_gives_up_and_one_that_does_goes_on() {
        let (mut client, server) = duplex(4);
        let mut guarded = Guarded::new(server, NEVER, SOON);
        let reader = tokio::spawn(async move {
            let mut buf = [0; 4];
            for _ in 0..4 {
                tokio::time::sleep(SOON / 2).await;
                client.read_exact(&mut buf).await.unwrap();
            }
            client
        });
        guarded.write_all(&[0; 16]).await.unwrap();
        let _unread = reader.await.unwrap();
        let error = guarded.write_all(&[0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

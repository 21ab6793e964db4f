//! Deadlines that the HTTP library has no knob for.
//!
//! Its own timeout for a head also runs on idle connections, so one of them would have to give: ten seconds is plenty
//! for a head and far too little for a pooled connection (a load balancer that keeps its connections for a minute
//! would meet closed ones, and answer 502). And before it can time anything, it must know whether HTTP/1.1 or HTTP/2
//! is spoken, and waits for that without a limit: a client that sends one letter of the HTTP/2 preface (`P`, as in
//! `POST`) would be held for ever. So heads are timed here, from the first byte (or the connection's start) to the
//! moment a request is handed to the routes; the library's timeout is left to bound idleness.
//!
//! And a client that stops reading its answer holds the answer's buffers, its tokens and its connection: writes that
//! do not move have a deadline, too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the routes tell the connection they serve.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Traffic {
    /// A request is here, whole head and all. It lasts until what is returned is dropped with its answer.
    pub(super) fn begin(self: &Arc<Self>) -> Underway {
        self.begun.fetch_add(1, Ordering::AcqRel);
        Underway(Arc::clone(self))
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    fn is_quiet(&self) -> bool {
        self.ended.load(Ordering::Acquire) == self.begun()
    }
}

/// A request whose answer is not over.
#[derive(Debug)]
pub(super) struct Underway(Arc<Traffic>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection with deadlines for heads and for writes that do not move.
pub(super) struct Guarded<S> {
    inner: S,
    traffic: Arc<Traffic>,
    head: Head,
    head_time: Duration,
    stall_time: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What is being read.
enum Head {
    /// A head, or the preface, by then. So much of the connection matches the preface so far, and so many requests
    /// had come when the clock was set.
    Due { by: Pin<Box<Sleep>>, matched: Option<usize>, begun: u64 },
    /// Nothing yet: the last head led to a request.
    Idle,
    /// Frames: HTTP/2 bounds its own.
    Frames,
}

impl<S> Guarded<S> {
    /// Starts the clock for the first head now.
    pub(super) fn new(
        inner: S,
        traffic: Arc<Traffic>,
        head_time: Duration,
        stall_time: Duration,
    ) -> Self {
        let head =
            Head::Due { by: Box::pin(sleep(head_time)), matched: Some(0), begun: traffic.begun() };
        Self { inner, traffic, head, head_time, stall_time, stalled: None }
    }

    /// A request that came since the clock was set is what the head led to.
    fn settle(&mut self) {
        if let Head::Due { begun, .. } = self.head
            && begun != self.traffic.begun()
        {
            self.head = Head::Idle;
        }
    }

    /// Notes what arrived.
    fn note(&mut self, bytes: &[u8]) {
        match &mut self.head {
            Head::Due { matched: Some(matched), .. } => {
                let rest = &PREFACE[*matched..];
                let same = rest.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                if *matched + same == PREFACE.len() {
                    self.head = Head::Frames;
                } else if same < bytes.len() {
                    self.expect_http1();
                } else {
                    *matched += same;
                }
            }
            // What comes while an answer is under way is the rest of a body, or a head that waits its turn.
            Head::Idle if !bytes.is_empty() && self.traffic.is_quiet() => {
                let by = Box::pin(sleep(self.head_time));
                self.head = Head::Due { by, matched: None, begun: self.traffic.begun() };
            }
            Head::Due { matched: None, .. } | Head::Idle | Head::Frames => {}
        }
    }

    fn expect_http1(&mut self) {
        if let Head::Due { matched, .. } = &mut self.head {
            *matched = None;
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
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        this.settle();
        if read.is_ready() {
            this.note(&buf.filled()[before..]);
            return read;
        }
        match &mut this.head {
            Head::Due { by, .. } => {
                by.as_mut().poll(cx).map(|()| Err(timed_out("no request came in time")))
            }
            Head::Idle | Head::Frames => Poll::Pending,
        }
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

    async fn gives_up(guarded: &mut Guarded<tokio::io::DuplexStream>) -> bool {
        let mut buf = [0; 64];
        let waited = tokio::time::timeout(SOON * 4, guarded.read(&mut buf)).await;
        waited.is_ok_and(|read| read.unwrap_err().kind() == io::ErrorKind::TimedOut)
    }

    #[tokio::test]
    async fn a_head_that_stops_anywhere_is_not_waited_for() {
        for first in [&b"P"[..], b"PO", b"GET / HTTP/1.1\r\n", &PREFACE[..23]] {
            let (mut client, server) = duplex(64);
            let mut guarded = Guarded::new(server, Arc::default(), SOON, NEVER);
            client.write_all(first).await.unwrap();
            assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), first.len());
            assert!(gives_up(&mut guarded).await, "{first:?}");
        }
    }

    #[tokio::test]
    async fn frames_are_not_heads() {
        let (mut client, server) = duplex(64);
        let mut guarded = Guarded::new(server, Arc::default(), SOON, NEVER);
        client.write_all(PREFACE).await.unwrap();
        assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), PREFACE.len());
        assert!(!gives_up(&mut guarded).await);
    }

    #[tokio::test]
    async fn idling_is_free_and_the_next_head_is_timed_again() {
        let (mut client, server) = duplex(64);
        let traffic: Arc<Traffic> = Arc::default();
        let mut guarded = Guarded::new(server, Arc::clone(&traffic), SOON, NEVER);
        client.write_all(b"GET").await.unwrap();
        guarded.read_exact(&mut [0; 3]).await.unwrap();
        let underway = traffic.begin();
        assert!(!gives_up(&mut guarded).await, "an answer is under way");
        client.write_all(b"body").await.unwrap();
        guarded.read_exact(&mut [0; 4]).await.unwrap();
        assert!(!gives_up(&mut guarded).await, "a body is not a head");
        drop(underway);
        assert!(!gives_up(&mut guarded).await, "idle");
        client.write_all(b"GE").await.unwrap();
        guarded.read_exact(&mut [0; 2]).await.unwrap();
        assert!(gives_up(&mut guarded).await, "a second head that stops");
    }

    #[tokio::test]
    async fn a_request_that_was_answered_between_two_reads_stops_the_clock() {
        let (mut client, server) = duplex(64);
        let traffic: Arc<Traffic> = Arc::default();
        let mut guarded = Guarded::new(server, Arc::clone(&traffic), SOON, NEVER);
        client.write_all(b"GET").await.unwrap();
        guarded.read_exact(&mut [0; 3]).await.unwrap();
        drop(traffic.begin());
        assert!(!gives_up(&mut guarded).await);
    }

    #[tokio::test]
    async fn a_write_that_does_not_move_gives_up_and_one_that_does_goes_on() {
        let (mut client, server) = duplex(4);
        let mut guarded = Guarded::new(server, Arc::default(), NEVER, SOON);
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
        let stuck = tokio::time::timeout(SOON * 10, guarded.write_all(&[0; 16])).await;
        let error = stuck.expect("it gives up").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

//! Messages on a stream: a byte that says what it is, four of its length (big endian), and the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quinn::{ReadError, RecvStream, VarInt};

const HEAD_BYTES: usize = 5;
/// Taken from the connection at once.
const READ_MAX: usize = 64 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `CallHead`: the first of a call.
    Head,
    /// The question, or a piece of the answer.
    Message,
    /// `CallEnd`: the last of an answer.
    End,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Message => 2,
            Self::End => 3,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Head, Self::Message, Self::End].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("a frame of {0} bytes is above the limit of {1}")]
    TooLarge(usize, usize),
    #[error("a frame begins with {0}, which no kind of frame does")]
    Kind(u8),
    #[error("the stream ended inside a frame")]
    Cut,
    #[error("{0}")]
    Read(#[from] ReadError),
}

/// A message as a frame.
pub(crate) fn framed(kind: Kind, message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    bytes.put_u8(kind.byte());
    // A message is far below 4 GiB: what makes one is bounded by megabytes.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut bytes).expect("a buffer that grows takes any message");
    bytes.freeze()
}

/// The frames of a stream, as they come.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: RecvStream,
    buffer: BytesMut,
    frame_max: usize,
}

impl Frames {
    /// Frames of more than `frame_max` bytes are refused before they are read.
    pub fn new(stream: RecvStream, frame_max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), frame_max }
    }

    /// The next one; `None` where the stream ended between two. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<(Kind, Bytes)>, Broken> {
        loop {
            if let Some(frame) = split(&mut self.buffer, self.frame_max)? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_MAX, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Broken::Cut),
            }
        }
    }

    /// Tells the other side not to send the rest.
    pub fn stop(&mut self, code: VarInt) {
        // It may have ended already.
        let _ = self.stream.stop(code);
    }
}

fn split(buffer: &mut BytesMut, frame_max: usize) -> Result<Option<(Kind, Bytes)>, Broken> {
    let Some(&byte) = buffer.first() else { return Ok(None) };
    let kind = Kind::of(byte).ok_or(Broken::Kind(byte))?;
    let Some(length) = buffer.get(1..HEAD_BYTES) else { return Ok(None) };
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    if length > frame_max {
        return Err(Broken::TooLarge(length, frame_max));
    }
    if buffer.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEAD_BYTES);
    Ok(Some((kind, buffer.split_to(length).freeze())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use proto::inference::v1::CallEnd;

    use super::*;

    #[test]
    fn frames_are_read_wherever_the_wire_cuts_them() {
        let end = |code| CallEnd { code, message: "why".to_owned(), retry_after_ms: Some(9) };
        let sent = [(Kind::Head, end(1)), (Kind::Message, CallEnd::default()), (Kind::End, end(3))];
        let bytes: Vec<u8> = sent.iter().flat_map(|(kind, end)| framed(*kind, end)).collect();
        for step in 1..=bytes.len() {
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some((kind, frame)) = split(&mut buffer, 64).unwrap() {
                    read.push((kind, CallEnd::decode(frame).unwrap()));
                }
            }
            assert_eq!(read, sent, "{step} bytes at a time");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn what_is_no_frame_or_too_large_is_refused_before_it_is_read() {
        let split = |bytes: &[u8]| split(&mut BytesMut::from(bytes), 8).map_err(|e| e.to_string());
        assert_eq!(
            split(b"GET / HTTP").unwrap_err(),
            "a frame begins with 71, which no kind of frame does"
        );
        assert_eq!(
            split(&[2, 0, 0, 0, 9]).unwrap_err(),
            "a frame of 9 bytes is above the limit of 8"
        );
        assert_eq!(
            split(&[2, 255, 255, 255, 255]).unwrap_err(),
            "a frame of 4294967295 bytes is above the limit of 8"
        );
        assert_eq!(split(&[2, 0, 0, 0, 8, 1]), Ok(None));
        assert_eq!(split(&[0]).unwrap_err(), "a frame begins with 0, which no kind of frame does");
    }
}

//! Between the words of the wire and those of the OpenAI API: a question becomes the body that a server of that API takes,
//! and the events of its answer become chunks.
//!
//! Two sides need it: a worker before an OpenAI-compatible server, and the gRPC front, whose callers speak the wire and
//! are answered as HTTP's are. The other way round is `upstream::wire`.

mod delta;
mod plain;
mod question;

pub(crate) use delta::Reader;
pub(crate) use plain::is_plain;
pub(crate) use question::{body, streamed, writer};

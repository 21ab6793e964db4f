//! A Redis that holds what gateways share, the ledger and what stands beside it, and nothing else: the product's client
//! speaks to it as to a real one.
//!
//! A real server cannot be run on simulated time, nor told to forget the last hundred writes. This one speaks the same
//! protocol, knows the product's scripts by their SHA, and runs each as what it is specified to be: the pure ledger, or a pure store of
//! `control::shared`. That it answers as the real one does is tested: the same random asks go to both, over TCP (`tests/redis.rs`).
//!
//! Rejected: a Lua interpreter. It would simulate the scripts' text once more, which the test against a real server has
//! tried already, and cost a library.
//!
//! What it does not have: clusters, TLS, users, other data types, eviction, bounded work per call (what is due expires at
//! once, where a script does 64 at a time).

mod common;
mod log;
mod resp;
mod server;
mod words;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use resp::{Commands, Said};
pub use server::{Made, Server, Stance};

/// A command: its words.
pub type Command = Vec<Vec<u8>>;

/// Read from a connection at once.
const READ_MAX: usize = 16 << 10;

/// Speaks on one connection until it ends. `None` of an answer is silence, from there on: what was asked may have been
/// performed, and so may what follows, but answers come in the order of their commands or not at all.
pub async fn converse<S, F>(mut stream: S, answer: impl Fn(Command) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Option<Said>>,
{
    let (mut commands, mut read) = (Commands::default(), vec![0; READ_MAX]);
    let mut is_silent = false;
    loop {
        let mut said = Vec::new();
        loop {
            match commands.pop() {
                Ok(None) => break,
                Ok(Some(command)) => match answer(command).await {
                    Some(answered) if !is_silent => answered.write(&mut said),
                    Some(_) => {}
                    None => is_silent = true,
                },
                // A server closes the connection over this, too.
                Err(resp::Nonsense) => return,
            }
        }
        if !said.is_empty() && stream.write_all(&said).await.is_err() {
            return;
        }
        match stream.read(&mut read).await {
            Ok(length @ 1..) => commands.feed(&read[..length]),
            Ok(0) | Err(_) => return,
        }
    }
}

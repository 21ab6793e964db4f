//! What operators ask a gateway: on a running server through its admin socket, on a stopped directory read-only.
//!
//! The socket is a Unix socket in the data directory that only its owner may open. One line of JSON goes in, one comes
//! out, and the connection closes. HTTP was rejected: a second server with routes, for six questions that one program
//! asks.

mod answer;
mod words;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub use answer::{AccountNames, Running, answer_from_directory};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Endpoints, load, breakers, requests.
    Status {
        /// As JSON rather than words.
        json: bool,
    },
    /// No new picks for an endpoint (or, `on: false`, picks again). Only a running server can.
    Drain {
        /// The endpoint's name.
        endpoint: String,
        /// Drain or undrain.
        on: bool,
    },
    /// Why a request went where it went.
    Explain {
        /// As the response header `x-request-id` said.
        request: String,
    },
    /// Replays the journal and compares every effect.
    Verify,
    /// Every balance.
    Quota {
        /// As JSON rather than words.
        json: bool,
    },
    /// Recomputes every balance from the ledger's entries.
    Audit,
}

/// What is said to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Whether all is as it should be: the exit status.
    pub ok: bool,
    /// For the reader.
    pub text: String,
}

impl Said {
    pub(crate) fn ok(text: impl Into<String>) -> Self {
        Self { ok: true, text: text.into() }
    }

    pub(crate) fn not_ok(text: impl Into<String>) -> Self {
        Self { ok: false, text: text.into() }
    }
}

/// A question fits in this with room to spare; names are limited to 256 bytes.
const QUESTION_BYTES_MAX: u64 = 4 << 10;
/// An answer: a status of 16,384 endpoints is about 4 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// A replay of a full ring takes tens of seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(600);
/// Whoever connects knows what to ask.
const QUESTION_WAIT: Duration = Duration::from_secs(5);
/// Operators asking at once. A replay takes a core and some memory each.
const ASKING_MAX: usize = 4;

/// Where the socket of a data directory is.
#[must_use]
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("admin.sock")
}

/// Binds the socket, in place of one that a dead process left. The directory's lock has made sure that it is dead.
///
/// # Errors
/// Where the path cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(Short::of(path)?.path())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers questions until it is dropped.
pub async fn serve(listener: UnixListener, running: Arc<Running>) {
    let places = Arc::new(tokio::sync::Semaphore::new(ASKING_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let running = Arc::clone(&running);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, running).await {
                        tracing::debug!(%error, "admin socket");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: give the rest of the process time to close some.
                tracing::warn!(%error, "admin socket");
                tokio::time::sleep(QUESTION_WAIT).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, running: Arc<Running>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(QUESTION_BYTES_MAX));
    tokio::time::timeout(QUESTION_WAIT, reader.read_line(&mut line)).await??;
    let said = match serde_json::from_str::<Question>(&line) {
        Ok(question) => tokio::task::spawn_blocking(move || running.answer(&question))
            .await
            .map_err(io::Error::other)?,
        Err(error) => Said::not_ok(format!("not a question this server knows: {error}")),
    };
    writer.write_all(&serde_json::to_vec(&said)?).await?;
    writer.shutdown().await
}

/// Asks a running server. `None` where none answers at this socket.
///
/// # Errors
/// Where a server is there and does not answer.
pub fn ask(socket: &Path, question: &Question) -> io::Result<Option<Said>> {
    let short = match Short::of(socket) {
        Ok(short) => short,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut stream = match StdUnixStream::connect(short.path()) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.set_write_timeout(Some(QUESTION_WAIT))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
    reader.fill_buf()?;
    reader.read_to_string(&mut answer)?;
    Ok(Some(serde_json::from_str(&answer)?))
}

/// A path that fits into a socket's address, which holds 108 bytes: a longer one goes through its open directory.
struct Short {
    path: PathBuf,
    _dir: Option<File>,
}

impl Short {
    /// One byte of the 108 ends the text.
    const BYTES_MAX: usize = 107;

    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= Self::BYTES_MAX {
            return Ok(Self { path: path.to_owned(), _dir: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = File::open(parent)?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _dir: Some(dir) })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[tokio::test]
    async fn a_directory_deeper_than_a_sockets_address_is_served_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = socket_path(&deep);
        let listener = bind(&path).unwrap();
        let answering = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut line = String::new();
            tokio::io::BufReader::new(reader).read_line(&mut line).await.unwrap();
            let said = serde_json::to_vec(&Said::ok(line)).unwrap();
            writer.write_all(&said).await.unwrap();
        });
        let asked = tokio::task::spawn_blocking(move || ask(&path, &Question::Verify));
        let said = asked.await.unwrap().unwrap().unwrap();
        answering.await.unwrap();
        assert_eq!(said.text.trim(), r#""verify""#);
    }

    #[test]
    fn nobody_is_told_from_a_server_that_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask(&socket_path(dir.path()), &Question::Verify).unwrap(), None);
        let nowhere = dir.path().join("n".repeat(120));
        assert_eq!(ask(&socket_path(&nowhere), &Question::Verify).unwrap(), None);
    }
}

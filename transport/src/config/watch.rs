//! Notices that the configuration changed.
//!
//! By polling content, not by file system events: those are lost on network mounts, and what Kubernetes changes is not the
//! file but a link two directories up. The content is compared by hash, through whatever links lead to it, with
//! that of the secrets it names: a rotated key is a change as well.
//!
//! An editor may be caught halfway through writing, and half a YAML file is often a valid one that names fewer replicas.
//! So a change counts when two polls in a row see the same content.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Env, Errors, Files, Flags, Loaded, load_and_fingerprint, read_file};

/// How often a server looks. A change applies within two of them.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What a configuration was made of: a hash of the file and of the secrets' files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    hash: [u8; 32],
    files: Files,
}

impl Fingerprint {
    pub(super) fn of_text(text: Option<&[u8]>, files: Files) -> Self {
        let mut hasher = Sha256::new();
        let mut add = |content: &[u8]| {
            hasher.update((content.len() as u64).to_le_bytes());
            hasher.update(content);
        };
        add(text.unwrap_or_default());
        for file in &files {
            add(&content_of(file));
        }
        Self { hash: hasher.finalize().into(), files }
    }

    /// The fingerprint of what lies under `path` now, if it names the same files as before.
    fn again(&self, path: &Path) -> Self {
        let files = self.files.clone();
        Self::of_text(Some(&content_of(path)), files)
    }
}

/// What cannot be read counts as the reason for it: it is reported once, until that changes.
fn content_of(path: &Path) -> Vec<u8> {
    read_file(path).unwrap_or_else(|kind| kind.to_string().into_bytes())
}

/// Looks at `path` every `interval` and sends what it holds each time that changed since `from`. A configuration that
/// cannot be used is sent as its errors, once; keep the old one. Ends when the receiver is dropped.
///
/// At most one result waits; while it does, nothing is read.
#[must_use]
pub fn watch(
    path: PathBuf,
    flags: Flags,
    env: Env,
    from: Fingerprint,
    interval: Duration,
) -> mpsc::Receiver<Result<Loaded, Errors>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut watched = Watched::new(path, flags, env, from);
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = sender.closed() => return,
            }
            // Reading blocks; on a network mount for long.
            let polled = tokio::task::spawn_blocking(move || {
                let result = watched.poll();
                (watched, result)
            });
            let Ok((same, result)) = polled.await else {
                return;
            };
            watched = same;
            if let Some(result) = result
                && sender.send(result).await.is_err()
            {
                return;
            }
        }
    });
    receiver
}

pub(super) struct Watched {
    path: PathBuf,
    flags: Flags,
    env: Env,
    /// What was sent last.
    known: Fingerprint,
    /// What the last poll saw, where it differs.
    pending: Option<Fingerprint>,
}

impl Watched {
    pub(super) fn new(path: PathBuf, flags: Flags, env: Env, known: Fingerprint) -> Self {
        let flags = Flags { running: true, ..flags };
        Self { path, flags, env, known, pending: None }
    }

    /// Looks once.
    pub(super) fn poll(&mut self) -> Option<Result<Loaded, Errors>> {
        let now = self.known.again(&self.path);
        if now == self.known {
            self.pending = None;
            return None;
        }
        if self.pending.as_ref() != Some(&now) {
            self.pending = Some(now);
            return None;
        }
        self.pending = None;
        let (result, known) = load_and_fingerprint(Some(&self.path), &self.flags, &self.env);
        self.known = known;
        Some(result)
    }
}

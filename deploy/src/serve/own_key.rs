//! The key a gateway makes for itself when it is told to serve the network and nobody configured one.
//!
//! Serving the network without keys would hand the operator's models to whoever finds the port; refusing to start would
//! stop the person who is only trying. So a key is made, its hash is kept, and the key is printed once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use transport::config::{Config, DEFAULT_TENANT, KeyEntry, Limits, Role};
use transport::keys::{Key, KeyHash, generate};

const FILE: &str = "own-key.hash";

/// A key that no configuration names.
pub struct OwnKey {
    pub entry: KeyEntry,
    /// The key itself, in the one life of the process that made it.
    pub fresh: Option<Key>,
}

#[derive(Debug, thiserror::Error)]
pub enum OwnKeyError {
    #[error("cannot keep the hash of a new API key in {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} does not hold a key's hash: delete it to have a new key made", path.display())]
    Damaged { path: PathBuf },
    #[error("the operating system gives no randomness for a key: {0}")]
    Entropy(#[from] getrandom::Error),
    #[error(
        "a role that listens beyond loopback needs keys that the other roles know too: write them into the configuration \
         that all of them read (`pointsman key new`)"
    )]
    Shared,
}

/// The key, where one is needed: beyond loopback, without any configured.
pub fn if_needed(config: &Config, addr: SocketAddr) -> Result<Option<OwnKey>, OwnKeyError> {
    if addr.ip().is_loopback() || !config.keys.is_empty() || config.auth.remote.is_some() {
        return Ok(None);
    }
    if config.role != Role::All {
        return Err(OwnKeyError::Shared);
    }
    let path = config.data.dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let hash = text.trim().parse().map_err(|_| OwnKeyError::Damaged { path })?;
            Ok(Some(OwnKey { entry: entry(hash), fresh: None }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (key, hash) = generate()?;
            keep(&config.data.dir, &path, hash)
                .map_err(|source| OwnKeyError::Io { path, source })?;
            Ok(Some(OwnKey { entry: entry(hash), fresh: Some(key) }))
        }
        Err(source) => Err(OwnKeyError::Io { path, source }),
    }
}

fn keep(dir: &Path, path: &Path, hash: KeyHash) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(path, format!("{hash}\n"))
}

fn entry(hash: KeyHash) -> KeyEntry {
    KeyEntry {
        hash: Some(hash),
        tenant: DEFAULT_TENANT.to_owned(),
        user: None,
        name: "own".to_owned(),
        limits: Limits::default(),
        models: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport::config::{Env, Flags, parse};

    fn config(dir: &Path, text: &str) -> Config {
        let mut config =
            parse("test", text.as_bytes(), &Flags::default(), &Env::from_iter([("", "")]))
                .expect("the file is fine")
                .config;
        config.data.dir = dir.to_owned();
        config
    }

    const NETWORK: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 1);

    #[test]
    fn a_key_is_made_once_and_known_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path(), "version: 1");
        let first = if_needed(&config, NETWORK).expect("made").expect("needed");
        let fresh = first.fresh.expect("shown in the life that made it");
        assert_eq!(first.entry.hash, Some(fresh.hash()));
        let again = if_needed(&config, NETWORK).expect("read").expect("needed");
        assert!(again.fresh.is_none(), "and only then");
        assert_eq!(again.entry.hash, Some(fresh.hash()));
    }

    #[test]
    fn loopback_and_configured_keys_need_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let bare = config(dir.path(), "version: 1");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(if_needed(&bare, loopback).expect("fine").is_none());
        let hash = format!("sha256:{}", "ab".repeat(32));
        let keyed = format!("version: 1\nkeys: [{{name: a, hash: \"{hash}\", tenant: default}}]");
        assert!(if_needed(&config(dir.path(), &keyed), NETWORK).expect("fine").is_none());
    }

    #[test]
    fn a_damaged_hash_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE), "garbage").expect("written");
        let error = if_needed(&config(dir.path(), "version: 1"), NETWORK).err().expect("refused");
        assert!(error.to_string().contains("delete it to have a new key made"), "{error}");
    }
}

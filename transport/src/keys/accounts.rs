//! Ids of accounts, sessions and digests: keyed hashes of names.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use control::id::{AccountId, Digest, Principal, SessionKey};
use control::quota::OwnerId;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Makes ids from names, under the secret salt of one data directory.
///
/// Ids are 64 bits: among a million accounts two collide with a chance of 1 in 37 million, and they would share a balance,
/// not a right. Sessions are as many at most, and a collision there shares a home. What is compared to decide whether two
/// requests are the same is 128 bits wide.
#[derive(Clone)]
pub struct AccountIds {
    salt: [u8; 32],
}

/// Why the salt of a data directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SaltError {
    /// The file cannot be read or written.
    #[error("the salt {} cannot be used: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file has another length: it was damaged, and new ids would orphan every balance.
    #[error("the salt {} is damaged; restore it from a backup, or start with a new data directory", .0.display())]
    Damaged(PathBuf),
    /// The operating system has no entropy to give.
    #[error("no entropy for a salt: {0}")]
    Entropy(getrandom::Error),
}

/// The salt's name in the data directory.
const SALT_FILE: &str = "salt";

/// The name of the one that a shared ledger brought along.
const SHARED_SALT_FILE: &str = "shared-salt";

impl AccountIds {
    /// Ids under a salt that is known: for tests, simulations and replay.
    #[must_use]
    pub fn new(salt: [u8; 32]) -> Self {
        Self { salt }
    }

    /// Ids under the salt of a data directory, which is made where there is none.
    ///
    /// # Errors
    /// See [`SaltError`].
    pub fn open(dir: &Path) -> Result<Self, SaltError> {
        if let Some(kept) = Self::kept(dir, SALT_FILE)? {
            return Ok(kept);
        }
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(SaltError::Entropy)?;
        let made = Self::new(salt);
        made.keep(dir, SALT_FILE)?;
        Ok(made)
    }

    /// Ids under the salt that all who share a ledger have, where this directory has met it.
    pub(crate) fn shared(dir: &Path) -> Result<Option<Self>, SaltError> {
        Self::kept(dir, SHARED_SALT_FILE)
    }

    /// Keeps this as the salt that all share, for starts without them.
    pub(crate) fn keep_shared(&self, dir: &Path) -> Result<(), SaltError> {
        self.keep(dir, SHARED_SALT_FILE)
    }

    /// The secret itself.
    pub(crate) fn salt(&self) -> [u8; 32] {
        self.salt
    }

    /// This directory's name among all that share a ledger.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        OwnerId(self.short("owner", &[]))
    }

    fn kept(dir: &Path, name: &str) -> Result<Option<Self>, SaltError> {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => bytes
                .try_into()
                .map(|salt| Some(Self::new(salt)))
                .map_err(|_| SaltError::Damaged(path.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SaltError::Io { path, source }),
        }
    }

    fn keep(&self, dir: &Path, name: &str) -> Result<(), SaltError> {
        let path = dir.join(name);
        let kept = write_new(dir, &path, &self.salt);
        kept.map_err(|source| SaltError::Io { path, source })
    }

    /// The account of a tenant.
    #[must_use]
    pub fn tenant(&self, tenant: &str) -> AccountId {
        AccountId(self.short("account", &[&tenant_path(tenant)]))
    }

    /// The account of a user within a tenant.
    #[must_use]
    pub fn user(&self, tenant: &str, user: &str) -> AccountId {
        AccountId(self.short("account", &[&user_path(tenant, user)]))
    }

    /// The account of an API key, by its name.
    #[must_use]
    pub fn key(&self, name: &str) -> AccountId {
        AccountId(self.short("account", &[&key_path(name)]))
    }

    /// Who asks, as the plane knows him.
    #[must_use]
    pub fn principal(&self, tenant: &str, user: Option<&str>, key: Option<&str>) -> Principal {
        Principal {
            tenant: self.tenant(tenant),
            user: user.map(|user| self.user(tenant, user)),
            key: key.map(|key| self.key(key)),
        }
    }

    /// What keeps the requests of a named session together.
    #[must_use]
    pub fn session(&self, tenant: &str, session: &str) -> SessionKey {
        SessionKey(self.short("session", &[tenant, session]))
    }

    /// What keeps requests together that begin with the same conversation.
    #[must_use]
    pub fn prefix(&self, tenant: &str, conversation: &[u8]) -> SessionKey {
        let mac = self.mac("prefix", &[tenant.as_bytes(), conversation]);
        SessionKey(u64::from_be_bytes(head(&mac)))
    }

    /// A tenant's `Idempotency-Key`.
    #[must_use]
    pub fn idempotency(&self, tenant: &str, key: &str) -> Digest {
        self.digest("idempotency", &[tenant.as_bytes(), key.as_bytes()])
    }

    /// A request body, to tell whether it is the same again.
    #[must_use]
    pub fn body(&self, body: &[u8]) -> Digest {
        self.digest("body", &[body])
    }

    /// Anything else that is compared and must not be known. The same parts under another `domain` give another
    /// digest, and no two lists of parts are taken for one.
    #[must_use]
    pub fn digest(&self, domain: &str, parts: &[&[u8]]) -> Digest {
        Digest(u128::from_be_bytes(head(&self.mac(domain, parts))))
    }

    fn short(&self, domain: &str, parts: &[&str]) -> u64 {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        u64::from_be_bytes(head(&self.mac(domain, &parts)))
    }

    fn mac(&self, domain: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.salt).expect("HMAC takes any length");
        for part in std::iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for AccountIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountIds(..)")
    }
}

fn head<const N: usize>(mac: &[u8; 32]) -> [u8; N] {
    let mut head = [0; N];
    head.copy_from_slice(&mac[..N]);
    head
}

fn tenant_path(tenant: &str) -> String {
    format!("t:{tenant}")
}

/// A tenant's name has no slash, so no two pairs make one path.
fn user_path(tenant: &str, user: &str) -> String {
    format!("u:{tenant}/{user}")
}

fn key_path(name: &str) -> String {
    format!("k:{name}")
}

/// Whole or not at all: under another name first, flushed, then renamed.
fn write_new(dir: &Path, path: &Path, salt: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    file.write_all(salt)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

/// What ids are called, for `quota show` and `explain`. Only what the configuration names and who came by since the start.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_id: BTreeMap<AccountId, String>,
}

impl Names {
    /// A name is at most some 200 bytes, so this is 20 MiB; who comes later is shown by id.
    pub const NAMES_MAX: usize = 100_000;

    /// The names of everybody the configuration mentions.
    #[must_use]
    pub fn of(config: &crate::config::Config, ids: &AccountIds) -> Self {
        let mut names = Self::default();
        names.insert_tenant(ids, crate::config::DEFAULT_TENANT);
        for (tenant, settings) in &config.tenants {
            names.insert_tenant(ids, tenant);
            for user in settings.users.keys() {
                names.insert_user(ids, tenant, user);
            }
        }
        for key in &config.keys {
            names.insert(ids.key(&key.name), key_path(&key.name));
            if let Some(user) = &key.user {
                names.insert_user(ids, &key.tenant, user);
            }
        }
        names
    }

    /// Remembers a tenant.
    pub fn insert_tenant(&mut self, ids: &AccountIds, tenant: &str) {
        self.insert(ids.tenant(tenant), tenant_path(tenant));
    }

    /// Remembers a user.
    pub fn insert_user(&mut self, ids: &AccountIds, tenant: &str, user: &str) {
        self.insert(ids.user(tenant, user), user_path(tenant, user));
    }

    fn insert(&mut self, id: AccountId, name: String) {
        if self.by_id.len() < Self::NAMES_MAX {
            self.by_id.insert(id, name);
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (AccountId, &str)> {
        self.by_id.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// `t:<tenant>`, `u:<tenant>/<user>` or `k:<key>`, where it is known.
    #[must_use]
    pub fn get(&self, id: AccountId) -> Option<&str> {
        self.by_id.get(&id).map(String::as_str)
    }
}

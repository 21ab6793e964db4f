//! Who may ask: the keys of the configuration in effect, and the names of the accounts they stand for.
//!
//! A process that has no keys lets in whoever reaches it, which its own machine alone does. A changed file must not bring it
//! there: the last key may be deleted by mistake, and a file that names an auth role has no hashes for those who ask it, while
//! this process was started to judge keys itself. So, whatever a file says while the process runs:
//!
//! - Where keys were ever in use, or a port is open beyond loopback, no keys means nobody ([`Accounts::shut`]).
//! - Who judges keys is settled at the start. A file that says otherwise leaves the keys as they are until a restart.
//!
//! Rejected: refusing such files as a whole. The rest of them (a limit, an endpoint that is broken) would wait with it.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use control::id::{AccountId, Digest, Principal, SessionKey};

use crate::config::{AuthRole, Config, DEFAULT_TENANT, KEY_OWNER, KeyEntry, Tenant};
use crate::front::{AuthError, Authenticate, Caller, Judged};
use crate::keys::{AccountIds, Identity, KeyRing, Names, Refused};
use crate::trace::Trace;

/// Names by account, for `quota show` on a running or stopped gateway.
const NAMES_FILE: &str = "accounts.json";

/// Whose the stored sessions of somebody are who shows no key and names no user, on loopback.
const NOBODY: &str = "anonymous";

/// Looks keys up. A reload swaps the ring; requests under way keep who they are.
pub struct Accounts {
    ids: AccountIds,
    ring: ArcSwap<KeyRing>,
    named: ArcSwap<Named>,
    /// A key that this gateway made for itself; see [`Accounts::set_own_key`].
    own: ArcSwap<Vec<KeyEntry>>,
    /// The role that judges keys instead, as it was at the start.
    judge: Option<AuthRole>,
    /// See [`Accounts::shut`].
    shut: AtomicBool,
    /// Where the names of accounts are kept, if anywhere.
    file: Option<PathBuf>,
}

/// Whom the configuration in effect names.
#[derive(Default)]
struct Named {
    tenants: BTreeMap<String, Tenant>,
    keys: Vec<KeyEntry>,
}

impl Accounts {
    /// The accounts of a configuration. `dir` is the data directory, where names are kept for `quota show`.
    #[must_use]
    pub fn new(config: &Config, ids: AccountIds, dir: Option<&Path>) -> Arc<Self> {
        let accounts = Self {
            ids,
            ring: ArcSwap::default(),
            named: ArcSwap::default(),
            own: ArcSwap::default(),
            judge: config.auth.remote.clone(),
            shut: AtomicBool::new(false),
            file: dir.map(|dir| dir.join(NAMES_FILE)),
        };
        accounts.set_config(config);
        Arc::new(accounts)
    }

    /// Takes the keys of a new configuration, and gives what of it holds until a restart.
    pub fn set_config<'c>(&self, config: &'c Config) -> Cow<'c, Config> {
        let config = self.settled(config);
        // A file that names keys decides alone who is let in.
        let mut ring = KeyRing::new(&config.keys, &self.ids);
        if ring.is_empty() {
            ring = KeyRing::new(&self.own.load(), &self.ids);
        }
        if !ring.is_empty() || self.judge.is_some() {
            self.shut();
        } else if self.is_shut() {
            tracing::error!(
                "the configuration names no key any more: nobody is let in until it does (`pointsman key new`), or until a \
                 restart on loopback alone"
            );
        }
        self.ring.store(Arc::new(ring));
        let named = Named { tenants: config.tenants.clone(), keys: config.keys.clone() };
        self.named.store(Arc::new(named));
        if let Some(file) = &self.file
            && let Err(error) = write_names(file, &Names::of(&config, &self.ids))
        {
            tracing::warn!(%error, "account names could not be kept: `quota show` will print ids");
        }
        config
    }

    /// From here on nobody comes without a key, even while none is known: keys are in use, or others than this machine reach
    /// the process.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// The configuration, but for keys that belong to another judge than the one this process was started with: those before
    /// stay, with their tenants.
    fn settled<'c>(&self, config: &'c Config) -> Cow<'c, Config> {
        let asks = config.auth.remote.is_some();
        if asks == self.judge.is_some() {
            return Cow::Borrowed(config);
        }
        let change = if asks {
            "gives the keys to an auth role"
        } else {
            "takes the keys from the auth role"
        };
        tracing::warn!(
            "the changed configuration {change} (auth.url), which needs a restart: until then keys are judged as before, and \
             its list of keys is not taken"
        );
        let before = self.named.load();
        let mut kept = config.clone();
        kept.auth.remote.clone_from(&self.judge);
        kept.keys.clone_from(&before.keys);
        for (name, tenant) in &before.tenants {
            // Without it a key that stays would have no limits.
            kept.tenants.entry(name.clone()).or_insert_with(|| tenant.clone());
        }
        Cow::Owned(kept)
    }

    /// Lets in the key that the gateway made because it serves beyond loopback and none was configured. It stays for as long
    /// as no file names others.
    pub fn set_own_key(&self, key: KeyEntry, config: &Config) {
        self.own.store(Arc::new(vec![key]));
        self.set_config(config);
    }

    /// Ids of accounts by name.
    #[must_use]
    pub fn ids(&self) -> &AccountIds {
        &self.ids
    }

    /// Somebody on loopback, where no keys are in use.
    fn anybody(&self, user_id: Option<&str>) -> Caller {
        Caller {
            principal: self.ids.principal(DEFAULT_TENANT, user_id, None),
            models: None,
            tenant_name: DEFAULT_TENANT.into(),
            owner_name: user_id.unwrap_or(NOBODY).into(),
        }
    }
}

impl Authenticate for Accounts {
    fn authenticate(&self, bearer: Option<&str>, user_id: Option<&str>, _: &Trace) -> Judged {
        Judged::now(self.judge(bearer, user_id))
    }

    fn session_key(&self, principal: &Principal, name: &str) -> SessionKey {
        let tenant = principal.tenant.0.to_le_bytes();
        let digest = self.ids.digest("session", &[&tenant, name.as_bytes()]);
        SessionKey(digest.0 as u64)
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        self.ids.digest("request", &[bytes])
    }
}

impl Accounts {
    fn judge(&self, bearer: Option<&str>, user_id: Option<&str>) -> Result<Caller, AuthError> {
        let ring = self.ring.load();
        if ring.is_empty() && !self.is_shut() {
            return Ok(self.anybody(user_id));
        }
        let presented = bearer.ok_or(AuthError::KeyMissing)?;
        let identity = ring.lookup(presented).map_err(|refused| match refused {
            Refused::Mistyped | Refused::Unknown => AuthError::KeyUnknown,
        })?;
        self.caller(identity, user_id)
    }

    /// Whoever holds this key, on behalf of this user.
    pub(crate) fn caller(
        &self,
        identity: &Identity,
        user_id: Option<&str>,
    ) -> Result<Caller, AuthError> {
        let mut principal = identity.principal;
        match (&identity.user, user_id) {
            // A user's own key speaks for nobody else.
            (Some(own), Some(named)) if own != named => return Err(AuthError::UserForbidden),
            (None, Some(named)) => principal.user = Some(self.ids.user(&identity.tenant, named)),
            (_, None) | (Some(_), Some(_)) => {}
        }
        let models = identity.models.as_deref().map(Arc::from);
        let user = identity.user.as_deref().or(user_id);
        let owner_name =
            user.map_or_else(|| format!("{KEY_OWNER}{}", identity.name).into(), Into::into);
        let tenant_name = identity.tenant.as_str().into();
        Ok(Caller { principal, models, tenant_name, owner_name })
    }

    /// Whether the configuration has this tenant, and with it its limits.
    pub(crate) fn knows_tenant(&self, name: &str) -> bool {
        name == DEFAULT_TENANT || self.named.load().tenants.contains_key(name)
    }
}

/// Names of accounts as a gateway kept them in its data directory; none where it kept none.
#[must_use]
pub fn read_names(dir: &Path) -> BTreeMap<AccountId, String> {
    let Ok(bytes) = std::fs::read(dir.join(NAMES_FILE)) else { return BTreeMap::new() };
    let names: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap_or_default();
    let named = names
        .into_iter()
        .filter_map(|(id, name)| u64::from_str_radix(&id, 16).ok().map(|id| (AccountId(id), name)));
    named.collect()
}

fn write_names(file: &Path, names: &Names) -> io::Result<()> {
    let by_id: BTreeMap<String, &str> =
        names.iter().map(|(id, name)| (format!("{:016x}", id.0), name)).collect();
    let partial = file.with_extension("json.new");
    std::fs::write(&partial, serde_json::to_vec_pretty(&by_id)?)?;
    std::fs::rename(&partial, file)
}

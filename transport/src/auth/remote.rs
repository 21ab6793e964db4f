//! Asks the auth role who presents a key.

mod desk;
mod probe;

use std::sync::Arc;

use control::id::{Digest, Principal, SessionKey};
use futures_util::FutureExt as _;
use tokio_util::task::AbortOnDropHandle;

use crate::accounts::Accounts;
use crate::config::Auth;
use crate::front::{AuthError, Authenticate, Judged};
use crate::health::Health;
use crate::keys::{Key, KeyHash, PREFIX};
use crate::trace::Trace;
use crate::upstream::{Client, Failed, Target};
use desk::{Desk, Found};
pub use probe::{ProbeError, probe};

/// The keys of another process. Names of sessions and the like are hashed here, as in every role.
pub struct Remote {
    accounts: Arc<Accounts>,
    desk: Arc<Desk>,
    _watching: AbortOnDropHandle<()>,
}

impl Remote {
    /// Asks the role at `target` from here on. Needs a runtime around it.
    ///
    /// # Errors
    /// Where no such connection can be made at all.
    pub fn new(
        client: &Client,
        target: &Target,
        settings: &Auth,
        accounts: Arc<Accounts>,
        health: Arc<Health>,
    ) -> Result<Self, Failed> {
        let channel = client.to_role(target)?;
        let at = target.base_url.to_string();
        let desk = Desk::new(channel, at, settings, Arc::clone(&accounts), health);
        let watching = AbortOnDropHandle::new(tokio::spawn(desk::watch(Arc::downgrade(&desk))));
        Ok(Self { accounts, desk, _watching: watching })
    }
}

impl Authenticate for Remote {
    fn authenticate(&self, bearer: Option<&str>, user_id: Option<&str>, trace: &Trace) -> Judged {
        let Some(presented) = bearer else { return Judged::now(Err(AuthError::KeyMissing)) };
        // Nobody is asked about letters that are missing or wrong.
        if presented.starts_with(PREFIX) && !Key::is_well_formed(presented) {
            return Judged::now(Err(AuthError::KeyUnknown));
        }
        match self.desk.find(*KeyHash::of(presented).as_bytes(), trace) {
            Found::Now(Ok(identity)) => Judged::now(self.accounts.caller(&identity, user_id)),
            Found::Now(Err(error)) => Judged::now(Err(error)),
            Found::Later(asking) => {
                let (accounts, user_id) =
                    (Arc::clone(&self.accounts), user_id.map(ToOwned::to_owned));
                let caller = async move {
                    let identity = asking.await?;
                    accounts.caller(&identity, user_id.as_deref())
                };
                Judged::Later(caller.boxed())
            }
        }
    }

    fn session_key(&self, principal: &Principal, name: &str) -> SessionKey {
        self.accounts.session_key(principal, name)
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        self.accounts.digest(bytes)
    }
}

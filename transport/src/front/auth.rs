//! Who asks: the seam to whatever holds the keys.
//!
//! Keys live in configuration as hashes and may change while the process runs, so the front asks a trait and keeps
//! nothing. There are two: [`Accounts`](crate::accounts::Accounts) has the keys in this process, and
//! [`Remote`](crate::auth::Remote) asks the role that has them. An answer is therefore a future, but one that is mostly there
//! already ([`Judged::Now`]): what is known here costs no allocation and no turn of the scheduler.
//!
//! The implementation also owns the secret that turns users' text (session ids, idempotency keys) into
//! keyed hashes: beyond this seam nobody sees the text.

use core::future::{Ready, ready};
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;
use std::time::Duration;

use control::id::{Digest, Principal, SessionKey};

use futures_util::future::BoxFuture;
use http::StatusCode;

use super::error::{self, ApiError};
use crate::redis::scoped_name;
use crate::sessions::Owner;
use crate::trace::Trace;

/// Looks keys up and hides users' text.
pub trait Authenticate: Send + Sync + 'static {
    /// Who presents this key, on behalf of this user. Called before the body is read (`user_id` is `None` then), and
    /// once more when the body names a user. [`AuthError`] where nobody may ask with this key, or this user may not be
    /// named with it. Whoever has to be asked hears of the trace.
    fn authenticate(&self, bearer: Option<&str>, user_id: Option<&str>, trace: &Trace) -> Judged;

    /// Keyed hash of (tenant, name): equal names of two tenants never meet.
    fn session_key(&self, principal: &Principal, name: &str) -> SessionKey;

    /// Keyed hash of anything else that is to be compared and not known.
    fn digest(&self, bytes: &[u8]) -> Digest;
}

/// What comes of a key: known now, or once the role that knows has been asked.
#[must_use]
pub enum Judged {
    /// Known; see [`Judged::now`].
    Now(Ready<Result<Caller, AuthError>>),
    /// Asked for. Bounded in time by whoever made it.
    Later(BoxFuture<'static, Result<Caller, AuthError>>),
}

impl Judged {
    /// Without asking anybody.
    pub fn now(known: Result<Caller, AuthError>) -> Self {
        Self::Now(ready(known))
    }
}

impl Future for Judged {
    type Output = Result<Caller, AuthError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(known) => Pin::new(known).poll(cx),
            Self::Later(asked) => asked.as_mut().poll(cx),
        }
    }
}

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The accounts that pay.
    pub principal: Principal,
    /// Public names of the models this key may use; `None` for all.
    pub models: Option<Arc<[String]>>,
    /// The tenant's name in the configuration, for the log line.
    pub tenant_name: Arc<str>,
    /// Whose stored sessions are meant: the user's, else the key's own.
    pub owner_name: Arc<str>,
}

impl Caller {
    /// Whether this caller may use the model.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|names| names.iter().any(|name| name == model))
    }

    /// Whose stored sessions are meant.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { tenant: Arc::clone(&self.tenant_name), user: Arc::clone(&self.owner_name) }
    }

    /// What the user who pays is called among all that share a Redis; nothing where no user does.
    #[must_use]
    pub fn user_name(&self) -> Option<Arc<str>> {
        self.principal.user.map(|_| scoped_name(&self.tenant_name, &self.owner_name).into())
    }
}

/// Why somebody may not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// A key is needed and none came (401).
    KeyMissing,
    /// Nobody holds this key (401).
    KeyUnknown,
    /// The key was good until its date (401).
    KeyExpired,
    /// The key may not speak for the user that the body names (403).
    UserForbidden,
    /// Whoever knows the keys cannot be asked (503).
    Unknowable,
}

/// When to come back where keys cannot be judged: by then a connection has been tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::KeyMissing => error::unauthorized(
                "No API key came with the request. Send the header 'Authorization: Bearer KEY'.",
            ),
            AuthError::KeyUnknown => error::unauthorized(
                "The API key is not known here. Check it for missing characters, or ask the gateway's operator for \
                 one ('pointsman key new').",
            ),
            AuthError::KeyExpired => {
                error::unauthorized("The API key has expired. Ask the gateway's operator for a new one.")
            }
            AuthError::UserForbidden => error::forbidden(
                "user_forbidden",
                "The API key may not speak for this user_id. Leave user_id out, or use a key of that user.",
            )
            .param("user_id"),
            AuthError::Unknowable => error::new(
                StatusCode::SERVICE_UNAVAILABLE,
                error::SERVER,
                "auth_unavailable",
                "The API key cannot be judged right now: the auth role does not answer. Send the request again in a moment.",
            )
            .retry_after(AGAIN_AFTER),
        }
    }
}

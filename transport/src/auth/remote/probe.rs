//! Whether the auth role of a configuration answers, before anybody serves it.
//!
//! It is asked about a key that nobody holds, as the watch asks. Whether it knows the names that a configuration has limits for
//! cannot be asked: it answers about hashes alone, so that nobody can draw up a list of its keys, and a role that asks has none.

use http::HeaderMap;

use super::desk::{self, NOBODY};
use crate::config::Config;
use crate::convert::{self, RouteError};
use crate::upstream::{Client, Failed};

/// Why it cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its address or its certificates cannot be used.
    #[error("{0}")]
    Route(#[from] RouteError),
    /// No connection can be made at all.
    #[error("auth.url: {0}")]
    Connect(Failed),
    /// It does not answer.
    #[error("auth ({at}): {why}")]
    Silent {
        /// Where it should be.
        at: String,
        /// Why it says nothing, in words for an operator.
        why: String,
    },
}

/// Asks the auth role of a configuration. Where it is; `None` where keys are judged by whoever reads the configuration.
///
/// # Errors
/// See [`ProbeError`].
pub async fn probe(client: &Client, config: &Config) -> Result<Option<String>, ProbeError> {
    let Some(role) = &config.auth.remote else { return Ok(None) };
    let target = convert::auth_target(role)?;
    let at = target.base_url.to_string();
    let channel = client.to_role(&target).map_err(ProbeError::Connect)?;
    let asked = desk::asked(desk::client(channel), NOBODY, HeaderMap::new(), config.auth.timeout);
    match asked.await {
        Ok(_) => Ok(Some(at)),
        Err(why) => Err(ProbeError::Silent { at, why }),
    }
}

//! `auth`: where the keys are, for roles that do not hold them themselves; and what the role that does tells them.

use std::time::Duration;

use super::problem::ProblemKind;
use super::reader::Section;
use super::server::{MILLI, seconds};
use super::trust::WorkerTls;
use super::units::Url;

/// Keys between roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The role that holds the keys; `None` where this process does.
    pub remote: Option<AuthRole>,
    /// The longest one question may take.
    pub timeout: Duration,
    /// How long a key that was let in is let in without being asked for, while nobody answers.
    pub grace: Duration,
    /// What the auth role says of its answers: how long they may be used.
    pub ttl: Duration,
}

/// The auth role, as others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRole {
    /// Where it is.
    pub url: Url,
    /// TLS with it.
    pub tls: Option<WorkerTls>,
}

impl Auth {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let url = section.maybe::<Url>("url", "each role has the keys of its own configuration");
        let tls = WorkerTls::vouched(section, url.as_ref());
        if let Some(url) = url.as_ref().filter(|url| !url.is_auth()) {
            let reason = format!(
                "the auth role is reached at auth://host:port or auths://host:port, not at {url}"
            );
            section.problem("url", ProblemKind::Invalid(reason));
        }
        if url.is_none() && section.gives("tls") {
            let reason = "it goes with `url`, which is missing".to_owned();
            section.problem("tls", ProblemKind::Invalid(reason));
        }
        Self {
            remote: url.map(|url| AuthRole { url, tls }),
            // A look into a map, and a round trip in the same building.
            timeout: section.between("timeout", seconds(1), MILLI * 10..=seconds(10)),
            // Long enough to start the role again, short enough that a key taken away meanwhile does little.
            grace: section.between("grace", seconds(300), seconds(0)..=seconds(3_600)),
            ttl: section.between("ttl", seconds(10), seconds(1)..=seconds(300)),
        }
    }
}

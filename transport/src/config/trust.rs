//! `tls` of an endpoint: whom to believe at a `quic://`, `grpcs://` or `chats://` address, and what to show of ourselves.

use std::path::PathBuf;

use super::problem::ProblemKind;
use super::reader::Section;
use super::tree::Scalar;
use super::units::Url;
use super::value::{Value, Wrong, text};
use crate::quic::Pin;

/// TLS with one worker, or one chat role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerTls {
    /// Its certificate's fingerprint; nothing else is looked at then.
    pub pin: Option<Pin>,
    /// The authorities that vouch for it, a PEM file.
    pub ca: Option<PathBuf>,
    /// What we show, where it asks: a certificate chain and its private key, PEM files.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl WorkerTls {
    /// For the endpoint at `url`.
    pub(super) fn of(section: &Section<'_>, url: Option<&Url>) -> Option<Self> {
        Self::at(section, url, Self::read)
    }

    /// For the auth role: an authority vouches for it, so that several may stand behind one name.
    pub(super) fn vouched(section: &Section<'_>, url: Option<&Url>) -> Option<Self> {
        Self::at(section, url, |tls| Self::read_over(tls, None))
    }

    fn at(
        section: &Section<'_>,
        url: Option<&Url>,
        read: impl FnOnce(&Section<'_>) -> Option<Self>,
    ) -> Option<Self> {
        let tls = section.maybe_section("tls", read);
        let ours = |url: &Url| (url.is_worker() || url.is_role()) && url.is_tls();
        if section.gives("tls") && url.is_some_and(|url| !ours(url)) {
            let reason = "only quic://, grpcs://, chats:// and auths:// have this; other endpoints with TLS \
                          are believed where a public authority vouches for them";
            section.problem("tls", ProblemKind::Invalid(reason.into()));
        }
        tls
    }

    fn read(section: &Section<'_>) -> Option<Self> {
        Self::read_over(section, section.maybe("pin", "none"))
    }

    fn read_over(section: &Section<'_>, pin: Option<Pin>) -> Option<Self> {
        let ca = section.maybe("ca", "the public authorities");
        let own = own(section);
        if pin.is_some() && ca.is_some() {
            let reason = "a pinned certificate needs no authority: remove one of the two";
            section.problem("ca", ProblemKind::Invalid(reason.into()));
        }
        Some(Self { pin, ca, own })
    }
}

/// What we show of ourselves: `cert` and `key`, both or none.
pub(super) fn own(section: &Section<'_>) -> Option<(PathBuf, PathBuf)> {
    let cert = section.maybe("cert", "nothing is shown");
    let key = section.maybe("key", "nothing is shown");
    if let (Some(_), None) | (None, Some(_)) = (&cert, &key) {
        let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        let reason = format!("goes with `{missing}`, which is missing");
        section.problem(there, ProblemKind::Invalid(reason));
    }
    cert.zip(key)
}

impl Value for Pin {
    fn expected() -> String {
        "a fingerprint like sha256:9f86d081... of 64 digits".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let given = text(scalar)?;
        given.parse().map_err(|why: crate::quic::BadPin| Wrong::Because(why.to_string()))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

//! Where to call, and with which key.

use core::fmt;
use core::str::FromStr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Uri, uri};

use crate::quic::Trust;

/// An endpoint, as the shell knows it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where its API begins.
    pub base_url: BaseUrl,
    /// Sent as a bearer token.
    pub api_key: Option<Secret>,
    /// HTTP/2 without asking: over TLS nothing else is offered, without TLS it is spoken by prior knowledge (h2c).
    pub http2_only: bool,
    /// Sent with every request; they win over all others, `authorization` included (for endpoints that want
    /// `api-key: ...`). Mark values that are secret as sensitive, so that `Debug` hides them.
    pub headers: HeaderMap,
    /// Whom to believe where our own wire is spoken over TLS or QUIC; `None` is whoever a public authority vouches for.
    pub trust: Option<Arc<Trust>>,
    /// The mark of what it runs, where it continues answers and is no worker, who would say so itself.
    pub continues: Option<Arc<str>>,
}

impl Target {
    /// An endpoint without a key, speaking whatever HTTP version it offers.
    #[must_use]
    pub fn new(base_url: BaseUrl) -> Self {
        Self {
            base_url,
            api_key: None,
            http2_only: false,
            headers: HeaderMap::new(),
            trust: None,
            continues: None,
        }
    }
}

/// The beginning of an endpoint's API: `http://host:port` (then `/v1` is added) or with a path (`https://host/api/v1`);
/// or a worker that speaks Pointsman's own wire: `grpc://host:port`, `grpcs://host:port` with TLS, `quic://host:port`; or,
/// for the gateway role, the chat role: `chat://host:port`, `chats://host:port` with TLS. The auth role is
/// `auth://host:port` or `auths://host:port`; it is called for keys alone.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl {
    speaks: Speaks,
    tls: bool,
    authority: Authority,
    /// Begins with a slash and does not end with one. A worker has none.
    prefix: String,
}

/// What is spoken at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// OpenAI's API.
    OpenAi,
    /// Our own wire, over HTTP/2.
    Grpc,
    /// The same over QUIC.
    Quic,
    /// `ChatService`, as the chat role serves it.
    Chat,
    /// `AuthService`, as the auth role serves it.
    Auth,
}

/// Where a worker listens whose URL names no port.
const WORKER_PORT: u16 = 50055;
/// And over QUIC. Another number, although another protocol: one that is easily told from it in a list of ports.
const QUIC_PORT: u16 = 50056;
/// Where the chat role listens.
const CHAT_PORT: u16 = 8081;
/// Where the auth role is asked.
const AUTH_PORT: u16 = 8082;

/// Why a text is no [`BaseUrl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Not a URL at all.
    #[error(
        "not a URL: write http://host:port, https://host/v1, grpc://host:port or quic://host:port"
    )]
    Malformed,
    /// None of those that are spoken.
    #[error("the URL must begin with http://, https://, grpc://, grpcs:// or quic://")]
    Scheme,
    /// A worker's URL with a path.
    #[error("a worker's URL has no path: write grpc://host:port or quic://host:port")]
    Path,
    /// `user:password@host`.
    #[error("the URL must not hold a user or password: use api_key")]
    Credentials,
    /// `?...` behind the path.
    #[error("the URL must not hold a query")]
    Query,
}

impl FromStr for BaseUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let parts = text.trim().parse::<Uri>().map_err(|_| BadUrl::Malformed)?.into_parts();
        let scheme = parts.scheme.ok_or(BadUrl::Scheme)?;
        let (speaks, tls) = match scheme.as_str() {
            "http" => (Speaks::OpenAi, false),
            "https" => (Speaks::OpenAi, true),
            "grpc" => (Speaks::Grpc, false),
            "grpcs" => (Speaks::Grpc, true),
            "quic" => (Speaks::Quic, true),
            "chat" => (Speaks::Chat, false),
            "chats" => (Speaks::Chat, true),
            "auth" => (Speaks::Auth, false),
            "auths" => (Speaks::Auth, true),
            _ => return Err(BadUrl::Scheme),
        };
        let authority = parts.authority.ok_or(BadUrl::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::Credentials);
        }
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(BadUrl::Query);
        }
        let prefix = match (speaks, path.path().trim_end_matches('/')) {
            (Speaks::OpenAi, "") => "/v1".to_owned(),
            (Speaks::OpenAi, prefix) => prefix.to_owned(),
            (Speaks::Grpc | Speaks::Quic | Speaks::Chat | Speaks::Auth, "") => String::new(),
            (Speaks::Grpc | Speaks::Quic | Speaks::Chat | Speaks::Auth, _) => {
                return Err(BadUrl::Path);
            }
        };
        Ok(Self { speaks, tls, authority, prefix })
    }
}

impl BaseUrl {
    /// Whether the endpoint is reached through TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether our own wire is spoken there: by a worker, or by the chat role.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.speaks != Speaks::OpenAi
    }

    /// Whether that worker is reached over QUIC.
    #[must_use]
    pub fn is_quic(&self) -> bool {
        self.speaks == Speaks::Quic
    }

    /// Whether the chat role is behind it.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        self.speaks == Speaks::Chat
    }

    /// Whether another role is behind it, which is called over gRPC.
    pub(super) fn is_role(&self) -> bool {
        matches!(self.speaks, Speaks::Chat | Speaks::Auth)
    }

    /// Host and port, as written.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// The URI of `path`, which begins with a slash.
    pub(super) fn join(&self, path: &str) -> Result<Uri, http::Error> {
        self.at(&format!("{}{path}", self.prefix))
    }

    /// The URI of `path` on the same server, outside its API.
    pub(super) fn at(&self, path: &str) -> Result<Uri, http::Error> {
        let scheme = if self.tls { "https" } else { "http" };
        uri::Builder::new()
            .scheme(scheme)
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    /// A worker's address, with its port.
    pub(super) fn worker(&self) -> String {
        let (host, port) = self.host_and_port();
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The host, an IPv6 address without its brackets, and the port: the usual one where none is written.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let usual = match (self.speaks, self.tls) {
            (Speaks::OpenAi, false) => 80,
            (Speaks::OpenAi, true) => 443,
            (Speaks::Grpc, _) => WORKER_PORT,
            (Speaks::Quic, _) => QUIC_PORT,
            (Speaks::Chat, _) => CHAT_PORT,
            (Speaks::Auth, _) => AUTH_PORT,
        };
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        (host, self.authority.port_u16().unwrap_or(usual))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.speaks, self.tls) {
            (Speaks::OpenAi, false) => "http",
            (Speaks::OpenAi, true) => "https",
            (Speaks::Grpc, false) => "grpc",
            (Speaks::Grpc, true) => "grpcs",
            (Speaks::Quic, _) => "quic",
            (Speaks::Chat, false) => "chat",
            (Speaks::Chat, true) => "chats",
            (Speaks::Auth, false) => "auth",
            (Speaks::Auth, true) => "auths",
        };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A credential. `Debug` prints `***`, there is no `Display`, and no way to read it back outside this module.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(HeaderValue);

/// The text holds something that cannot stand in a header (a line end, a character outside ASCII), or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key is empty or holds characters that no key has (line ends, non-ASCII): look for a copying mistake"
)]
pub struct BadSecret;

impl Secret {
    /// A key as an endpoint's operator gave it, without `Bearer`. White space around it (a file's last line end) is cut.
    ///
    /// # Errors
    /// [`BadSecret`] where it cannot be sent.
    pub fn new(text: &str) -> Result<Self, BadSecret> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadSecret);
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| BadSecret)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    pub(in crate::upstream) fn bearer(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    #[test]
    fn a_url_without_a_path_gets_v1() {
        for (text, shown) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://host:8000/", "http://host:8000/v1"),
            ("https://api.example.com/v1/", "https://api.example.com/v1"),
            ("https://host/compatible-mode/v1", "https://host/compatible-mode/v1"),
            ("http://[::1]:80", "http://[::1]:80/v1"),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.join("/models").unwrap().to_string(), format!("{shown}/models"));
        }
    }

    #[test]
    fn a_workers_url_has_a_port_and_no_path() {
        for (text, address, tls) in [
            ("grpc://host:1", "host:1", false),
            ("grpcs://host/", "host:50055", true),
            ("grpc://[::1]:7", "[::1]:7", false),
            ("grpc://[::1]", "[::1]:50055", false),
            ("quic://[::1]", "[::1]:50056", true),
            ("quic://host:7/", "host:7", true),
            ("chat://host", "host:8081", false),
            ("chats://host:7", "host:7", true),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert!(url.is_worker() && url.is_tls() == tls, "{text}");
            assert_eq!(url.is_quic(), text.starts_with("quic"));
            assert_eq!(
                (url.worker(), url.to_string()),
                (address.to_owned(), text.trim_end_matches('/').to_owned())
            );
        }
        assert!(!"http://host".parse::<BaseUrl>().unwrap().is_worker());
    }

    #[test]
    fn a_url_that_could_not_work_says_why() {
        for (text, why) in [
            ("", BadUrl::Malformed),
            ("host:8000", BadUrl::Scheme),
            ("/v1", BadUrl::Scheme),
            ("ftp://host", BadUrl::Scheme),
            ("http://user:pass@host", BadUrl::Credentials),
            ("http://host/v1?key=1", BadUrl::Query),
            ("grpc://host:1/v1", BadUrl::Path),
            ("quic://host:1/v1", BadUrl::Path),
        ] {
            assert_eq!(text.parse::<BaseUrl>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_secret_never_shows() {
        let mut target = Target::new("http://host".parse().unwrap());
        target.api_key = Some(Secret::new(" sk-very-secret\n").unwrap());
        assert!(!format!("{target:?}").contains("very-secret"));
        assert!(format!("{target:?}").contains("***"));
        assert_eq!(target.api_key.unwrap().bearer(), "Bearer sk-very-secret");
        for bad in ["", " ", "a\nb", "ключ", "a b"] {
            assert_eq!(Secret::new(bad), Err(BadSecret), "{bad:?}");
        }
    }
}

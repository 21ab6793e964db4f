//! The quantities and texts of a configuration that have a form of their own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::problem::ProblemKind;
use super::tree::Scalar;
use super::value::{Value, Wrong, text};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

/// Something that must not be seen: an upstream's key, a password. Neither `Debug` nor an error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret that was written or handed over as text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// As a command line or a variable gives it: `file:/path`, or the text itself.
    ///
    /// # Errors
    /// [`BadSecret`], which does not show it.
    pub fn given(text: &str) -> Result<Self, BadSecret> {
        let found = match text.strip_prefix("file:").map(PathBuf::from) {
            None => one_line(text).map(str::to_owned),
            Some(path) => {
                let why = |why| BadSecret(format!("cannot read {}: {why}", path.display()));
                one_line(read_small(&path).map_err(why)?.trim()).map(str::to_owned)
            }
        };
        found.map(Self).map_err(|_| BadSecret(NOT_ONE_LINE.to_owned()))
    }

    /// The secret itself, for the one who presents it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a text is no secret: in words that do not show it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSecret(String);

const NOT_ONE_LINE: &str = "a secret is one line that is not empty";

/// Longer than any key or password; a certificate chain given by mistake is refused.
const SECRET_MAX: u64 = 16 * 1024;

impl Value for Secret {
    const SECRET: bool = true;

    fn expected() -> String {
        "a secret: \"${VAR}\", file:/path or the text itself".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let given = text(scalar)?;
        let Some(path) = given.strip_prefix("file:").map(PathBuf::from) else {
            return Ok(Self::new(one_line(given)?.to_owned()));
        };
        let content = read_small(&path).map_err(|reason| {
            Wrong::Kind(ProblemKind::SecretUnreadable { path: path.clone(), reason })
        })?;
        Ok(Self::new(one_line(content.trim())?.to_owned()))
    }

    fn show(&self) -> String {
        "[redacted]".into()
    }
}

/// A secret ends up in a header or a password prompt: a line break in it is a mistake, and an attack on the former.
fn one_line(secret: &str) -> Result<&str, Wrong> {
    if secret.is_empty() || secret.chars().any(char::is_control) {
        return Err(Wrong::Because(NOT_ONE_LINE.into()));
    }
    Ok(secret)
}

fn read_small(path: &PathBuf) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    if metadata.len() > SECRET_MAX {
        return Err(format!("it is larger than {SECRET_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// The base of an OpenAI-compatible API: `https://api.openai.com/v1`.
///
/// One without a path gets `/v1`: `http://10.0.0.7:8000` is what people call a vLLM server. User, password, query and
/// fragment are refused; keys have a key of their own, which is not printed.
///
/// Or a worker that speaks Pointsman's own wire: `grpc://10.0.0.7:50055`, with TLS `grpcs://`; `quic://` over QUIC. It has no path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    scheme: &'static str,
    authority: String,
    path: String,
}

impl Url {
    /// Whether TLS is spoken.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        ["https", "grpcs", "quic", "chats", "auths"].contains(&self.scheme)
    }

    /// Whether it is a worker's, which speaks Pointsman's own wire.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.scheme.starts_with("grpc") || self.is_quic()
    }

    /// Whether it is the chat role's.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        self.scheme.starts_with("chat")
    }

    /// Whether it is the auth role's.
    #[must_use]
    pub fn is_auth(&self) -> bool {
        self.scheme.starts_with("auth")
    }

    /// Whether it is another role's.
    #[must_use]
    pub fn is_role(&self) -> bool {
        self.is_chat() || self.is_auth()
    }

    /// Whether it is spoken to over QUIC.
    #[must_use]
    pub fn is_quic(&self) -> bool {
        self.scheme == "quic"
    }

    /// `host` or `host:port`, as written.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path below which the API lies: begins with `/`, does not end with one. `/` alone is empty.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The address of one operation: `url.join("/chat/completions")`.
    #[must_use]
    pub fn join(&self, operation: &str) -> String {
        format!("{self}{operation}")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let (given, rest) = given.split_once("://").unwrap_or_default();
        let known = ["http", "https", "grpc", "grpcs", "quic", "chat", "chats", "auth", "auths"];
        let scheme = known.into_iter().find(|known| *known == given);
        let scheme =
            scheme.ok_or("a URL begins with http://, https://, grpc://, grpcs:// or quic://")?;
        let is_worker = !scheme.starts_with("http");
        if rest.contains(['?', '#']) {
            return Err("a base URL has no query and no fragment");
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a URL holds no user or password here; use api_key");
        }
        let parsed: http::uri::Authority =
            authority.parse().map_err(|_| "the URL's host is not valid")?;
        let port = authority.strip_prefix(parsed.host()).unwrap_or_default();
        if parsed.host().is_empty()
            || !(port.is_empty() || parsed.port_u16().is_some_and(|p| p > 0))
        {
            return Err("the URL's host or port is not valid");
        }
        let path = match path.trim_end_matches('/') {
            "" if is_worker => "",
            _ if is_worker => return Err("a worker's URL has no path: write grpc://host:port"),
            _ if path.is_empty() => "/v1",
            path => path,
        };
        if !path.is_empty() && path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err("the URL's path is not valid");
        }
        Ok(Self { scheme, authority: authority.to_owned(), path: path.to_owned() })
    }
}

impl Value for Url {
    fn expected() -> String {
        "a URL like http://127.0.0.1:8000/v1 or grpc://127.0.0.1:50055".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        text(scalar)?.parse().map_err(|reason: &str| Wrong::Because(reason.to_owned()))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

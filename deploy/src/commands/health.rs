//! `pointsman health`: one question to a process of ours.
//!
//! For containers: an image with nothing in it but this program has nothing else to ask with. A gateway is asked over plain
//! HTTP, where `server.admin.addr` answers even when the API's port speaks TLS; a worker is asked over its own wire. The
//! socket that `status` uses will not do: without a running gateway that command answers from the stopped directory, and
//! succeeds.

use std::process::ExitCode;
use std::str::FromStr;

use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport::gateway::discovery_limits;
use transport::upstream::{BaseUrl, Client, Settings, Target};

use crate::cli::HealthArgs;
use crate::out::say;

/// Reasons of a gateway that is not ready are some lines. What is beyond is not shown.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A page of a gateway.
    Page {
        /// Its host and port.
        authority: String,
        /// As in `/ready`.
        path: String,
    },
    /// A worker.
    Worker(BaseUrl),
}

/// A URL that cannot be asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("write http://host:port/health, http://host:port/ready or grpc://host:port")]
    Malformed,
    #[error(
        "over TLS nobody is asked: server.admin.addr answers over http://, and a worker at grpc://"
    )]
    Tls,
}

impl FromStr for Asked {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let url: Uri = text.parse().map_err(|_| BadUrl::Malformed)?;
        let authority = url.authority().ok_or(BadUrl::Malformed)?.as_str().to_owned();
        match url.scheme_str() {
            Some("http") => {
                let path = if url.path() == "/" { "/health" } else { url.path() };
                let named = url.port().is_some();
                let authority = if named { authority } else { format!("{authority}:80") };
                Ok(Self::Page { authority, path: path.to_owned() })
            }
            Some("grpc") => text.parse().map(Self::Worker).map_err(|_| BadUrl::Malformed),
            Some("https" | "grpcs" | "quic") => Err(BadUrl::Tls),
            Some(_) | None => Err(BadUrl::Malformed),
        }
    }
}

pub fn run(args: &HealthArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let answer = runtime.block_on(async {
        let answer = tokio::time::timeout(args.within, ask(&args.url));
        answer.await.unwrap_or_else(|_| Err(format!("no answer within {:?}", args.within)))
    });
    // A name that is still being looked up is nobody's concern any more.
    runtime.shutdown_background();
    match answer {
        Ok(words) => {
            say!("{words}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(asked: &Asked) -> Result<String, String> {
    match asked {
        Asked::Page { authority, path } => {
            page(authority, path).await.unwrap_or_else(|why| Err(format!("{authority}: {why}")))
        }
        Asked::Worker(url) => {
            let client = Client::new(&Settings::default()).map_err(|why| why.to_string())?;
            let found = client.discover(&Target::new(url.clone()), discovery_limits()).await;
            let found = found.map_err(|failed| format!("{}: {}", failed.failure, failed.detail))?;
            let models: Vec<&str> = found.models.iter().map(|model| &*model.id).collect();
            Ok(format!("serves {}", models.join(", ")))
        }
    }
}

/// What a gateway says in plain words: well with 200, else not.
async fn page(authority: &str, path: &str) -> std::io::Result<Result<String, String>> {
    let mut stream = TcpStream::connect(authority).await?;
    let asked = format!(
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\naccept: text/plain\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(judged(&String::from_utf8_lossy(&answer)))
}

fn judged(answer: &str) -> Result<String, String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let line = head.lines().next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let words = body.trim();
    match status {
        Some("200") => Ok(words.to_owned()),
        Some(_) if !words.is_empty() => Err(words.to_owned()),
        Some(status) => Err(format!("answered with status {status}")),
        None => Err("what answers there is no HTTP server: is it the right port?".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_or_a_worker_can_be_asked_and_nothing_else() {
        let page = |authority: &str, path: &str| {
            Ok(Asked::Page { authority: authority.to_owned(), path: path.to_owned() })
        };
        assert_eq!("http://127.0.0.1:9090".parse(), page("127.0.0.1:9090", "/health"));
        assert_eq!("http://gateway/ready".parse(), page("gateway:80", "/ready"));
        assert!(matches!("grpc://[::1]:50055".parse(), Ok(Asked::Worker(_))));
        for (text, why) in [
            ("https://127.0.0.1:8443/health", BadUrl::Tls),
            ("quic://127.0.0.1:50056", BadUrl::Tls),
            ("127.0.0.1:9090", BadUrl::Malformed),
            ("/ready", BadUrl::Malformed),
            ("ftp://127.0.0.1/", BadUrl::Malformed),
            ("grpc://127.0.0.1:50055/v1", BadUrl::Malformed),
        ] {
            assert_eq!(text.parse::<Asked>(), Err(why), "{text}");
        }
    }

    #[test]
    fn only_the_status_200_is_well() {
        assert_eq!(judged("HTTP/1.1 200 OK\r\na: b\r\n\r\nready\n"), Ok("ready".to_owned()));
        let refused = "HTTP/1.1 503 Service Unavailable\r\n\r\nnobody can be asked";
        assert_eq!(judged(refused), Err("nobody can be asked".to_owned()));
        assert!(judged("HTTP/1.1 404 Not Found\r\n\r\n").is_err_and(|why| why.contains("404")));
        assert!(judged("").is_err() && judged("SSH-2.0-x\r\n").is_err());
    }
}

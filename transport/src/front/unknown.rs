//! What is not here: a page for people, a JSON 404 with the likely path for programs.

use axum::response::{IntoResponse, Response};
use http::header::ACCEPT;
use http::{HeaderMap, Method, StatusCode, Uri};

use super::error::{self, ApiError};
use super::page;

/// The paths that somebody may have meant, with their method.
const PATHS: [(&str, &str); 12] = [
    ("/v1/chat/completions", "POST"),
    ("/v1/embeddings", "POST"),
    ("/v1/models", "GET"),
    ("/v1/streams/{id}", "GET"),
    ("/api/v1/chat/completions", "POST"),
    ("/api/v1/sessions", "GET"),
    ("/api/v1/embeddings", "POST"),
    ("/api/v1/models", "GET"),
    ("/history", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
];

/// A path that no route has.
pub(super) async fn unknown(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    if method == Method::GET && accepts_html(&headers) && !is_api(path) {
        return page::page(&headers);
    }
    let hint = match meant(path) {
        Some((near, method)) => format!("Did you mean {method} {near}?"),
        None => "GET / in a browser shows what is here; the API is under /v1.".to_owned(),
    };
    let words = format!("There is no {method} {} here. {hint}", error::quoted(path));
    error::new(StatusCode::NOT_FOUND, error::INVALID, "unknown_url", words).into_response()
}

/// A path that exists, asked with another method. The router adds `Allow`.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let right = PATHS.iter().find(|(known, _)| *known == path).map_or("GET", |(_, method)| method);
    let words =
        format!("{} takes {right}, not {method}. Send it with {right}.", error::quoted(path));
    error::new(StatusCode::METHOD_NOT_ALLOWED, error::INVALID, "method_not_allowed", words)
}

/// The nearest of several names, where one is near enough to have been meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer ones are no typing errors, and comparing costs the product of both lengths.
    const NAME_MAX: usize = 128;
    // Jaro-Winkler: at 0.8 `gpt4o-mini` still finds `gpt-4o-mini`, and `claude` does not find `gpt`.
    const NEAR: f64 = 0.8;
    if name.len() > NAME_MAX {
        return None;
    }
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Whether the client shows HTML to somebody. `*/*` is a program.
fn accepts_html(headers: &HeaderMap) -> bool {
    let accepts = |value: &http::HeaderValue| value.to_str().is_ok_and(|v| v.contains("text/html"));
    headers.get_all(ACCEPT).iter().any(accepts)
}

fn is_api(path: &str) -> bool {
    let under = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ["/v1", "/api", "/admin"].into_iter().any(under)
}

/// The path meant: the usual slips first (a slash at the end, `/v1` missing or doubled), then the nearest by letters.
fn meant(path: &str) -> Option<(&'static str, &'static str)> {
    // No route is longer than 24 bytes; a slip doubles it at most.
    const PATH_MAX: usize = 64;
    // Three slips of the finger in a word like `completions`.
    const SLIPS_MAX: usize = 3;
    if path.len() > PATH_MAX {
        return None;
    }
    let bare = path.trim_matches('/').to_ascii_lowercase();
    let bare = bare.strip_prefix("v1/v1/").map_or(bare.clone(), |rest| format!("v1/{rest}"));
    let guesses = [format!("/{bare}"), format!("/v1/{bare}")];
    let exact = |guess: &String| PATHS.iter().find(|(known, _)| known == guess);
    if let Some(found) = guesses.iter().find_map(exact) {
        return Some(*found);
    }
    let slips = |known: &str| {
        guesses
            .iter()
            .map(|guess| strsim::damerau_levenshtein(guess, known))
            .min()
            .unwrap_or(usize::MAX)
    };
    PATHS
        .iter()
        .map(|found| (slips(found.0), found))
        .filter(|(slips, _)| *slips <= SLIPS_MAX)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, found)| *found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_slips_find_their_path() {
        for (path, found) in [
            ("/v1/chat/completions/", Some("/v1/chat/completions")),
            ("/chat/completions", Some("/v1/chat/completions")),
            ("/v1/v1/chat/completions", Some("/v1/chat/completions")),
            ("/v1/chat/completion", Some("/v1/chat/completions")),
            ("/V1/Models", Some("/v1/models")),
            ("//v1/models", Some("/v1/models")),
            ("/models", Some("/v1/models")),
            ("/v1/embedings", Some("/v1/embeddings")),
            ("/healthz", Some("/health")),
            ("/favicon.ico", None),
            ("/v1/images/generations", None),
        ] {
            assert_eq!(meant(path).map(|(path, _)| path), found, "{path}");
        }
        assert_eq!(meant(&"/".repeat(1_000_000)), None);
    }

    #[test]
    fn a_name_is_only_near_where_it_could_be_meant() {
        let known = || ["gpt-4o-mini", "demo"].into_iter();
        assert_eq!(nearest("gpt4o-mini", known()), Some("gpt-4o-mini"));
        assert_eq!(nearest("claude", known()), None);
        assert_eq!(nearest(&"d".repeat(1_000_000), known()), None);
    }

    #[test]
    fn only_whole_segments_make_a_path_part_of_the_api() {
        assert!(is_api("/v1") && is_api("/v1/x") && is_api("/admin/x") && is_api("/api"));
        assert!(!is_api("/v11") && !is_api("/") && !is_api("/apis"));
    }
}

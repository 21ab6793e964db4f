//! What a browser sees: what this is, and a line to try it.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue};

const PAGE: &str = include_str!("page.html");

/// The page, with the address that the browser used in its example.
pub(super) fn page(headers: &HeaderMap) -> Response {
    let host =
        headers.get(HOST).and_then(|value| value.to_str().ok()).filter(|host| harmless(host));
    let html = PAGE.replace("{host}", host.unwrap_or("localhost:8080"));
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, html).into_response()
}

/// A host that can stand in HTML and in a shell line as it is.
fn harmless(host: &str) -> bool {
    // A DNS name has at most 253 characters, a port 6 more with its colon.
    const HOST_MAX: usize = 259;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte);
    !host.is_empty() && host.len() <= HOST_MAX && host.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn a_host_that_could_mean_something_is_not_repeated() {
        assert!(harmless("127.0.0.1:8080") && harmless("[::1]:8080") && harmless("a-b.example"));
        assert!(!harmless("") && !harmless("<b>") && !harmless("a b") && !harmless("$(x)"));
        assert!(!harmless(&"a".repeat(300)));
    }
}

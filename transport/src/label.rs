//! What whoever asks a worker says of the call for its log: which session it belongs to, and which try it is.
//!
//! A worker's line has to be found from a gateway's, and the other way round, and neither may name a user's session. So what
//! travels is the keyed hash that stands in the gateway's own log, never the session's name, and a worker takes nothing
//! that is not shaped like one: a name that somebody sends by mistake does not come to stand in a log either. It decides
//! nothing, and nobody has to send it.

use control::id::SessionKey;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The session's keyed hash: `sess_` and 16 hexadecimal digits.
const SESSION: HeaderName = HeaderName::from_static("x-pointsman-session");
/// Counts the request's attempts, from 1.
const ATTEMPT: HeaderName = HeaderName::from_static("x-pointsman-attempt");

/// More attempts than any budget allows.
const ATTEMPT_MAX: u32 = 999;

/// The two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Label {
    /// Where the request has one.
    pub session: Option<SessionKey>,
    /// From 1; none where nobody said.
    pub attempt: Option<u32>,
}

impl Label {
    /// Takes what `header` has under the two names. What does not have its shape was not said.
    pub fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Self {
        let session = header("x-pointsman-session").and_then(session);
        let attempt = header("x-pointsman-attempt").and_then(|text| text.parse().ok());
        Self { session, attempt: attempt.filter(|number| (1..=ATTEMPT_MAX).contains(number)) }
    }

    /// The same, as headers.
    pub fn write(self, headers: &mut HeaderMap) {
        let session = self.session.map(|key| HeaderValue::from_str(&format!("{key:?}")));
        headers.extend(session.and_then(Result::ok).map(|value| (SESSION, value)));
        headers.extend(self.attempt.map(|number| (ATTEMPT, HeaderValue::from(number))));
    }

    /// Attempts before this one, where that is known.
    pub fn retries(self) -> Option<u32> {
        self.attempt.map(|number| number.saturating_sub(1))
    }
}

fn session(text: &str) -> Option<SessionKey> {
    let digits = text.strip_prefix("sess_").filter(|digits| digits.len() == 16)?;
    let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|_| lower).map(SessionKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &HeaderMap) -> Label {
        Label::read(|name| headers.get(name)?.to_str().ok())
    }

    #[test]
    fn what_was_said_is_read_and_a_sessions_own_name_is_not() {
        let label = Label { session: Some(SessionKey(0x2a)), attempt: Some(3) };
        let mut headers = HeaderMap::new();
        label.write(&mut headers);
        assert_eq!(
            headers.get(SESSION).map(HeaderValue::as_bytes),
            Some(&b"sess_000000000000002a"[..])
        );
        assert_eq!((read(&headers), label.retries()), (label, Some(2)));
        for (session, attempt) in [
            ("session-of-ann", "0"),
            ("sess_session-of-ann-0", "1000"),
            ("sess_000000000000002A", "-1"),
            ("sess_+00000000000002a", "one"),
            ("sess_2a", ""),
        ] {
            let said = |name| Some(if name == "x-pointsman-session" { session } else { attempt });
            assert_eq!(Label::read(said), Label::default(), "{session} {attempt}");
        }
    }
}

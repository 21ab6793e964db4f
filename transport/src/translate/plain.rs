//! Which answers can be continued by somebody who knows nothing but the question and the text so far.

use serde_json::value::RawValue;

use crate::members::{Members, present};

/// Members of a request under which an answer can be continued. Whatever else is asked for (tools, grammars, several choices,
/// log probabilities, a seed, stop strings that may lie across the seam) the one who goes on would have to know the state of.
const HARMLESS: [&str; 14] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "user",
    "metadata",
    "store",
    "service_tier",
    "session_id",
    "user_id",
];

/// Whether a request with these members asks for plain text and nothing that has a state.
pub(crate) fn is_plain(members: &Members<'_>) -> bool {
    members.0.iter().all(|(key, value)| is_harmless(key, value))
}

fn is_harmless(key: &str, value: &RawValue) -> bool {
    HARMLESS.contains(&key)
        || present(value).is_none()
        || matches!((key, value.get()), ("n", "1") | ("logprobs" | "echo", "false"))
}

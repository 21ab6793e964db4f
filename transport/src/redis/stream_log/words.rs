//! What an event of an answer says, for those who read the log's entries as tokens.

use std::borrow::Cow;

use serde::Deserialize;

/// The text of an event, and why its answer ended, where it says so. Empty for what says neither.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words<'a> {
    pub token: Cow<'a, str>,
    pub finish_reason: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(default)]
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
}

/// Borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Words<'a> {
    /// Of a block with one line of data, as those of the API have. The first choice speaks.
    pub fn of(block: &'a [u8]) -> Self {
        let lines = block.split(|byte| *byte == b'\n');
        let Some(data) = lines.into_iter().find_map(|line| line.strip_prefix(b"data:")) else {
            return Self::default();
        };
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else { return Self::default() };
        if chunk.error.is_some() {
            return Self { finish_reason: "error".into(), ..Self::default() };
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return Self::default() };
        let content = choice.delta.and_then(|delta| delta.content);
        let text = |text: Option<Text<'a>>| text.map(|text| text.0).unwrap_or_default();
        Self { token: text(content), finish_reason: text(choice.finish_reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(block: &str) -> (String, String) {
        let words = Words::of(block.as_bytes());
        (words.token.into_owned(), words.finish_reason.into_owned())
    }

    #[test]
    fn an_entry_says_what_its_event_says() {
        let chunk = |choice: &str| format!("id: 7\ndata: {{\"choices\":[{choice}]}}\n\n");
        let plain = chunk(r#"{"index":0,"delta":{"content":"a \"b\""},"finish_reason":null}"#);
        assert_eq!(said(&plain), ("a \"b\"".to_owned(), String::new()));
        let end = chunk(r#"{"delta":{},"finish_reason":"stop"}"#);
        assert_eq!(said(&end), (String::new(), "stop".to_owned()));
        let error = "data: {\"error\": {\"message\": \"m\"}}\n\n";
        assert_eq!(said(error), (String::new(), "error".to_owned()));
    }

    #[test]
    fn what_is_no_chunk_says_nothing() {
        for block in
            ["", ": hello\n\n", "data: [DONE]\n\n", "data: {\"choices\":7}\n\n", "id: 3\n\n"]
        {
            assert_eq!(said(block), (String::new(), String::new()), "{block}");
        }
    }
}

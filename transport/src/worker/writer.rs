//! What `echo` and `hash` have in common: from a row of tokens to an answer, with limits, stop texts and a seam.

use core::time::Duration;

use proto::inference::v1::{Resume, StreamInferenceRequest, StreamInferenceResponse, Usage};
use tonic::Status;

use super::backend::{Halt, Out};
use crate::members::Members;
use crate::tokens::estimate;

/// A row of tokens, each known only after those before it.
pub(super) trait Source: Send {
    /// The next token; `None` at the end.
    fn next(&mut self) -> Option<Token>;

    /// Takes the tokens of a broken answer as its own, and returns their text. The next token is the one behind them.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where it cannot have written them.
    fn resume(&mut self, resume: &Resume) -> Result<String, Status>;
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Its id, where the backend tells them.
    pub id: Option<u32>,
    pub text: String,
}

/// An answer without a limit ends here.
const TOKENS_MAX: u32 = 4_096;

/// Writes the answer, token by token.
pub(super) async fn write(
    mut source: impl Source,
    delay: Duration,
    ask: &StreamInferenceRequest,
    out: &Out,
) -> Result<(), Halt> {
    let parameters = ask.parameters.clone().unwrap_or_default();
    one_choice(&parameters.extra_json)?;
    let most = parameters.max_tokens.unwrap_or(TOKENS_MAX);
    let mut teller = Teller::new(parameters.stop);
    let mut seq = 0;
    if let Some(resume) = &ask.resume {
        seq = resume.seq;
        let text = source.resume(resume)?;
        teller.resume(text, &resume.text)?;
    }
    let reason = loop {
        if seq >= u64::from(most) {
            break "length";
        }
        let Some(token) = source.next() else { break "stop" };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        seq += 1;
        let (text, stopped) = teller.push(&token.text);
        let token_ids = token.id.into_iter().collect();
        let chunk =
            StreamInferenceResponse { token_count: 1, token_ids, text, ..Default::default() };
        out.say(chunk).await?;
        if stopped {
            break "stop";
        }
    };
    let usage =
        Usage { prompt_tokens: prompt_tokens(ask), completion_tokens: seq, cached_tokens: 0 };
    out.say(StreamInferenceResponse {
        text: teller.rest(),
        finish_reason: reason.to_owned(),
        usage: Some(usage),
        ..Default::default()
    })
    .await
}

/// More than one choice would each be the same.
fn one_choice(extra_json: &str) -> Result<(), Status> {
    let members = Members::read(extra_json);
    let wrong = || Status::invalid_argument("parameters.extra_json must be a JSON object");
    let many = members.ok_or_else(wrong)?.0.iter().any(|(key, n)| key == "n" && n.get() != "1");
    if many {
        Err(Status::invalid_argument("this backend writes one choice: leave out n"))
    } else {
        Ok(())
    }
}

/// About how many tokens the prompt has: the texts, and what frames each message.
fn prompt_tokens(ask: &StreamInferenceRequest) -> u64 {
    const FRAME: u64 = 4;
    ask.messages.iter().map(|message| FRAME + estimate(&text_of(message)).0).sum()
}

/// What a message says; of parts, their JSON.
pub(super) fn text_of(message: &proto::inference::v1::Message) -> std::borrow::Cow<'_, str> {
    use proto::inference::v1::message::Content;
    match &message.content {
        Some(Content::Text(text)) => text.into(),
        Some(Content::PartsJson(parts)) => parts.into(),
        None => "".into(),
    }
}

/// From texts of tokens to texts of chunks: what may be the beginning of a stop text waits until that is known.
struct Teller {
    stops: Vec<String>,
    whole: String,
    /// So many bytes of it were said.
    said: usize,
    stopped: bool,
}

impl Teller {
    fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, whole: String::new(), said: 0, stopped: false }
    }

    /// Goes on behind the seam. What was said may end before the tokens do: that much was held back by who said it.
    fn resume(&mut self, whole: String, said: &str) -> Result<(), Status> {
        if !whole.starts_with(said) {
            let words = "the resume's text is not that of its tokens";
            return Err(Status::failed_precondition(words));
        }
        self.said = said.len();
        self.whole = whole;
        Ok(())
    }

    /// What can be said after another token, and whether a stop text is complete.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.whole.push_str(text);
        let rest = &self.whole[self.said..];
        let found = self.stops.iter().filter_map(|stop| rest.find(stop.as_str())).min();
        self.stopped = found.is_some();
        let length = found.unwrap_or_else(|| rest.len() - self.held(rest));
        let said = rest[..length].to_owned();
        self.said += length;
        (said, self.stopped)
    }

    /// How many bytes at the end of `rest` a stop text may begin with.
    fn held(&self, rest: &str) -> usize {
        let held = |stop: &String| {
            let cuts = stop.char_indices().map(|(at, _)| at).skip(1);
            cuts.filter(|at| rest.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.stops.iter().map(held).max().unwrap_or(0)
    }

    /// What was held back and no stop text came of.
    fn rest(&mut self) -> String {
        if self.stopped { String::new() } else { self.whole.split_off(self.said) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    /// The texts of the chunks, up to the stop.
    fn told(stops: &[&str], pieces: &[&str]) -> Vec<String> {
        let mut teller = Teller::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut told = Vec::new();
        for piece in pieces {
            let (text, stopped) = teller.push(piece);
            told.push(text);
            if stopped {
                break;
            }
        }
        told.push(teller.rest());
        told
    }

    #[test]
    fn a_stop_text_is_never_said_not_even_its_beginning() {
        assert_eq!(told(&["END"], &["a E", "N", "D b"]), ["a ", "", "", ""]);
        assert_eq!(told(&["END"], &["a E", "N", "d b"]), ["a ", "", "ENd b", ""]);
        assert_eq!(told(&["END"], &["a EN"]), ["a ", "EN"]);
        assert_eq!(told(&["b", "ab"], &["xa", "b"]), ["x", "", ""]);
        assert_eq!(told(&[], &["a", "b"]), ["a", "b", ""]);
        assert_eq!(told(&["\u{4f60}\u{597d}"], &["\u{4f60}", "x"]), ["", "\u{4f60}x", ""]);
    }

    #[test]
    fn what_was_held_back_before_the_seam_is_judged_behind_it() {
        let mut teller = Teller::new(vec!["END".to_owned()]);
        teller.resume("a EN".to_owned(), "a ").unwrap();
        assert_eq!(teller.push("D b"), (String::new(), true));
        let mut teller = Teller::new(Vec::new());
        assert!(teller.resume("a b".to_owned(), "x").is_err());
    }
}

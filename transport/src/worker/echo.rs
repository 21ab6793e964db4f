//! The backend that repeats what the user said last: for first tries, and for tests of everything around a model.

use core::time::Duration;

use proto::inference::v1::{Resume, StreamInferenceRequest};
use tonic::Status;

use super::writer::{Source, Token, text_of};

/// Repeats the last user message, word by word. The same question always gets the same answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// Before each token.
    pub delay: Duration,
}

impl Echo {
    pub(super) fn fingerprint(&self, model: &str) -> String {
        format!("echo-1-{model}")
    }

    pub(super) fn begin(&self, ask: &StreamInferenceRequest) -> Result<Words, Status> {
        let said = ask.messages.iter().rev().find(|message| message.role == "user");
        let said = said.ok_or_else(|| {
            Status::invalid_argument("echo repeats the last user message, and there is none")
        })?;
        let words = text_of(said).split_inclusive(char::is_whitespace).map(str::to_owned).collect();
        Ok(Words { words, next: 0 })
    }
}

/// Words with the space behind them. It tells no ids.
pub(super) struct Words {
    words: Vec<String>,
    next: usize,
}

impl Source for Words {
    fn next(&mut self) -> Option<Token> {
        let text = self.words.get(self.next)?.clone();
        self.next += 1;
        Some(Token { id: None, text })
    }

    fn resume(&mut self, resume: &Resume) -> Result<String, Status> {
        let said = usize::try_from(resume.seq).ok().filter(|seq| *seq <= self.words.len());
        let Some(said) = said else {
            return Err(Status::failed_precondition(format!(
                "the whole answer has {} tokens: {} cannot have been said",
                self.words.len(),
                resume.seq
            )));
        };
        self.next = said;
        Ok(self.words[..said].concat())
    }
}

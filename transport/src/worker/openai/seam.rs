//! Answers of an OpenAI-compatible server that another one began.
//!
//! The API has no word for it. vLLM and SGLang (and what renders chat templates as they do) take two more members:
//! with `continue_final_message` the conversation ends in the middle of its last message, the assistant's, and
//! `add_generation_prompt: false` opens no other. Nobody can see from outside whether a server does that: one that does not know the members
//! passes them over and answers anew. So it is the operator's word that it does, and what can be checked is: that a prompt
//! that should hold the delivered text is not too short for it, and that what comes does not begin as the answer began.
//!
//! Rejected: to ask the completions API for the continuation. It takes a prompt without roles, so the chat template would have to
//! be known here.

use proto::inference::v1::message::Content;
use proto::inference::v1::{
    Message, Parameters, StreamInferenceRequest, StreamInferenceResponse, Usage,
};
use tonic::Status;

use crate::members::Members;
use crate::translate::is_plain;

/// An answer that begins again says at least so much of itself ...
const AGAIN_BYTES_MIN: usize = 32;
/// ... and is known by no more than this, which is as long as anybody waits to be sure.
const AGAIN_BYTES_MAX: usize = 64;

/// The seam of an answer that is continued.
pub(super) struct Seam {
    /// Tokens before it.
    seq: u64,
    /// The most that may be counted behind it.
    told_max: Option<u32>,
    /// How the answer began, until it is sure that it is not told again; empty where there is nothing to be sure of.
    begun: String,
    /// What of that has come again.
    heard: String,
    /// Chunks that wait for that.
    held: Vec<StreamInferenceResponse>,
    /// Whether something has come, and what the server had said of its prompt by then was looked at.
    judged: bool,
}

/// Whether an answer to this question can be continued, so that its tokens are worth an exact count.
pub(crate) fn is_continuable(parameters: Option<&Parameters>) -> bool {
    let Some(said) = parameters else { return true };
    let plain = Members::read(&said.extra_json).is_some_and(|extra| is_plain(&extra));
    plain && said.seed.is_none() && said.stop.is_empty()
}

impl Seam {
    /// Of a question whose answer is to be continued: changes it into one whose last message is what is there. `None` where
    /// nothing is there yet.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where whoever goes on would have to know more than the text.
    pub(super) fn of(ask: &mut StreamInferenceRequest) -> Result<Option<Self>, Status> {
        let Some(resume) = ask.resume.take() else { return Ok(None) };
        if resume.seq == 0 && resume.text.is_empty() {
            return Ok(None);
        }
        let refused = |words: &str| Err(Status::failed_precondition(words));
        if resume.text.is_empty() {
            return refused(
                "to continue, this backend needs the text of the tokens; there is none",
            );
        }
        if !is_continuable(ask.parameters.as_ref()) {
            return refused(
                "only plain text can be continued here, without seed, stop, tools or formats",
            );
        }
        if ask.messages.last().is_some_and(|last| last.role == "assistant") {
            return refused(
                "the question ends with a message of the assistant's own: nobody can say which is continued",
            );
        }
        let most = ask.parameters.as_mut().and_then(|said| said.max_tokens.as_mut());
        let left =
            |most: u32, seq: u64| most.saturating_sub(u32::try_from(seq).unwrap_or(u32::MAX));
        // What is told may be no more than was asked for; what the server may write is more, where the seam was estimated high.
        let told_max = most.as_deref().map(|most| left(*most, resume.seq));
        if let Some(most) = most {
            *most = left(*most, resume.tokens_min.unwrap_or(resume.seq).min(resume.seq));
        }
        let mut cut = AGAIN_BYTES_MAX.min(resume.text.len());
        while !resume.text.is_char_boundary(cut) {
            cut -= 1;
        }
        let begun = if cut < AGAIN_BYTES_MIN { "" } else { &resume.text[..cut] }.to_owned();
        ask.messages.push(Message {
            role: "assistant".to_owned(),
            content: Some(Content::Text(resume.text)),
            ..Message::default()
        });
        let (heard, held) = (String::new(), Vec::new());
        Ok(Some(Self { seq: resume.seq, told_max, begun, heard, held, judged: false }))
    }

    /// The question's parameters, for whoever counts what comes.
    pub(super) fn counted_by(&self, ask: &StreamInferenceRequest) -> Option<Parameters> {
        let parameters = ask.parameters.clone()?;
        Some(Parameters { max_tokens: self.told_max, ..parameters })
    }

    /// Whether all tokens that were asked for are there already.
    pub(super) fn is_at_the_end(ask: &StreamInferenceRequest) -> bool {
        ask.parameters.as_ref().is_some_and(|said| said.max_tokens == Some(0))
    }

    /// The chunks that can be said after another one.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where the server began anew.
    pub(super) fn pass(
        &mut self,
        chunk: StreamInferenceResponse,
    ) -> Result<Vec<StreamInferenceResponse>, Status> {
        self.heard.push_str(&chunk.text);
        // Reasoning or a refusal is not the answer's text over again, and does not wait for any.
        let ended = [&chunk.finish_reason, &chunk.reasoning, &chunk.refusal]
            .iter()
            .any(|said| !said.is_empty());
        self.held.push(chunk);
        if !self.begun.is_empty() && self.heard.starts_with(&self.begun) {
            return Err(anew("what it says begins as the answer began"));
        }
        if ended || !self.begun.starts_with(&self.heard) {
            // From here on it is something else.
            self.begun.clear();
        }
        if self.begun.is_empty() {
            self.heard.clear();
            return Ok(core::mem::take(&mut self.held));
        }
        Ok(Vec::new())
    }

    /// Looks at what a server that counts as it goes says of its prompt, before anything of it is passed on.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where the text that was delivered cannot be in it. Half of its tokens may be a matter of
    /// where they were split.
    pub(super) fn judge(&mut self, usage: Option<Usage>) -> Result<(), Status> {
        let is_first = !core::mem::replace(&mut self.judged, true);
        if usage.is_some_and(|usage| is_first && usage.prompt_tokens < self.seq / 2) {
            return Err(anew("its prompt is shorter than the answer so far"));
        }
        Ok(())
    }

    /// The bill of the whole answer. The server counts what is before the seam as prompt; the client has it counted. In all it
    /// is what the server says, also where what is before the seam was estimated too high.
    pub(super) fn bill(&self, told: Usage) -> Usage {
        let before = self.seq.min(told.prompt_tokens);
        let prompt_tokens = told.prompt_tokens - before;
        Usage {
            prompt_tokens,
            completion_tokens: told.completion_tokens.saturating_add(before),
            cached_tokens: told.cached_tokens.min(prompt_tokens),
        }
    }
}

fn anew(why: &str) -> Status {
    tracing::warn!(
        "the backend began an answer anew that it was to continue ({why}): do not give --backend-continues for it"
    );
    Status::failed_precondition(format!("the backend began anew instead of continuing: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use proto::inference::v1::Resume;

    use super::*;

    const TOLD: &str =
        "Points are moved by the pointsman, and trains follow the points wherever they lead.";

    fn ask(text: &str, seq: u64, parameters: Parameters) -> StreamInferenceRequest {
        let content = Some(Content::Text("hi".to_owned()));
        StreamInferenceRequest {
            messages: vec![Message { role: "user".to_owned(), content, ..Message::default() }],
            parameters: Some(parameters),
            resume: Some(Resume { seq, text: text.to_owned(), ..Resume::default() }),
            ..StreamInferenceRequest::default()
        }
    }

    fn seam(text: &str) -> Seam {
        Seam::of(&mut ask(text, 20, Parameters::default())).unwrap().unwrap()
    }

    /// What comes out after each piece; the reason where one is refused.
    fn passed(seam: &mut Seam, pieces: &[&str]) -> Vec<String> {
        let mut told = Vec::new();
        for text in pieces {
            let finish_reason = if text.ends_with('.') { "stop" } else { "" }.to_owned();
            let text = (*text).to_owned();
            let chunk = StreamInferenceResponse { text, finish_reason, ..Default::default() };
            match seam.pass(chunk) {
                Ok(chunks) => told.push(chunks.into_iter().map(|chunk| chunk.text).collect()),
                Err(status) => told.push(status.message().to_owned()),
            }
        }
        told
    }

    #[test]
    fn who_begins_anew_is_refused_and_who_goes_on_is_passed_at_once() {
        assert_eq!(passed(&mut seam(TOLD), &[" And", " so"]), [" And", " so"]);
        // The same word may begin both.
        let told = passed(&mut seam(TOLD), &["Points", " are", " old.", "Points"]);
        assert_eq!(told, ["", "", "Points are old.", "Points"]);
        let (head, tail) = TOLD.split_at(40);
        let told = passed(&mut seam(TOLD), &[head, tail]);
        assert_eq!(told[0], "");
        assert!(told[1].contains("began anew"), "{told:?}");
        // A short beginning may well be said twice.
        assert_eq!(passed(&mut seam("ha ha"), &["ha ha", " ha"]), ["ha ha", " ha"]);
        let wide = "\u{65e5}".repeat(60);
        let told = passed(&mut seam(&wide), &[&wide[..30], &wide[30..]]);
        assert!(told[1].contains("began anew"), "{told:?}");
        assert_eq!(passed(&mut seam(TOLD), &["Points."]), ["Points."], "an end frees what waits");
    }

    #[test]
    fn the_bill_counts_each_token_once_and_a_prompt_must_hold_the_text() {
        let told = |prompt_tokens| Usage { prompt_tokens, completion_tokens: 5, cached_tokens: 24 };
        let bill = seam(TOLD).bill(told(30));
        assert_eq!((bill.prompt_tokens, bill.completion_tokens, bill.cached_tokens), (10, 25, 10));
        let bill = seam(TOLD).bill(told(15));
        assert_eq!((bill.prompt_tokens, bill.completion_tokens, bill.cached_tokens), (0, 20, 0));
        assert!(seam(TOLD).judge(Some(told(11))).is_ok());
        assert!(seam(TOLD).judge(Some(told(9))).unwrap_err().message().contains("shorter"));
        let mut uncounted = seam(TOLD);
        assert!(uncounted.judge(None).is_ok() && uncounted.judge(Some(told(9))).is_ok());
    }

    #[test]
    fn only_plain_text_is_continued() {
        let refused = |ask: StreamInferenceRequest| {
            let status = Seam::of(&mut ask.clone()).err().unwrap();
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            status.message().to_owned()
        };
        let extra = |text: &str| Parameters { extra_json: text.to_owned(), ..Default::default() };
        for parameters in [
            Parameters { seed: Some(1), ..Default::default() },
            Parameters { stop: vec!["x".to_owned()], ..Default::default() },
            extra(r#"{"tools":[1]}"#),
            extra(r#"{"n":2}"#),
            extra(r#"{"continue_final_message":true}"#),
        ] {
            assert!(refused(ask(TOLD, 20, parameters)).contains("plain text"));
        }
        assert!(refused(ask("", 2, Parameters::default())).contains("the text of the tokens"));
        let mut prefilled = ask(TOLD, 20, Parameters::default());
        prefilled.messages[0].role = "assistant".to_owned();
        assert!(refused(prefilled).contains("assistant's own"));
        let harmless = extra(r#"{"user":"ann","n":1,"logprobs":false}"#);
        let mut fine = ask(TOLD, 20, Parameters { max_tokens: Some(25), ..harmless });
        assert!(Seam::of(&mut fine).unwrap().is_some());
        assert_eq!(fine.parameters.as_ref().unwrap().max_tokens, Some(5));
        assert!(!Seam::is_at_the_end(&fine) && fine.messages.len() == 2);
        let mut over = ask(TOLD, 20, Parameters { max_tokens: Some(20), ..Default::default() });
        Seam::of(&mut over).unwrap();
        assert!(Seam::is_at_the_end(&over));
        assert!(Seam::of(&mut ask("", 0, Parameters::default())).unwrap().is_none());
    }

    #[test]
    fn what_was_estimated_before_the_seam_cuts_nothing_short() {
        let most = |max_tokens, tokens_min| {
            let mut ask =
                ask(TOLD, 20, Parameters { max_tokens: Some(max_tokens), ..Default::default() });
            ask.resume.as_mut().unwrap().tokens_min = tokens_min;
            let seam = Seam::of(&mut ask).unwrap().unwrap();
            let told_max = seam.counted_by(&ask).unwrap().max_tokens;
            (ask.parameters.as_ref().unwrap().max_tokens, told_max, Seam::is_at_the_end(&ask))
        };
        assert_eq!(most(25, Some(14)), (Some(11), Some(5), false));
        assert_eq!(most(20, Some(14)), (Some(6), Some(0), false));
        assert_eq!(most(14, Some(14)), (Some(0), Some(0), true), "it has all that were allowed");
        assert_eq!(
            most(25, Some(99)),
            (Some(5), Some(5), false),
            "more than there are is nonsense"
        );
    }
}

//! Answers that are continued by another worker: token for token as if nothing had happened.

use proto::inference::v1::{Parameters, Resume, StreamInferenceRequest, StreamInferenceResponse};
use std::time::Duration;
use tonic::Code;
use transport::worker::{Backend, Hash};

use crate::world::{Worker, question, words};

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub ids: Vec<u32>,
    pub text: String,
    /// The text at the end of each chunk.
    pub texts: Vec<String>,
    pub finish: String,
    pub completion: u64,
    pub fingerprint: String,
}

fn hash(seed: u64) -> Worker {
    Worker::new(Backend::Hash(Hash { delay: Duration::ZERO, seed }))
}

pub async fn ask(worker: &Worker, ask: StreamInferenceRequest) -> Result<Told, tonic::Status> {
    let mut next = ask.resume.as_ref().map_or(0, |resume| resume.seq);
    let mut chunks = worker.client().await.stream_inference(ask).await?.into_inner();
    let mut told = Told::default();
    while let Some(chunk) = chunks.message().await? {
        let StreamInferenceResponse { seq, token_count, token_ids, text, .. } = chunk;
        assert_eq!(seq, next, "each seq once");
        next += u64::from(token_count);
        told.ids.extend(token_ids);
        told.text.push_str(&text);
        told.texts.push(told.text.clone());
        told.finish.push_str(&chunk.finish_reason);
        told.completion = chunk.usage.map_or(told.completion, |usage| usage.completion_tokens);
        told.fingerprint.push_str(&chunk.fingerprint);
    }
    Ok(told)
}

pub fn resume(unbroken: &Told, at: usize) -> Resume {
    Resume {
        seq: at as u64,
        token_ids: unbroken.ids[..at].to_vec(),
        text: if at == 0 { String::new() } else { unbroken.texts[at - 1].clone() },
        fingerprint: unbroken.fingerprint.clone(),
        tokens_min: None,
    }
}

#[tokio::test]
async fn a_continued_answer_is_the_unbroken_one_wherever_it_broke() {
    let (first, second) = (hash(0), hash(0));
    // A stop text that is bound to come, and one whose beginning is held back often.
    for stop in [vec![], vec!["a".to_owned()], vec![" d\u{1f642}x".to_owned()]] {
        for max_tokens in [1, 2, 17, 40] {
            let parameters = Parameters {
                max_tokens: Some(max_tokens),
                stop: stop.clone(),
                ..Default::default()
            };
            let asked = question("the same question", parameters);
            let unbroken = ask(&first, asked.clone()).await.unwrap();
            assert_eq!(unbroken, ask(&first, asked.clone()).await.unwrap());
            for at in 0..=unbroken.ids.len() {
                let resumed =
                    StreamInferenceRequest { resume: Some(resume(&unbroken, at)), ..asked.clone() };
                let rest = ask(&second, resumed).await.unwrap();
                // Behind a stop text there is nothing to continue: what was said last said so.
                if at == unbroken.ids.len() && unbroken.finish == "stop" && !stop.is_empty() {
                    continue;
                }
                let said = if at == 0 { "" } else { &unbroken.texts[at - 1] };
                assert_eq!(format!("{said}{}", rest.text), unbroken.text, "broken at {at}");
                assert_eq!([&unbroken.ids[..at], &rest.ids].concat(), unbroken.ids);
                assert_eq!(
                    (&rest.finish, rest.completion),
                    (&unbroken.finish, unbroken.completion)
                );
            }
        }
    }
}

#[tokio::test]
async fn one_token_more_or_less_changes_all_that_follow() {
    let worker = hash(0);
    let asked = question("q", Parameters { max_tokens: Some(12), ..Default::default() });
    let unbroken = ask(&worker, asked.clone()).await.unwrap();
    let mut lost = resume(&unbroken, 5);
    lost.token_ids.remove(2);
    lost.seq -= 1;
    lost.text = String::new();
    let rest = ask(&worker, StreamInferenceRequest { resume: Some(lost), ..asked }).await.unwrap();
    assert_ne!(rest.ids.first(), unbroken.ids.get(5));
}

#[tokio::test]
async fn workers_with_other_seeds_go_on_from_exactly_what_was_delivered() {
    let (one, other) = (hash(1), hash(2));
    let asked = question("q", Parameters { max_tokens: Some(12), ..Default::default() });
    let unbroken = ask(&one, asked.clone()).await.unwrap();
    assert_ne!(unbroken.ids, ask(&other, asked.clone()).await.unwrap().ids);
    let resumed = || StreamInferenceRequest { resume: Some(resume(&unbroken, 6)), ..asked.clone() };
    let rest = ask(&other, resumed()).await.unwrap();
    assert_eq!(unbroken.ids.len(), 6 + rest.ids.len());
    assert_eq!(rest, ask(&other, resumed()).await.unwrap());
}

#[tokio::test]
async fn echo_goes_on_where_it_was_without_ids() {
    let (one, other) = (Worker::echo(Duration::ZERO), Worker::echo(Duration::ZERO));
    let asked = question(&words(9), Parameters::default());
    let unbroken = ask(&one, asked.clone()).await.unwrap();
    let resume = Resume {
        seq: 4,
        text: unbroken.texts[3].clone(),
        fingerprint: unbroken.fingerprint.clone(),
        ..Resume::default()
    };
    let rest = ask(&other, StreamInferenceRequest { resume: Some(resume), ..asked }).await.unwrap();
    assert_eq!(format!("{}{}", unbroken.texts[3], rest.text), words(9));
    assert_eq!((rest.completion, &*rest.finish), (9, "stop"));
}

#[tokio::test]
async fn what_cannot_be_continued_is_refused_with_the_reason() {
    let worker = hash(0);
    let asked = question("q", Parameters { max_tokens: Some(12), ..Default::default() });
    let unbroken = ask(&worker, asked.clone()).await.unwrap();
    let sound = || resume(&unbroken, 5);
    let cases = [
        (
            Resume { fingerprint: "other".to_owned(), ..sound() },
            Code::FailedPrecondition,
            "fingerprint",
        ),
        (Resume { token_ids: vec![], ..sound() }, Code::FailedPrecondition, "id of each"),
        (Resume { token_ids: vec![1], ..sound() }, Code::InvalidArgument, "differ"),
        (Resume { token_ids: vec![1 << 20; 5], ..sound() }, Code::FailedPrecondition, "no token"),
        (
            Resume { text: "other".to_owned(), ..sound() },
            Code::FailedPrecondition,
            "not that of its tokens",
        ),
    ];
    for (resume, code, word) in cases {
        let resumed = StreamInferenceRequest { resume: Some(resume), ..asked.clone() };
        let refused = ask(&worker, resumed).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{refused}");
    }
}

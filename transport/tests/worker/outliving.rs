//! Streams that outlive their replica.

use std::time::Duration;

use http_body_util::BodyExt;
use proto::inference::v1::Parameters;
use serde_json::{Value, json};
use tokio::time::timeout;
use transport::worker::{Backend, Hash};

use crate::resuming;
use crate::world::{Answer, LONG, Worker, World};

/// Slow enough that there is time to kill it in the middle.
const SLOW: Duration = Duration::from_millis(15);

fn hash(delay: Duration, seed: u64) -> Worker {
    Worker::new(Backend::Hash(Hash { delay, seed }))
}

fn question(more: Value) -> Value {
    let mut body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 80,
        "messages": [{"role": "user", "content": "Tell me of points and trains."}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The answer of a gateway before these workers, of which each that serves is killed after so many tokens, and how many
/// tokens had come by then.
async fn broken(workers: &mut [Worker], body: &Value, after: &[usize]) -> (World, Answer) {
    let urls: Vec<String> = workers.iter().map(Worker::url).collect();
    let more = "routing: {max_retries: 5, breaker: {consecutive_failures: 100}}";
    let world = World::before(&urls, more).await;
    let response = world.begin("/v1/chat/completions", body).await;
    let (mut head, mut body) = response.into_parts();
    let mut text = String::new();
    let mut serving: String = head.headers["x-pointsman-replica"].to_str().unwrap().to_owned();
    for tokens in after {
        while text.matches("\"content\":").count() < *tokens {
            let frame = timeout(LONG, body.frame()).await.unwrap().expect("it goes on").unwrap();
            text += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
        if let Some((_, named)) = text.rsplit_once(" tokens by ") {
            named.split_once('\n').unwrap().0.clone_into(&mut serving);
        }
        let at: usize = serving.strip_prefix('w').unwrap().parse().unwrap();
        workers[at].kill();
    }
    let rest = timeout(LONG, body.collect()).await.unwrap().unwrap().to_bytes();
    text += core::str::from_utf8(&rest).unwrap();
    head.headers.remove("content-length");
    (world, Answer { status: head.status, headers: head.headers, text })
}

/// Without the comments that say where the seams are.
fn without_seams(answer: &Answer) -> Answer {
    let blocks = answer.text.split_inclusive("\n\n").filter(|block| !block.starts_with(':'));
    Answer { status: answer.status, headers: answer.headers.clone(), text: blocks.collect() }
}

#[tokio::test]
async fn a_stream_whose_replicas_die_reads_as_if_they_had_not() {
    let (first, second) = (hash(SLOW, 7), hash(Duration::ZERO, 7));
    let alone = World::before(&[second.url()], "").await;
    let whole = Answer::of(alone.begin("/v1/chat/completions", &question(json!({}))).await).await;
    assert!(whole.is_done() && whole.told().len() > 100, "{whole:?}");

    let mut workers = [first, hash(SLOW, 7), hash(SLOW, 7)];
    let (world, answer) = broken(&mut workers, &question(json!({})), &[6, 20]).await;
    assert_eq!(answer.text.matches(": resumed after ").count(), 2, "{answer:?}");
    let told = without_seams(&answer);
    assert!(told.is_done(), "{answer:?}");
    assert_eq!(told.told(), whole.told(), "token for token");
    let bill = |answer: &Answer| answer.events().last().unwrap()["usage"].clone();
    assert_eq!(bill(&told), bill(&whole), "one bill, its prompt counted once");
    let roles =
        told.events().iter().filter(|e| e["choices"][0]["delta"]["role"].is_string()).count();
    assert_eq!(roles, 1, "one announcement");
    let same = |key: &str| {
        let events = told.events();
        assert!(events.iter().all(|event| event[key] == events[0][key]), "{key} differs");
    };
    ["id", "created", "model"].into_iter().for_each(same);
    let metrics = world.get("/metrics").await;
    let charged = bill(&whole)["total_tokens"].as_u64().unwrap();
    let used = metrics
        .lines()
        .filter(|line| line.starts_with("gateway_tokens_used_total"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum::<u64>();
    assert_eq!(used, charged, "{metrics}");
}

#[tokio::test]
async fn another_sampler_goes_on_from_exactly_what_was_delivered() {
    let mut workers = [hash(SLOW, 1), hash(SLOW, 2)];
    let (_world, answer) = broken(&mut workers, &question(json!({})), &[9]).await;
    let told = without_seams(&answer);
    assert!(told.is_done(), "{answer:?}");
    // Whoever has it all, and the number of the token after which the other went on, gets the same continuation.
    let (_, seam) = answer.text.split_once(": resumed after ").unwrap();
    let seq: usize = seam.split(' ').next().unwrap().parse().unwrap();
    let pieces: Vec<String> = told
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert!(seq >= 9 && pieces.len() > seq, "{seq} of {}", pieces.len());
    let (began, went_on) = if answer.text.contains(" tokens by w0") { (2, 1) } else { (1, 2) };
    let parameters = Parameters { max_tokens: Some(80), ..Parameters::default() };
    let mut asked = crate::world::question("Tell me of points and trains.", parameters);
    let first = resuming::ask(&hash(Duration::ZERO, began), asked.clone()).await.unwrap();
    assert_eq!(first.texts[seq - 1], pieces[..seq].concat(), "what came before the seam");
    asked.resume = Some(resuming::resume(&first, seq));
    let on = resuming::ask(&hash(Duration::ZERO, went_on), asked).await.unwrap();
    assert_eq!(on.text, pieces[seq..].concat());
    assert_ne!(first.text, told.told(), "the samplers differ");
}

#[tokio::test]
async fn who_asks_for_what_nobody_can_continue_is_told_of_the_break() {
    for more in [json!({"seed": 4}), json!({"stop": ["never said"]})] {
        let mut workers = [hash(SLOW, 7), hash(SLOW, 7)];
        let (_world, answer) = broken(&mut workers, &question(more.clone()), &[5]).await;
        assert!(answer.text.contains("\"replica_broke_off\""), "{more}: {answer:?}");
        assert!(
            !answer.text.contains("[DONE]") && !answer.text.contains(": resumed"),
            "{answer:?}"
        );
    }
}

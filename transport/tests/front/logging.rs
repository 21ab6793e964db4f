//! What stands in a log, and what never does.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use control::outcome::Failure;
use control::plane::Outcome;
use tokio::io::AsyncReadExt;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use transport::exchange::{End, Part, Why};
use transport::logs::{self, Format, Settings};

use crate::world::{ANSWER, Act, HELLO, KEY, World, end, said, script, streaming};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn finished(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &serde_json::Value| line["message"] == "request finished").collect()
    }
}

/// Two listeners that want everything and keep nothing. While a process has only one, `tracing` asks the thread that
/// first passes a log line whether anybody listens, and remembers a "no" for all threads: that of a test beside us.
static LISTENERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| {
    let settings = Settings { level: LevelFilter::TRACE, format: Format::Json };
    [(); 2].map(|()| Dispatch::new(logs::subscriber(settings, io::sink, false)))
});

/// Logs of this thread; the tests' runtimes have no other.
fn capture(level: LevelFilter) -> (Captured, tracing::subscriber::DefaultGuard) {
    LazyLock::force(&LISTENERS);
    let captured = Captured::default();
    let writer = captured.clone();
    let settings = Settings { level, format: Format::Json };
    let subscriber = logs::subscriber(settings, move || writer.clone(), false);
    (captured, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn a_finished_request_is_one_line_with_the_contracts_fields() {
    let (captured, _guard) = capture(LevelFilter::INFO);
    let world = World::new(|_| Act::Whole(ANSWER));
    let body = HELLO.replacen('{', r#"{"session_id":"my session","#, 1);
    world.post("/v1/chat/completions", body).await;
    world.quiet().await;
    let lines = captured.finished();
    assert_eq!(lines.len(), 1, "{}", captured.text());
    let line = &lines[0];
    assert_eq!(line["request_id"], "req_1-beef");
    assert_eq!(line["tenant"], "acme");
    assert_eq!(line["model"], "demo");
    assert_eq!(line["instance_id"], "replica-b");
    assert_eq!(line["retries"], 1);
    assert_eq!(line["outcome"], "completed");
    assert_eq!(line["tokens"], 7);
    assert_eq!(line["ttft_ms"], 12.0);
    assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
    assert!(line["session_id"].as_str().unwrap().starts_with("sess_"));
    assert!(!captured.text().contains("my session"));
}

#[tokio::test]
async fn no_prompt_and_no_key_is_logged_at_any_level_however_a_request_ends() {
    let (captured, _guard) = capture(LevelFilter::TRACE);
    let world = World::new(|call| match call.stream {
        true => {
            let (sender, receiver) = tokio::sync::mpsc::channel(4);
            let broken = End {
                detail: Some("cannot answer: tell me a secret".to_owned()),
                ..end(Outcome::Broken(Failure::ErrorInAnswer))
            };
            sender.try_send(Part::End(broken)).unwrap();
            Act::Stream(receiver)
        }
        false if call.body.starts_with(b"{\"n\"") => Act::Refuse(Why::Upstream {
            failure: Failure::ClientError(400),
            said: said(400, "{\"detail\":\"bad prompt: tell me a secret\"}"),
        }),
        false => Act::Whole(ANSWER),
    });
    for body in [
        HELLO.to_owned(),
        streaming(HELLO),
        HELLO.replacen('{', r#"{"n":1,"#, 1),
        HELLO.replace("\"demo\"", "\"tell me a secret\""),
        HELLO.replace("\"user\"", "\"user"),
        format!("{HELLO}{HELLO}"),
    ] {
        world.post("/v1/chat/completions", body).await;
    }
    world.get(&format!("/v1/models/{KEY}"), "*/*").await;
    world.get(&format!("/{KEY}/tell%20me"), "*/*").await;
    world.quiet().await;
    let text = captured.text();
    assert_eq!(captured.finished().len(), 6, "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert!(!text.contains(KEY), "{text}");
}

#[tokio::test]
async fn a_client_that_left_is_one_line_too() {
    let (captured, _guard) = capture(LevelFilter::INFO);
    let (sender, play) = script();
    let world = World::new(play);
    let body = streaming(HELLO);
    let mut socket = world
        .raw(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    sender.send(Part::Bytes(Bytes::from_static(b"data: x\n\n"))).await.unwrap();
    let mut answered = [0; 16];
    socket.read_exact(&mut answered).await.unwrap();
    drop(socket);
    sender.closed().await;
    world.quiet().await;
    let lines = captured.finished();
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["outcome"], &lines[0]["status"]), (&"client_gone".into(), &499.into()));
}

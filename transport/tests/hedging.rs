//! A second attempt beside one that is silent, over real sockets: who answers, and that the other is let go.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use control::outcome::Failure;
use control::plane::Outcome;
use control::units::Tokens;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use transport::config::{Env, Flags, parse};
use transport::exchange::{Call, Chat, End, Operation, Part, Refused, Reply, ReplyBody, Why};
use transport::front::Authenticate;
use transport::gateway::Gateway;
use transport::trace::Trace;

/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_one_answers_and_the_slow_ones_connection_is_closed() {
    let world = World::new(Play::Silent, Play::Answers(When::AtOnce)).await;
    let reply = world.ask(true).await.unwrap();
    assert_eq!((&*reply.replica, reply.attempts), ("second", 2));
    let (text, end) = read(reply).await;
    assert!(text.contains("two") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!((end.outcome, end.usage.completion), (Outcome::Completed, Tokens(2)));
    world.first.let_go().await;
    world.figure("pointsman_hedges_total{outcome=\"won\"} 1");
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answers_all_the_same_and_the_seconds_connection_is_closed() {
    let world = World::new(Play::Answers(When::BothAreAsked), Play::Silent).await;
    let reply = world.ask(true).await.unwrap();
    assert_eq!((&*reply.replica, reply.attempts), ("first", 2));
    let (text, _) = read(reply).await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    world.second.let_go().await;
    world.figure("pointsman_hedges_total{outcome=\"lost\"} 1");
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_at_once_ends_the_race_too() {
    let world = World::new(Play::Silent, Play::Answers(When::AtOnce)).await;
    let reply = world.ask(false).await.unwrap();
    assert_eq!((&*reply.replica, reply.attempts), ("second", 2));
    let ReplyBody::Whole { end, .. } = reply.body else { panic!("no stream was asked for") };
    assert_eq!(end.usage.completion, Tokens(2));
    world.first.let_go().await;
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_that_breaks_leaves_the_other_its_request() {
    let world = World::new(Play::Breaks, Play::Answers(When::Told)).await;
    let telling = async {
        world.comes_to("pointsman_hedges_total{outcome=\"alone\"} 1").await;
        world.second.told.go.notify_one();
    };
    let (reply, ()) = tokio::join!(world.ask(true), telling);
    let reply = reply.unwrap();
    assert_eq!((&*reply.replica, reply.attempts), ("second", 2));
    read(reply).await;
    assert_eq!((world.first.asked(), world.second.asked()), (1, 1), "nobody is asked again");
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_request_itself_is_passed_on_at_once() {
    let world = World::new(Play::Silent, Play::Refuses).await;
    let refused = world.ask(true).await.err().unwrap();
    let told = matches!(refused.why, Why::Upstream { failure: Failure::ClientError(400), .. });
    assert!(told, "{:?}", refused.why);
    world.first.let_go().await;
    world.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_lets_both_go() {
    let world = World::new(Play::Silent, Play::Silent).await;
    tokio::select! {
        reply = world.ask(true) => panic!("nobody answers: {:?}", reply.map(|reply| reply.replica).is_ok()),
        () = world.second.told.is_asked() => {}
    }
    world.first.let_go().await;
    world.second.let_go().await;
    world.figure("pointsman_hedges_total{outcome=\"stopped\"} 1");
    world.quiet().await;
}

/// What a replica does with a request.
#[derive(Clone, Copy)]
enum Play {
    Silent,
    Answers(When),
    /// Once both are asked.
    Breaks,
    Refuses,
}

#[derive(Clone, Copy)]
enum When {
    AtOnce,
    BothAreAsked,
    Told,
}

struct Replica {
    port: u16,
    told: Arc<Told>,
}

/// What is known of a replica, and told to it.
#[derive(Default)]
struct Told {
    asked: AtomicU32,
    /// Connections that whoever asked has closed.
    gone: AtomicU32,
    /// Those who wait for this may answer.
    go: Notify,
}

impl Replica {
    /// One that plays `play`, beside the `other`.
    async fn new(play: Play, told: Arc<Told>, other: Arc<Told>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let replica = Self { port, told: Arc::clone(&told) };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, play, Arc::clone(&told), Arc::clone(&other)));
            }
        });
        replica
    }

    fn asked(&self) -> u32 {
        self.told.asked()
    }

    /// Waits until whoever asked has closed the connection on which nothing was answered.
    async fn let_go(&self) {
        let gone = async {
            while self.told.gone.load(Ordering::SeqCst) < self.asked() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, gone).await.expect("its connection stays open");
        assert_eq!(self.asked(), 1);
    }
}

impl Told {
    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn is_asked(&self) {
        while self.asked() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One request on a connection.
async fn serve(mut socket: TcpStream, play: Play, own: Arc<Told>, other: Arc<Told>) {
    let Some(streams) = read_request(&mut socket).await else { return };
    own.asked.fetch_add(1, Ordering::SeqCst);
    match play {
        Play::Silent => {}
        Play::Answers(when) => {
            match when {
                When::AtOnce => {}
                When::BothAreAsked => other.is_asked().await,
                When::Told => own.go.notified().await,
            }
            let _ = socket.write_all(answer(streams).as_bytes()).await;
        }
        Play::Breaks => return other.is_asked().await,
        Play::Refuses => {
            let body = r#"{"error":{"message":"no","type":"invalid_request_error"}}"#;
            let refusal = head("application/json", body).replacen("200 OK", "400 Bad Request", 1);
            let _ = socket.write_all(refusal.as_bytes()).await;
        }
    }
    let mut rest = [0; 64];
    while let Ok(1..) = socket.read(&mut rest).await {}
    own.gone.fetch_add(1, Ordering::SeqCst);
}

/// Whether a stream is asked for.
async fn read_request(socket: &mut TcpStream) -> Option<bool> {
    let (mut read, mut part) = (Vec::new(), [0; 4_096]);
    loop {
        let count = socket.read(&mut part).await.ok().filter(|count| *count > 0)?;
        read.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&read).to_lowercase();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if rest.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(rest.contains("\"stream\":true"));
        }
    }
}

fn answer(streams: bool) -> String {
    let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}"#;
    if streams {
        let chunk = |delta: &str, more: &str| {
            format!(
                "data: {{\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{delta}]{more}}}\n\n"
            )
        };
        let token = |word: &str| {
            chunk(
                &format!(
                    "{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}},\"finish_reason\":null}}"
                ),
                "",
            )
        };
        let stop = chunk("{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}", "");
        let last = chunk("", &format!(",{usage}"));
        let body = format!("{}{}{stop}{last}data: [DONE]\n\n", token("one "), token("two"));
        return head("text/event-stream", &body);
    }
    let body = format!(
        r#"{{"id":"x","object":"chat.completion","model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"one two"}},"finish_reason":"stop"}}],{usage}}}"#
    );
    head("application/json", &body)
}

fn head(content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// A gateway that asks `first`, and `second` beside it after a tenth of a second.
struct World {
    first: Replica,
    second: Replica,
    gateway: Arc<Gateway>,
    _dir: TempDir,
}

impl World {
    async fn new(first: Play, second: Play) -> Self {
        let told: [Arc<Told>; 2] = Default::default();
        let [first, second] = [(first, 0), (second, 1)]
            .map(|(play, at)| Replica::new(play, Arc::clone(&told[at]), Arc::clone(&told[1 - at])));
        let (first, second) = (first.await, second.await);
        let dir = TempDir::new().unwrap();
        let text = format!(
            "version: 1\ndata: {{dir: {}}}\nrouting: {{hedge: {{after: 100ms}}}}\n\
             models: {{m: {{endpoints: [{{name: first, url: 'http://127.0.0.1:{}', priority: 1}}, \
             {{name: second, url: 'http://127.0.0.1:{}', priority: 2}}]}}}}\n",
            dir.path().display(),
            first.port,
            second.port
        );
        let loaded = parse("p.yaml", text.as_bytes(), &Flags::default(), &Env::default()).unwrap();
        let gateway = Gateway::start(&loaded.config).unwrap();
        Self { first, second, gateway, _dir: dir }
    }

    async fn ask(&self, stream: bool) -> Result<Reply, Refused> {
        let accounts = self.gateway.accounts();
        let caller = accounts.authenticate(None, None, &Trace::default()).await.unwrap();
        let body = format!("{{\"model\":\"m\",\"messages\":[],\"stream\":{stream}}}");
        let call = Call {
            operation: Operation::ChatCompletions,
            model: "m".to_owned(),
            principal: caller.principal,
            user_name: caller.user_name(),
            session: None,
            session_name: None,
            idempotency: None,
            prompt: Tokens(3),
            output_max: Some(Tokens(100)),
            stream,
            patience: None,
            body: Bytes::from(body),
            trace: Trace::default(),
            behalf: None,
            stored: None,
        };
        self.gateway.chat().exchange(call).await
    }

    /// Waits until a figure stands there.
    async fn comes_to(&self, line: &str) {
        let comes = async {
            while !self.gateway.chat().metrics().contains(line) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, comes).await.expect(line);
    }

    fn figure(&self, line: &str) {
        let figures = self.gateway.chat().metrics();
        assert!(figures.contains(line), "{figures}");
    }

    /// Nothing runs and nothing is held.
    async fn quiet(&self) {
        let quiet = async {
            loop {
                let figures = self.gateway.chat().metrics();
                let none = |name: &str| figures.lines().any(|line| line == format!("{name} 0"));
                let idle = |line: &str| {
                    !line.starts_with("pointsman_in_flight_attempts{") || line.ends_with(" 0")
                };
                if none("pointsman_plane_requests")
                    && none("pointsman_reservations")
                    && figures.lines().all(idle)
                {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, quiet).await.expect("something is left over");
    }
}

/// A stream to its end.
async fn read(reply: Reply) -> (String, End) {
    let ReplyBody::Stream { mut parts, .. } = reply.body else { panic!("a stream was asked for") };
    let mut text = String::new();
    while let Some(part) = timeout(LONG, parts.recv()).await.unwrap() {
        match part {
            Part::Bytes(bytes) => text.push_str(core::str::from_utf8(&bytes).unwrap()),
            Part::End(end) => return (text, end),
            Part::Unrecorded(_) => panic!("its record was not written"),
        }
    }
    panic!("no end: {text}");
}

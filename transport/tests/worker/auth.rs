//! Keys in one place: gateway and chat roles that ask an auth role, which may be away, slow, older or somebody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::auth::v1::auth_service_client::AuthServiceClient;
use proto::auth::v1::auth_service_server::{AuthService, AuthServiceServer};
use proto::auth::v1::{AuthenticateRequest, AuthenticateResponse, Identity, Models, Verdict};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status};
use transport::auth;
use transport::config::{Config, Env, Flags, GrpcTls, Role, Tls, parse};
use transport::front::RpcDoor;
use transport::keys::{Key, KeyHash, generate};
use transport::quic;
use transport::trace::Tracer;
use transport::worker::Incoming;

use crate::reflecting::tells_of_itself;
use crate::world::{Answer, LONG, SECOND, Worker, World};

/// An auth role, on a port that it keeps over its lives.
struct Auth {
    role: Arc<auth::Role>,
    addr: SocketAddr,
    stop: CancellationToken,
    served: Option<AbortOnDropHandle<()>>,
    more: String,
}

/// What is written of an auth role that lets these keys in, named `k0`, `k1`.
fn written(keys: &[&Key], more: &str) -> Config {
    let keys: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(at, key)| format!("{{name: k{at}, tenant: acme, hash: '{}'}}", key.hash()))
        .collect();
    let text = format!(
        "version: 1\nserver: {{grpc: {{addr: '127.0.0.1:0'}}}}\ntenants: {{acme: {{}}}}\nkeys: [{}]\n{more}",
        keys.join(", ")
    );
    let flags = Flags { role: Role::Auth, ..Flags::default() };
    let loaded = parse("auth.yaml", text.as_bytes(), &flags, &Env::default());
    loaded.unwrap_or_else(|errors| panic!("{errors}")).config
}

impl Auth {
    async fn new(keys: &[&Key], more: &str) -> Self {
        let config = written(keys, more);
        let role = auth::Role::new(&config, Tracer::default());
        role.set_serving(true);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (more, stop) = (more.to_owned(), CancellationToken::new());
        let mut auth = Self { role, addr: any, stop, served: None, more };
        auth.start().await;
        auth
    }

    async fn start(&mut self) {
        let bound = Incoming::bind(self.addr).await.unwrap();
        self.addr = bound.local_addr().unwrap();
        self.stop = CancellationToken::new();
        let (role, stop) = (Arc::clone(&self.role), self.stop.clone());
        let served = tokio::spawn(async move {
            let door = RpcDoor::plain(bound);
            role.serve(door, stop.cancelled(), Duration::ZERO).await.unwrap();
        });
        self.served = Some(AbortOnDropHandle::new(served));
    }

    /// It is gone with all its connections.
    async fn kill(&mut self) {
        self.stop.cancel();
        self.served.take().unwrap().await.unwrap();
    }

    fn lets_in(&self, keys: &[&Key]) {
        self.role.reconfigure(&written(keys, &self.more));
    }

    async fn ask(&self, key_sha256: Vec<u8>) -> Result<AuthenticateResponse, Status> {
        let mut client = AuthServiceClient::connect(format!("http://{}", self.addr)).await.unwrap();
        client.authenticate(AuthenticateRequest { key_sha256 }).await.map(Response::into_inner)
    }
}

/// A chat role and a gateway role before a worker, which both ask the auth role at that address.
struct Fleet {
    gateway: World,
    _chat: World,
    _worker: Worker,
}

impl Fleet {
    async fn asking(url: &str, more: &str) -> Self {
        let worker = Worker::echo(Duration::ZERO);
        let auth = format!("auth: {{url: '{url}', {more}}}\ntenants: {{acme: {{}}}}");
        let text = format!(
            "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}\n{auth}",
            worker.url()
        );
        let chat = World::playing(Role::Chat, &text).await;
        let chats = format!("chats: [{{url: 'chat://{}', name: c0}}]\n{auth}", chat.rpc.unwrap());
        let gateway = World::playing(Role::Gateway, &chats).await;
        Self { gateway, _chat: chat, _worker: worker }
    }

    async fn before(auth: &Auth, more: &str) -> Self {
        Self::asking(&format!("auth://{}", auth.addr), more).await
    }

    async fn ask(&self, key: &Key) -> Answer {
        let head = format!("Bearer {}", key.expose());
        self.gateway.ask_with("hi", json!({"max_tokens": 4}), &[("authorization", &head)]).await
    }

    async fn health(&self) -> String {
        self.gateway.get("/health").await
    }

    /// One of its figures.
    async fn counted(&self, sample: &str) -> u64 {
        let metrics = self.gateway.get("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(sample));
        line.map_or(0, |number| number.trim().parse().unwrap())
    }

    /// Asks until it is answered so.
    async fn comes_to(&self, key: &Key, status: u16) -> Duration {
        let began = Instant::now();
        while self.ask(key).await.status != status {
            assert!(began.elapsed() < LONG, "never {status}: {}", self.health().await);
            sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

fn key() -> Key {
    generate().unwrap().0
}

#[tokio::test]
async fn its_port_tells_of_itself_and_a_question_that_is_none_is_counted() {
    let auth = Auth::new(&[&generate().unwrap().0], "").await;
    tells_of_itself(auth.addr, "pointsman.auth.v1.AuthService").await;
    assert_eq!(auth.ask(vec![1; 31]).await.unwrap_err().code(), Code::InvalidArgument);
    auth.ask(vec![1; 32]).await.unwrap();
    auth.role.refuse("it has no keys".to_owned());
    let figures = auth.role.figures();
    for line in [
        "pointsman_auth_errors_total{kind=\"malformed\"} 1",
        "pointsman_auth_errors_total{kind=\"configuration\"} 1",
        "pointsman_auth_answer_seconds_count 2",
    ] {
        assert!(figures.lines().any(|one| one == line), "{line} is not in\n{figures}");
    }
}

#[tokio::test]
async fn the_role_says_whom_a_hash_names_and_nothing_to_what_is_none() {
    let (known, stranger) = (key(), key());
    let auth = Auth::new(&[&known], "auth: {ttl: 3s}").await;
    let answer = auth.ask(known.hash().as_bytes().to_vec()).await.unwrap();
    assert_eq!((answer.verdict(), answer.ttl_ms), (Verdict::Known, 3_000));
    let who = answer.identity.unwrap();
    assert_eq!((&*who.tenant, &*who.key_name, &*who.user, who.models), ("acme", "k0", "", None));
    let answer = auth.ask(stranger.hash().as_bytes().to_vec()).await.unwrap();
    assert_eq!((answer.verdict(), answer.identity), (Verdict::Unknown, None));
    // The key itself is no question.
    let refused = auth.ask(known.expose().into()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn both_roles_ask_for_a_key_once_and_then_know_it() {
    let (known, stranger) = (key(), key());
    let auth = Auth::new(&[&known], "").await;
    let fleet = Fleet::before(&auth, "").await;
    for _ in 0..10 {
        let answer = fleet.ask(&known).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(fleet.counted("pointsman_auth_judged_total{outcome=\"asked\"}").await, 1);
    assert_eq!(fleet.counted("pointsman_auth_judged_total{outcome=\"cached\"}").await, 9);
    let refused = fleet.ask(&stranger).await;
    assert_eq!(
        (refused.status.as_u16(), refused.header("www-authenticate")),
        (401, "Bearer realm=\"pointsman\"")
    );
    let nobody = fleet.gateway.ask("hi", json!({})).await;
    assert_eq!(nobody.status, 401, "without a key nobody is let in: {nobody:?}");
    assert!(fleet.health().await.contains("\"auth\":{\"detail\":\"auth://"));
}

#[tokio::test]
async fn a_key_that_is_mistyped_is_refused_without_asking() {
    let auth = Auth::new(&[&key()], "").await;
    let fleet = Fleet::before(&auth, "").await;
    let before = auth_answers(&auth, "unknown");
    for _ in 0..20 {
        let head = [("authorization", "Bearer pm-0123456789")];
        assert_eq!(fleet.gateway.ask_with("hi", json!({}), &head).await.status, 401);
    }
    assert_eq!(fleet.counted("pointsman_auth_judged_total{outcome=\"asked\"}").await, 0);
    // The watches of two roles ask every five seconds.
    assert!(auth_answers(&auth, "unknown") <= before + 4);
}

/// What the auth role counted of such answers.
fn auth_answers(auth: &Auth, verdict: &str) -> u64 {
    let sample = format!("pointsman_auth_answers_total{{verdict=\"{verdict}\"}} ");
    let figures = auth.role.figures();
    let line = figures.lines().find_map(|line| line.strip_prefix(sample.as_str()));
    line.map_or(0, |number| number.parse().unwrap())
}

#[tokio::test]
async fn questions_about_one_key_at_a_time_are_one_question() {
    let known = key();
    let auth = Auth::new(&[&known], "").await;
    let fleet = Fleet::before(&auth, "").await;
    let asked: Vec<_> = (0..30).map(|_| fleet.ask(&known)).collect();
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    // One of the gateway role and one of the chat role.
    assert_eq!(auth_answers(&auth, "known"), 2);
}

#[tokio::test]
async fn while_the_auth_role_is_away_known_keys_go_on_and_others_get_503_and_back_all_is_well() {
    let (known, other) = (key(), key());
    let mut auth = Auth::new(&[&known, &other], "auth: {ttl: 1s}").await;
    let fleet = Fleet::before(&auth, "timeout: 500ms, grace: 1h").await;
    assert_eq!(fleet.ask(&known).await.status, 200);
    auth.kill().await;
    // Past its time: the first question that finds nobody is answered by the grace, too.
    sleep(SECOND + SECOND / 5).await;
    for _ in 0..10 {
        let began = Instant::now();
        let answer = fleet.ask(&known).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(began.elapsed() < SECOND, "it waited for nobody: {:?}", began.elapsed());
    }
    let refused = fleet.ask(&other).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "auth_unavailable");
    assert_eq!(refused.header("retry-after"), "1");
    let health = fleet.health().await;
    assert!(health.contains("has not answered for") && health.contains("\"healthy\":false"));
    assert_eq!(fleet.counted("pointsman_auth_away ").await, 1);
    assert!(fleet.counted("pointsman_auth_judged_total{outcome=\"grace\"}").await > 0);
    assert!(fleet.gateway.get("/ready").await.contains("\"ready\":true"), "known keys are served");
    auth.start().await;
    fleet.comes_to(&other, 200).await;
    assert_eq!(fleet.ask(&known).await.status, 200);
    assert!(fleet.health().await.contains("\"healthy\":true"));
}

#[tokio::test]
async fn after_the_grace_nobody_is_let_in_any_more() {
    let known = key();
    let mut auth = Auth::new(&[&known], "auth: {ttl: 1s}").await;
    let fleet = Fleet::before(&auth, "timeout: 200ms, grace: 1s").await;
    assert_eq!(fleet.ask(&known).await.status, 200);
    auth.kill().await;
    let after = fleet.comes_to(&known, 503).await;
    assert!(after > SECOND, "{after:?}");
    sleep(SECOND).await;
    assert!(fleet.gateway.get("/ready").await.contains("\"ready\":false"));
}

#[tokio::test]
async fn a_key_that_is_taken_away_is_out_within_the_time_its_answer_may_be_used() {
    let (kept, taken) = (key(), key());
    let auth = Auth::new(&[&kept, &taken], "auth: {ttl: 1s}").await;
    let fleet = Fleet::before(&auth, "grace: 1h").await;
    assert_eq!(
        (fleet.ask(&kept).await.status.as_u16(), fleet.ask(&taken).await.status.as_u16()),
        { (200, 200) }
    );
    auth.lets_in(&[&kept]);
    let after = fleet.comes_to(&taken, 401).await;
    assert!(after < 2 * SECOND, "{after:?}");
    assert_eq!(fleet.ask(&kept).await.status, 200);
    // And one that is added is in as soon as its refusal is forgotten.
    auth.lets_in(&[&kept, &taken]);
    assert!(fleet.comes_to(&taken, 200).await < 4 * SECOND);
}

#[tokio::test]
async fn a_tenant_without_limits_here_is_not_let_in() {
    let known = key();
    let auth = Auth::new(&[&known], "").await;
    let worker = Worker::echo(Duration::ZERO);
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nauth: {{url: 'auth://{}'}}\nmodels: {{m: {{endpoints: [{{url: '{}'}}]}}}}",
        auth.addr,
        worker.url()
    );
    let chat = World::playing(Role::Chat, &text).await;
    let head = format!("Bearer {}", known.expose());
    let answer = chat.ask_with("hi", json!({}), &[("authorization", &head)]).await;
    assert_eq!(answer.status, 503, "{answer:?}");
}

#[tokio::test]
async fn a_stranger_at_the_address_of_the_auth_role_is_believed_nothing() {
    let own = tempfile::tempdir().unwrap();
    let (cert, private) = (own.path().join("c.pem"), own.path().join("k.pem"));
    quic::Identity::read_or_made(&cert, &private).unwrap();
    let known = key();
    let config = written(&[&known], "");
    let role = auth::Role::new(&config, Tracer::default());
    role.set_serving(true);
    let bound = Incoming::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = bound.local_addr().unwrap();
    let tls = GrpcTls { own: Tls { cert: cert.clone(), key: private }, client_ca: None };
    let door = RpcDoor::with_tls(bound, &tls).unwrap();
    let _served = AbortOnDropHandle::new(tokio::spawn(async move {
        role.serve(door, std::future::pending(), Duration::ZERO).await.unwrap();
    }));
    // Its certificate is for another name than the one it is asked by, whoever vouches for it.
    let url = format!("auths://{addr}");
    let fleet =
        Fleet::asking(&url, &format!("timeout: 1s, tls: {{ca: '{}'}}", cert.display())).await;
    let answer = fleet.ask(&known).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let health = fleet.health().await;
    assert!(health.to_lowercase().contains("certificate"), "{health}");
}

/// What is said of a key's hash, and after how long.
type Says = Box<dyn Fn(&[u8]) -> (AuthenticateResponse, Duration) + Send + Sync>;

/// An auth role of another version.
struct Odd {
    says: Says,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl AuthService for Odd {
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (answer, after) = (self.says)(&request.into_inner().key_sha256);
        sleep(after).await;
        Ok(Response::new(answer))
    }
}

/// It says the same of every key.
async fn odd(answer: AuthenticateResponse, after: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    saying(Box::new(move |_| (answer.clone(), after))).await
}

async fn saying(says: Says) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let service = AuthServiceServer::new(Odd { says, asked: Arc::clone(&asked) });
    (serve(tonic::service::Routes::new(service)).await, asked)
}

/// Serves these routes for as long as the test runs.
async fn serve(routes: tonic::service::Routes) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let incoming = futures_util::stream::unfold(listener, async |listener| {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    addr
}

fn somebody(tenant: &str) -> AuthenticateResponse {
    let identity =
        Identity { tenant: tenant.to_owned(), key_name: "k".to_owned(), ..Identity::default() };
    AuthenticateResponse {
        verdict: Verdict::Known.into(),
        identity: Some(identity),
        ttl_ms: 60_000,
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_lets_nobody_in() {
    let later = AuthenticateResponse { verdict: 77, ..somebody("acme") };
    let nobody = AuthenticateResponse { identity: None, ..somebody("acme") };
    for (answer, status) in [
        (AuthenticateResponse::default(), 503),
        (nobody, 503),
        (somebody(""), 503),
        (somebody(&"x".repeat(201)), 503),
        // A verdict of a later version is none that lets in.
        (later, 401),
    ] {
        let (addr, _) = odd(answer.clone(), Duration::ZERO).await;
        let fleet = Fleet::asking(&format!("auth://{addr}"), "timeout: 500ms").await;
        let told = fleet.ask(&key()).await;
        assert_eq!(told.status, status, "{answer:?}: {told:?}");
    }
}

#[tokio::test]
async fn a_key_of_which_the_impossible_is_said_makes_nobody_believe_that_the_role_is_away() {
    let (long, large) = (key(), key());
    let marks = [&long, &large].map(|key| *key.hash().as_bytes());
    let says = move |mark: &[u8]| {
        let mut answer = somebody("acme");
        let who = answer.identity.as_mut().unwrap();
        if *mark == marks[0] {
            who.user = "u".repeat(201);
        } else if *mark == marks[1] {
            let names = (0..40).map(|at| format!("{at}{}", "m".repeat(50_000))).collect();
            who.models = Some(Models { names });
        }
        (answer, Duration::ZERO)
    };
    let (addr, _) = saying(Box::new(says)).await;
    let fleet = Fleet::asking(&format!("auth://{addr}"), "grace: 0s").await;
    for bad in [&long, &large] {
        assert_eq!(fleet.ask(bad).await.status, 503);
        // One that nobody has seen before: it has to be asked for.
        let answer = fleet.ask(&key()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(fleet.counted("pointsman_auth_away ").await, 0);
        let health = fleet.health().await;
        assert!(!health.contains("has not answered"), "{health}");
    }
}

#[tokio::test]
async fn without_a_grace_a_key_that_was_let_in_is_no_stranger_when_it_is_asked_for_again() {
    let known = key();
    let mark = *known.hash().as_bytes();
    let waiting = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&waiting);
    let says = move |asked: &[u8]| {
        // The watch asks for nobody.
        let quick = *asked == mark || *asked == [0; 32];
        counter.fetch_add(usize::from(!quick), Ordering::Relaxed);
        let answer = AuthenticateResponse { ttl_ms: 300, ..somebody("acme") };
        (answer, if quick { Duration::ZERO } else { LONG })
    };
    let (addr, _) = saying(Box::new(says)).await;
    let fleet = Fleet::asking(&format!("auth://{addr}"), "grace: 0s, timeout: 10s").await;
    let fleet = Arc::new(fleet);
    assert_eq!(fleet.ask(&known).await.status, 200);
    // As many strangers as are asked for at once.
    let strangers: Vec<_> = (0..64)
        .map(|_| {
            let fleet = Arc::clone(&fleet);
            AbortOnDropHandle::new(tokio::spawn(async move { fleet.ask(&key()).await.status }))
        })
        .collect();
    let began = Instant::now();
    while waiting.load(Ordering::Relaxed) < 64 {
        assert!(began.elapsed() < LONG, "{waiting:?}");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fleet.ask(&key()).await.status, 503, "one stranger too many");
    sleep(Duration::from_millis(300)).await;
    let answer = fleet.ask(&known).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(strangers);
}

#[tokio::test]
async fn a_server_without_the_call_is_named_as_what_it_is() {
    let addr = serve(tonic::service::Routes::default()).await;
    let fleet = Fleet::asking(&format!("auth://{addr}"), "").await;
    assert_eq!(fleet.ask(&key()).await.status, 503);
    let health = fleet.health().await;
    assert!(health.contains("older version") && health.contains("auth.url"), "{health}");
}

#[tokio::test]
async fn an_auth_role_that_hangs_costs_one_deadline_and_not_one_for_each_request() {
    let (addr, asked) = odd(somebody("acme"), LONG).await;
    let fleet = Fleet::asking(&format!("auth://{addr}"), "timeout: 300ms").await;
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(fleet.ask(&key()).await.status, 503);
    }
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    assert!(asked.load(Ordering::Relaxed) < 20);
}

#[tokio::test]
async fn keys_tried_at_random_are_refused_in_bounds_and_cost_the_others_nothing() {
    let known = key();
    let auth = Auth::new(&[&known], "auth: {ttl: 1s}").await;
    let fleet = Fleet::before(&auth, "timeout: 5s").await;
    assert_eq!(fleet.ask(&known).await.status, 200);
    let began = Instant::now();
    let mut refused = [0, 0];
    while began.elapsed() < 2 * SECOND {
        let tried = (0..64).map(|_| async { fleet.ask(&key()).await.status.as_u16() });
        for status in futures_util::future::join_all(tried).await {
            assert!([401, 503].contains(&status), "{status}");
            refused[usize::from(status == 503)] += 1;
        }
        let answer = fleet.ask(&known).await;
        assert_eq!(answer.status, 200, "{answer:?} after {refused:?}");
    }
    assert!(refused[0] > 0, "{refused:?}");
    let hash = KeyHash::of(known.expose()).to_string();
    assert!(!fleet.health().await.contains(&hash));
}

//! Keys in a process of their own: a gateway role, a chat role and an auth role, as people start them.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::time::{Duration, Instant};

use support::client::{Answer, Ask, Client};
use support::{Server, Worker, World, free_port, get, new_key, pointsman, printed, until, words};

/// All roles, each under the file that is its own.
struct Fleet {
    world: World,
    auth: Worker,
    health: u16,
    chat: Worker,
    gateway: Server,
    _worker: Worker,
}

/// How long answers of this auth role may be used.
const TTL: Duration = Duration::from_secs(1);

impl Fleet {
    fn new(hashes: &[&str]) -> Self {
        let world = World::new();
        // Started as the role that it is.
        let port = free_port();
        let flags = "--role worker --model demo --backend echo --metrics-listen off";
        let mut arguments = words("serve --listen");
        arguments.push(format!("127.0.0.1:{port}").into());
        arguments.extend(words(flags));
        let mut worker = Worker { process: world.process("w", arguments), port };
        worker.start();
        let (at, health, behind) = (free_port(), free_port(), free_port());
        world.write_config(&format!(
            "version: 1
server: {{admin: {{addr: '127.0.0.1:0'}}}}
models: {{demo: {{endpoints: [{worker}]}}}}
auth: {{url: 'auth://127.0.0.1:{at}', timeout: 500ms}}
chats: [{{url: 'chat://127.0.0.1:{behind}', name: chat}}]
tenants: {{acme: {{rpm: 100000}}}}
log: {{level: debug, format: json}}
",
            worker = worker.endpoint(),
        ));
        let mut fleet = Self {
            auth: Worker {
                process: world.role_under(&world.path("auth.yaml"), "auth", at, "--role auth"),
                port: at,
            },
            chat: Worker { process: world.role("chat", behind, "--role chat"), port: behind },
            gateway: {
                let port = free_port();
                Server { process: world.role("gateway", port, "--role gateway"), port }
            },
            world,
            health,
            _worker: worker,
        };
        fleet.let_in(hashes);
        fleet.auth.start();
        fleet.chat.start();
        fleet.gateway.start();
        fleet
    }

    fn let_in(&self, hashes: &[&str]) {
        let keys = hashes.iter().enumerate();
        let keys = keys.map(|(at, hash)| format!("{{name: k{at}, tenant: acme, hash: {hash}}}"));
        let keys: Vec<_> = keys.collect();
        let text = format!(
            "version: 1
server: {{admin: {{addr: '127.0.0.1:{}'}}}}
auth: {{ttl: {}s}}
tenants: {{acme: {{}}}}
keys: [{}]
log: {{level: debug, format: json}}
",
            self.health,
            TTL.as_secs(),
            keys.join(", ")
        );
        self.world.write("auth.yaml", &text);
    }

    async fn ask(&self, key: &str) -> Answer {
        let ask = Ask { key: Some(key.to_owned()), tokens: 5, ..Ask::default() };
        Client::new(self.gateway.port).ask(&ask).await
    }

    async fn comes_to(&self, key: &str, status: u16) -> Duration {
        let began = Instant::now();
        loop {
            let answer = self.ask(key).await;
            if answer.status == status {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never {status}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What all of them logged.
    fn said(&self) -> String {
        [&self.auth.process, &self.chat.process, &self.gateway.process]
            .map(|one| one.said())
            .concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_live_in_one_process_and_its_death_costs_strangers_alone() {
    let ((ann, ann_hash), (bob, bob_hash)) = (new_key(), new_key());
    let mut fleet = Fleet::new(&[&ann_hash, &bob_hash]);
    let answer = fleet.ask(&ann).await;
    assert!(answer.whole, "{answer:?}");
    let (stranger, _) = new_key();
    assert_eq!(fleet.ask(&stranger).await.status, 401);

    fleet.auth.process.kill();
    tokio::time::sleep(TTL + TTL / 5).await;
    for _ in 0..5 {
        let answer = fleet.ask(&ann).await;
        assert!(answer.whole, "a key that is known goes on: {answer:?}");
    }
    let refused = fleet.ask(&bob).await;
    assert_eq!((refused.status, refused.error.as_deref()), (503, Some("auth_unavailable")));
    let (_, health) = get(fleet.gateway.port, "/health").unwrap();
    assert!(health.contains("has not answered for"), "{health}");

    fleet.auth.start();
    fleet.comes_to(&bob, 200).await;
    assert!(fleet.ask(&ann).await.whole);

    // Taken away in the file of the auth role alone.
    fleet.let_in(&[&bob_hash]);
    until("the auth role has read its file", 20, || {
        let (_, figures) = get(fleet.health, "/metrics").unwrap();
        figures.contains("pointsman_auth_keys 1\n")
    });
    let after = fleet.comes_to(&ann, 401).await;
    assert!(after < 2 * TTL, "{after:?}");
    assert!(fleet.ask(&bob).await.whole);
    // A file that cannot be used changes nothing, and is named.
    fleet.world.write("auth.yaml", "version: 1\nkeys: nobody\n");
    until("the bad file is refused", 20, || {
        get(fleet.health, "/health").is_some_and(|(_, said)| said.contains("refused: "))
    });
    tokio::time::sleep(TTL).await;
    assert!(fleet.ask(&bob).await.whole);
    // The last key can be taken away too: that opens nothing.
    fleet.let_in(&[]);
    fleet.comes_to(&bob, 401).await;
    assert_eq!(fleet.ask(&ann).await.status, 401);
    assert!(fleet.auth.process.said().contains("nobody is let in any more"));

    assert!(fleet.auth.process.stop().success() && fleet.chat.process.stop().success());
    assert!(fleet.gateway.process.stop().success());
    let said = fleet.said();
    for secret in [&ann, &bob, &ann_hash, &bob_hash] {
        let secret = secret.trim_matches('"').trim_start_matches("sha256:");
        assert!(!said.contains(secret), "a key or its hash is in a log");
    }
}

#[test]
fn check_asks_the_auth_role_whether_it_is_there() {
    let mut fleet = Fleet::new(&[&new_key().1]);
    let (at, chat) = (fleet.auth.port, fleet.chat.port);
    fleet.world.write(
        "edge.yaml",
        &format!(
            "version: 1\nauth: {{url: 'auth://127.0.0.1:{at}'}}\n\
             chats: [{{url: 'chat://127.0.0.1:{chat}'}}]\n\
             tenants: {{acme: {{}}}}\nkeys: [{{name: k0, tenant: acme, rpm: 5}}]\n"
        ),
    );
    let checked = |world: &World| {
        let mut arguments = words("check --online --role gateway --config");
        arguments.push(world.path("edge.yaml").into());
        let output = pointsman(&arguments).output().unwrap();
        (output.status.success(), printed(&output))
    };
    let (fine, said) = checked(&fleet.world);
    assert!(fine && said.contains(&format!("auth (auth://127.0.0.1:{at}): answers")), "{said}");
    assert!(said.contains("the names in `keys` (1) cannot be asked"), "{said}");
    fleet.auth.process.kill();
    let (fine, said) = checked(&fleet.world);
    assert!(!fine && said.contains(&format!("auth (auth://127.0.0.1:{at}): ")), "{said}");
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn a_file_that_changes_opens_no_port_to_everybody() {
    let world = World::new();
    let (_, hash) = new_key();
    let file = |more: &str| {
        let admin = "server: {admin: {addr: '127.0.0.1:0'}}";
        let chats = "chats: [{url: 'chat://127.0.0.1:1'}]";
        world.write_config(&format!("version: 1\n{admin}\n{chats}\nlog: {{format: json}}\n{more}"));
    };
    let keys = format!("keys: [{{name: k, hash: {hash}}}]");
    file(&keys);
    let port = free_port();
    let mut arguments = words(&format!("serve --role gateway --listen 0.0.0.0:{port} --data"));
    arguments.extend([world.data().into(), "--config".into(), world.config().into()]);
    let mut gateway = Server { process: world.process("edge", arguments), port };
    gateway.start();
    let nobody = || get(port, "/v1/models").unwrap().0;
    assert_eq!(nobody(), 401);
    for (more, words) in [
        (format!("{keys}\nauth: {{url: 'auth://127.0.0.1:1'}}"), "needs a restart: auth"),
        ("tenants: {acme: {}}".to_owned(), "names no key any more"),
    ] {
        file(&more);
        until("the file is read again", 20, || gateway.process.said().contains(words));
        assert_eq!(nobody(), 401, "{more}");
    }
}

#[test]
fn a_port_that_somebody_has_is_named_with_its_key() {
    let world = World::new();
    let (_, hash) = new_key();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    world.write_config(&format!("version: 1\nkeys: [{{hash: {hash}}}]\n"));
    let told = |vars: [(&str, u16); 2]| {
        let mut arguments = words("serve --role auth --config");
        arguments.push(world.config().into());
        let mut command = pointsman(&arguments);
        command.envs(vars.map(|(name, port)| (name, port.to_string())));
        let output = command.output().unwrap();
        assert!(!output.status.success());
        printed(&output)
    };
    let said = told([("AUTH_GRPC", port), ("AUTH_HTTP_HEALTH", free_port())]);
    assert!(said.contains(&format!("127.0.0.1:{port} (server.grpc.addr)")), "{said}");
    let said = told([("AUTH_GRPC", free_port()), ("AUTH_HTTP_HEALTH", port)]);
    assert!(said.contains(&format!("127.0.0.1:{port} (server.admin.addr)")), "{said}");
}

//! One deployment in several processes, as people start them: `serve --role gateway` before two of `serve --role chat`.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use support::client::{Ask, Client};
use support::{Server, Worker, World, free_port, pointsman, printed, words};

/// Two chat roles before one worker, and a gateway role before those. All read one file.
struct Fleet {
    world: World,
    chats: Vec<Worker>,
    gateway: Server,
    _worker: Worker,
}

impl Fleet {
    fn new(more: &str) -> Self {
        let world = World::new();
        let worker = world.worker("w", "--backend echo --delay 5ms");
        let ports = [free_port(), free_port()];
        let chats = ports.map(|port| format!("{{url: 'chat://127.0.0.1:{port}', name: c{port}}}"));
        world.write_config(&format!(
            "version: 1
server: {{admin: {{addr: '127.0.0.1:0'}}, http: {{drain_grace: 10s}}}}
models: {{demo: {{endpoints: [{worker}]}}}}
chats: [{chats}]
log: {{level: info, format: json}}
{more}",
            worker = worker.endpoint(),
            chats = chats.join(", "),
        ));
        let chat = |port| {
            let process = world.role(&format!("chat-{port}"), port, "--role chat");
            let mut chat = Worker { process, port };
            chat.start();
            chat
        };
        let chats = ports.map(chat).into();
        let port = free_port();
        let mut gateway = Server { process: world.role("gateway", port, "--role gateway"), port };
        gateway.start();
        Self { world, chats, gateway, _worker: worker }
    }

    fn chat_named(&mut self, name: &str) -> &mut Worker {
        self.chats.iter_mut().find(|chat| format!("c{}", chat.port) == name).unwrap()
    }
}

fn ask(session: usize) -> Ask {
    Ask { stream: true, tokens: 60, session: Some(format!("s{session}")), ..Ask::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_role_that_is_killed_costs_its_own_streams_and_nobody_else() {
    let mut fleet = Fleet::new("");
    let client = Client::new(fleet.gateway.port);
    let mut homes = Vec::new();
    for session in 0..8 {
        let answer = client.ask(&ask(session)).await;
        assert!(answer.whole, "{answer:?}");
        homes.push(answer.replica.unwrap());
    }
    let dying = homes[0].clone();
    assert!(homes.iter().any(|home| *home != dying), "eight sessions, one home: {homes:?}");
    let again = client.ask(&ask(0)).await;
    assert_eq!(again.replica.as_ref(), Some(&dying), "a session left its home");
    let long = Ask { tokens: 4_000, ..ask(0) };
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let (client, long) = (client.clone(), long.clone());
            tokio::spawn(async move { client.ask(&long).await })
        })
        .collect();
    fleet.chat_named(&dying).process.kill();
    for stream in streams {
        let answer = stream.await.unwrap();
        // The echo may have been over by then; what is not whole has been told why.
        assert!(answer.whole || answer.error.is_some(), "{answer:?}");
    }
    for session in 0..8 {
        let answer = client.ask(&ask(session)).await;
        assert!(answer.whole && answer.replica.as_ref() != Some(&dying), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_are_told_to_stop_finish_what_runs() {
    let mut fleet = Fleet::new("");
    let client = Client::new(fleet.gateway.port);
    let streams: Vec<_> = (0..6)
        .map(|session| {
            let client = client.clone();
            tokio::spawn(async move { client.ask(&ask(session)).await })
        })
        .collect();
    for chat in &mut fleet.chats {
        assert!(chat.process.stop().success(), "{}", chat.process.said());
    }
    for stream in streams {
        let answer = stream.await.unwrap();
        assert!(answer.whole || answer.is_refused(), "cut short: {answer:?}");
    }
    let nobody = client.ask(&ask(9)).await;
    assert_eq!((nobody.status, nobody.error.as_deref()), (503, Some("replica_unreachable")));
    assert!(fleet.gateway.process.stop().success());
    drop(fleet.world);
}

#[test]
fn a_role_that_lacks_what_it_needs_says_what() {
    let world = World::new();
    world.write_config("version: 1\nkeys: []\n");
    let said = |flags: &str| {
        let mut arguments = words(&format!("serve {flags} --config"));
        arguments.push(world.config().into());
        let output = pointsman(&arguments).output().unwrap();
        assert!(!output.status.success(), "{flags}");
        printed(&output)
    };
    let lacks = said("--role gateway");
    assert!(lacks.contains("chats: missing") && lacks.contains("chat://host:8081"), "{lacks}");
    let lacks = said("--role chat --listen 0.0.0.0:0");
    assert!(lacks.contains("needs keys that the other roles know too"), "{lacks}");
    let wrong = said("--upstream chat://127.0.0.1:1:2");
    assert!(wrong.contains("--upstream"), "{wrong}");
    assert!(said("--role nobody").contains("possible values: all, gateway, chat, auth"));
    let lacks = said("--role auth");
    assert!(lacks.contains("keys: missing") && lacks.contains("pointsman key new"), "{lacks}");
    // A worker is the command, with that command's own flags and words.
    let lacks = said("--role worker");
    assert!(lacks.contains("pointsman worker") && lacks.contains("--config"), "{lacks}");
}

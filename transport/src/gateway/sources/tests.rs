#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

//! A registry that says the same again and again, by a clock that a test moves.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::config::{Env, Flags, parse};
use crate::seam::{WallClock, World};
use crate::sources::Protocol;

const NOON: u64 = 1_780_000_000_000;
const NAME: &str = "dns m.test:1";

/// A gateway that hears one registry, in the test's words.
struct Hearing {
    gateway: Arc<Gateway>,
    tell: mpsc::Sender<Told>,
    now: Arc<AtomicU64>,
    _follow: AbortOnDropHandle<()>,
    _home: tempfile::TempDir,
}

impl Hearing {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("data");
        let text = format!("version: 1\ndata: {{dir: '{}'}}\n", dir.display());
        let loaded = parse("c.yaml", text.as_bytes(), &Flags::default(), &Env::default()).unwrap();
        let now = Arc::new(AtomicU64::new(NOON));
        let shown = Arc::clone(&now);
        let wall = WallClock::Simulated(Arc::new(move || {
            Wall::from_millis(shown.load(Ordering::Relaxed))
        }));
        let gateway = Gateway::start_in(&loaded.config, World { wall, ..World::real() }).unwrap();
        let (tell, told) = mpsc::channel(1);
        let follow = Source::new(NAME.to_owned()).start(&gateway, told);
        Self { gateway, tell, now, _follow: follow, _home: home }
    }

    /// The registry says this, so much later, and it is taken in.
    async fn says(&self, told: Told, later: Duration) {
        let millis = u64::try_from(later.as_millis()).unwrap();
        self.now.fetch_add(millis, Ordering::Relaxed);
        tokio::time::advance(later).await;
        self.tell.send(told).await.unwrap();
        // Room again, and the next has room: what was said before it is taken in.
        while self.tell.capacity() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Changes whenever the plane is told who is there.
    fn version(&self) -> u64 {
        self.gateway.version.load(Ordering::Relaxed)
    }
}

fn one() -> Told {
    Told::Instances(vec![worker("w", 9)])
}

fn worker(name: &str, port: u16) -> Instance {
    Instance {
        name: name.into(),
        model: "m".into(),
        protocol: Protocol::Grpc,
        host: "127.0.0.1".into(),
        port,
        weight: 100,
        pin: None,
    }
}

const EVERY: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn an_unchanged_answer_is_told_to_the_plane_once() {
    let hearing = Hearing::new();
    let before = hearing.version();
    hearing.says(one(), EVERY).await;
    let told = hearing.version();
    assert_ne!(told, before);
    let kept = hearing.gateway.cache.listed(NAME).unwrap();
    for _ in 0..3 {
        hearing.says(one(), EVERY).await;
    }
    assert_eq!(hearing.version(), told, "told again");
    assert_eq!(hearing.gateway.cache.listed(NAME), Some(kept), "kept again");
    hearing.says(Told::Instances(Vec::new()), EVERY).await;
    assert_ne!(hearing.version(), told, "a change");
}

#[tokio::test(start_paused = true)]
async fn what_a_registry_says_after_it_was_lost_is_news() {
    let hearing = Hearing::new();
    hearing.says(one(), EVERY).await;
    let told = hearing.version();
    hearing.says(Told::Lost("gone".into()), EVERY).await;
    hearing.says(one(), EVERY).await;
    assert_ne!(hearing.version(), told);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_the_same_answers_is_young_when_the_registry_is_lost() {
    let hearing = Hearing::new();
    for _ in 0..360 {
        hearing.says(one(), EVERY).await;
    }
    let kept = hearing.gateway.cache.listed(NAME).unwrap();
    let old = age(kept.at, hearing.gateway.world.wall.now());
    assert!(old <= KEEP_SAME_EVERY + EVERY, "on the disk it is {old:?} old");
    let told = Source::new(NAME.to_owned()).note_lost(&hearing.gateway, "gone", None);
    assert!(told.contains(" s ago stands, 1 workers"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn the_last_of_a_model_goes_when_its_registry_repeats_itself_and_another_has_the_model() {
    let hearing = Hearing::new();
    let names = || {
        let view = hearing.gateway.driver.look(|plane| plane.view());
        let names = view.endpoints.into_iter().map(|one| one.name.to_string());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let without = || Told::Instances(vec![Instance { model: "n".into(), ..worker("v", 7) }]);
    hearing.says(one(), EVERY).await;
    hearing.says(without(), EVERY).await;
    assert_eq!(names(), ["v", "w"], "an answer takes no model away");
    let before = hearing.version();
    hearing.says(without(), EVERY).await;
    assert_eq!(hearing.version(), before, "still the last: no news");
    hearing.gateway.found("other", &[worker("x", 8)], true);
    hearing.says(without(), EVERY).await;
    assert_eq!(names(), ["v", "x"]);
}

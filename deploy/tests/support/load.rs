//! Many clients at once, and what they tell afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::client::{Answer, Ask, Client};

/// Clients that ask until they are told to stop.
pub struct Load {
    clients: JoinSet<Vec<(Ask, Answer)>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicUsize,
    answered: AtomicUsize,
    stop: AtomicBool,
    paused: AtomicBool,
}

impl Load {
    /// `count` clients of the gateway at `port`. The `n`th request is `ask(n)`; after `most` requests all is over.
    pub fn start(
        port: u16,
        count: usize,
        most: usize,
        ask: impl Fn(usize) -> Ask + Send + Sync + 'static,
    ) -> Self {
        let (shared, ask) = (Arc::<Shared>::default(), Arc::new(ask));
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let (shared, ask, client) = (Arc::clone(&shared), Arc::clone(&ask), Client::new(port));
            clients.spawn(async move { shared.work(&client, most, ask.as_ref()).await });
        }
        Self { clients, shared }
    }

    /// Waits until `count` more answers came whole.
    pub async fn more(&self, count: usize) {
        self.reach(self.shared.answered.load(Ordering::Relaxed) + count).await;
    }

    /// Waits until `count` answers came whole.
    pub async fn reach(&self, count: usize) {
        let reached = async {
            while self.shared.answered.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let most = Duration::from_secs(120);
        tokio::time::timeout(most, reached).await.expect("the answers come");
    }

    /// Nobody begins anything new while this is set; what runs goes on.
    pub fn pause(&self, on: bool) {
        self.shared.paused.store(on, Ordering::Relaxed);
    }

    /// Lets what runs end, and returns it all.
    pub async fn stop(self) -> Vec<(Ask, Answer)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits for the last of the requests, and returns them all.
    pub async fn finish(self) -> Vec<(Ask, Answer)> {
        self.shared.paused.store(false, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

impl Shared {
    async fn work(
        &self,
        client: &Client,
        most: usize,
        ask: &(dyn Fn(usize) -> Ask + Send + Sync),
    ) -> Vec<(Ask, Answer)> {
        let mut told = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            if self.paused.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            if number >= most {
                break;
            }
            let ask = ask(number);
            let answer = client.ask(&ask).await;
            if answer.whole {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            if answer.broken.is_some() {
                // Whoever was cut off does not come back at once.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            told.push((ask, answer));
        }
        told
    }
}

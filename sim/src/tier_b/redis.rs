//! The shared ledger's host: a simulated Redis that the gateways' real clients call, and what goes wrong with it.
//!
//! Its data outlives its process, as a disk's does; a failover changes what is there, and breaks every connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::quota::At;
use control::{Instant, Wall};
use tokio::sync::watch;
use tokio::time::sleep;

use super::plan::RedisTrouble;
use super::stage::Stage;
use super::wire::{Sockets, Wire};
use crate::coverage::sometimes;
use crate::redis::{Command, Said, Server, Stance, converse};

/// Its host's name.
pub(super) const HOST: &str = "redis";
/// The port it listens on.
pub(super) const PORT: u16 = 6_379;

/// What lies on its machine.
pub(super) struct Vault {
    inside: Mutex<Inside>,
    /// Counts what breaks all connections.
    reign: watch::Sender<u64>,
}

#[derive(Default)]
struct Inside {
    server: Server,
    /// Answers take so much longer.
    slow: Duration,
    /// What is asked is performed, and never answered.
    is_mute: bool,
}

impl Default for Vault {
    fn default() -> Self {
        Self { inside: Mutex::default(), reign: watch::channel(0).0 }
    }
}

impl Vault {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server, to be looked at. Do not hold it while anything of the product runs.
    pub fn with<T>(&self, look: impl FnOnce(&mut Server) -> T) -> T {
        look(&mut self.inside().server)
    }

    /// Something goes wrong with it. True where what it knew may be lost.
    pub fn begins(&self, trouble: RedisTrouble) -> bool {
        let mut inside = self.inside();
        match trouble {
            RedisTrouble::Slow { ms } => {
                sometimes!("b_redis_slow");
                inside.slow = Duration::from_millis(ms);
            }
            RedisTrouble::Mute => {
                sometimes!("b_redis_mute");
                inside.is_mute = true;
            }
            RedisTrouble::ReadOnly => {
                sometimes!("b_redis_read_only");
                inside.server.set_stance(Stance::Replica);
            }
            RedisTrouble::Loading => {
                sometimes!("b_redis_loading");
                inside.server.set_stance(Stance::Loading);
            }
            RedisTrouble::Full => {
                sometimes!("b_redis_full");
                inside.server.set_stance(Stance::Full);
            }
            RedisTrouble::Crash { keeps } => {
                sometimes!("b_redis_crash");
                if !keeps {
                    sometimes!("b_redis_loses_all");
                }
                inside.server.restart(keeps);
                return !keeps;
            }
            RedisTrouble::FailOver { lose } => {
                sometimes!("b_redis_fail_over");
                inside.server.fail_over(lose as usize);
                drop(inside);
                self.reign.send_modify(|reign| *reign += 1);
                return true;
            }
        }
        false
    }

    /// And it is over.
    pub fn ends(&self, trouble: RedisTrouble) {
        let mut inside = self.inside();
        match trouble {
            RedisTrouble::Slow { .. } => inside.slow = Duration::ZERO,
            RedisTrouble::Mute => inside.is_mute = false,
            RedisTrouble::ReadOnly | RedisTrouble::Loading | RedisTrouble::Full => {
                inside.server.set_stance(Stance::Primary);
            }
            RedisTrouble::Crash { .. } | RedisTrouble::FailOver { .. } => {}
        }
    }
}

/// Serves until the host goes down.
pub(super) async fn serve(stage: Arc<Stage>) -> turmoil::Result {
    let door = Sockets::new(&stage, HOST).listen(PORT).await?;
    loop {
        tokio::spawn(attend(Arc::clone(&stage), door.next().await?));
    }
}

async fn attend(stage: Arc<Stage>, wire: Wire) {
    let answers = Arc::clone(&stage);
    let mut reigns = stage.redis.reign.subscribe();
    let began = *reigns.borrow_and_update();
    tokio::select! {
        () = converse(wire, move |command| answer(Arc::clone(&answers), command)) => {}
        _ = reigns.wait_for(|reign| *reign != began) => {}
    }
}

async fn answer(stage: Arc<Stage>, command: Command) -> Option<Said> {
    let since = stage.now();
    let wall = stage.plan.knobs.wall_ms + since.as_millis() as u64;
    let at = At { now: Instant::ZERO + since, wall: Wall::from_millis(wall) };
    let (said, slow, is_mute) = {
        let mut inside = stage.redis.inside();
        let said = inside.server.answer(at, &command);
        (said, inside.slow, inside.is_mute)
    };
    if !slow.is_zero() {
        sleep(slow).await;
    }
    (!is_mute).then_some(said)
}

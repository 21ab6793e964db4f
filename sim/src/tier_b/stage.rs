//! What all hosts of a run share: the trace, the checkers, and how replicas are told to behave.
//!
//! Everything runs on one thread; the lock is there because the product's types must be `Send`, and is never waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::Wall;
use tokio::sync::watch;

use super::check::Checks;
use super::consul::{self, Registry};
use super::plan::{Mode, TierBPlan, client, gateway, replica};
use super::redis::{self, Vault};
use super::tape::{Event, Net, Tape};

/// A run's common ground.
pub(super) struct Stage {
    pub plan: TierBPlan,
    scene: Mutex<Scene>,
    /// The Redis that gateways share.
    pub redis: Vault,
    /// What the Consul knows that lists replicas.
    pub registry: Registry,
    /// Tells workers that one of them is to behave in another way.
    changed: watch::Sender<()>,
}

/// What changes in it.
pub(super) struct Scene {
    pub tape: Tape,
    pub checks: Checks,
    /// How each replica behaves now.
    pub modes: Vec<Mode>,
    /// What each gateway's calendar is off by.
    pub wall_offsets: Vec<i64>,
    /// Processes that ended themselves since the last step: gateway and reason.
    pub aborted: Vec<(u8, String)>,
    /// The simulated time, between two steps.
    pub now: Duration,
    /// Names answers of replicas.
    pub nonces: u64,
}

impl Stage {
    pub fn new(plan: &TierBPlan, with_text: bool) -> Arc<Self> {
        let names = (0..plan.machines()).map(gateway);
        let names = names.chain((0..plan.replicas).map(replica));
        let names = names.chain((0..plan.clients).map(client));
        let names = names.chain(plan.shared.then(|| redis::HOST.to_owned()));
        let names = names.chain(plan.consul.then(|| consul::HOST.to_owned())).collect();
        let scene = Scene {
            tape: Tape::new(names, with_text),
            checks: Checks::new(plan),
            modes: vec![Mode::Healthy; usize::from(plan.replicas)],
            wall_offsets: vec![0; usize::from(plan.machines())],
            aborted: Vec::new(),
            now: Duration::ZERO,
            nonces: 0,
        };
        let (changed, _) = watch::channel(());
        Arc::new(Self {
            plan: plan.clone(),
            scene: Mutex::new(scene),
            redis: Vault::default(),
            registry: Registry::new(plan),
            changed,
        })
    }

    /// Do not hold it while anything of the product runs.
    pub fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica behaves so from now on.
    pub fn set_mode(&self, replica: u8, mode: Mode) {
        self.scene().modes[usize::from(replica)] = mode;
        self.changed.send_replace(());
    }

    /// How a replica behaves.
    pub fn mode(&self, replica: u8) -> Mode {
        self.scene().modes[usize::from(replica)]
    }

    /// Resolves once a replica behaves otherwise than so.
    pub async fn behaves_otherwise(&self, replica: u8, than: Mode) {
        let mut changes = self.changed.subscribe();
        // The sender is ours: it is never gone.
        let _ = changes.wait_for(|()| self.mode(replica) != than).await;
    }

    /// The simulated time.
    pub fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| self.scene().now)
    }

    pub fn net(&self, host: u8, peer: u8, kind: Net, length: usize) {
        let at = self.now();
        let length = length as u64;
        self.scene().tape.note(at, Event::Net { host, peer, kind, length });
    }

    pub fn word(&self, text: String) {
        let at = self.now();
        self.scene().tape.note(at, Event::Word(text));
    }

    /// A gateway's calendar.
    pub fn wall(&self, gateway: u8) -> Wall {
        let since = self.now().as_millis() as u64;
        let offset = self.scene().wall_offsets[usize::from(gateway)];
        let shown = self.plan.knobs.wall_ms + since;
        Wall::from_millis(shown.saturating_add_signed(offset))
    }
}

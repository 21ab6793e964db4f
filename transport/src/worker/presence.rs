//! Whether gateways can find this worker: it is registered with an agent of Consul, and stays so.
//!
//! A registry is no part of serving. A worker serves before it is registered, while the registry is away, and when that
//! has forgotten it (an agent that kept nothing over its restart): then it registers again. What stands between it and the
//! registry is told in `/health`, in `pointsman_worker_registered` and, when it changes, in the log.
//!
//! The check is a TTL, renewed from here, not a probe by the agent: a worker behind a container's network reaches the
//! agent more often than the agent reaches it, and one that hangs stops reporting. It passes while the backend answers, so
//! a worker whose model server is gone is not listed, and is again within a moment of its return.
//!
//! **One entry for each worker**, whatever its doors: gateways take each entry for a replica of its own, so two would
//! count its room and its load twice.
//!
//! | from | when | to |
//! |---|---|---|
//! | unknown | registered, first report taken | known |
//! | unknown | anything else | unknown; again after a wait that doubles, half a second to thirty |
//! | known | a report is taken | known; again after a third of the TTL, or when the backend comes or goes |
//! | known | the agent does not know the check | unknown; registered again after half a second |
//! | known | the agent is away, or refuses | unknown; as above |
//! | any | told to leave | left: what is under way is waited for, then deregistered, once; each within some seconds |
//!
//! Registering again is the same as registering once: a worker that cannot tell whether it was heard does it again.

mod agent;
mod naming;

use core::fmt;
use core::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::telemetry::Telemetry;
use agent::Trouble;
pub use agent::{Agent, AgentError, Registration};
pub use naming::service_name;

/// A worker that says nothing for so long counts as dead.
const TTL: Duration = Duration::from_secs(15);
/// Two reports may get lost.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// After a failure, from the first to the last of these. An agent that is back is noticed within the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long one who leaves waits for a registration that is under way. Given up, it is cut off: what comes after it stands.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// And how long for the registry to take the farewell.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// What stands between a worker and its registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is no registry.
    #[default]
    None,
    /// It knows the worker.
    Known,
    /// It does not; why not.
    Unknown(String),
    /// The worker has left it.
    Left,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Known => f.write_str("ok"),
            Self::Unknown(why) => write!(f, "not registered: {why}"),
            Self::Left => f.write_str("left"),
        }
    }
}

/// A worker's presence in its registry, kept up until it leaves.
#[derive(Debug)]
pub struct Presence {
    agent: Agent,
    telemetry: Telemetry,
    leaving: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Presence {
    /// Begins in the background. Call it within a Tokio runtime.
    #[must_use]
    pub fn start(agent: Agent, telemetry: Telemetry) -> Self {
        telemetry.stands(Standing::Unknown("not yet".to_owned()));
        let leaving = CancellationToken::new();
        let keeper = Keeper {
            agent: agent.clone(),
            telemetry: telemetry.clone(),
            leaving: leaving.clone(),
            backoff: BACKOFF.0,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        Self { agent, telemetry, leaving, task }
    }

    /// Stops, and takes the worker off the registry: one try, bounded in time. A registration under way is waited for,
    /// or it could arrive after the farewell; but it takes none of the farewell's time, or that might never be sent.
    pub async fn leave(self) {
        let Self { agent, telemetry, leaving, task } = self;
        leaving.cancel();
        // It returns nothing; where it panicked, there is nothing to wait for.
        let _ = timeout(FINISH_WITHIN, task).await;
        let why = match timeout(LEAVE_WITHIN, agent.deregister()).await {
            Ok(Ok(())) => {
                tracing::info!("left Consul");
                return telemetry.stands(Standing::Left);
            }
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!("left without telling Consul, which will find out within {TTL:?}: {why}");
        telemetry.stands(Standing::Left);
    }
}

struct Keeper {
    agent: Agent,
    telemetry: Telemetry,
    leaving: CancellationToken,
    backoff: Duration,
}

impl Keeper {
    async fn run(mut self) {
        let mut ready = self.telemetry.backend_readiness();
        let mut known = false;
        while !self.leaving.is_cancelled() {
            let is_ready = *ready.borrow_and_update();
            let wait = match self.step(known, is_ready).await {
                Ok(()) => {
                    self.say(Standing::Known);
                    (known, self.backoff) = (true, BACKOFF.0);
                    REPORT_EVERY
                }
                Err(trouble) => {
                    let forgotten = known && trouble == Trouble::Forgotten;
                    self.say(Standing::Unknown(trouble.to_string()));
                    known = false;
                    if forgotten { BACKOFF.0 } else { self.next_backoff() }
                }
            };
            tokio::select! {
                () = self.leaving.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                changed = ready.changed(), if known => {
                    // Its sender lives as long as the telemetry that this holds.
                    if changed.is_err() { return }
                }
            }
        }
    }

    async fn step(&self, known: bool, ready: bool) -> Result<(), Trouble> {
        if !known {
            self.agent.register().await?;
        }
        let report = self.agent.report((!ready).then_some("the backend does not answer"));
        tokio::select! {
            biased;
            // Nobody needs to hear it any more, and the farewell waits.
            () = self.leaving.cancelled() => Ok(()),
            reported = report => reported,
        }
    }

    /// Half of it or more, so that workers whose agent died together do not come back together.
    fn next_backoff(&mut self) -> Duration {
        let wait = self.backoff;
        self.backoff = wait.saturating_mul(2).min(BACKOFF.1);
        let drawn = getrandom::u32().unwrap_or(u32::MAX);
        wait / 2 + wait.mul_f64(f64::from(drawn) / f64::from(u32::MAX)) / 2
    }

    /// A line when something changed; the metrics always know.
    fn say(&self, now: Standing) {
        if self.telemetry.standing() == now {
            return;
        }
        match &now {
            Standing::Known => tracing::info!("registered with {}", self.agent),
            Standing::Unknown(why) => {
                tracing::warn!(
                    "not registered with {}: {why}; the worker serves, and tries again",
                    self.agent
                );
            }
            Standing::None | Standing::Left => {}
        }
        self.telemetry.stands(now);
    }
}

#[cfg(test)]
mod tests;

//! Whose turn it is: held from before a session is read until what was made of it is written.
//!
//! In this process a guard tells; among processes that share a Redis, a lease there. A lease may be lost (a process that
//! hung, a Redis that forgot), and then two turns run at once: what they write is checked where it is written
//! (`session_append.lua`), so that this costs the order of two turns and nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{SessionError, Sessions, Store};
use crate::redis::SessionLog;

/// How long a lease lasts without being renewed: after so long the sessions of a process that died go on elsewhere.
const LEASE: Duration = Duration::from_secs(15);
/// A third, so that two renewals may be lost.
const RENEWED: Duration = Duration::from_secs(5);
/// How long between two tries to let go of what a silent Redis may have given.
const LET_GO_AGAIN: Duration = Duration::from_secs(1);
/// How long between two looks at a turn that another process has.
const POLL: Duration = Duration::from_millis(100);

/// A session's turn.
pub(super) struct Held {
    // In this order: the lease goes before the next turn of this process may take it.
    lease: Option<Lease>,
    _guard: OwnedMutexGuard<()>,
    _counted: Counted,
}

/// One more of those that a stop waits for.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(turns: &watch::Sender<usize>) -> Self {
        turns.send_modify(|turns| *turns += 1);
        Self(turns.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|turns| *turns -= 1);
    }
}

impl Held {
    /// Waits for it until then.
    pub async fn take(
        sessions: &Sessions,
        key: String,
        who: &str,
        until: Instant,
    ) -> Result<Self, SessionError> {
        let guard = timeout_at(until, sessions.guard(&key).lock_owned()).await;
        let guard = guard.map_err(|_| SessionError::Busy)?;
        let lease = match &sessions.store {
            Store::Embedded(_) => None,
            Store::Shared(store) => Some(Lease::take(&store.0, key, who, until).await?),
        };
        Ok(Self { lease, _guard: guard, _counted: Counted::new(&sessions.unwritten) })
    }

    /// Has the next turn begin at once, wherever that is. Dropped, it does so in a moment.
    pub async fn let_go(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.let_go().await;
        }
    }
}

/// The turn of a session among all who share a Redis.
struct Lease {
    log: Arc<SessionLog>,
    key: String,
    who: String,
    renewing: Option<AbortOnDropHandle<()>>,
    over: bool,
}

impl Lease {
    async fn take(
        log: &Arc<SessionLog>,
        key: String,
        who: &str,
        until: Instant,
    ) -> Result<Self, SessionError> {
        // There before it is asked for: who is not answered, or no longer waits, may have it all the same, and lets go.
        let (log, who) = (Arc::clone(log), who.to_owned());
        let mut lease = Self { log, key, who, renewing: None, over: false };
        while !lease.log.take(&lease.key, &lease.who, LEASE).await? {
            if Instant::now() + POLL >= until {
                return Err(SessionError::Busy);
            }
            sleep(POLL).await;
        }
        lease.renewing = Some(AbortOnDropHandle::new(tokio::spawn(lease.renewed())));
        Ok(lease)
    }

    fn renewed(&self) -> impl Future<Output = ()> + use<> {
        let (log, key, who) = (Arc::clone(&self.log), self.key.clone(), self.who.clone());
        async move {
            loop {
                sleep(RENEWED).await;
                // One that was lost may be free: then it is taken again. Where it is somebody else's, two turns run at once;
                // each is written whole, and numbered by where it comes to stand.
                if let Ok(false) = log.hold(&key, &who, LEASE).await {
                    let _ = log.take(&key, &who, LEASE).await;
                }
            }
        }
    }

    async fn let_go(mut self) {
        self.over = true;
        self.renewing = None;
        let _ = self.log.hold(&self.key, &self.who, Duration::ZERO).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.renewing = None;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (log, key, who) = (Arc::clone(&self.log), self.key.clone(), self.who.clone());
        runtime.spawn(async move {
            // A Redis that did not answer may have given it, and is told when it is back. After that time it goes by itself.
            let until = Instant::now() + LEASE;
            while log.hold(&key, &who, Duration::ZERO).await.is_err() && Instant::now() < until {
                sleep(LET_GO_AGAIN).await;
            }
        });
    }
}

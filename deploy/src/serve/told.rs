//! What tells a process to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Listens for the signals that end a process, from when it is made: the first process of a container gets only signals that
/// it listens for, and one that comes while a start is under way is heard all the same.
pub struct Told {
    token: CancellationToken,
    _listening: AbortOnDropHandle<()>,
}

impl Told {
    /// Needs a tokio runtime around it.
    pub fn listen() -> Self {
        let listened = |kind| signal(kind).expect("signals can be listened to");
        let terminate = listened(SignalKind::terminate());
        let interrupt = listened(SignalKind::interrupt());
        let token = CancellationToken::new();
        let heard = token.clone();
        let listening = tokio::spawn(async move {
            either(terminate, interrupt).await;
            heard.cancel();
        });
        Self { token, _listening: AbortOnDropHandle::new(listening) }
    }

    /// Resolves when the process is told to stop, or has been.
    pub async fn stop(&self) {
        self.token.cancelled().await;
    }

    /// `starting`, where it is over before the process is told to stop.
    pub async fn before<T>(&self, starting: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop() => None,
            started = starting => Some(started),
        }
    }
}

async fn either(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

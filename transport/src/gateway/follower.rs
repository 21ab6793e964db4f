//! The shadow plane at work: on a thread of its own, or as a task where there are none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio_util::task::AbortOnDropHandle;

use crate::driver::Shadow;
use crate::seam::Background;

/// A shadow that follows until it is finished or, as a task, dropped.
pub(super) enum Follower {
    Thread(Arc<AtomicBool>, JoinHandle<()>),
    Task(Arc<Mutex<Shadow>>, AbortOnDropHandle<()>),
}

impl Follower {
    pub fn start(shadow: Shadow, background: Background) -> Self {
        match background {
            Background::Threads => {
                let stop = Arc::new(AtomicBool::new(false));
                let stopping = Arc::clone(&stop);
                let thread = std::thread::Builder::new()
                    .name("shadow".into())
                    .spawn(move || shadow.run(&stopping))
                    .expect("the process may have a few threads");
                Self::Thread(stop, thread)
            }
            Background::Tasks => {
                let shadow = Arc::new(Mutex::new(shadow));
                let task = tokio::spawn(Shadow::run_as_task(Arc::clone(&shadow)));
                Self::Task(shadow, AbortOnDropHandle::new(task))
            }
        }
    }

    /// Follows up to the end, and makes the last snapshot.
    pub fn finish(self) {
        match self {
            Self::Thread(stop, thread) => {
                stop.store(true, Ordering::Release);
                thread.thread().unpark();
                // A panic there has been printed; the snapshot it would have made is only a saving of time.
                let _ = thread.join();
            }
            Self::Task(shadow, task) => {
                drop(task);
                let _ = shadow.lock().unwrap_or_else(PoisonError::into_inner).round(true);
            }
        }
    }
}

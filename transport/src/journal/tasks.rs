//! The writer and the keeper as tasks of a runtime, for a machine that has no threads.
//!
//! They do what the threads do, step for step, and sleep where those block: for records, for the interval of syncs, for
//! a disk that takes its time. To run the threads' loops under a simulated clock was rejected: a thread that blocks
//! makes the order of events depend on the machine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::appender::Shared;
use super::keeper::{Alarm, Keeper};
use super::writer::{PAUSE_MAX, PAUSE_MIN, Turn, Writer};

/// Both of them. Dropping it ends them where they are.
pub(super) struct Tasks {
    writer: Arc<Mutex<Writer>>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Tasks {
    pub fn start(shared: &Arc<Shared>, writer: Writer, keeper: Keeper) -> Self {
        let writer = Arc::new(Mutex::new(writer));
        let writing = tokio::spawn(write(Arc::clone(shared), Arc::clone(&writer)));
        let keeping = tokio::spawn(keep(Arc::clone(shared), keeper));
        let tasks = [writing, keeping].map(AbortOnDropHandle::new).into();
        Self { writer, tasks }
    }

    /// Ends both and does what is left at once. The second time there is nothing left.
    pub fn finish(&mut self) {
        if !self.tasks.is_empty() {
            self.tasks.clear();
            lock(&self.writer).close();
        }
    }
}

fn lock(writer: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    // A writer that panicked has said so through its alarm, and is not used again but to end.
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(shared: Arc<Shared>, writer: Arc<Mutex<Writer>>) {
    let _alarm = Alarm(Arc::clone(&shared));
    let mut pause = PAUSE_MIN;
    loop {
        if !lock(&writer).take() {
            shared.work_rings().await;
            continue;
        }
        disk_time(&shared).await;
        let turn = lock(&writer).turn();
        match turn {
            Turn::Written => pause = PAUSE_MIN,
            Turn::Over => return,
            Turn::Failed => {
                // What ends the wait early is worth another attempt, as is the time.
                let _ = timeout(pause, shared.work_rings()).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// What the disk takes for what comes next.
async fn disk_time(shared: &Shared) {
    let latency = shared.directory.disk.latency();
    if !latency.is_zero() {
        sleep(latency).await;
    }
}

async fn keep(shared: Arc<Shared>, keeper: Keeper) {
    let _alarm = Alarm(Arc::clone(&shared));
    let mut dirty = false;
    loop {
        let until = keeper.timeout(dirty).map(|interval| Instant::now() + interval);
        while keeper.is_idle(&shared.chores(), dirty) {
            match until {
                None => shared.chore_rings().await,
                Some(until) => {
                    if timeout_at(until, shared.chore_rings()).await.is_err() {
                        break;
                    }
                }
            }
        }
        if dirty {
            disk_time(&shared).await;
        }
        if !keeper.attend(shared.chores(), &mut dirty) {
            return;
        }
    }
}

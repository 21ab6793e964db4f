//! What endpoints say of their load, on its way to the plane.
//!
//! A worker says it with its chunks, so a thousand streams of one worker would say the same a thousand times a second, and
//! each time is a step and a record of the journal. The plane is told of one endpoint only so often, by whichever of its
//! streams comes by next; the same again only when what it was told begins to age.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use control::balance::{ENDPOINTS_MAX, Reported};
use control::id::EndpointId;
use control::plane::Input;
use tokio::time::Instant;

use super::Parts;
use crate::convert;
use crate::upstream::WorkerLoad;

/// The plane is told of one endpoint no more often than streams tell it of their progress.
const TOLD_EVERY: Duration = Duration::from_millis(250);
/// The same figures again: well before the plane believes less in them.
const TOLD_AGAIN: Duration = Duration::from_secs(1);
/// One that was not told of for so long makes room, once there are as many as a plane can have.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What the plane was told last of each endpoint.
#[derive(Default)]
pub(super) struct Loads(Mutex<BTreeMap<EndpointId, Told>>);

struct Told {
    load: Reported,
    /// When the plane was told.
    at: Instant,
    /// When the worker said it.
    said: Instant,
}

impl Loads {
    /// What the plane is to be told now. `said` is asked only where it is time.
    fn due(
        &self,
        endpoint: EndpointId,
        said: impl FnOnce() -> Option<WorkerLoad>,
    ) -> Option<Reported> {
        let now = Instant::now();
        let mut loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = loads.get(&endpoint);
        if told.is_some_and(|told| now.duration_since(told.at) < TOLD_EVERY) {
            return None;
        }
        let said = said()?;
        let load = convert::reported(said);
        if told.is_some_and(|told| told.is_known(load, said.at, now)) {
            return None;
        }
        if loads.len() >= ENDPOINTS_MAX as usize && !loads.contains_key(&endpoint) {
            loads.retain(|_, told| now.duration_since(told.at) < FORGOTTEN_AFTER);
        }
        loads.insert(endpoint, Told { load, at: now, said: said.at });
        Some(load)
    }
}

impl Told {
    /// Whether the plane has it: the very report, or the same figures a moment ago.
    fn is_known(&self, load: Reported, said: Instant, now: Instant) -> bool {
        said <= self.said || (load == self.load && now.duration_since(self.at) < TOLD_AGAIN)
    }
}

impl Parts {
    /// The plane hears what an endpoint said last of its load, where there is something new and it is time.
    pub(super) fn hear_load(&self, endpoint: EndpointId, name: &str) {
        let said = || self.upstream.load(&self.catalog.load().route(name)?.target);
        if let Some(load) = self.loads.due(endpoint, said) {
            self.driver.submit(Input::LoadReported { endpoint, load });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: EndpointId = EndpointId { slot: 1, generation: 1 };

    fn said(running: u32) -> Option<WorkerLoad> {
        let at = Instant::now();
        Some(WorkerLoad { queued: 1, running, running_max: 0, kv_used_permille: None, at })
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_endpoint_the_plane_hears_four_times_a_second_at_most() {
        let loads = Loads::default();
        let mut heard = 0;
        for running in 0..1_000 {
            heard += u32::from(loads.due(ENDPOINT, || said(running)).is_some());
            tokio::time::advance(Duration::from_millis(2)).await;
        }
        assert_eq!(heard, 8);
        let other = EndpointId { slot: 2, ..ENDPOINT };
        assert!(loads.due(other, || said(1)).is_some(), "each has its own turn");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_figures_are_told_once_a_second_and_the_same_report_once() {
        let loads = Loads::default();
        let once = said(4);
        assert!(loads.due(ENDPOINT, || once).is_some());
        tokio::time::advance(TOLD_AGAIN).await;
        assert!(loads.due(ENDPOINT, || once).is_none(), "that very report was told");
        assert!(loads.due(ENDPOINT, || said(4)).is_some());
        tokio::time::advance(TOLD_EVERY).await;
        assert!(loads.due(ENDPOINT, || said(4)).is_none(), "nothing new, and not old yet");
        assert!(loads.due(ENDPOINT, || said(5)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_told_of() {
        let loads = Loads::default();
        assert!(loads.due(ENDPOINT, || None).is_none());
        assert!(loads.due(ENDPOINT, || said(1)).is_some(), "silence took no turn");
    }
}

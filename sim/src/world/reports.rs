//! What replicas say of their load, with what they send of answers; and how often a gateway's shell passes it on.

use control::balance::Reported;
use control::plane::Input;

use super::World;
use super::clock::{MILLI, Nanos};
use crate::plan::Tells;

/// The shell tells its plane of one replica no more often.
const TOLD_EVERY: Nanos = 250 * MILLI;

/// More than anybody has, and less than a shell refuses.
const SWAMPED: u32 = 60_000;

impl World<'_> {
    /// News of an attempt is at its gateway, and with it what the replica says of its load.
    pub(super) fn report(&mut self, id: u32) {
        let run = &self.runs[id as usize];
        let (replica, gateway, endpoint) = (run.replica, run.gateway, run.endpoint);
        let Some(load) = self.said(replica) else { return };
        let due = self.heard.get(&(gateway, replica)).map_or(0, |last| last + TOLD_EVERY);
        if due <= self.now {
            self.heard.insert((gateway, replica), self.now);
            self.tell(id, gateway, Input::LoadReported { endpoint, load });
        }
    }

    fn said(&mut self, replica: u32) -> Option<Reported> {
        let plan = &self.plan.topology.replicas[replica as usize];
        let state = &mut self.replicas[replica as usize];
        let full = (state.busy * 1_000).checked_div(plan.slots).unwrap_or(1_000).min(1_000);
        let truth = Reported { queued: 0, running: state.busy, kv_used_permille: Some(full) };
        Some(match plan.tells? {
            Tells::Truth => truth,
            Tells::Old => *state.said_first.get_or_insert(truth),
            Tells::Idle => Reported::default(),
            Tells::Swamped => Reported { queued: SWAMPED, running: SWAMPED, ..truth },
        })
    }
}

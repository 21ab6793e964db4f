//! From what each part of the store says of itself to the one run id an owner knows.
//!
//! See the module above for what a run is. Here a run that one tenant's scripts report is text, `<replication id>.<token>`,
//! and there may be as many of them as tenants; a run id is a number that stands for all of them at once. It changes when
//! any part that was heard of before reports another run; a part heard of for the first time changes nothing, for the
//! owner cannot hold anything there that was confirmed in this process's life, and what it recovered from an earlier one
//! was confirmed under a run id that no process mints again.

use std::collections::BTreeMap;

use control::id::AccountId;
use control::quota::RunId;
use sha2::{Digest as _, Sha256};

/// Tenants whose runs are remembered; beyond, all are forgotten, which costs one assertion of everything held. Some 10 MB.
const TENANTS_MAX: usize = 1 << 16;

/// The runs of the store, as one process has heard of them.
#[derive(Debug)]
pub struct Runs {
    salt: u64,
    epoch: u64,
    tenants: BTreeMap<AccountId, Heard>,
}

#[derive(Debug)]
struct Heard {
    run: String,
    /// The run before: answers may overtake each other.
    before: Option<Before>,
}

#[derive(Debug)]
struct Before {
    run: String,
    /// The last run id under which it was current.
    id: RunId,
    /// The moment from which on it was not.
    over: Moment,
}

/// When something was asked, on the way of what was heard. What is heard of an earlier moment may be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Runs {
    /// `salt` must differ from process to process: no run id of an earlier life may appear again.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        Self { salt, epoch: 0, tenants: BTreeMap::new() }
    }

    /// The run id that stands for all that was heard.
    #[must_use]
    pub fn current(&self) -> RunId {
        let mut hash = Sha256::new();
        hash.update(self.salt.to_be_bytes());
        hash.update(self.epoch.to_be_bytes());
        let bytes: [u8; 32] = hash.finalize().into();
        let first = bytes.first_chunk().copied().unwrap_or_default();
        RunId(u64::from_be_bytes(first))
    }

    /// What `believed` means for the scripts of `tenant`. A run id that is not the current one means "another", whatever
    /// runs are; the current one means what `tenant` last reported, if it ever did.
    #[must_use]
    pub fn told(&self, tenant: AccountId, believed: Option<RunId>) -> Option<&str> {
        match believed {
            None => None,
            Some(run) if run == self.current() => {
                self.tenants.get(&tenant).map(|heard| heard.run.as_str())
            }
            Some(_) => Some(ANOTHER),
        }
    }

    /// Now, for whoever asks now.
    #[must_use]
    pub const fn now(&self) -> Moment {
        Moment(self.epoch)
    }

    /// `tenant`'s scripts answered in `run` what was asked `then`: the run id the owner shall hear. A run that was over is another
    /// one when it comes back: a slot of a cluster may move away and home.
    pub fn hear(&mut self, tenant: AccountId, run: String, then: Moment) -> RunId {
        let current = self.current();
        let Some(heard) = self.tenants.get_mut(&tenant) else {
            if self.tenants.len() >= TENANTS_MAX {
                self.tenants.clear();
                self.epoch += 1;
            }
            self.tenants.insert(tenant, Heard { run, before: None });
            return self.current();
        };
        if heard.run == run {
            return current;
        }
        if let Some(before) = &heard.before
            && before.run == run
            && then < before.over
        {
            return before.id;
        }
        self.epoch += 1;
        let before = std::mem::replace(&mut heard.run, run);
        heard.before = Some(Before { run: before, id: current, over: Moment(self.epoch) });
        self.current()
    }
}

/// No run of any store: replication ids are hex.
const ANOTHER: &str = "another";

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);

    #[test]
    fn a_tenant_heard_of_for_the_first_time_changes_no_run() {
        let mut runs = Runs::new(7);
        let first = heard(&mut runs, ONE, "a.1");
        assert_eq!(heard(&mut runs, TWO, "b.1"), first);
        assert_eq!(runs.told(ONE, Some(first)), Some("a.1"));
        assert_eq!(runs.told(TWO, Some(first)), Some("b.1"));
        assert_eq!(runs.told(AccountId(3), Some(first)), None, "nothing is held there");
    }

    #[test]
    fn another_run_of_any_part_is_another_run_of_the_whole() {
        let mut runs = Runs::new(7);
        let first = heard(&mut runs, ONE, "a.1");
        heard(&mut runs, TWO, "b.1");
        let second = heard(&mut runs, TWO, "c.1");
        assert_ne!(first, second);
        assert_eq!(heard(&mut runs, ONE, "a.1"), second);
        assert_eq!(runs.told(ONE, Some(first)), Some(ANOTHER), "what was believed is over");
        assert_eq!(runs.told(ONE, Some(second)), Some("a.1"));
    }

    #[test]
    fn an_answer_that_was_overtaken_brings_the_old_run_and_no_new_one() {
        let mut runs = Runs::new(7);
        let then = runs.now();
        let first = runs.hear(ONE, "a.1".into(), then);
        let second = runs.hear(ONE, "b.1".into(), then);
        assert_eq!(runs.hear(ONE, "a.1".into(), then), first);
        assert_eq!(runs.current(), second);
    }

    #[test]
    fn a_run_that_comes_back_is_another() {
        let mut runs = Runs::new(7);
        let first = heard(&mut runs, ONE, "a.1");
        let second = heard(&mut runs, ONE, "b.1");
        let third = heard(&mut runs, ONE, "a.1");
        assert!(third != first && third != second);
        assert_eq!(runs.told(ONE, Some(third)), Some("a.1"));
        assert_eq!(runs.told(ONE, Some(first)), Some(ANOTHER));
    }

    /// Asked and answered with nothing in between.
    fn heard(runs: &mut Runs, tenant: AccountId, run: &str) -> RunId {
        let now = runs.now();
        runs.hear(tenant, run.into(), now)
    }

    #[test]
    fn two_lives_of_a_process_share_no_run() {
        assert_ne!(Runs::new(7).current(), Runs::new(8).current());
        assert_eq!(Runs::new(8).told(ONE, Some(Runs::new(7).current())), Some(ANOTHER));
    }
}

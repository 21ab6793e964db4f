//! Check 11: each gateway's shadow plane replays what the gateway decided, keeps up, and never comes out elsewhere.
//!
//! What is judged is the flag that `/health` shows; and that the shadow gets on, for one that stands still never
//! disagrees.

use std::time::Duration;

use super::book::Broken;

/// How long before the end what was written must be replayed at the end: some rounds of a shadow.
const REPLAYED_WITHIN: Duration = Duration::from_secs(3);

/// A gateway and its shadow, now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub gateway: u8,
    /// Records that were written.
    pub written: u64,
    /// Records that were replayed.
    pub replayed: u64,
    pub diverged: bool,
}

/// What was written when the run was nearly over.
#[derive(Clone, Debug)]
pub(super) struct Mirrors {
    due_at: Duration,
    due: Vec<Option<u64>>,
}

impl Mirrors {
    pub fn new(gateways: u8, end: Duration) -> Self {
        let due_at = end.saturating_sub(REPLAYED_WITHIN);
        Self { due_at, due: vec![None; usize::from(gateways)] }
    }

    /// A look at any time.
    pub fn look(&mut self, now: Duration, sight: &Sight) -> Result<(), Broken> {
        if now >= self.due_at {
            self.due[usize::from(sight.gateway)].get_or_insert(sight.written);
        }
        if sight.diverged {
            let Sight { gateway, replayed, .. } = sight;
            let text = format!("gateway-{gateway} does not replay from record {replayed} on");
            return Err((11, text));
        }
        Ok(())
    }

    /// The last look.
    pub fn end(&self, sight: &Sight) -> Result<(), Broken> {
        let Sight { gateway, replayed, .. } = sight;
        match self.due[usize::from(*gateway)] {
            Some(due) if *replayed >= due => Ok(()),
            due => {
                let text = format!("gateway-{gateway}'s shadow is at {replayed}, not at {due:?}");
                Err((11, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    const END: Duration = Duration::from_secs(60);
    const SOUND: Sight = Sight { gateway: 0, written: 90, replayed: 80, diverged: false };

    #[test]
    fn a_shadow_that_comes_out_elsewhere_breaks_the_eleventh() {
        let mut mirrors = Mirrors::new(1, END);
        assert_eq!(mirrors.look(Duration::ZERO, &SOUND), Ok(()));
        let diverged = Sight { diverged: true, ..SOUND };
        assert_eq!(mirrors.look(Duration::ZERO, &diverged).unwrap_err().0, 11);
    }

    #[test]
    fn a_shadow_that_stands_still_breaks_the_eleventh() {
        let mut mirrors = Mirrors::new(1, END);
        assert_eq!(mirrors.end(&SOUND).unwrap_err().0, 11, "nobody ever looked");
        assert_eq!(mirrors.look(END - REPLAYED_WITHIN, &SOUND), Ok(()));
        let later = Sight { written: 95, replayed: 89, ..SOUND };
        assert_eq!(mirrors.look(END, &later), Ok(()));
        assert_eq!(mirrors.end(&later).unwrap_err().0, 11);
        assert_eq!(mirrors.end(&Sight { replayed: 90, ..later }), Ok(()));
    }
}

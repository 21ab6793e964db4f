//! Who gets how much, where nothing is wrong and nobody has to be kept where it was.
//!
//! Judged over stretches of calm: no fault lasts, and a replica that was ejected has had time to come back. Plans with
//! sessions are left out, for those owe their replica its cache, not its fair share; and those with replicas of several kinds,
//! for the faster gets more; and those whose replicas are found, for a registry may leave one out for a while. Judging each moment was rejected:
//! a fair draw is uneven for a moment.

use std::time::Duration;

use super::book::Broken;
use super::plan::TierBPlan;

/// Requests for each replica before a stretch is judged: a random choice stays below twice the mean there.
const ASKS_MIN: usize = 30;

/// The stretch of calm that is under way.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    is_judged: bool,
    /// How long a replica that is well may go without requests.
    patience: Duration,
    calm_since: Option<Duration>,
    /// By gateway and replica.
    asks: Vec<Vec<usize>>,
}

impl Shares {
    pub fn new(plan: &TierBPlan) -> Self {
        let asks = vec![vec![0; usize::from(plan.replicas)]; usize::from(plan.gateways)];
        let patience = Duration::from_millis(plan.readmitted_ms());
        Self {
            is_judged: plan.is_stateless() && plan.is_uniform() && !plan.consul,
            patience,
            calm_since: None,
            asks,
        }
    }

    /// A gateway asks a replica. A stretch that ended since the last time is judged first.
    pub fn asked(
        &mut self,
        now: Duration,
        calm_since: Option<Duration>,
        (gateway, replica): (u8, u8),
    ) -> Result<(), Broken> {
        let judged = if calm_since == self.calm_since { Ok(()) } else { self.end() };
        self.calm_since = calm_since;
        if self.is_judged && calm_since.is_some_and(|since| now >= since + self.patience) {
            self.asks[usize::from(gateway)][usize::from(replica)] += 1;
        }
        judged
    }

    /// The stretch is over.
    pub fn end(&mut self) -> Result<(), Broken> {
        let mut judged = Ok(());
        for (gateway, asks) in self.asks.iter_mut().enumerate() {
            judged = judged.and(judge(gateway, asks));
            asks.fill(0);
        }
        judged
    }
}

fn judge(gateway: usize, asks: &[usize]) -> Result<(), Broken> {
    let total: usize = asks.iter().sum();
    if total < ASKS_MIN * asks.len() {
        return Ok(());
    }
    if let Some(replica) = asks.iter().position(|asks| *asks == 0) {
        let text =
            format!("gateway-{gateway} never asks replica-{replica}, which is well: {asks:?}");
        return Err((5, text));
    }
    // Two and a half times the mean, in whole numbers.
    let most = asks.iter().copied().max().unwrap_or_default();
    if most * 2 * asks.len() > total * 5 {
        return Err((8, format!("gateway-{gateway} prefers one of equal replicas: {asks:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_well_replica_that_is_never_asked_breaks_the_fifth() {
        assert_eq!(after(&[60, 60, 0]), Err(5));
        assert_eq!(after(&[60, 60, 1]), Ok(()));
    }

    #[test]
    fn a_replica_with_more_than_its_share_breaks_the_eighth() {
        assert_eq!(after(&[100, 10, 10]), Ok(()), "two and a half times the mean, and no more");
        assert_eq!(after(&[101, 10, 9]), Err(8));
    }

    #[test]
    fn few_requests_an_ejection_that_may_last_and_sessions_excuse_both() {
        assert_eq!(after(&[80, 0, 0]), Ok(()), "too few");
        let mut shares = shares();
        for _ in 0..200 {
            let just_before = shares.patience - Duration::from_millis(1);
            assert_eq!(shares.asked(just_before, Some(Duration::ZERO), (0, 0)), Ok(()));
        }
        assert_eq!(shares.end(), Ok(()));
        let mut plan = stateless();
        plan.operations[0].session = Some(1);
        assert!(!Shares::new(&plan).is_judged);
    }

    #[test]
    fn what_was_asked_in_another_calm_is_judged_for_itself() {
        let mut shares = shares();
        ask(&mut shares, Duration::ZERO, &[60, 60, 0]);
        let later = shares.patience * 2;
        let judged = shares.asked(later, Some(later), (0, 2));
        assert_eq!(judged.map_err(|broken| broken.0), Err(5));
        assert_eq!(shares.end(), Ok(()), "and is over with");
    }

    fn after(asks: &[usize; 3]) -> Result<(), u8> {
        let mut shares = shares();
        ask(&mut shares, Duration::ZERO, asks);
        shares.end().map_err(|broken| broken.0)
    }

    fn ask(shares: &mut Shares, since: Duration, asks: &[usize; 3]) {
        for (replica, count) in (0..).zip(asks) {
            for _ in 0..*count {
                let asked = shares.asked(since + shares.patience, Some(since), (0, replica));
                assert_eq!(asked, Ok(()));
            }
        }
    }

    fn shares() -> Shares {
        Shares::new(&stateless())
    }

    fn stateless() -> TierBPlan {
        let mut plan = super::super::plan(1);
        plan.operations.iter_mut().for_each(|operation| operation.session = None);
        TierBPlan { gateways: 1, replicas: 3, ..plan }
    }
}

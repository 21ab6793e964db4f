//! Many seeds on many threads.
//!
//! Seeds are independent, so threads take the next one each until all are taken; a run keeps what it needs in its own
//! thread. What is found does not depend on the number of threads: where a swarm is to stop after some failures, it stops
//! at the failing seed of that number in the seeds' own order, after every seed before it has run. **Rejected:** a process
//! for each seed, which spends more time on starting than on simulating.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::check::{Invariant, Violation};
use crate::coverage::{Coverage, NAMES};
use crate::tier::{Seen, Tier};

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// On which simulator.
    pub tier: Tier,
    /// Which seeds.
    pub seeds: Range<u64>,
    /// On how many threads.
    pub jobs: usize,
    /// Whether the plans run without their faults.
    pub null: bool,
    /// After how many failures to stop. `None`: never.
    pub stop_after: Option<usize>,
    /// Where runs of one process take turns, each seed runs in a process of its own. `None`: all run in this one.
    pub apart: Option<Apart>,
}

/// How a process is started that runs one seed and prints what came of it as JSON.
#[derive(Clone, Debug)]
pub struct Apart {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, but for the seed.
    pub arguments: Vec<String>,
}

/// What a swarm has come to so far.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Seeds that have run.
    pub seeds: u64,
    /// Requests that reached a gateway.
    pub requests: u64,
    /// Events that happened.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Seeds that broke something, by seed.
    pub failures: Vec<Failure>,
    /// All marks that were hit.
    pub coverage: Coverage,
    /// In how many seeds each mark was hit, as they stand in [`NAMES`].
    pub hits: Vec<u64>,
    /// Seeds that run now, and since when.
    pub running: BTreeMap<u64, Instant>,
}

/// A seed that broke something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What.
    pub violation: Violation,
}

/// How long a seed may run. The largest worlds take some seconds on a busy machine, of either tier.
const ENDLESS: Duration = Duration::from_secs(120);

/// How often whoever watches is told.
const WATCH_EVERY: Duration = Duration::from_millis(100);

impl Swarm {
    /// Runs it. `watch` is shown how far it has come, about ten times a second and at the end.
    pub fn run(&self, watch: &mut dyn FnMut(&Tally)) -> Tally {
        let (next, tally) = (AtomicU64::new(self.seeds.start), Mutex::new(Tally::default()));
        // Seeds beyond this one need not run any more.
        let last = AtomicU64::new(self.seeds.end.saturating_sub(1));
        let watcher = thread::current();
        thread::scope(|scope| {
            let work = || {
                self.work(&next, &last, &tally);
                watcher.unpark();
            };
            let workers: Vec<_> = (0..self.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::park_timeout(WATCH_EVERY);
                watch(&locked(&tally));
            }
        });
        let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        tally.failures.retain(|failure| failure.seed <= last.load(Ordering::Relaxed));
        tally
    }

    fn work(&self, next: &AtomicU64, last: &AtomicU64, tally: &Mutex<Tally>) {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.seeds.end || seed > last.load(Ordering::Relaxed) {
                return;
            }
            locked(tally).running.insert(seed, Instant::now());
            let seen = match &self.apart {
                None => self.tier.run(seed, self.null),
                Some(apart) => apart.run(seed),
            };
            let mut tally = locked(tally);
            tally.add(seen);
            if let Some(nth) = self.stop_after.and_then(|wanted| wanted.checked_sub(1))
                && let Some(failure) = tally.failures.get(nth)
            {
                last.store(failure.seed, Ordering::Relaxed);
            }
        }
    }
}

impl Apart {
    /// A process that does not come to its end has broken what bounds it.
    fn run(&self, seed: u64) -> Seen {
        let mut command = Command::new(&self.program);
        let done = command.args(&self.arguments).args(["--seed", &seed.to_string()]).output();
        let text = match done {
            Err(why) => format!("{} does not start: {why}", self.program.display()),
            Ok(done) => match serde_json::from_slice(&done.stdout) {
                Ok(seen) => return seen,
                Err(_) => {
                    let complaint = String::from_utf8_lossy(&done.stderr);
                    format!("its process broke ({}): {}", done.status, complaint.trim())
                }
            },
        };
        Seen {
            seed,
            hash: 0,
            events: 0,
            requests: 0,
            simulated: Duration::ZERO,
            violation: Some(Violation { invariant: Invariant::Bounds, at: 0, text }),
            coverage: Coverage::default(),
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            seeds: 0,
            requests: 0,
            events: 0,
            simulated: Duration::ZERO,
            failures: Vec::new(),
            coverage: Coverage::default(),
            hits: vec![0; NAMES.len()],
            running: BTreeMap::new(),
        }
    }
}

impl Tally {
    /// A seed that has been running for longer than any should: its world does not end.
    #[must_use]
    pub fn endless(&self) -> Option<u64> {
        let endless = self.running.iter().find(|(_, since)| since.elapsed() > ENDLESS);
        endless.map(|(seed, _)| *seed)
    }

    fn add(&mut self, seen: Seen) {
        self.running.remove(&seen.seed);
        self.seeds += 1;
        self.requests += seen.requests;
        self.events += seen.events;
        self.simulated += seen.simulated;
        self.coverage.unite(&seen.coverage);
        seen.coverage.marks().for_each(|mark| self.hits[mark] += 1);
        if let Some(violation) = seen.violation {
            let at = self.failures.partition_point(|failure| failure.seed < seen.seed);
            self.failures.insert(at, Failure { seed: seen.seed, violation });
        }
    }
}

/// A worker that panics ends the swarm; what the others counted is still right.
fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swarm(seeds: Range<u64>, jobs: usize) -> Swarm {
        Swarm { tier: Tier::A, seeds, jobs, null: true, stop_after: None, apart: None }
    }

    #[test]
    fn what_a_swarm_counts_does_not_depend_on_its_threads() {
        let (one, three) = (swarm(3..9, 1).run(&mut |_| ()), swarm(3..9, 3).run(&mut |_| ()));
        assert_eq!(one.seeds, 6);
        assert_eq!((one.events, one.requests), (three.events, three.requests));
        assert_eq!((one.hits, one.coverage), (three.hits, three.coverage));
    }

    #[test]
    fn failures_are_listed_by_seed_and_end_at_the_wanted_number() {
        let mut tally = Tally::default();
        for seed in [5, 3, 9] {
            let text = "planted".to_owned();
            let invariant = Invariant::Bound;
            let mut seen = Tier::A.run(8, true);
            (seen.seed, seen.violation) = (seed, Some(Violation { invariant, at: 1, text }));
            tally.add(seen);
        }
        let seeds: Vec<u64> = tally.failures.iter().map(|failure| failure.seed).collect();
        assert_eq!(seeds, [3, 5, 9]);
    }

    #[test]
    fn a_seed_in_a_process_of_its_own_is_read_from_what_it_prints() {
        let seen = Tier::A.run(8, true);
        let text = serde_json::to_string(&seen).expect("what came of it is plain data");
        let apart = |script: &str| Apart {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into(), "run".into()],
        };
        let read = apart(&format!("echo '{text}'")).run(8);
        assert_eq!((read.hash, read.coverage), (seen.hash, seen.coverage));
        let broke = apart("echo dead >&2; exit 9").run(8).violation.expect("it broke");
        assert!(broke.text.contains("dead"), "{}", broke.text);
    }

    #[test]
    fn an_empty_swarm_runs_nothing() {
        assert_eq!(swarm(0..0, 2).run(&mut |_| ()).seeds, 0);
    }
}

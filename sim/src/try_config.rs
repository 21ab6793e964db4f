//! `try`: the user's own configuration under the swarm's troubles.
//!
//! Whoever writes a configuration finds out in production what it does when an endpoint dies: that a breaker takes a lone
//! endpoint away for an hour, that no time is left for a second attempt, that a limit refuses what it should let pass. Here
//! the file is parsed by the product's own parser, its endpoints become simulated replicas, and the same clients live
//! through a calm time and through troubles. What they see is a table; what in the file is to blame, a list of
//! [`Finding`]s.
//!
//! **Rejected:** to judge numbers by rules (see [`findings`]), and to try a real server with a load generator: it would need
//! the operator's endpoints to die.
//!
//! Same file, same traffic, same seeds: same report.

mod file;
mod findings;
mod measure;
mod scenario;
mod show;
mod subject;
mod traffic;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use control::rng::Rng;
use transport::config::{Env, Flags, load};

use crate::check::Violation;
use crate::chronicle::{Chronicle, Notes};
use crate::run::run_with;
use crate::trace::Trace;
pub use findings::Finding;
use measure::{Counts, Lived};
use scenario::{Scenario, Times};
use subject::Subject;
use traffic::Traffic;

/// What to try, and how often.
#[derive(Clone, Debug)]
pub struct Args {
    /// The configuration.
    pub config: PathBuf,
    /// Traffic to use in the place of the default one.
    pub traffic: Option<PathBuf>,
    /// Seeds of each scenario; at least 1.
    pub seeds: u64,
    /// Threads; at least 1.
    pub jobs: usize,
}

/// What came of it. Its `Display` is the report.
#[derive(Clone, Debug)]
pub struct Report {
    file: String,
    seeds: u64,
    tried: Tried,
    findings: Vec<Finding>,
    broken: Vec<(Scenario, u64, Violation)>,
}

/// Every scenario with its figures.
#[derive(Clone, Debug)]
struct Tried {
    subject: Subject,
    described: Vec<String>,
    lived: Vec<(Scenario, Lived)>,
}

/// Tries a configuration.
///
/// # Errors
/// In words, where the configuration or the traffic cannot be read; a traffic file's mistakes are named by their line.
pub fn run(args: &Args) -> Result<Report, String> {
    let loaded = load(Some(&args.config), &Flags::default(), &Env::process())
        .map_err(|errors| errors.to_string())?;
    let mut subject = Subject::of(&loaded.config)?;
    let times = Times::of(&subject);
    let mut rng = Rng::new(SEED).fork("traffic");
    let traffic = match &args.traffic {
        None => traffic::default(&subject, times.seconds(), &mut rng),
        Some(path) => read_traffic(path, &subject, times, &mut rng)?,
    };
    // Those who load the endpoints without limits are a tenant, too.
    subject.topology.tenants += 1;
    let lived = live_through(&subject, &traffic, times, args);
    let tried = Tried { subject, described: traffic.described, lived };
    let broken = tried.lived.iter().flat_map(|(scenario, lived)| {
        lived.violations.iter().map(|(seed, violation)| (*scenario, *seed, violation.clone()))
    });
    Ok(Report {
        file: args.config.display().to_string(),
        seeds: args.seeds.max(1),
        broken: broken.collect(),
        findings: findings::of(&tried),
        tried,
    })
}

impl Tried {
    /// What calm is like for a model.
    fn calm(&self, model: u32) -> Counts {
        let calm = self.lived.iter().find(|(scenario, _)| *scenario == Scenario::Calm);
        calm.and_then(|(_, lived)| lived.models.get(&model)).cloned().unwrap_or_default()
    }
}

impl Report {
    /// Whether nothing dangerous was found, and every invariant held.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty() && self.broken.is_empty()
    }

    /// What is dangerous.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

/// The traffic is the same whatever the seeds: they differ in whom trouble befalls, and when.
const SEED: u64 = 20_261;

fn read_traffic(
    path: &Path,
    subject: &Subject,
    times: Times,
    rng: &mut Rng,
) -> Result<Traffic, String> {
    let name = path.display().to_string();
    let bytes = std::fs::metadata(path).map_err(|why| format!("{name}: {why}"))?.len();
    if bytes > file::BYTES_MAX {
        return Err(format!("{name}: {bytes} bytes; at most {} are read", file::BYTES_MAX));
    }
    let text = std::fs::read_to_string(path).map_err(|why| format!("{name}: {why}"))?;
    file::read(&name, &text, subject, times.seconds(), rng)
}

/// Every scenario with every seed, on several threads; put together in order, so that threads change nothing.
fn live_through(
    subject: &Subject,
    traffic: &Traffic,
    times: Times,
    args: &Args,
) -> Vec<(Scenario, Lived)> {
    let seeds = args.seeds.max(1) as usize;
    let work: Vec<(Scenario, u64)> = Scenario::ALL
        .into_iter()
        .flat_map(|scenario| (0..seeds as u64).map(move |seed| (scenario, seed)))
        .collect();
    let done: Vec<Mutex<Option<Lived>>> = work.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, work.len()) {
            scope.spawn(|| {
                while let Some((scenario, seed)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = work.iter().position(|own| own == &(*scenario, *seed));
                    let lived = live(subject, traffic, times, (*scenario, *seed));
                    let slot = &done[at.expect("it is of the list")];
                    *slot.lock().expect("nobody panics while holding it") = Some(lived);
                }
            });
        }
    });
    let mut lived: Vec<(Scenario, Lived)> = Vec::new();
    for ((scenario, _), slot) in work.into_iter().zip(done) {
        let one = slot.into_inner().expect("nobody panics while holding it");
        let one = one.expect("all work is done");
        match lived.last_mut().filter(|(last, _)| *last == scenario) {
            Some((_, sum)) => sum.join(one),
            None => lived.push((scenario, one)),
        }
    }
    lived
}

fn live(
    subject: &Subject,
    traffic: &Traffic,
    times: Times,
    (scenario, seed): (Scenario, u64),
) -> Lived {
    let plan = scenario.plan(subject, &traffic.asks, times, seed);
    let notes = Rc::new(RefCell::new(Notes::wordless(&plan)));
    let ran = run_with(&plan, Trace::hashed(), Chronicle::into(&notes));
    let mut lived = Lived::default();
    lived.violations.extend(ran.outcome.violation.map(|violation| (seed, violation)));
    lived.add(subject, scenario, times, notes.take());
    lived
}

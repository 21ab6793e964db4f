//! `meta`: is the simulator deterministic?

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs, process, thread};

use super::source::How;
use super::{Verdict, jobs};
use crate::meta::Pairs;
use crate::mutants;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    how: How,
    /// How many seeds are run twice
    #[arg(long, value_name = "N")]
    pairs: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Of how many of them the whole traces are compared; of the others, their hashes
    #[arg(long, value_name = "N", default_value_t = 5)]
    whole: u64,
    /// How many pairs at once; as many as there are cores, where not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &Args) -> Verdict {
    mutants::choose(args.how.mutant.as_deref())?;
    let seeds = args.from..args.from.saturating_add(args.pairs);
    let parted = compare(seeds, args.whole, jobs(args.jobs), &args.how)?;
    for (seed, parting) in &parted {
        println!("seed {seed} is not the same twice: {parting}");
        println!("again: cargo sim meta --pairs 1 --from {seed} --whole 1{}", args.how.flags());
    }
    println!("{}", told(args.pairs, args.whole, parted.len()));
    Ok(parted.is_empty())
}

/// What the pairs came to, in a line.
pub(super) fn told(pairs: u64, whole: u64, parted: usize) -> String {
    let whole = whole.min(pairs);
    format!(
        "{pairs} pairs in separate processes: {whole} compared by whole traces, {} by all they print and the hash \
         of their traces; {parted} differ",
        pairs - whole
    )
}

/// Runs pairs on so many threads; the first `whole` by their whole traces. Returns those that part.
pub(super) fn compare(
    seeds: Range<u64>,
    whole: u64,
    jobs: usize,
    how: &How,
) -> Result<Vec<(u64, String)>, String> {
    let folder = Folder::new()?;
    let program = env::current_exe().map_err(|why| format!("this program has no path: {why}"))?;
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(how.arguments());
    let pairs = Pairs { program, arguments, folder: folder.0.clone() };
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(Ok(Vec::new())));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let compared = pairs.compare(seed, seed - seeds.start < whole);
            let Ok(mut found) = found.lock() else { return };
            match (compared, found.as_mut()) {
                (Ok(None), _) => {}
                (Ok(Some(parting)), Ok(all)) => all.push((seed, parting)),
                (Err(why), _) => {
                    *found = Err(why);
                    return;
                }
                (Ok(Some(_)), Err(_)) => return,
            }
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    let mut parted = found.into_inner().map_err(|_| "a pair's thread broke".to_owned())??;
    parted.sort();
    Ok(parted)
}

/// A folder of this process, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, String> {
        let path = env::temp_dir().join(format!("pointsman-sim-{}", process::id()));
        let fails = |why| format!("{} cannot be made: {why}", path.display());
        fs::create_dir_all(&path).map_err(fails)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        // What is left behind is in the folder for what may be left behind.
        let _ = fs::remove_dir_all(path);
    }
}

//! `regress`: the plans that once failed, each with its line on what it was.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Verdict, failure, source};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder of the plans; this crate's own, where not given
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Verdict {
    let folder = args.folder.clone().unwrap_or_else(committed);
    let (held, broke) = all(&folder)?;
    println!("{held} passed, {broke} failed");
    Ok(broke == 0)
}

/// Where the plans are that are committed.
pub(super) fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")
}

/// Runs every plan of a folder and tells what does not hold. Returns how many held, and how many did not.
pub(super) fn all(folder: &Path) -> Result<(u64, u64), String> {
    let fails = |why| format!("{} cannot be read: {why}", folder.display());
    let entries = fs::read_dir(folder).map_err(fails)?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = paths.map_err(fails)?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    paths.sort();
    if paths.is_empty() {
        return Err(format!("{} holds no plan (`run --save` writes one)", folder.display()));
    }
    let (mut held, mut broke) = (0, 0);
    for path in paths {
        let plan = source::read(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match plan.run().violation {
            None => {
                held += 1;
                println!("ok     {name}: {}", plan.what());
            }
            Some(violation) => {
                broke += 1;
                println!("BROKEN {name}: {}", plan.what());
                let again = format!("cargo sim run --plan {}", path.display());
                print!("{}", failure::told(&name, &plan, &violation, &again));
            }
        }
    }
    Ok((held, broke))
}

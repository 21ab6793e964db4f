//! `diff`: where two traces part.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::Verdict;
use crate::diff::parting;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A trace, as `run --trace` writes it
    #[arg(value_name = "TRACE")]
    left: PathBuf,
    /// Another
    #[arg(value_name = "TRACE")]
    right: PathBuf,
}

pub(super) fn run(args: &Args) -> Verdict {
    let (left, right) = (open(&args.left)?, open(&args.right)?);
    match parting(left, right).map_err(|why| format!("a trace cannot be read: {why}"))? {
        None => {
            println!("the same");
            Ok(true)
        }
        Some(parting) => {
            print!("{parting}");
            Ok(false)
        }
    }
}

fn open(path: &Path) -> Result<BufReader<File>, String> {
    let file = File::open(path).map_err(|why| format!("{} cannot be read: {why}", path.display()));
    Ok(BufReader::new(file?))
}

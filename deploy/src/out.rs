//! What goes to standard output.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// As `println!`, for a program that goes on when nobody reads any more: `pointsman status | head -1` has what it wants, and
/// a gateway whose start was watched through a pipe serves on.
macro_rules! say {
    ($($words:tt)*) => { $crate::out::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// Something could not be written, and not because its reader had gone.
static FAILED: AtomicBool = AtomicBool::new(false);

pub fn line(words: fmt::Arguments<'_>) {
    match writeln!(io::stdout().lock(), "{words}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write to standard output: {error}");
            FAILED.store(true, Ordering::Relaxed);
        }
        Ok(()) | Err(_) => {}
    }
}

/// How the program ends that would end with `code`: what was lost on its way out is no success.
pub fn ended(code: ExitCode) -> ExitCode {
    if FAILED.load(Ordering::Relaxed) { ExitCode::FAILURE } else { code }
}

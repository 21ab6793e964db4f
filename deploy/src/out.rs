//! What goes to standard output.

use std::fmt;
use std::io::{self, Write as _};

/// As `println!`, for a program that goes on when nobody reads any more: `pointsman status | head -1` has what it wants, and
/// a gateway whose start was watched through a pipe serves on.
macro_rules! say {
    ($($words:tt)*) => { $crate::out::line(format_args!($($words)*)) };
}
pub(crate) use say;

pub fn line(words: fmt::Arguments<'_>) {
    match writeln!(io::stdout().lock(), "{words}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write to standard output: {error}");
        }
        Ok(()) | Err(_) => {}
    }
}

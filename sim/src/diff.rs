//! Where two traces part.
//!
//! A hash says that two runs differ; this says from which line on. Every line of a trace carries the hash so far, so the
//! first two lines that differ are the first two that matter, and what follows is consequence. **Rejected:** a general
//! diff, which looks for what the traces share afterwards and takes long to find that it is nothing.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead};

/// Where two traces part: line numbers count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    /// The first line that differs.
    pub line: u64,
    /// What both say before it, the last lines only.
    pub before: Vec<String>,
    /// What the one says from there on, the first lines only. Empty: it ends there.
    pub left: Vec<String>,
    /// What the other says.
    pub right: Vec<String>,
}

/// Lines shown before the traces part, and after.
const BEFORE: usize = 5;
const AFTER: usize = 3;

/// Finds where two traces part. `None`: they are the same, byte by byte, but for how the last line ends.
///
/// # Errors
/// If one cannot be read, or is not text.
pub fn parting(left: impl BufRead, right: impl BufRead) -> io::Result<Option<Parting>> {
    let (mut left, mut right) = (left.lines(), right.lines());
    let (mut before, mut line) = (VecDeque::new(), 0);
    loop {
        line += 1;
        match (left.next().transpose()?, right.next().transpose()?) {
            (None, None) => return Ok(None),
            (Some(one), Some(other)) if one == other => {
                if before.len() == BEFORE {
                    before.pop_front();
                }
                before.push_back(one);
            }
            (one, other) => {
                let (left, right) = (some(one, left)?, some(other, right)?);
                return Ok(Some(Parting { line, before: before.into(), left, right }));
            }
        }
    }
}

fn some(
    first: Option<String>,
    rest: impl Iterator<Item = io::Result<String>>,
) -> io::Result<Vec<String>> {
    first.map(Ok).into_iter().chain(rest).take(AFTER).collect()
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the traces part at line {}", self.line)?;
        for line in &self.before {
            writeln!(f, "    {}", clipped(line, 0))?;
        }
        // Long lines are shown from a little before the first difference on.
        let from = match (self.left.first(), self.right.first()) {
            (Some(left), Some(right)) => {
                let same = left.chars().zip(right.chars()).skip(TRACE_HEAD);
                TRACE_HEAD + same.take_while(|(one, other)| one == other).count()
            }
            _ => 0,
        };
        for (sign, lines) in [("<", &self.left), (">", &self.right)] {
            if lines.is_empty() {
                writeln!(f, "  {sign} ends here")?;
            }
            for (at, line) in lines.iter().enumerate() {
                writeln!(f, "  {sign} {}", clipped(line, if at == 0 { from } else { 0 }))?;
            }
        }
        Ok(())
    }
}

/// Time and hash stand before what happened: a difference there follows from one behind them.
const TRACE_HEAD: usize = 31;

/// Characters of a line that are shown.
const WIDTH: usize = 200;

/// Of a long line its head, and the part around a character.
fn clipped(line: &str, around: usize) -> String {
    let length = line.chars().count();
    if length <= WIDTH {
        return line.to_owned();
    }
    let taken = |from: usize, count: usize| line.chars().skip(from).take(count).collect::<String>();
    match around.checked_sub(WIDTH / 2) {
        None => format!("{}...", taken(0, WIDTH)),
        Some(from) => format!("{}... {}...", taken(0, TRACE_HEAD), taken(from, WIDTH - TRACE_HEAD)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parted(left: &str, right: &str) -> Option<Parting> {
        parting(left.as_bytes(), right.as_bytes()).expect("text can be read")
    }

    #[test]
    fn equal_traces_do_not_part() {
        assert_eq!(parted("a\nb\n", "a\nb\n"), None);
        assert_eq!(parted("", ""), None);
    }

    #[test]
    fn the_first_line_that_differs_is_shown_with_what_stands_around_it() {
        let parting = parted("1\n2\n3\n4\n5\n6\nx\n8\n", "1\n2\n3\n4\n5\n6\ny\n8\n");
        let parting = parting.expect("they differ");
        assert_eq!(parting.line, 7);
        assert_eq!(parting.before, ["2", "3", "4", "5", "6"]);
        assert_eq!((parting.left[0].as_str(), parting.right[0].as_str()), ("x", "y"));
        assert!(parting.to_string().contains("line 7"));
    }

    #[test]
    fn a_trace_that_ends_early_parts_at_its_end() {
        let parting = parted("a\n", "a\nb\n").expect("they differ");
        assert_eq!((parting.line, parting.left.len()), (2, 0));
        assert!(parting.to_string().contains("< ends here"), "{parting}");
    }

    #[test]
    fn of_a_long_line_the_differing_part_is_shown() {
        let left = format!("{}one", "-".repeat(5_000));
        let right = format!("{}two", "-".repeat(5_000));
        let shown = parted(&left, &right).expect("they differ").to_string();
        assert!(shown.contains("one") && shown.contains("two"), "{shown}");
        assert!(shown.len() < 1_000, "{shown}");
    }
}

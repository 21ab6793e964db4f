//! What is wrong with a configuration, and where: one [`Problem`] each, all of them collected.
//!
//! A loader that stops at the first mistake makes its user fix a file by trial, and one that prints "invalid type:
//! map, expected u32" makes him guess. A problem therefore names file, line, column and key path, says what was
//! expected, and proposes the name that was probably meant. What it quotes is the text as it stands in the file, before
//! `${VAR}` is replaced, and never that of a key that holds a secret: what is printed ends in logs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// Where a value (or a mistake) comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything: the built-in default.
    Default,
    /// The configuration file.
    File {
        /// As the user named it.
        file: Arc<str>,
        /// Where in it.
        at: At,
        /// The environment variables that were put into the value there.
        variables: Vec<String>,
    },
    /// An environment variable that stands for a key of its own.
    Environment(String),
    /// A flag of the command line, with its dashes.
    Flag(String),
}

/// One thing that is wrong, or (as a warning) that does not do what its writer may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said.
    pub origin: Origin,
    /// The key's path, as `models.qwen.endpoints[0].url`. Empty where the file as a whole is meant.
    pub path: String,
    /// What it is.
    pub kind: ProblemKind,
}

/// What can be wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file is not YAML, or more than the parser is willing to hold.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// The file is larger than any configuration.
    #[error("{bytes} bytes; a configuration has at most {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        bytes_max: u64,
    },
    /// No such key here.
    #[error("unknown key{}", did_you_mean(.suggestion.as_deref()))]
    UnknownKey {
        /// The known key nearest to it.
        suggestion: Option<String>,
    },
    /// The key stands twice in one mapping.
    #[error("given twice; the first is at line {first}. Remove one of them")]
    DuplicateKey {
        /// Line of the first.
        first: u32,
    },
    /// A key that is a number, a list, a mapping.
    #[error("a key is a text; write it in quotes")]
    KeyNotText,
    /// `<<`, which YAML 1.2 no longer has.
    #[error("merge keys (<<) are not supported; write the keys out")]
    MergeKey,
    /// A required key is absent.
    #[error("missing; give {expected}")]
    Missing {
        /// What to give.
        expected: String,
    },
    /// The value is not of the key's type.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What the key takes, with an example.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The value is not among the names the key knows.
    #[error("{found} is not one of {}{}", .names.join(", "), did_you_mean(.suggestion.as_deref()))]
    UnknownName {
        /// What stands there.
        found: String,
        /// Every name the key takes.
        names: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// The value is beyond its bounds.
    #[error("{found} is out of range; from {low} to {high}")]
    OutOfRange {
        /// What stands there.
        found: String,
        /// The least that is taken.
        low: String,
        /// The most that is taken.
        high: String,
    },
    /// The value has the right type and still cannot be.
    #[error("{0}")]
    Invalid(String),
    /// `${NAME}` names a variable that is not set.
    #[error("the environment variable {name} is not set; set it, or write ${{{name}:-a default}}")]
    VariableMissing {
        /// The variable.
        name: String,
    },
    /// `${` begins something that is not a variable.
    #[error("a variable is written ${{NAME}} or ${{NAME:-default}}; a literal ${{ is written $${{")]
    VariableSyntax,
    /// `file:` names a file that cannot be read.
    #[error("the secret's file {} cannot be read: {reason}", .path.display())]
    SecretUnreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Two keys say different things about one.
    #[error("contradicts {other}; keep one of them")]
    Contradicts {
        /// The other key.
        other: String,
    },
    /// A name that is defined nowhere.
    #[error("no {what} named {found}{}", did_you_mean(.suggestion.as_deref()))]
    NoSuch {
        /// What kind of thing is meant.
        what: &'static str,
        /// The name.
        found: String,
        /// The nearest name that is defined.
        suggestion: Option<String>,
    },
    /// The key is known, but this build cannot do what it asks for and does not pretend to.
    #[error("not supported yet: {0}")]
    NotSupported(&'static str),
    /// A warning: the key is accepted and does nothing.
    #[error("has no effect yet: {0}")]
    NoEffect(&'static str),
    /// More entries than are held.
    #[error("{found} entries; at most {most}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
}

/// Every problem of one configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// What was found, at most [`Errors::PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub more: usize,
}

impl Errors {
    /// Nobody reads more, and a file of rubbish has one problem a line.
    pub const PROBLEMS_MAX: usize = 100;

    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { at, .. } => (1, *at),
            Origin::Default | Origin::Environment(_) | Origin::Flag(_) => (0, At::default()),
        });
        let more = problems.len().saturating_sub(Self::PROBLEMS_MAX);
        problems.truncate(Self::PROBLEMS_MAX);
        Self { problems, more }
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    /// `pointsman.yaml:3:5: routing.max_retries: expected a whole number like 3, found "many"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => {}
            Origin::File { file, .. } if file.is_empty() => {}
            Origin::File { file, at, .. } if at.line == 0 => write!(f, "{file}: ")?,
            Origin::File { file, at, .. } => write!(f, "{file}:{}:{}: ", at.line, at.column)?,
            Origin::Environment(name) => write!(f, "{name} (environment): ")?,
            Origin::Flag(name) => write!(f, "{name} (command line): ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.kind)
    }
}

impl fmt::Display for Origin {
    /// `pointsman.yaml:3 (with OPENAI_API_KEY)`, `environment GATEWAY`, `flag --listen`, `default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File { file, at, variables } => {
                write!(f, "{file}:{}", at.line)?;
                if variables.is_empty() {
                    return Ok(());
                }
                write!(f, " (with {})", variables.join(", "))
            }
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The known name that `given` was probably meant to be: at most a third of its letters differ (swapped neighbours
/// count as one), or it is the beginning of exactly one of them.
pub(super) fn nearest<'a>(
    given: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    // A longer name is no misspelling, and the distance costs the product of the lengths.
    const LETTERS_MAX: usize = 64;
    let letters = given.chars().count();
    if letters == 0 || letters > LETTERS_MAX {
        return None;
    }
    let lower = given.to_lowercase();
    let near = known
        .clone()
        .filter(|name| name.len() <= LETTERS_MAX)
        .map(|name| (strsim::osa_distance(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= letters.max(name.chars().count()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.to_owned());
    near.or_else(|| {
        let mut longer = known.filter(|name| letters >= 3 && name.starts_with(&lower));
        longer.next().filter(|_| longer.next().is_none()).map(str::to_owned)
    })
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

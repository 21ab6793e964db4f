//! How one value is written: what each type of key takes, and how it is printed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use control::units::{MicroUsd, Tokens};

use super::problem::{ProblemKind, nearest};
use super::tree::{Kind, Scalar};
use super::units::ByteSize;

/// A type that a key can have.
pub(super) trait Value: Sized {
    /// Whether its text must never be shown.
    const SECRET: bool = false;

    /// What it takes, with an example: "a duration like 30s".
    fn expected() -> String;

    /// Reads it.
    fn read(scalar: &Scalar) -> Result<Self, Wrong>;

    /// Prints it as it could be written.
    fn show(&self) -> String;
}

/// Why a text is no value of a type.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is of another type.
    Type,
    /// Not among the names.
    Name(Vec<String>),
    /// Right type, impossible value. The text quotes nothing of it.
    Because(String),
    /// As it is.
    Kind(ProblemKind),
}

impl Wrong {
    /// The problem, for a value of type `T` that was written as `scalar`.
    pub(super) fn into_kind<T: Value>(self, scalar: &Scalar) -> ProblemKind {
        match self {
            Self::Type => {
                ProblemKind::WrongType { expected: T::expected(), found: found(scalar, T::SECRET) }
            }
            Self::Name(names) => ProblemKind::UnknownName {
                found: found(scalar, T::SECRET),
                suggestion: nearest(&scalar.text, names.iter().map(String::as_str)),
                names,
            },
            Self::Because(reason) => ProblemKind::Invalid(reason),
            Self::Kind(kind) => kind,
        }
    }
}

/// A value as an error may quote it: what its writer wrote, shortened, and nothing at all where it may be a secret that
/// stands under the wrong key.
pub(super) fn found(scalar: &Scalar, secret: bool) -> String {
    // Enough to recognise what was written.
    const SHOWN_MAX: usize = 40;
    let written = scalar.as_written();
    match scalar.kind {
        _ if secret || like_a_secret(written) => "a text that is not shown".into(),
        Kind::Number | Kind::Truth => written.chars().take(SHOWN_MAX).collect(),
        Kind::Text if written.chars().count() > SHOWN_MAX => {
            format!("{:?}...", written.chars().take(SHOWN_MAX).collect::<String>())
        }
        Kind::Text => format!("{written:?}"),
    }
}

/// Keys of the usual providers, and ours.
pub(super) fn like_a_secret(text: &str) -> bool {
    ["sk-", "pm-", "sha256:", "Bearer "].iter().any(|beginning| text.starts_with(beginning))
}

impl Value for bool {
    fn expected() -> String {
        "true or false".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        scalar.text.to_ascii_lowercase().parse().map_err(|_| Wrong::Type)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn expected() -> String {
        "a whole number like 3".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        match whole(scalar) {
            Some(number) => number.try_into().map_err(|_| Wrong::Because("too large".into())),
            None => Err(Wrong::Type),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Tokens {
    fn expected() -> String {
        "a number of tokens like 100000".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        whole(scalar).map(Self).ok_or(Wrong::Type)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

fn whole(scalar: &Scalar) -> Option<u64> {
    scalar.text.replace('_', "").parse().ok()
}

impl Value for MicroUsd {
    fn expected() -> String {
        "an amount of US dollars like 0.15".into()
    }

    /// Up to six places. Read as a decimal, never through a float.
    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let text = scalar.text.strip_prefix('$').unwrap_or(&scalar.text);
        let (whole, places) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(places) {
            return Err(Wrong::Type);
        }
        if places.len() > 6 {
            return Err(Wrong::Because("US dollars have at most six decimal places here".into()));
        }
        let micro = format!("{whole}{places:0<6}").parse();
        micro.map(Self).map_err(|_| Wrong::Because("too large".into()))
    }

    fn show(&self) -> String {
        let (whole, micro) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if micro == 0 {
            return whole.to_string();
        }
        format!("{whole}.{micro:06}").trim_end_matches('0').to_owned()
    }
}

/// Longest first, as they are printed.
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Value for Duration {
    fn expected() -> String {
        "a duration like 30s, 100ms or 1h30m".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let mut rest = scalar.text.trim();
        let mut millis = 0_u64;
        if rest.is_empty() {
            return Err(Wrong::Type);
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(Wrong::Type)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, factor) =
                DURATIONS.iter().find(|(name, _)| *name == unit).ok_or(Wrong::Type)?;
            let number: u64 = number.parse().map_err(|_| Wrong::Type)?;
            millis = number
                .checked_mul(*factor)
                .and_then(|part| millis.checked_add(part))
                .ok_or_else(|| Wrong::Because("too long".into()))?;
            rest = tail;
        }
        Ok(Self::from_millis(millis))
    }

    fn show(&self) -> String {
        let millis = self.as_millis();
        let fits = |factor: u64| millis != 0 && millis.is_multiple_of(u128::from(factor));
        match DURATIONS.iter().find(|(_, factor)| fits(*factor)) {
            Some((unit, factor)) => format!("{}{unit}", millis / u128::from(*factor)),
            None => "0s".into(),
        }
    }
}

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl Value for ByteSize {
    fn expected() -> String {
        "a size like 10MiB".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let text = scalar.text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (number, unit) = (number.parse::<u64>().map_err(|_| Wrong::Type)?, unit.trim());
        let known = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let factor = match known {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => return Err(Wrong::Type),
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| Wrong::Because("too large".into()))
    }

    fn show(&self) -> String {
        let found = SIZES[..3].iter().find(|(_, f)| self.0 != 0 && self.0.is_multiple_of(*f));
        match found {
            Some((unit, factor)) => format!("{}{unit}", self.0 / factor),
            None => format!("{}B", self.0),
        }
    }
}

impl Value for SocketAddr {
    fn expected() -> String {
        "an address like 127.0.0.1:8080 or :8080".into()
    }

    /// `:8080` is every IPv4 address, `localhost` is 127.0.0.1. Other names are not looked up: what is listened on
    /// should not depend on a resolver.
    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let text = scalar.text.trim();
        if let Ok(addr) = text.parse() {
            return Ok(addr);
        }
        let (host, port) = text.rsplit_once(':').ok_or(Wrong::Type)?;
        let host = match host {
            "" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => host.parse().map_err(|_| Wrong::Type)?,
        };
        Ok(Self::new(IpAddr::V4(host), port.parse().map_err(|_| Wrong::Type)?))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn expected() -> String {
        "a path like ./pointsman-data".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        text(scalar).map(Self::from)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for String {
    fn expected() -> String {
        "a text".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        text(scalar).map(str::to_owned)
    }

    fn show(&self) -> String {
        self.clone()
    }
}

/// A text that names something, or is a path: not empty, no control characters, and written as a text, because YAML
/// has already made another one out of an unquoted `0123` or `1e3`.
pub(super) fn text(scalar: &Scalar) -> Result<&str, Wrong> {
    // Longer than any path, model or user name.
    const TEXT_MAX: usize = 4_096;
    let text = scalar.text.as_str();
    if scalar.kind != Kind::Text {
        return Err(Wrong::Because("a text is expected here; write it in quotes".into()));
    }
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(Wrong::Because("must not be empty or contain control characters".into()));
    }
    if text.len() > TEXT_MAX {
        return Err(Wrong::Because(format!("longer than {TEXT_MAX} bytes")));
    }
    Ok(text)
}

/// Gives an enum its names in the file. The first name of each variant is the one that is printed.
macro_rules! choices {
    ($type:ty, $($variant:ident = $name:literal $(| $other:literal)*),+ $(,)?) => {
        impl $crate::config::value::Value for $type {
            fn expected() -> String {
                format!("one of {}", [$($name),+].join(", "))
            }

            fn read(
                scalar: &$crate::config::tree::Scalar,
            ) -> Result<Self, $crate::config::value::Wrong> {
                match scalar.text.as_str() {
                    $($name $(| $other)* => Ok(Self::$variant),)+
                    _ => Err($crate::config::value::Wrong::Name(
                        [$($name $(, $other)*),+].map(str::to_owned).to_vec(),
                    )),
                }
            }

            fn show(&self) -> String {
                match self { $(Self::$variant => $name),+ }.to_owned()
            }
        }
    };
}
pub(super) use choices;

//! `monitoring.tracing`: where spans go, and which.

use std::fmt;
use std::str::FromStr;

use super::env::{Env, Flags, Overrides};
use super::observe::Monitoring;
use super::problem::{Errors, Problem};
use super::reader::{Gathered, Section, Sink};
use super::tree::Scalar;
use super::value::{Value, Wrong, choices, text};

/// Spans and their collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Who collects them; nobody where there are none.
    pub endpoint: Option<Collector>,
    /// Whose spans they are, to the collector.
    pub service_name: Option<String>,
    /// Which requests get spans.
    pub sampler: Sampler,
    /// The share of traces that the samplers by ratio keep.
    pub sample_ratio: Share,
}

/// Which requests get spans, by the standard's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share, whatever callers say.
    Ratio,
    /// As the caller says, else all.
    ParentOrOn,
    /// As the caller says, else none.
    ParentOrOff,
    /// As the caller says, else a share.
    ParentOrRatio,
}

choices!(
    Sampler,
    AlwaysOn = "always_on",
    AlwaysOff = "always_off",
    Ratio = "traceidratio",
    ParentOrOn = "parentbased_always_on",
    ParentOrOff = "parentbased_always_off",
    ParentOrRatio = "parentbased_traceidratio",
);

impl Tracing {
    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            endpoint: section.maybe("endpoint", "no traces"),
            service_name: section.maybe("service_name", "`pointsman`, `pointsman-worker`"),
            sampler: section.get("sampler", Sampler::ParentOrRatio),
            sample_ratio: section.between("sample_ratio", Share::ALL, Share(0)..=Share::ALL),
        }
    }

    /// What the standard's variables say where there is no file: for a worker. With what is odd about them.
    ///
    /// # Errors
    /// Every variable that means nothing.
    pub fn of_env(env: &Env) -> Result<(Self, Vec<Problem>), Errors> {
        let overrides = Overrides::new(&Flags::default(), &env.only("OTEL_"), None);
        let sink = Sink::new("".into(), overrides);
        let read = |root: &Section<'_>| root.section("monitoring", Monitoring::read).tracing;
        let tracing = Section::root(&sink, None, read);
        let Gathered { problems, warnings, .. } = sink.into_gathered();
        if problems.is_empty() { Ok((tracing, warnings)) } else { Err(Errors::new(problems)) }
    }
}

/// Where a collector takes OTLP over gRPC: `http://host:port`, or `https://` with a certificate of a public authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(String);

impl Collector {
    /// As written, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Collector {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let scheme = ["http://", "https://"].into_iter().find(|scheme| text.starts_with(scheme));
        let Some(authority) = scheme.map(|scheme| &text[scheme.len()..]) else {
            return Err("the URL must begin with http:// or https://");
        };
        if authority.contains(['/', '?', '#']) {
            return Err(
                "a collector's URL has no path: give the port where it takes OTLP over gRPC, usually 4317",
            );
        }
        if authority.contains('@') {
            return Err("a URL holds no user or password here; use OTEL_EXPORTER_OTLP_HEADERS");
        }
        let parsed: http::uri::Authority =
            authority.parse().map_err(|_| "the URL's host is not valid")?;
        match parsed.port_u16() {
            Some(1..) if !parsed.host().is_empty() => Ok(Self(text.to_owned())),
            Some(_) | None => Err("name the port where it takes OTLP over gRPC, usually 4317"),
        }
    }
}

impl Value for Collector {
    fn expected() -> String {
        "a URL like http://127.0.0.1:4317".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        text(scalar)?.parse().map_err(|reason: &str| Wrong::Because(reason.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// A part of the whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// The whole.
    pub const ALL: Self = Self(1_000_000);

    /// From 0 to 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL.0)
    }
}

impl Value for Share {
    fn expected() -> String {
        "a share like 0.05".into()
    }

    /// Up to six places, read as a decimal.
    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let (whole, places) = scalar.text.split_once('.').unwrap_or((&scalar.text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && places.is_empty()) || !digits(whole) || !digits(places) {
            return Err(Wrong::Type);
        }
        if places.len() > 6 {
            return Err(Wrong::Because("a share has at most six decimal places here".into()));
        }
        let millionths = format!("{whole}{places:0<6}").parse();
        millionths.map(Self).map_err(|_| Wrong::Because("too large".into()))
    }

    fn show(&self) -> String {
        let (whole, rest) = (self.0 / Self::ALL.0, self.0 % Self::ALL.0);
        if rest == 0 {
            return whole.to_string();
        }
        format!("{whole}.{rest:06}").trim_end_matches('0').to_owned()
    }
}

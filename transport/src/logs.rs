//! Logs: one line for each finished request, text for people, JSON for machines.
//!
//! Only Pointsman's own crates follow the chosen level. Libraries stay at `warn`: some of them print headers and
//! frames at `debug`, and a key or a prompt must never stand in a log, whatever level somebody sets in a hurry.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is worth a line (`LOG_LEVEL`).
    pub level: LevelFilter,
    /// Its shape (`LOG_FORMAT`).
    pub format: Format,
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, fields at the top.
    Json,
    /// For eyes; with colours on a terminal.
    Text,
}

/// A setting that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// `LOG_LEVEL` is none of the known words.
    #[error("LOG_LEVEL must be off, error, warn, info, debug or trace")]
    Level,
    /// `LOG_FORMAT` is none of the known words.
    #[error("LOG_FORMAT must be json or text")]
    Format,
}

impl Settings {
    /// From `LOG_LEVEL` (default `info`) and `LOG_FORMAT` (default: text on a terminal, JSON otherwise).
    ///
    /// # Errors
    /// [`SettingsError`] where a word is not known.
    pub fn new(level: Option<&str>, format: Option<&str>) -> Result<Self, SettingsError> {
        let level = match level.map(str::trim) {
            None | Some("") => LevelFilter::INFO,
            // Numbers parse too, and would mean nothing to a reader.
            Some(word) if word.bytes().any(|byte| byte.is_ascii_digit()) => {
                return Err(SettingsError::Level);
            }
            Some(word) => LevelFilter::from_str(word).map_err(|_| SettingsError::Level)?,
        };
        let format = match format.map(str::trim).map(str::to_ascii_lowercase).as_deref() {
            None | Some("") if std::io::stderr().is_terminal() => Format::Text,
            None | Some("" | "json") => Format::Json,
            Some("text") => Format::Text,
            Some(_) => return Err(SettingsError::Format),
        };
        Ok(Self { level, format })
    }
}

/// Sends the process's logs to standard error, once. Standard output stays free for what a command prints.
///
/// # Errors
/// Where something else has been set up before.
pub fn init(settings: Settings) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
    let colours = std::io::stderr().is_terminal();
    tracing::subscriber::set_global_default(subscriber(settings, std::io::stderr, colours))
}

/// The subscriber that [`init`] installs, over any writer.
pub fn subscriber<W>(settings: Settings, writer: W, colours: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::registry()
        .with(layer(settings, writer, colours).with_filter(targets(settings.level)))
}

fn layer<S, W>(settings: Settings, writer: W, colours: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer).with_ansi(colours);
    match settings.format {
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
        Format::Text => lines.with_target(false).boxed(),
    }
}

/// Our crates at `level`, everybody else at `warn` at most.
fn targets(level: LevelFilter) -> Targets {
    const OURS: [&str; 4] = ["transport", "pointsman", "control", "sim"];
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets(OURS.map(|name| (name, level)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: Settings, write: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(settings, move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, write);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn libraries_stay_quiet_at_any_level() {
        let settings = Settings { level: LevelFilter::TRACE, format: Format::Text };
        let text = logged(settings, || {
            tracing::debug!(target: "h2::codec", "frame with a key");
            tracing::warn!(target: "h2::codec", "trouble");
            tracing::trace!(target: "transport::front", "ours");
        });
        assert!(!text.contains("frame with a key"), "{text}");
        assert!(text.contains("trouble") && text.contains("ours"), "{text}");
    }

    #[test]
    fn off_is_off_for_everybody() {
        let settings = Settings { level: LevelFilter::OFF, format: Format::Text };
        assert_eq!(logged(settings, || tracing::error!(target: "h2", "x")), "");
    }

    #[test]
    fn a_json_line_has_its_fields_at_the_top() {
        let settings = Settings { level: LevelFilter::INFO, format: Format::Json };
        let text = logged(settings, || {
            tracing::info!(target: "transport::front", model = "m", retries = 2, "request finished");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["model"], "m");
        assert_eq!(line["retries"], 2);
        assert_eq!(line["message"], "request finished");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_word_that_means_nothing_is_refused() {
        assert_eq!(Settings::new(Some("loud"), None), Err(SettingsError::Level));
        assert_eq!(Settings::new(Some("3"), None), Err(SettingsError::Level));
        assert_eq!(Settings::new(None, Some("xml")), Err(SettingsError::Format));
        let debug = Settings::new(Some("DEBUG"), Some("JSON")).unwrap();
        assert_eq!(debug, Settings { level: LevelFilter::DEBUG, format: Format::Json });
        assert_eq!(Settings::new(Some(""), Some("text")).unwrap().level, LevelFilter::INFO);
    }
}

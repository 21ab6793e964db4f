//! The command line of `pointsman demo-replica`.

use core::net::SocketAddr;
use core::time::Duration;

use clap::Args;

use super::Options;

/// Run an OpenAI-compatible replica that needs no model, to try things with.
#[derive(Args, Clone, Debug)]
pub struct DemoReplicaArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// A model to serve (repeatable).
    #[arg(long = "model", default_value = "demo", value_name = "NAME")]
    pub models: Vec<String>,
    /// Time to the first token.
    #[arg(long, default_value = "50ms", value_parser = parse_duration, value_name = "TIME")]
    pub ttft: Duration,
    /// Time between two tokens.
    #[arg(long, default_value = "10ms", value_parser = parse_duration, value_name = "TIME")]
    pub gap: Duration,
    /// Tokens in an answer, unless the request wants fewer.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub tokens: u64,
    /// Answer this share of requests with 500 (0 to 1).
    #[arg(long, default_value_t = 0.0, value_parser = parse_rate, value_name = "RATE")]
    pub fail_rate: f64,
    /// Exit, as if killed, after so many tokens of an answer.
    #[arg(long, value_name = "N")]
    pub die_after: Option<u64>,
    /// With --die-after: break the connection only, and live on.
    #[arg(long, requires = "die_after")]
    pub survive: bool,
    /// Accept this share of requests and never answer them (0 to 1).
    #[arg(long, default_value_t = 0.0, num_args = 0..=1, default_missing_value = "1", value_parser = parse_rate, value_name = "RATE")]
    pub hang: f64,
    /// Stall for good after so many tokens of a stream.
    #[arg(long, value_name = "N")]
    pub stall_after: Option<u64>,
    /// Answer this share of requests with 200 and garbage (0 to 1).
    #[arg(long, default_value_t = 0.0, num_args = 0..=1, default_missing_value = "1", value_parser = parse_rate, value_name = "RATE")]
    pub garbage: f64,
    /// Turn this share of answers into an error object half-way (0 to 1).
    #[arg(long, default_value_t = 0.0, num_args = 0..=1, default_missing_value = "1", value_parser = parse_rate, value_name = "RATE")]
    pub error_in_stream: f64,
    /// Never report usage.
    #[arg(long)]
    pub no_usage: bool,
    /// End streams without `[DONE]` and without a finish reason.
    #[arg(long)]
    pub no_done: bool,
    /// Answer every request for an answer with this status.
    #[arg(long, value_parser = clap::value_parser!(u16).range(200..600), value_name = "STATUS")]
    pub status: Option<u16>,
    /// Answer 401 to callers without this key.
    #[arg(long, value_name = "KEY")]
    pub require_key: Option<String>,
    /// What chance is drawn from.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl DemoReplicaArgs {
    /// The behaviour asked for.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            models: self.models.clone(),
            ttft: self.ttft,
            gap: self.gap,
            tokens: self.tokens,
            fail_rate: self.fail_rate,
            die_after: self.die_after,
            exit_on_death: !self.survive,
            hang_rate: self.hang,
            stall_after: self.stall_after,
            garbage_rate: self.garbage,
            error_in_stream_rate: self.error_in_stream,
            no_usage: self.no_usage,
            no_done: self.no_done,
            status: self.status,
            key: self.require_key.clone(),
            seed: self.seed,
        }
    }
}

/// A text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a number and a unit: 50ms, 1.5s, 2m, 1h")]
pub struct BadDuration;

/// A duration as people write it: one number, also with a fraction, and one of `us`, `ms`, `s`, `m`, `h`. Only zero needs no
/// unit. At most a year, so that adding it to any instant is safe.
///
/// # Errors
/// [`BadDuration`].
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let text = text.trim();
    let digits = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| BadDuration)?;
    let seconds = match unit.trim_start() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(BadDuration),
    };
    if seconds > 365.0 * 86_400.0 {
        return Err(BadDuration);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| BadDuration)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("50ms", 50),
            ("2s", 2_000),
            ("1m", 60_000),
            ("1.5s", 1_500),
            ("1 h", 3_600_000),
            ("0", 0),
            ("250us", 0),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_millis()), Ok(millis), "{text}");
        }
        for text in ["", "5", "ms", "-1s", "1x", "1.2.3s", "1e3s", "99999h", "NaNs"] {
            assert_eq!(parse_duration(text), Err(BadDuration), "{text}");
        }
    }

    #[test]
    fn a_bare_command_line_is_a_healthy_replica_and_flags_reach_their_options() {
        let read = |line: &str| {
            let command = DemoReplicaArgs::augment_args(clap::Command::new("demo-replica"));
            let matches = command.try_get_matches_from(line.split(' ')).ok()?;
            Some(DemoReplicaArgs::from_arg_matches(&matches).ok()?.options())
        };
        let healthy = Options { exit_on_death: true, ..Options::default() };
        assert_eq!(read("x"), Some(healthy.clone()));
        let two = vec!["a".to_owned(), "b".to_owned()];
        let expected =
            Options { models: two, hang_rate: 1.0, garbage_rate: 0.5, ..healthy.clone() };
        assert_eq!(read("x --model a --model b --hang --garbage 0.5"), Some(expected));
        let dying = Options { die_after: Some(5), exit_on_death: false, ..healthy };
        assert_eq!(read("x --die-after 5 --survive"), Some(dying));
        for wrong in ["x --survive", "x --hang 2", "x --ttft 5", "x --status 99"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_lies_between_none_and_all() {
        assert_eq!(parse_rate("0.25"), Ok(0.25));
        for text in ["1.1", "-0.1", "x", "NaN"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}

//! Which request fails, and how.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use control::rng::Rng;

use super::Options;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Accepted, and never answered.
    Hang,
    /// Answered with 500.
    Fail,
    /// Answered with 200 and what is no answer.
    Garbage,
    /// Answered.
    Answer {
        /// Half-way, an error object takes the answer's place.
        error_at: bool,
    },
}

/// Draws the fate of the replica's `number`th request. Each kind of failure has a draw of its own, so that asking for one
/// more kind does not change which requests meet the others.
pub(super) fn draw(options: &Options, number: u64) -> Fate {
    let of = Rng::new(options.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let meets = |kind: &str, rate: f64| of.fork(kind).unit() < rate;
    if meets("hang", options.hang_rate) {
        Fate::Hang
    } else if meets("fail", options.fail_rate) {
        Fate::Fail
    } else if meets("garbage", options.garbage_rate) {
        Fate::Garbage
    } else {
        Fate::Answer { error_at: meets("error in stream", options.error_in_stream_rate) }
    }
}

/// A success in form and nonsense in substance: a proxy's page, or a stream whose data is no JSON.
pub(super) fn garbage(stream: bool) -> Response {
    if stream {
        let kind = [(header::CONTENT_TYPE, "text/event-stream")];
        return (kind, "data: {\"choices\":[{\"ind\n\ndata: \u{1}\u{2}\n\n").into_response();
    }
    let kind = [(header::CONTENT_TYPE, "text/html")];
    (kind, "<html><body>It works!</body></html>").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_are_drawn_at_their_rates_and_repeat_with_the_seed() {
        let options = Options { fail_rate: 0.25, hang_rate: 0.1, seed: 3, ..Options::default() };
        let fates: Vec<Fate> = (0..10_000).map(|number| draw(&options, number)).collect();
        let share = |fate| fates.iter().filter(|f| **f == fate).count();
        assert!((900..1_100).contains(&share(Fate::Hang)), "{}", share(Fate::Hang));
        assert!((2_100..2_400).contains(&share(Fate::Fail)), "{}", share(Fate::Fail));
        assert_eq!(fates[77], draw(&options, 77));

        let all = Options { hang_rate: 1.0, ..Options::default() };
        assert_eq!(draw(&all, 0), Fate::Hang);
        assert_eq!(draw(&Options::default(), 0), Fate::Answer { error_at: false });
    }
}

//! How often it is said that the shared store is away, and back.

use core::time::Duration;

use tokio::time::Instant;

/// What was said of the store that is shared. One that is always a little late is away and back many times a second.
#[derive(Default)]
pub(super) struct Sharing {
    at: Option<Instant>,
    /// That it is away was said: that it is back will be.
    is_open: bool,
}

/// That the shared store is away is said so often at most.
const SHARING_EVERY: Duration = Duration::from_secs(10);

impl Sharing {
    /// Whether that is to be said.
    pub fn is_news(&mut self, is_away: bool) -> bool {
        if is_away {
            self.is_open = self.at.is_none_or(|at| at.elapsed() >= SHARING_EVERY);
            self.at = if self.is_open { Some(Instant::now()) } else { self.at };
            return self.is_open;
        }
        core::mem::take(&mut self.is_open)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_away_again_and_again_is_said_to_be_so_now_and_then_and_never_without_its_return()
     {
        let mut sharing = Sharing::default();
        assert!(!sharing.is_news(false), "nobody said that it was away");
        let mut told = Vec::new();
        for _ in 0..300 {
            told.extend([sharing.is_news(true), sharing.is_news(false)]);
            advance(Duration::from_millis(100)).await;
        }
        assert!(told.chunks(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(told.iter().filter(|said| **said).count(), 2 * 3, "in thirty seconds");
    }
}

//! One client reading a stream, from its log here or from the one that gateways share.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::distant::Distant;
use super::kept::{Claim, Kept, Look, Reach};
use super::log::Found;

/// What comes next. After anything but bytes, nothing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Whole events, or a comment.
    Bytes(Bytes),
    /// The last event has been among the bytes.
    Over,
    /// Another reader came.
    TakenOver,
    /// This reader was too slow: events from this number on are kept.
    Gone(u64),
    /// The gateway that ran the attempt has died, or gave the stream up without a word.
    Lost,
    /// The store that has the events has not answered for some seconds.
    Unreachable,
}

/// A client that reads. Dropped, it has left.
pub struct Reader(Where);

enum Where {
    Here(Here),
    Elsewhere(Box<Distant>),
}

struct Here {
    kept: Arc<Kept>,
    ticket: u64,
    news: watch::Receiver<()>,
    at: u64,
    aside: u64,
}

impl Reader {
    pub(super) fn here(kept: Arc<Kept>, claim: Claim, after: u64) -> Self {
        let (ticket, aside, news) = kept.attach(claim, after);
        Self(Where::Here(Here { kept, ticket, news, at: after, aside }))
    }

    pub(super) fn elsewhere(distant: Distant) -> Self {
        Self(Where::Elsewhere(Box::new(distant)))
    }

    /// What the stream is called, for whoever wants to resume it.
    #[must_use]
    pub fn id(&self) -> &str {
        match &self.0 {
            Where::Here(here) => here.kept.id(),
            Where::Elsewhere(distant) => distant.id(),
        }
    }

    /// True where its attempt runs on this gateway.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self.0, Where::Here(_))
    }

    /// Of a reader of the shared log: the last event it was given, and which reader it is.
    pub(crate) fn place(&self) -> Option<(u64, u64)> {
        match &self.0 {
            Where::Here(_) => None,
            Where::Elsewhere(distant) => Some(distant.place()),
        }
    }

    /// Where it can be resumed from now on. Of a stream that is being opened, resolves when that is known: a call to the
    /// shared log at most. A reader that leaves before that leaves a stream to which nobody can come back.
    pub async fn reach(&mut self) -> Reach {
        let Where::Here(here) = &mut self.0 else { return Reach::AnyGateway };
        loop {
            here.news.borrow_and_update();
            // In this order: what is shown though it is not shipped is so only after the reach was cut.
            let settled = here.kept.with(|log| log.shown() > 0 || !log.is_open());
            let reach = here.kept.reach();
            if settled || reach == Reach::ThisGateway || here.news.changed().await.is_err() {
                here.kept.announce();
                return reach;
            }
        }
    }

    /// What comes next. Cancel-safe.
    pub async fn next(&mut self) -> Next {
        match &mut self.0 {
            Where::Here(here) => here.next().await,
            Where::Elsewhere(distant) => distant.next().await,
        }
    }
}

impl Here {
    async fn next(&mut self) -> Next {
        loop {
            // First the bell, then the look: what comes in between rings again.
            self.news.borrow_and_update();
            match self.kept.look(self.ticket, self.at, self.aside) {
                Look::Found(Found::Events(bytes, last)) => {
                    self.at = last;
                    return Next::Bytes(bytes);
                }
                Look::Aside(number, words) => {
                    self.aside = number;
                    return Next::Bytes(words);
                }
                Look::Found(Found::Nothing) => {}
                Look::Found(Found::End) => return Next::Over,
                Look::Found(Found::Lost) => return Next::Lost,
                Look::Found(Found::Gone(first)) => return Next::Gone(first),
                Look::TakenOver => return Next::TakenOver,
            }
            if self.news.changed().await.is_err() {
                return Next::Lost;
            }
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.kept.detach(self.ticket);
    }
}

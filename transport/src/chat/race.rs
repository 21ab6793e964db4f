//! Attempts until one of them begins to answer: one, or two beside each other where the plane orders a hedge.
//!
//! Both run in the request's own task, which looks at the plane's orders first, and then at one after the other. So no two first tokens are told at once: the
//! attempt that has told its own ends the race in the same poll, and the other is dropped, which closes its call upstream. Its
//! cancel, and a second attempt ordered a moment too late, may lie in the mailbox still: whoever reads them there knows
//! attempts by their ids.
//!
//! Rejected: a task for each attempt. Two tasks could both tell the plane of a first token, and the one that lost would
//! have to be told so before a byte of it is passed on.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use control::outcome::AttemptEnd;
use control::plane::{Dispatch, Input};
use control::units::Tokens;
use tokio::sync::mpsc;

use super::attempt::{Begun, Run};
use super::span::AttemptSpan;
use super::{Parts, Request};
use crate::driver::Order;
use crate::exchange::Call;
use crate::upstream::Failed;

/// The attempt that answers.
pub(super) struct Winner {
    pub dispatch: Box<Dispatch>,
    pub span: AttemptSpan,
    pub begun: Begun,
}

/// An attempt under way.
struct Lane<'a> {
    dispatch: Box<Dispatch>,
    span: AttemptSpan,
    begun: Pin<Box<dyn Future<Output = Result<Begun, Failed>> + Send + 'a>>,
}

/// What happens next.
#[derive(Debug)]
enum Next<B> {
    /// An attempt begins to answer, or has failed.
    Lane(usize, B),
    /// The plane wants something.
    Order(Option<Order>),
}

/// Orders first. What made the plane stop an attempt came before whatever that attempt may bring in the same moment: its
/// first token would be no answer any more, and its client would be served what was refused.
fn poll_next<'l, L: Future + Unpin + 'l>(
    orders: &mut mpsc::Receiver<Order>,
    lanes: impl Iterator<Item = &'l mut L>,
    context: &mut Context<'_>,
) -> Poll<Next<L::Output>> {
    if let Poll::Ready(order) = orders.poll_recv(context) {
        return Poll::Ready(Next::Order(order));
    }
    for (index, lane) in lanes.enumerate() {
        if let Poll::Ready(begun) = Pin::new(lane).poll(context) {
            return Poll::Ready(Next::Lane(index, begun));
        }
    }
    Poll::Pending
}

impl<'a> Lane<'a> {
    fn new(chat: &'a Arc<Parts>, call: &'a Call, dispatch: Box<Dispatch>) -> Self {
        let span = AttemptSpan::new(call, &dispatch, &chat.catalog.load());
        let (trace, own) = (span.trace().clone(), dispatch.clone());
        let begun = async move { Run::new(chat, call, &own, &trace).begin().await };
        Self { dispatch, span, begun: Box::pin(begun) }
    }

    fn report(mut self, chat: &Parts, end: AttemptEnd) {
        self.span.end(&end);
        chat.driver.submit(Input::AttemptEnded { attempt: self.dispatch.attempt, end });
    }
}

impl Request {
    /// Makes an attempt, and another beside it where the plane says so. `None` where nobody began to answer: the plane has been
    /// told, and its next order says what then.
    pub(super) async fn race(&mut self, first: Box<Dispatch>) -> Option<Winner> {
        let Self { chat, call, orders, attempts, upstream_words, .. } = self;
        let mut lanes = vec![Lane::new(chat, call, first)];
        while !lanes.is_empty() {
            let next = poll_fn(|context| {
                poll_next(orders, lanes.iter_mut().map(|lane| &mut lane.begun), context)
            });
            match next.await {
                Next::Lane(index, Ok(begun)) => {
                    let Lane { dispatch, span, .. } = lanes.swap_remove(index);
                    for mut lost in lanes {
                        lost.span.end(&AttemptEnd::Cancelled { produced: Tokens::ZERO });
                    }
                    return Some(Winner { dispatch, span, begun });
                }
                Next::Lane(index, Err(failed)) => {
                    let lane = lanes.swap_remove(index);
                    *upstream_words = lane.failed(chat, failed);
                }
                Next::Order(Some(Order::Dispatch(hedge))) => {
                    *attempts = hedge.number;
                    lanes.push(Lane::new(chat, call, hedge));
                }
                Next::Order(Some(Order::Cancel(attempt))) => {
                    let stopped = lanes.iter().position(|lane| lane.dispatch.attempt == attempt);
                    if let Some(index) = stopped {
                        let produced = Tokens::ZERO;
                        lanes.swap_remove(index).report(chat, AttemptEnd::Cancelled { produced });
                    }
                }
                // Its end comes after the cancel of all that runs.
                Next::Order(Some(
                    Order::Admitted(_) | Order::Reject { .. } | Order::Finish { .. },
                )) => {}
                Next::Order(None) => return None,
            }
        }
        None
    }
}

impl Lane<'_> {
    /// It failed before anything was sent. Returns how upstream worded its refusal.
    fn failed(self, chat: &Parts, failed: Failed) -> Option<Box<crate::upstream::UpstreamError>> {
        let dispatch = &self.dispatch;
        tracing::debug!(
            request_id = %dispatch.request,
            instance_id = %dispatch.endpoint_name,
            attempt = dispatch.number,
            "attempt failed: {}: {}", failed.failure, failed.detail
        );
        chat.attempt_failed(&dispatch.endpoint_name, &failed);
        let end = AttemptEnd::Failed {
            failure: failed.failure,
            produced: failed.produced,
            retry_after: failed.retry_after,
        };
        self.report(chat, end);
        failed.upstream
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use control::id::{AttemptId, Minted};

    use super::*;

    #[tokio::test]
    async fn an_attempt_that_was_stopped_answers_nobody_though_it_is_ready_in_that_moment() {
        let (plane, mut orders) = mpsc::channel(4);
        let stopped = AttemptId(Minted { incarnation: 1, counter: 18 });
        let mut lanes: [Pin<Box<dyn Future<Output = u32>>>; 2] =
            [Box::pin(pending()), Box::pin(ready(7))];
        plane.try_send(Order::Cancel(stopped)).expect("there is room");
        let mut next = async || poll_fn(|cx| poll_next(&mut orders, lanes.iter_mut(), cx)).await;
        let first = next().await;
        assert!(
            matches!(&first, Next::Order(Some(Order::Cancel(one))) if *one == stopped),
            "{first:?}"
        );
        let second = next().await;
        assert!(matches!(second, Next::Lane(1, 7)), "{second:?}");
        drop(plane);
    }
}

//! From the first token to the last byte: events go to the client as upstream wrote them.
//!
//! Where upstream breaks off, the plane may order another replica to go on. The client then sees one stream: what it has is
//! handed over, what follows is passed on, and a comment in the stream says where the seam is.
//!
//! The pump waits for whichever comes first: the client leaves, the plane orders a stop, the next event. Its channel to
//! the front is short, so a slow client slows upstream down instead of filling memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::outcome::{AttemptEnd, Failure};
use control::plane::{Dispatch, Input, Outcome};
use control::units::{Tokens, Usage};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::attempt::{Begun, Opened, Run};
use super::resume::Delivered;
use super::span::AttemptSpan;
use super::stored::Story;
use super::{Leaving, Parts, Request};
use crate::driver::Order;
use crate::exchange::{Call, End, Part, Resumed, Tally};
use crate::streams::Used;
use crate::upstream::{Event, EventKind, Failed, Secret, Stream};

/// Events between upstream and client. Enough to ride out a scheduling hiccup, few enough to mean backpressure.
const PARTS_MAX: usize = 32;
/// The plane is told of progress every so many tokens ...
const MARK_TOKENS: u64 = 16;
/// ... or after so long, whichever comes first.
const MARK_EVERY: Duration = Duration::from_millis(250);

/// How long a client that does not read may keep its stream's last words waiting.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A process that stops waits so long at most for those who wait for a stream that goes on elsewhere.
const STOPS_WITHIN: Duration = Duration::from_millis(250);

/// Takes over an opened stream; the receiver is the answer's body.
pub(super) fn start(
    request: &mut Request,
    dispatch: &Dispatch,
    (opened, story, kept): (Opened, Story, Option<Arc<str>>),
    tally: Arc<Tally>,
    span: AttemptSpan,
) -> mpsc::Receiver<Part> {
    let (parts, body) = mpsc::channel(PARTS_MAX);
    let clock = request.chat.driver.clock();
    let pump = Pump {
        chat: Arc::clone(&request.chat),
        leaving: request.leaving.hand_over(),
        orders: std::mem::replace(&mut request.orders, mpsc::channel(1).1),
        attempt: dispatch.attempt,
        endpoint: dispatch.endpoint_name.to_string(),
        endpoint_id: dispatch.endpoint,
        number: dispatch.number,
        span,
        parts,
        prompt: request.call.prompt,
        usage_wanted: opened.usage_wanted,
        produced: Tokens::ZERO,
        tally,
        marked: (Tokens::ZERO, Instant::now()),
        usage: None,
        last: None,
        first_token: Some(clock.now().since(request.arrived)),
        call: request.resumable.then(|| request.call.clone()),
        kept: kept
            .map(|id| (id, request.call.behalf.as_ref().and_then(|behalf| behalf.key.clone()))),
        delivered: Delivered::of(opened.stream.origin().filter(|_| request.resumable)),
        story,
    };
    tokio::spawn(pump.run(opened.stream, opened.opening));
    body
}

struct Pump {
    chat: Arc<Parts>,
    leaving: Leaving,
    orders: mpsc::Receiver<Order>,
    attempt: control::id::AttemptId,
    endpoint: String,
    endpoint_id: control::id::EndpointId,
    /// Attempts since the answer began, and before.
    number: u32,
    span: AttemptSpan,
    parts: mpsc::Sender<Part>,
    prompt: Tokens,
    usage_wanted: bool,
    produced: Tokens,
    tally: Arc<Tally>,
    marked: (Tokens, Instant),
    usage: Option<Usage>,
    /// `[DONE]`, held back until the settlement is written.
    last: Option<Event>,
    first_token: Option<Duration>,
    /// What was asked, where another replica may go on with the answer.
    call: Option<Call>,
    /// And what he would have to know.
    delivered: Delivered,
    /// What a stream is called that another of our roles keeps, and the key that may ask for it there.
    kept: Option<(Arc<str>, Option<Secret>)>,
    /// What its session is told.
    story: Story,
}

/// Why the pump stopped.
enum Stop {
    /// Upstream's answer is over.
    Ended,
    /// Upstream broke.
    Broken(Failed),
    /// The plane said stop.
    Cancelled,
    /// The client left.
    Gone,
}

impl Pump {
    async fn run(mut self, stream: Box<Stream>, opening: Vec<Event>) {
        let mut stop = self.deliver(stream, opening).await;
        while let Some(dispatch) = self.after(stop).await {
            stop = self.go_on(&dispatch).await;
        }
    }

    /// Passes a stream on, from its first events to its end.
    async fn deliver(&mut self, mut stream: Box<Stream>, opening: Vec<Event>) -> Stop {
        self.chat.hear_load(self.endpoint_id, &self.endpoint);
        for event in opening {
            if let Some(stop) = self.forward(event).await {
                return stop;
            }
        }
        // Dropping the stream with this call's end stops upstream at once; the accounting comes after.
        self.pump(&mut stream).await
    }

    /// Another replica goes on.
    async fn go_on(&mut self, dispatch: &Dispatch) -> Stop {
        (self.attempt, self.number) = (dispatch.attempt, dispatch.number);
        (self.endpoint, self.endpoint_id) = (dispatch.endpoint_name.to_string(), dispatch.endpoint);
        let lost = || Failed::of(Failure::TooLarge, "what was delivered cannot be handed over");
        let Some((call, resume)) = self.call.as_ref().zip(self.delivered.resume()) else {
            return Stop::Broken(lost());
        };
        let delivered = resume.seq;
        let seam = Resumed { from: delivered, replica: self.endpoint.clone() }.comment();
        self.span = AttemptSpan::new(call, dispatch, &self.chat.catalog.load());
        let trace = self.span.trace().clone();
        let run = Run::new(&self.chat, call, dispatch, &trace).resuming(resume);
        let begun = tokio::select! {
            biased;
            () = self.parts.closed() => return Stop::Gone,
            () = super::cancelled(&mut self.orders, self.attempt) => return Stop::Cancelled,
            begun = run.begin() => begun,
        };
        match begun {
            Ok(Begun::Stream(mut opened)) => {
                tracing::info!(
                    request_id = %dispatch.request,
                    instance_id = self.endpoint,
                    attempt = dispatch.number,
                    "a broken stream goes on"
                );
                self.span.begins(&opened.opening);
                self.span.seam(delivered);
                if self.parts.send(Part::Bytes(seam)).await.is_err() {
                    return Stop::Gone;
                }
                // The answer has begun: whoever goes on does not announce it again.
                opened.opening.retain(|event| event.kind != EventKind::Opening);
                self.deliver(opened.stream, opened.opening).await
            }
            Ok(Begun::Whole(_)) => Stop::Broken(lost()),
            Err(failed) => Stop::Broken(failed),
        }
    }

    async fn pump(&mut self, stream: &mut Stream) -> Stop {
        loop {
            let event = tokio::select! {
                biased;
                () = self.parts.closed() => return Stop::Gone,
                () = super::cancelled(&mut self.orders, self.attempt) => return Stop::Cancelled,
                event = stream.next() => event,
            };
            match event {
                None => return Stop::Ended,
                Some(Err(failed)) => return Stop::Broken(failed),
                Some(Ok(event)) => {
                    if let Some(stop) = self.forward(event).await {
                        return stop;
                    }
                }
            }
        }
    }

    /// Counts an event and passes it on. `Some` where the stream is over with it.
    async fn forward(&mut self, event: Event) -> Option<Stop> {
        self.usage = event.usage.or(self.usage);
        match event.kind {
            EventKind::Done => {
                self.last = Some(event);
                return Some(Stop::Ended);
            }
            // We asked for it in the client's name; a client that did not ask must not see it.
            EventKind::Usage if !self.usage_wanted => return None,
            EventKind::Tokens { count } => {
                self.produced += count;
                self.delivered.add(count, event.piece.as_deref());
                self.tally.set(self.produced);
                self.mark();
            }
            EventKind::Usage | EventKind::Opening | EventKind::Finish | EventKind::Other => {}
        }
        // What has several chunks for one event is passed on with the last.
        if event.raw.is_empty() {
            return None;
        }
        let raw = self.story.pass(event.raw);
        let stop = tokio::select! {
            biased;
            sent = self.parts.send(Part::Bytes(raw.clone())) => sent.is_err().then_some(Stop::Gone),
            // A client that does not read must not outlive its deadline.
            () = super::cancelled(&mut self.orders, self.attempt) => Some(Stop::Cancelled),
        };
        if stop.is_none() {
            self.story.delivered(&raw);
        }
        stop
    }

    fn mark(&mut self) {
        let (tokens, at) = self.marked;
        if self.produced.0 - tokens.0 >= MARK_TOKENS || at.elapsed() >= MARK_EVERY {
            self.marked = (self.produced, Instant::now());
            let (attempt, produced) = (self.attempt, self.produced);
            self.chat.driver.submit(Input::Progress { attempt, produced });
            self.chat.hear_load(self.endpoint_id, &self.endpoint);
        }
    }

    /// Tells the plane how the attempt ended, and does what it makes of that: the answer's last bytes, or another attempt.
    async fn after(&mut self, stop: Stop) -> Option<Box<Dispatch>> {
        let (attempt, produced) = (self.attempt, self.produced);
        let (mut detail, mut error) = (None, None);
        let end = match stop {
            Stop::Gone => {
                self.leave().await;
                return None;
            }
            Stop::Ended => AttemptEnd::Completed {
                usage: self.usage.unwrap_or(Usage { prompt: self.prompt, completion: produced }),
                estimated: self.usage.is_none(),
            },
            Stop::Cancelled => AttemptEnd::Cancelled { produced },
            Stop::Broken(failed) if self.kept.is_some() && failed.is_taken_over() => {
                self.taken_over(failed).await;
                return None;
            }
            Stop::Broken(failed) => {
                self.chat.attempt_failed(&self.endpoint, &failed);
                let Failed { failure, retry_after, detail: said, upstream, .. } = failed;
                detail = Some(said);
                error = upstream.filter(|said| said.verdict.is_some()).map(|said| said.body);
                AttemptEnd::Failed { failure, produced, retry_after }
            }
        };
        self.span.end(&end);
        // While what it said counts this attempt, the plane does.
        self.chat.hear_load(self.endpoint_id, &self.endpoint);
        let may_go_on = detail.is_some() && self.call.is_some();
        self.chat.driver.submit(Input::AttemptEnded { attempt, end });
        loop {
            let order = tokio::select! {
                biased;
                order = self.orders.recv() => order?,
                // Between two replicas nothing is sent, so that nothing else tells that the client has left.
                () = self.parts.closed(), if may_go_on => {
                    self.leave().await;
                    return None;
                }
            };
            match order {
                // A second attempt that was ordered just before the first brought its token, and stopped by it.
                Order::Dispatch(dispatch) if dispatch.hedge => {}
                Order::Dispatch(dispatch) => return Some(dispatch),
                Order::Finish { outcome, position, .. } => {
                    self.say_end(outcome, position, (detail, error)).await;
                    return None;
                }
                Order::Admitted(_) | Order::Cancel(_) | Order::Reject { .. } => {}
            }
        }
    }

    /// The client has left. With the exact count: what was generated is charged, and its session keeps what was delivered.
    async fn leave(&mut self) {
        self.span.left(self.produced);
        let used = self.outlived().await;
        self.leaving.over = true;
        let (caller, attempt) = (self.leaving.caller, self.attempt);
        match used {
            Some(Used { usage, whole: true }) => {
                let end = AttemptEnd::Completed { usage, estimated: false };
                self.chat.driver.submit(Input::AttemptEnded { attempt, end });
            }
            used => {
                let produced = used.map_or(self.produced, |used| used.usage.completion);
                let progress = Input::Progress { attempt, produced };
                self.chat.driver.submit_all([progress, Input::ClientGone { caller }]);
            }
        }
        self.story.leave().await;
    }

    /// What a stream comes to that goes on where it is kept, without this client or with another connection of its: all of it
    /// counts, and once, here where it was admitted. `None` where there is none, or nobody says.
    async fn outlived(&mut self) -> Option<Used> {
        let (id, key) = self.kept.clone()?;
        let stopping = async {
            while !self.chat.health.is_draining() {
                tokio::time::sleep(STOPS_WITHIN).await;
            }
        };
        tokio::select! {
            biased;
            () = super::cancelled(&mut self.orders, self.attempt) => None,
            () = stopping => None,
            used = super::distant::over(&self.chat, &self.endpoint, &id, key) => used,
        }
    }

    /// Its client reads on over another connection. This one is told so at once, and what it was to use is counted at the end.
    async fn taken_over(&mut self, failed: Failed) {
        let usage = Usage { prompt: self.prompt, completion: self.produced };
        let error = failed.upstream.map(|said| said.body);
        let (detail, first_token) = (Some(failed.detail), self.first_token);
        let outcome = Outcome::Broken(failed.failure);
        let end = End { outcome, detail, usage, first_token, resumed: None, error };
        let _ = self.parts.send_timeout(Part::End(end), LAST_WORDS).await;
        self.leave().await;
    }

    /// The last bytes, once the settlement is written.
    async fn say_end(
        &mut self,
        outcome: Outcome,
        position: u64,
        (detail, error): (Option<String>, Option<Bytes>),
    ) {
        self.leaving.over = true;
        let counted = Usage { prompt: self.prompt, completion: self.produced };
        let usage = self.usage.unwrap_or(counted);
        let resumed = (self.number > 1).then(|| (self.endpoint.clone(), self.number));
        let first_token = self.first_token;
        let end = End { outcome, detail, usage, first_token, resumed, error };
        if let Err(why) = self.chat.written(position).await {
            tracing::error!(attempt = %self.attempt, "an answer ends without its record: {why}");
            let _ = self.story.end(false).await;
            let _ = self.parts.send_timeout(Part::Unrecorded(end), LAST_WORDS).await;
            return;
        }
        let completed = matches!(outcome, Outcome::Completed);
        if let Err(error) = self.story.end(completed).await {
            let end = End { error: Some(error), ..end };
            let _ = self.parts.send_timeout(Part::Unrecorded(end), LAST_WORDS).await;
            return;
        }
        if let Some(done) = self.last.take().filter(|_| completed) {
            // A client that has left by now has missed nothing but the end.
            let _ = self.parts.send_timeout(Part::Bytes(done.raw), LAST_WORDS).await;
        }
        let _ = self.parts.send_timeout(Part::End(end), LAST_WORDS).await;
    }
}

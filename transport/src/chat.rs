//! The chat role in process: carries a call from its admission to its last byte.
//!
//! The task of a request owns its upstream connection and does what the plane orders. Until the first token nothing has
//! gone to the client, so a failed attempt is followed by another in silence, and a silent one may have another beside
//! it. From the first token on a second task pumps events to the client, and an end that is not clean is said in the stream.
//!
//! What a client must not see too early waits for the journal: a refusal, the end of a stream and a whole answer for
//! the record that settles them, the first byte for the record of its reservation.

mod attempt;
mod cache;
mod distant;
mod loads;
mod pump;
mod race;
mod resume;
mod span;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use control::id::{AttemptId, CallerToken, RequestId};
use control::outcome::{AttemptEnd, Failure};
use control::plane::{Arrival, Dispatch, Input, Outcome, Refusal};
use tokio::sync::mpsc;

use crate::catalog::SharedCatalog;
use crate::driver::{Driver, Named, Order};
use crate::exchange::{
    Call, Chat, Checks, End, Model, Refused, Reply, ReplyBody, Rest, ResumeCall, SessionAnswer,
    SessionCall, Tally, Why,
};
use crate::front::exposition;
use crate::health::Health;
use crate::sessions::{Sessions, Turn};
use crate::upstream::{Client, Failed, UpstreamError};
use attempt::{Begun, WholeAnswer};
use cache::Answers;
use loads::Loads;
use race::Winner;
use span::AttemptSpan;
use stored::Story;

/// The chat role over a plane in this process.
#[derive(Clone)]
pub struct Local(Arc<Parts>);

/// Everything a request needs on its way.
struct Parts {
    driver: Arc<Driver>,
    upstream: Client,
    catalog: SharedCatalog,
    health: Arc<Health>,
    answers: Answers,
    loads: Loads,
    answer_bytes_max: usize,
    /// Where conversations are kept; not at the edge, where another process does.
    sessions: Option<Arc<Sessions>>,
}

/// How long an answer may wait for its record. A disk that is busy takes less; on one that is full, a client is better
/// told than kept.
const RECORD_WAIT: Duration = Duration::from_secs(5);

impl Parts {
    /// An attempt failed. Of an endpoint that has left since, nothing is kept.
    fn attempt_failed(&self, endpoint: &str, failed: &Failed) {
        if self.catalog.load().route(endpoint).is_some() {
            self.health.attempt_failed(endpoint, failed);
        }
    }

    /// Waits until the record at `position` is written; the error says why it is not.
    async fn written(&self, position: u64) -> Result<(), String> {
        let journal = self.driver.journal();
        match tokio::time::timeout(RECORD_WAIT, journal.wait_written(position)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err(journal.failure().map_or_else(
                || format!("the journal's disk took longer than {} s", RECORD_WAIT.as_secs()),
                |error| error.to_string(),
            )),
        }
    }
}

impl Local {
    /// A chat role over a driven plane. `answer_bytes_max` bounds an answer that does not stream; `sessions` are those it
    /// keeps.
    pub fn new(
        driver: Arc<Driver>,
        upstream: Client,
        catalog: SharedCatalog,
        health: Arc<Health>,
        answer_bytes_max: usize,
        sessions: Option<Arc<Sessions>>,
    ) -> Self {
        let parts = Parts {
            driver,
            upstream,
            catalog,
            health,
            answers: Answers::default(),
            loads: Loads::default(),
            answer_bytes_max,
            sessions,
        };
        Self(Arc::new(parts))
    }

    /// An endpoint was asked about itself, and may have said how busy it is.
    pub(crate) fn load_heard(&self, name: &str) {
        let id = self.0.driver.look(|plane| plane.endpoint_id(name));
        if let Some(id) = id {
            self.0.hear_load(id, name);
        }
    }

    async fn answer(&self, mut call: Call) -> Result<Reply, Refused> {
        let unavailable = |why| Refused { request: None, attempts: 0, why };
        let parts = &self.0;
        stored::expect(parts, &mut call).await.map_err(unavailable)?;
        let resumable = parts.catalog.load().resumes(&call.model) && resume::is_resumable(&call);
        let named = Named { session: call.session_name.clone(), user: call.user_name.clone() };
        let (caller, orders) = parts
            .driver
            .arrive(named, |caller| arrival(caller, &call, resumable))
            .map_err(|error| unavailable(Why::JournalUnavailable(error.0)))?;
        let mut request = Request {
            chat: Arc::clone(parts),
            leaving: Leaving { driver: Arc::clone(&parts.driver), caller, over: false },
            orders,
            call,
            arrived: parts.driver.clock().now(),
            id: None,
            attempts: 0,
            upstream_words: None,
            resumable,
            turn: None,
        };
        request.run().await
    }
}

impl Chat for Local {
    async fn exchange(&self, call: Call) -> Result<Reply, Refused> {
        self.answer(call).await
    }

    async fn sessions(&self, call: SessionCall) -> Result<SessionAnswer, Why> {
        stored::asked(&self.0, call).await
    }

    async fn resume(&self, call: ResumeCall) -> Result<Rest, Why> {
        distant::resumed(&self.0, &call).await
    }

    fn models(&self) -> Vec<Model> {
        self.0.catalog.load().models()
    }

    fn checks(&self) -> Checks {
        self.0.health.checks(&self.0.driver)
    }

    fn metrics(&self) -> String {
        let catalog = self.0.catalog.load();
        let told = catalog
            .routes()
            .filter_map(|(name, route)| Some((name, self.0.upstream.load(&route.target)?)));
        self.0.health.workers_told(told);
        let lied = catalog
            .routes()
            .map(|(name, route)| (name, self.0.upstream.loads_refused(&route.target)));
        self.0.health.workers_lied(lied);
        let health = self.0.health.metrics(&self.0.driver);
        match &self.0.sessions {
            Some(sessions) => exposition::text(sessions.registry(), &health),
            None => health,
        }
    }
}

/// A request under way, until its answer begins.
struct Request {
    chat: Arc<Parts>,
    leaving: Leaving,
    orders: mpsc::Receiver<Order>,
    call: Call,
    arrived: control::Instant,
    id: Option<RequestId>,
    attempts: u32,
    /// Whether another replica may go on with its answer.
    resumable: bool,
    /// How upstream worded its refusal of the request itself.
    upstream_words: Option<Box<UpstreamError>>,
    /// The turn of the stored session, once it has come.
    turn: Option<Turn>,
}

impl Request {
    async fn run(&mut self) -> Result<Reply, Refused> {
        loop {
            match self.orders.recv().await {
                Some(Order::Admitted(id)) => self.id = Some(id),
                Some(Order::Dispatch(mut dispatch)) => {
                    self.attempts = dispatch.number;
                    self.begin_turn(&mut dispatch).await?;
                    if let Some(reply) = self.attempt(dispatch).await? {
                        return Ok(reply);
                    }
                }
                // Between attempts there is nothing to stop.
                Some(Order::Cancel(_)) => {}
                Some(Order::Reject { request, refusal, position }) => {
                    return self.rejected(request, refusal, position).await;
                }
                Some(Order::Finish { .. }) | None => {
                    return Err(self.refused(Why::Plane(Refusal::Lost)));
                }
            }
        }
    }

    /// Makes an attempt. `None` where it failed before anything was sent: the plane's next order says what then.
    async fn attempt(&mut self, dispatch: Box<Dispatch>) -> Result<Option<Reply>, Refused> {
        let chat = Arc::clone(&self.chat);
        let Some(Winner { dispatch, mut span, begun }) = self.race(dispatch).await else {
            return Ok(None);
        };
        match begun {
            Begun::Whole(whole) => {
                chat.hear_load(dispatch.endpoint, &dispatch.endpoint_name);
                self.whole(&dispatch, whole, &mut span).await.map(Some)
            }
            Begun::Stream(mut opened) => {
                // Later than the reservation's record: both are written before the client sees a byte.
                span.begins(&opened.opening);
                self.written(opened.committed_at).await?;
                let session = self.announced(opened.session.take());
                let kept = opened.kept.take();
                let content_type = opened.content_type.clone();
                let tally = Tally::new(self.call.prompt);
                let story = Story::new(self.turn.take(), session.clone());
                let opened = (*opened, story, kept.clone());
                let parts = pump::start(self, &dispatch, opened, Arc::clone(&tally), span);
                let body = ReplyBody::Stream { parts, tally };
                Ok(Some(Reply { session, kept, ..self.reply(&dispatch, content_type, body) }))
            }
        }
    }

    /// All of the answer is here: it is settled, kept and returned.
    async fn whole(
        &mut self,
        dispatch: &Dispatch,
        whole: WholeAnswer,
        span: &mut AttemptSpan,
    ) -> Result<Reply, Refused> {
        let end = AttemptEnd::Completed { usage: whole.usage, estimated: whole.estimated };
        span.whole(&whole.body);
        span.end(&end);
        let attempt = dispatch.attempt;
        self.chat
            .driver
            .submit_all([Input::AttemptAccepted { attempt }, Input::AttemptEnded { attempt, end }]);
        let outcome = self.settled().await?;
        let (bytes, session) = self.end_turn(whole.body, whole.session, &outcome).await?;
        let end = End {
            outcome,
            detail: None,
            usage: whole.usage,
            first_token: None,
            resumed: None,
            error: None,
        };
        let body = ReplyBody::Whole { bytes, end };
        let reply = Reply { session, ..self.reply(dispatch, whole.content_type, body) };
        if self.call.idempotency.is_some() {
            self.chat.answers.insert(&reply);
        }
        Ok(reply)
    }

    /// A whole answer may be sent once its settlement is written.
    async fn settled(&mut self) -> Result<Outcome, Refused> {
        loop {
            match self.orders.recv().await {
                Some(Order::Finish { outcome, position, attempts, .. }) => {
                    self.attempts = attempts;
                    self.leaving.over = true;
                    return self.written(position).await.map(|()| outcome);
                }
                Some(Order::Reject { request, refusal, position }) => {
                    let rejected = self.rejected(request, refusal, position).await;
                    return rejected.map(|_| Outcome::Cancelled);
                }
                Some(Order::Admitted(_) | Order::Dispatch(_) | Order::Cancel(_)) => {}
                None => return Err(self.refused(Why::Plane(Refusal::Lost))),
            }
        }
    }

    /// The plane said no. A repeated idempotency key gets the answer it got before, while that is still at hand.
    async fn rejected(
        &mut self,
        request: RequestId,
        refusal: Refusal,
        position: u64,
    ) -> Result<Reply, Refused> {
        self.id = Some(request);
        self.leaving.over = true;
        self.written(position).await?;
        if let Refusal::IdempotencyDone { by: Some(by) } = &refusal
            && let Some(reply) = self.chat.answers.get(*by)
        {
            return Ok(reply);
        }
        Err(match (refusal, self.upstream_words.take()) {
            (Refusal::Failed { failure: failure @ Failure::ClientError(_), .. }, Some(said)) => {
                self.refused(Why::Upstream { failure, said })
            }
            (refusal, _) => self.refused(Why::Plane(refusal)),
        })
    }

    fn refused(&self, why: Why) -> Refused {
        Refused { request: self.id, attempts: self.attempts, why }
    }

    async fn written(&self, position: u64) -> Result<(), Refused> {
        let written = self.chat.written(position).await;
        written.map_err(|why| self.refused(Why::JournalUnavailable(why)))
    }

    fn reply(&self, dispatch: &Dispatch, content_type: String, body: ReplyBody) -> Reply {
        let catalog = self.chat.catalog.load();
        let route = catalog.route(&dispatch.endpoint_name);
        Reply {
            request: dispatch.request,
            provider: route.map(|route| route.provider.clone()).unwrap_or_default(),
            replica: dispatch.endpoint_name.to_string(),
            attempts: self.attempts,
            content_type,
            body,
            session: None,
            kept: None,
        }
    }
}

/// Tells the plane that the client has gone, unless its request is over.
struct Leaving {
    driver: Arc<Driver>,
    caller: CallerToken,
    over: bool,
}

impl Leaving {
    /// The duty to tell, passed on to the task that carries the request from here.
    fn hand_over(&mut self) -> Self {
        let over = std::mem::replace(&mut self.over, true);
        Self { driver: Arc::clone(&self.driver), caller: self.caller, over }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if !self.over {
            self.driver.submit(Input::ClientGone { caller: self.caller });
        }
    }
}

fn arrival(caller: CallerToken, call: &Call, resumable: bool) -> Arrival {
    Arrival {
        caller,
        model: call.model.as_str().into(),
        principal: call.principal,
        session: call.session,
        idempotency: call.idempotency,
        prompt: call.prompt,
        output_max: call.output_max,
        resumable,
        stream: call.stream,
        patience: call.patience,
    }
}

/// Waits for the plane's order to stop this attempt. Another that lost to it may be stopped as well, and it was ordered too late
/// if it lies here still.
async fn cancelled(orders: &mut mpsc::Receiver<Order>, attempt: AttemptId) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Cancel(stopped) if stopped == attempt) {
            return;
        }
    }
}

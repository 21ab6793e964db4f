//! Where questions to the auth role are asked: one about each key at a time, so many at most, none without a deadline.

use core::error::Error as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::HeaderMap;
use proto::auth::v1::auth_service_client::AuthServiceClient;
use proto::auth::v1::{AuthenticateRequest, AuthenticateResponse, Identity as Said, Verdict};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Status};

use crate::accounts::Accounts;
use crate::auth::book::{Book, Look, Mark};
use crate::config::{Auth, NAME_MAX};
use crate::front::AuthError;
use crate::health::Health;
use crate::keys::{Identity, KeyHash};
use crate::trace::Trace;

/// Questions at once about keys that were never let in. Each is a look into a map and a round trip, so this many are
/// thousands a second already.
const STRANGERS_MAX: usize = 64;
/// And in a second, when they are answered at once. A deployment that starts is not held up by it, an attack is.
const STRANGERS_A_SECOND: f64 = 500.0;
/// A refusal is remembered no longer: somebody may just be adding the key.
const REFUSED_MAX: Duration = Duration::from_secs(2);
/// The longest an answer is used, whatever it says.
const TTL_MAX: Duration = Duration::from_secs(300);
/// A thousand models by long names.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How often the role is asked whether it is there, while it is and while it is not.
const WATCH_EVERY: Duration = Duration::from_secs(5);
const WATCH_EVERY_AWAY: Duration = Duration::from_millis(500);
/// The mark of no key: no text is known to have this hash.
pub(super) const NOBODY: Mark = [0; 32];
/// The part of `/health` that speaks of this.
const PART: &str = "auth";

type Outcome = Result<Arc<Identity>, AuthError>;
pub(super) type Asking = Shared<BoxFuture<'static, Outcome>>;

/// What comes of a key.
pub(super) enum Found {
    Now(Outcome),
    Later(Asking),
}

pub(super) struct Desk {
    client: AuthServiceClient<Channel>,
    /// Its URL, for people.
    at: String,
    timeout: Duration,
    grace: Duration,
    accounts: Arc<Accounts>,
    health: Arc<Health>,
    state: Mutex<State>,
    /// Rung when nobody answers.
    away: Notify,
}

struct State {
    book: Book,
    asking: HashMap<Mark, Asking>,
    strangers: usize,
    /// How many strangers may be asked for now, counted at that moment.
    allowance: (f64, Instant),
    link: Link,
    /// When an answer came last.
    heard: Option<Instant>,
}

/// Whether the role answers.
enum Link {
    Untried,
    Up,
    Down { since: Instant, why: String },
}

/// What the role says of a key.
pub(super) enum Told {
    Known(Said, Duration),
    Refused(AuthError, Duration),
    /// What cannot be said of a key; why not. Who holds one that the role describes so must not be able to make all others
    /// believe that the role is away.
    Impossible(String),
}

impl Desk {
    pub(super) fn new(
        channel: Channel,
        at: String,
        settings: &Auth,
        accounts: Arc<Accounts>,
        health: Arc<Health>,
    ) -> Arc<Self> {
        health.set_able(PART, false);
        let client = client(channel);
        let state = State {
            book: Book::new(settings.grace),
            asking: HashMap::new(),
            strangers: 0,
            allowance: (STRANGERS_A_SECOND, Instant::now()),
            link: Link::Untried,
            heard: None,
        };
        Arc::new(Self {
            client,
            at,
            timeout: settings.timeout,
            grace: settings.grace,
            accounts,
            health,
            state: Mutex::new(state),
            away: Notify::new(),
        })
    }

    /// Whom the key names. While nobody answers, nobody is asked but by the watch.
    pub(super) fn find(self: &Arc<Self>, mark: Mark, trace: &Trace) -> Found {
        let now = Instant::now();
        let mut state = self.state();
        let down = matches!(state.link, Link::Down { .. });
        let (outcome, found) = match state.book.look(&mark, now) {
            Look::Fresh(identity) => ("cached", Found::Now(Ok(identity))),
            Look::Refused(error) => ("refused", Found::Now(Err(error))),
            Look::Stale(identity) if down => ("grace", Found::Now(Ok(identity))),
            Look::Lapsed | Look::Nothing if down => {
                ("away", Found::Now(Err(AuthError::Unknowable)))
            }
            Look::Stale(_) | Look::Lapsed => ("asked", self.ask(&mut state, mark, false, trace)),
            Look::Nothing if state.asking.contains_key(&mark) || state.admits(now) => {
                ("asked", self.ask(&mut state, mark, true, trace))
            }
            Look::Nothing => ("busy", Found::Now(Err(AuthError::Unknowable))),
        };
        drop(state);
        self.health.auth().judged(outcome);
        found
    }

    /// Joins who asks about it already, or asks. Whoever waits may leave: the answer is for all, and the span is of whoever
    /// came first.
    fn ask(
        self: &Arc<Self>,
        state: &mut State,
        mark: Mark,
        stranger: bool,
        trace: &Trace,
    ) -> Found {
        if let Some(asking) = state.asking.get(&mark) {
            return Found::Later(asking.clone());
        }
        state.strangers += usize::from(stranger);
        let (desk, mut span) = (Arc::clone(self), trace.call(|| "auth.authenticate".to_owned()));
        let asking = async move {
            let asked = Instant::now();
            let mut headers = HeaderMap::new();
            span.trace().write(&mut headers);
            let told = desk.call(mark, headers).await;
            if told.is_err() {
                span.fail("auth_unavailable");
            }
            desk.settle(mark, stranger, asked, told)
        };
        let asking = asking.boxed().shared();
        state.asking.insert(mark, asking.clone());
        tokio::spawn(asking.clone());
        Found::Later(asking)
    }

    /// One question, within its deadline.
    async fn call(&self, mark: Mark, headers: HeaderMap) -> Result<Told, String> {
        let told = asked(self.client.clone(), mark, headers, self.timeout).await;
        let outcome = match &told {
            Ok(Told::Known(..)) => "known",
            Ok(Told::Refused(..)) => "unknown",
            Ok(Told::Impossible(_)) | Err(_) => "failed",
        };
        self.health.auth().asked(outcome);
        told
    }

    /// What follows from an answer, or from none. Its time counts from the question: it may have been old when it came.
    fn settle(
        &self,
        mark: Mark,
        stranger: bool,
        asked: Instant,
        told: Result<Told, String>,
    ) -> Outcome {
        let mut state = self.state();
        state.asking.remove(&mark);
        state.strangers -= usize::from(stranger);
        let (outcome, heard) = match told {
            Ok(Told::Known(said, ttl)) => (self.known(&mut state, mark, said, asked + ttl), Ok(())),
            Ok(Told::Refused(error, ttl)) => {
                state.book.refuse(mark, error, asked + ttl.min(REFUSED_MAX));
                (Err(error), Ok(()))
            }
            Ok(Told::Impossible(why)) => {
                tracing::error!(
                    "the auth role at {} answers about a key what cannot be, so that key is refused: {why}",
                    self.at
                );
                state.book.refuse(mark, AuthError::Unknowable, asked + REFUSED_MAX);
                (Err(AuthError::Unknowable), Ok(()))
            }
            Err(why) => match state.book.look(&mark, Instant::now()) {
                Look::Fresh(identity) | Look::Stale(identity) => (Ok(identity), Err(why)),
                Look::Lapsed | Look::Refused(_) | Look::Nothing => {
                    (Err(AuthError::Unknowable), Err(why))
                }
            },
        };
        drop(state);
        self.heard(heard);
        outcome
    }

    /// Somebody is let in, if he is somebody here: a tenant that this role does not know would have no limits.
    fn known(&self, state: &mut State, mark: Mark, said: Said, until: Instant) -> Outcome {
        let Said { tenant, user, key_name, models } = said;
        if !self.accounts.knows_tenant(&tenant) {
            tracing::error!(
                tenant,
                "the auth role knows a tenant that this role's configuration has no limits for: add it under `tenants`"
            );
            let until = until.min(Instant::now() + REFUSED_MAX);
            state.book.refuse(mark, AuthError::Unknowable, until);
            return Err(AuthError::Unknowable);
        }
        let user = Some(user).filter(|user| !user.is_empty());
        let principal = self.accounts.ids().principal(&tenant, user.as_deref(), Some(&key_name));
        let models = models.map(|models| models.names);
        let hash = KeyHash::from(mark);
        let identity = Arc::new(Identity { hash, tenant, user, name: key_name, principal, models });
        state.book.insert(mark, Arc::clone(&identity), until);
        Ok(identity)
    }

    /// The role answered, or did not: known to whoever asks next, to `/health` and, once, to the log.
    fn heard(&self, told: Result<(), String>) {
        let now = Instant::now();
        let mut state = self.state();
        let was_down = matches!(state.link, Link::Down { .. });
        let is_down = told.is_err();
        match told {
            Ok(()) => {
                (state.link, state.heard) = (Link::Up, Some(now));
                if was_down {
                    tracing::info!("the auth role answers again");
                }
            }
            Err(why) => {
                let grace = self.grace;
                if !was_down {
                    tracing::error!(
                        "the auth role at {} does not answer: {why}; keys that are known go on for {grace:?}, others are refused",
                        self.at
                    );
                    self.away.notify_one();
                }
                let since = match state.link {
                    Link::Down { since, .. } => since,
                    Link::Untried | Link::Up => now,
                };
                state.link = Link::Down { since, why };
            }
        }
        // Else nobody can be let in any more, or yet.
        let able = !is_down || state.heard.is_some_and(|heard| now < heard + self.grace);
        let note = match &state.link {
            Link::Down { since, why } => {
                let seconds = now.duration_since(*since).as_secs();
                let text = format!(
                    "{} has not answered for {seconds}s: {why}; only keys that are known are let in, for {:?}",
                    self.at, self.grace
                );
                (false, text)
            }
            Link::Untried | Link::Up => (true, format!("{} answers", self.at)),
        };
        let keys = state.book.known();
        drop(state);
        self.health.auth().hold(keys, is_down);
        self.health.set_able(PART, able);
        self.health.note(PART, Some(note));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether one more stranger may be asked for.
    fn admits(&mut self, now: Instant) -> bool {
        let (left, then) = self.allowance;
        let passed = now.duration_since(then).as_secs_f64();
        let left = (left + passed * STRANGERS_A_SECOND).min(STRANGERS_A_SECOND);
        let admits = left >= 1.0 && self.strangers < STRANGERS_MAX;
        self.allowance = (left - f64::from(u8::from(admits)), now);
        admits
    }
}

/// One question, within its deadline: what the role says of a key, or why it says nothing.
pub(super) async fn asked(
    mut client: AuthServiceClient<Channel>,
    mark: Mark,
    headers: HeaderMap,
    within: Duration,
) -> Result<Told, String> {
    let question = AuthenticateRequest { key_sha256: mark.to_vec() };
    let metadata = MetadataMap::from_headers(headers);
    let mut request = Request::from_parts(metadata, Extensions::default(), question);
    request.set_timeout(within);
    match timeout(within, client.authenticate(request)).await {
        Err(_) => Err(format!("no answer within {within:?}")),
        // Too large to be read: of another version, or a key that may call more models than anybody lists.
        Ok(Err(status)) if status.code() == Code::OutOfRange => {
            Ok(Told::Impossible(words(&status)))
        }
        Ok(Err(status)) => Err(words(&status)),
        Ok(Ok(response)) => read(response.into_inner()),
    }
}

/// Asks over `channel`.
pub(super) fn client(channel: Channel) -> AuthServiceClient<Channel> {
    AuthServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// Asks whether the role is there, until nobody needs it: `/health` is right without traffic, and a role that is back is
/// noticed by the first question of the watch, not by a client's.
pub(super) async fn watch(desk: Weak<Desk>) {
    loop {
        let Some(strong) = desk.upgrade() else { return };
        let told = strong.call(NOBODY, HeaderMap::new()).await;
        let is_down = told.is_err();
        strong.heard(told.map(drop));
        if is_down {
            drop(strong);
            tokio::time::sleep(WATCH_EVERY_AWAY).await;
        } else {
            let _ = timeout(WATCH_EVERY, strong.away.notified()).await;
        }
    }
}

/// An answer that cannot be one is none: it lets nobody in, and shuts nobody out.
fn read(answer: AuthenticateResponse) -> Result<Told, String> {
    let ttl = Duration::from_millis(answer.ttl_ms.into()).min(TTL_MAX);
    let refused = |error| Ok(Told::Refused(error, ttl));
    match (Verdict::try_from(answer.verdict), answer.identity) {
        (Ok(Verdict::Known), Some(said)) => {
            let named = |name: &str| (1..=NAME_MAX).contains(&name.len());
            if !named(&said.tenant) || !named(&said.key_name) || said.user.len() > NAME_MAX {
                let why = "it names somebody who cannot be: no tenant, or too long a name";
                return Ok(Told::Impossible(why.to_owned()));
            }
            Ok(Told::Known(said, ttl))
        }
        (Ok(Verdict::Unknown), _) => refused(AuthError::KeyUnknown),
        (Ok(Verdict::Expired), _) => refused(AuthError::KeyExpired),
        // A later version may know other reasons; none of them lets anybody in.
        (Err(_), _) => refused(AuthError::KeyUnknown),
        (Ok(Verdict::Known | Verdict::Unspecified), _) => {
            Err("it answers with nothing: it is not the auth role, or broken".to_owned())
        }
    }
}

/// Why a question failed, for whoever has to mend it.
fn words(status: &Status) -> String {
    if status.code() == Code::Unimplemented {
        return "it does not know AuthService.Authenticate: it is of an older version, or another server; upgrade it, or \
                correct auth.url"
            .to_owned();
    }
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut source = status.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

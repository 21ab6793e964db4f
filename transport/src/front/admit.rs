//! From an HTTP request to a [`Call`]: who asks, what, of whom, and what keeps it near earlier requests.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use control::id::Digest;
use control::plane::{Idempotency, Session, SessionKind};
use http::StatusCode;
use http::request::Parts;

use super::ask::{self, Ask};
use super::auth::Caller;
use super::error::{self, ApiError};
use super::head::{self, Head};
use super::record::Record;
use super::rpc::Called;
use super::{Shared, body, sessions, unknown};
use crate::exchange::{Behalf, Call, Chat, Model, Operation, Stored};
use crate::redis::scoped_name;
use crate::sessions::Sessions;
use crate::trace::Trace;
use crate::upstream::Secret;

/// Everything that is judged before the plane is asked. What becomes known on the way is noted in `record`, so that
/// a refusal's log line says as much as can be said.
pub(super) async fn admit<C: Chat>(
    shared: &Shared<C>,
    (operation, is_stored): (Operation, bool),
    parts: &Parts,
    content: Body,
    record: &mut Record,
) -> Result<Call, ApiError> {
    let (head, stranger) = match first_look(shared, parts, &record.trace()).await {
        Ok(known) => known,
        Err(error) => {
            body::discard(&parts.headers, content, &shared.limits).await;
            return Err(error);
        }
    };
    record.tenant(&stranger.tenant_name);
    let bytes = body::read(&parts.headers, content, &shared.limits).await?;
    let asked = ask::parse(operation, &bytes)?;
    let caller = match &asked.user_id {
        Some(user) => {
            shared.auth.authenticate(head.bearer.as_deref(), Some(user), &record.trace()).await?
        }
        None => stranger,
    };
    let models = shared.chat.models();
    let model = find(&models, &asked.model, &caller)?;
    record.model(model);
    let name = session_name(&head, &asked)?;
    let stored = match is_stored {
        true => Some(stored(&caller, name.as_deref(), &asked)?),
        false => None,
    };
    // At the edge a session that has no name yet gets one from the chat role.
    let name = match &stored {
        Some(stored) if !shared.edge => Some(stored.id.to_string()),
        Some(_) | None => name,
    };
    let session_name = name.as_deref().map(|name| scoped_name(&caller.tenant_name, name).into());
    let session = session(shared, &caller, name, &asked, is_stored);
    record.session(session);
    let idempotency = match shared.edge {
        false => idempotency(shared, &caller, &head, (parts, stored.as_ref(), &bytes)),
        // Decided where the answers are.
        true => None,
    };
    let behalf = shared.edge.then(|| Box::new(behalf(&head, &asked, is_stored)));
    Ok(Call {
        operation,
        principal: caller.principal,
        session,
        session_name,
        user_name: caller.user_name(),
        idempotency,
        prompt: asked.prompt,
        output_max: asked.output_max,
        stream: asked.stream,
        patience: patience(shared, &head, parts),
        model: asked.model,
        trace: record.trace(),
        behalf,
        stored: stored.map(Box::new),
        body: bytes,
    })
}

/// How long this may take: what its client says, and no longer than this front lets anything take. A gateway's call over gRPC
/// brings what that gateway lets it.
fn patience<C: Chat>(shared: &Shared<C>, head: &Head, parts: &Parts) -> Option<Duration> {
    let is_called = parts.extensions.get::<Called>().is_some();
    let most = shared.limits.exchange_time.filter(|_| !is_called);
    head.patience.into_iter().chain(most).min()
}

/// What can be refused without reading the body.
async fn first_look<C: Chat>(
    shared: &Shared<C>,
    parts: &Parts,
    trace: &Trace,
) -> Result<(Head, Caller), ApiError> {
    let head = Head::read(&parts.headers)?;
    let caller = shared.auth.authenticate(head.bearer.as_deref(), None, trace).await?;
    head::check_content(&parts.headers)?;
    Ok((head, caller))
}

/// The model, where it exists and the caller may use it.
pub(super) fn find<'a>(
    models: &'a [Model],
    name: &str,
    caller: &Caller,
) -> Result<&'a Model, ApiError> {
    match models.iter().find(|model| model.name == name) {
        Some(model) if caller.may_use(name) => Ok(model),
        Some(_) => {
            let words = format!(
                "This API key may not use the model {}. GET /v1/models lists those it may.",
                error::quoted(name)
            );
            Err(error::forbidden("model_not_allowed", words).param("model"))
        }
        None => {
            let known = models.iter().map(|model| &*model.name).filter(|name| caller.may_use(name));
            Err(unknown_model(name, unknown::nearest(name, known)))
        }
    }
}

fn unknown_model(name: &str, near: Option<&str>) -> ApiError {
    let hint = near.map(|near| format!(" Did you mean '{near}'?")).unwrap_or_default();
    let words = format!(
        "Nobody serves the model {}.{hint} GET /v1/models lists the models of this gateway.",
        error::quoted(name)
    );
    error::new(StatusCode::NOT_FOUND, error::INVALID, "model_not_found", words).param("model")
}

/// What the client calls the session, if anything.
fn session_name(head: &Head, asked: &Ask<'_>) -> Result<Option<String>, ApiError> {
    match (&head.session_id, &asked.session_id) {
        (Some(header), Some(body)) if header != body => {
            let words = "The header 'X-Session-Id' and the body's 'session_id' differ. Send one, or both alike.";
            Err(error::invalid("session_conflict", words).param("session_id"))
        }
        (Some(name), _) | (None, Some(name)) => Ok(Some(name.clone())),
        (None, None) => Ok(None),
    }
}

/// The key that keeps requests together: a name where there is one, else a hint from how the conversation opens. Only that
/// of a stored session orders anything.
fn session<C: Chat>(
    shared: &Shared<C>,
    caller: &Caller,
    name: Option<String>,
    asked: &Ask<'_>,
    is_stored: bool,
) -> Option<Session> {
    let (name, kind) = match name {
        // At the edge no turn is ordered.
        Some(name) if is_stored && !shared.edge => (name, SessionKind::Stored),
        Some(name) => (name, SessionKind::Named),
        // A digest is keyed, so nobody can name a session that meets somebody's opening.
        None => {
            let digest = shared.auth.digest(asked.opening?.as_bytes());
            (opening_name(digest), SessionKind::Hint)
        }
    };
    Some(Session { key: shared.auth.session_key(&caller.principal, &name), kind })
}

/// The stored session that a request is a turn of: a new one where it names none.
fn stored(caller: &Caller, name: Option<&str>, asked: &Ask<'_>) -> Result<Stored, ApiError> {
    if asked.choices != 1 {
        let words = "A stored session keeps one answer to each turn. Leave 'n' out, or ask /v1/chat/completions.";
        return Err(error::invalid("invalid_value", words).param("n"));
    }
    let id = match name {
        Some(name) => name.to_owned(),
        None => Sessions::mint().map_err(|error| sessions::refusal(&error))?,
    };
    Ok(Stored { id: id.into(), is_new: name.is_none(), owner: caller.owner() })
}

/// What the chat role needs to judge the request as if it had come there.
fn behalf(head: &Head, asked: &Ask<'_>, stored: bool) -> Behalf {
    Behalf {
        key: head.bearer.as_deref().and_then(|key| Secret::new(key).ok()),
        session: head.session_id.clone().or_else(|| asked.session_id.clone()),
        user: asked.user_id.clone(),
        idempotency_key: head.idempotency_key.clone(),
        stored,
        // What is known only later.
        ..Behalf::default()
    }
}

fn opening_name(digest: Digest) -> String {
    format!("opening {digest:?}")
}

/// The idempotency key with what it was sent for: the same key for another path or body is another request.
///
/// A plain answer is a function of the body, whichever user of a tenant sends it. One of a stored session is not: it says
/// what was said there before. So there the key is its owner's, and the session is part of what was sent, as the client
/// named it; where it named none, every repeat means the one that the first began.
fn idempotency<C: Chat>(
    shared: &Shared<C>,
    caller: &Caller,
    head: &Head,
    (parts, stored, body): (&Parts, Option<&Stored>, &Bytes),
) -> Option<Idempotency> {
    let key = head.idempotency_key.as_ref()?;
    let tenant = caller.principal.tenant.0.to_be_bytes();
    let path = parts.uri.path();
    let (named, sent) = match stored {
        None => (
            [b"idempotency key\0", &tenant[..], key.as_bytes()].concat(),
            [b"idempotent body\0", path.as_bytes(), b"\0", body].concat(),
        ),
        Some(stored) => {
            let session = if stored.is_new { "" } else { &*stored.id };
            // Names may hold any byte: their lengths keep them apart from what follows.
            let (owner, session) = (measured(&stored.owner.user), measured(session));
            (
                [b"idempotency key of an owner\0", &tenant[..], &owner, key.as_bytes()].concat(),
                [b"idempotent turn\0", &session[..], path.as_bytes(), b"\0", body].concat(),
            )
        }
    };
    Some(Idempotency { key: shared.auth.digest(&named), body: shared.auth.digest(&sent) })
}

/// A name behind its length.
fn measured(name: &str) -> Vec<u8> {
    [&(name.len() as u64).to_be_bytes()[..], name.as_bytes()].concat()
}

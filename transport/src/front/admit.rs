//! From an HTTP request to a [`Call`]: who asks, what, of whom, and what keeps it near earlier requests.

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
use super::{Shared, body, unknown};
use crate::exchange::{Behalf, Call, Chat, Model, Operation};
use crate::redis::home_name;
use crate::upstream::Secret;

/// Everything that is judged before the plane is asked. What becomes known on the way is noted in `record`, so that
/// a refusal's log line says as much as can be said.
pub(super) async fn admit<C: Chat>(
    shared: &Shared<C>,
    operation: Operation,
    parts: &Parts,
    content: Body,
    record: &mut Record,
) -> Result<Call, ApiError> {
    let (head, stranger) = match first_look(shared, parts) {
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
        Some(user) => shared.auth.authenticate(head.bearer.as_deref(), Some(user))?,
        None => stranger,
    };
    let models = shared.chat.models();
    let model = find(&models, &asked.model, &caller)?;
    record.model(model);
    let session = session(shared, &caller, &head, &asked)?;
    record.session(session);
    let session_name = head.session_id.as_ref().or(asked.session_id.as_ref());
    let session_name = session_name.map(|name| home_name(&caller.tenant_name, name).into());
    let idempotency = match shared.edge {
        false => idempotency(shared, &caller, &head, parts, &bytes),
        // Decided where the answers are.
        true => None,
    };
    let behalf = shared.edge.then(|| Box::new(behalf(&head, &asked)));
    Ok(Call {
        operation,
        principal: caller.principal,
        session,
        session_name,
        idempotency,
        prompt: asked.prompt,
        output_max: asked.output_max,
        stream: asked.stream,
        patience: head.patience,
        model: asked.model,
        trace: record.trace(),
        behalf,
        body: bytes,
    })
}

/// What can be refused without reading the body.
fn first_look<C: Chat>(shared: &Shared<C>, parts: &Parts) -> Result<(Head, Caller), ApiError> {
    let head = Head::read(&parts.headers)?;
    let caller = shared.auth.authenticate(head.bearer.as_deref(), None)?;
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

/// The key that keeps requests together: a name where the client gives one, else a hint from how the conversation
/// opens. Neither orders or stores anything on these routes.
fn session<C: Chat>(
    shared: &Shared<C>,
    caller: &Caller,
    head: &Head,
    asked: &Ask<'_>,
) -> Result<Option<Session>, ApiError> {
    let name = match (&head.session_id, &asked.session_id) {
        (Some(header), Some(body)) if header != body => {
            let words = "The header 'X-Session-Id' and the body's 'session_id' differ. Send one, or both alike.";
            return Err(error::invalid("session_conflict", words).param("session_id"));
        }
        (Some(name), _) | (None, Some(name)) => Some((name.clone(), SessionKind::Named)),
        // A digest is keyed, so nobody can name a session that meets somebody's opening.
        (None, None) => asked.opening.map(|text| {
            let digest = shared.auth.digest(text.as_bytes());
            (opening_name(digest), SessionKind::Hint)
        }),
    };
    Ok(name.map(|(name, kind)| Session {
        key: shared.auth.session_key(&caller.principal, &name),
        kind,
    }))
}

/// What the chat role needs to judge the request as if it had come there.
fn behalf(head: &Head, asked: &Ask<'_>) -> Behalf {
    Behalf {
        key: head.bearer.as_deref().and_then(|key| Secret::new(key).ok()),
        session: head.session_id.clone().or_else(|| asked.session_id.clone()),
        user: asked.user_id.clone(),
        idempotency_key: head.idempotency_key.clone(),
    }
}

fn opening_name(digest: Digest) -> String {
    format!("opening {digest:?}")
}

/// The idempotency key with what it was sent for: the same key for another path or body is another request.
fn idempotency<C: Chat>(
    shared: &Shared<C>,
    caller: &Caller,
    head: &Head,
    parts: &Parts,
    body: &Bytes,
) -> Option<Idempotency> {
    let key = head.idempotency_key.as_ref()?;
    let tenant = caller.principal.tenant.0.to_be_bytes();
    let named = [b"idempotency key\0", &tenant[..], key.as_bytes()].concat();
    let sent = [b"idempotent body\0", parts.uri.path().as_bytes(), b"\0", body].concat();
    Some(Idempotency { key: shared.auth.digest(&named), body: shared.auth.digest(&sent) })
}

//! Sessions in Redis: what [`SessionLog`] carries, as records.

use std::sync::Arc;

use super::record::{Entry, Head, HistoryLine, Owner, Totals};
use super::{HISTORY_MAX, SessionError};
use crate::redis::{SessionLog, StoreError};

/// The store that gateways share. Ids are scoped: those of tenants never meet.
#[derive(Clone)]
pub(super) struct Shared(pub Arc<SessionLog>);

const FIELDS: [&str; 7] = [
    "tenant",
    "user_id",
    "created",
    "last_activity",
    "cleared_messages",
    "cleared_tokens",
    "cleared_bytes",
];

/// Lines that are looked at: ours are 40, and somebody else's may stand among them.
const LINES_MAX: usize = 8 * HISTORY_MAX;

/// Of a full list so many are looked at, the longest unused, for places that no session has.
const LOOKED_AT: u64 = 64;

/// A session that is not there so long after it was listed is not being made.
const GHOST_AFTER_MS: u64 = 60_000;

impl Shared {
    pub async fn head(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<Option<(Head, Totals)>, SessionError> {
        let id = owner.scoped(id);
        let (fields, last) = tokio::join!(self.0.fields(&id, FIELDS), self.0.messages(&id, -1, -1));
        let Some(fields) = fields? else { return Ok(None) };
        let last = last?.pop().map(|text| parsed::<Entry>(&text)).transpose()?;
        Ok(Some((head(fields)?, last.map_or(Totals::default(), |entry| entry.totals))))
    }

    pub async fn create(&self, id: &str, head: &Head, most: u64) -> Result<(), SessionError> {
        let owner = Owner { tenant: head.tenant.as_str().into(), user: head.user.as_str().into() };
        let scoped = owner.scoped(id);
        let values = [
            head.tenant.clone(),
            head.user.clone(),
            head.created.to_string(),
            head.active.to_string(),
            head.cleared.messages.to_string(),
            head.cleared.tokens.to_string(),
            head.cleared.bytes.to_string(),
        ];
        let mut fields = vec![("id", id.to_owned())];
        fields.extend(FIELDS.into_iter().zip(values));
        // The place first: two that begin at once do not both get the last.
        let user = owner.scoped(&owner.user);
        while !self.0.enlist_new(&user, id, head.active, most).await? {
            let (oldest, _) =
                self.0.listed(&user, most.saturating_sub(LOOKED_AT), LOOKED_AT).await?;
            if self.unlist_ghosts(&owner, oldest, head.active).await? == 0 {
                return Err(SessionError::TooMany(most));
            }
        }
        Ok(self.0.create(&scoped, &fields).await?)
    }

    /// Of listed ids those that are no session lose their places: a process that died after it had listed one, and before it made
    /// it, leaves such. Others are making theirs just now, so only what was listed a minute ago goes. Returns how many went.
    pub async fn unlist_ghosts(
        &self,
        owner: &Owner,
        listed: Vec<String>,
        now: u64,
    ) -> Result<u64, SessionError> {
        let mut ghosts = Vec::new();
        for id in listed {
            if self.0.fields(&owner.scoped(&id), FIELDS).await?.is_none() {
                ghosts.push(id);
            }
        }
        if ghosts.is_empty() {
            return Ok(0);
        }
        let before = now.saturating_sub(GHOST_AFTER_MS);
        Ok(self.0.unlist(&owner.scoped(&owner.user), &ghosts, before).await?)
    }

    /// All of a turn, behind the `before` messages that it was numbered for. Where others came first nothing is written:
    /// returned are the figures to number it from. What is not there in the end is the list of its owner's last sessions
    /// and lines, at worst: those are views.
    pub async fn append(
        &self,
        owner: &Owner,
        id: &str,
        (active, before): (u64, u64),
        entries: &[Entry],
        lines: &[HistoryLine],
    ) -> Result<Option<Totals>, SessionError> {
        let (scoped, user) = (owner.scoped(id), owner.scoped(&owner.user));
        let texts: Vec<String> = entries.iter().map(written).collect::<Result<_, _>>()?;
        let there = self.0.set(&scoped, &[("last_activity", active.to_string())]).await?;
        if !there {
            return Err(SessionError::NotFound);
        }
        if let Some(count) = self.0.append(&scoped, before, &texts).await? {
            let last = count.checked_sub(1).and_then(|last| i64::try_from(last).ok());
            let Some(last) = last else { return Ok(Some(Totals::default())) };
            let newest = self.0.messages(&scoped, last, last).await?.pop();
            let newest = newest.map(|text| parsed::<Entry>(&text)).transpose()?;
            let totals = newest.map_or(Totals::default(), |entry| entry.totals);
            // The list itself is the count.
            return Ok(Some(Totals { messages: count, ..totals }));
        }
        let lines: Vec<String> = lines.iter().map(written).collect::<Result<_, _>>()?;
        let views = async {
            self.0.enlist(&user, id, active).await?;
            match lines.is_empty() {
                true => Ok(()),
                false => self.0.remember(&user, &lines, HISTORY_MAX).await,
            }
        };
        if let Err(error) = views.await {
            tracing::warn!("a turn is stored, and missing in a list: {error}");
        }
        Ok(None)
    }

    pub async fn page(
        &self,
        owner: &Owner,
        id: &str,
        from: u64,
        count: u64,
    ) -> Result<Vec<Entry>, SessionError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let place = |place: u64| i64::try_from(place).unwrap_or(i64::MAX);
        let last = from.saturating_add(count - 1);
        let texts = self.0.messages(&owner.scoped(id), place(from), place(last)).await?;
        texts.iter().map(|text| parsed(text)).collect()
    }

    pub async fn clear(&self, owner: &Owner, id: &str, mark: Totals) -> Result<(), SessionError> {
        let fields = [
            ("cleared_messages", mark.messages.to_string()),
            ("cleared_tokens", mark.tokens.to_string()),
            ("cleared_bytes", mark.bytes.to_string()),
        ];
        let there = self.0.set(&owner.scoped(id), &fields).await?;
        if there { Ok(()) } else { Err(SessionError::NotFound) }
    }

    pub async fn purge(&self, owner: &Owner, id: &str) -> Result<(), SessionError> {
        let user = owner.scoped(&owner.user);
        for line in self.0.remembered(&user, LINES_MAX).await? {
            // A line that no gateway wrote is of no session.
            if parsed::<HistoryLine>(&line).is_ok_and(|line| line.session == id) {
                self.0.forget(&user, &line).await?;
            }
        }
        // The list holds plain ids, the other keys scoped ones.
        Ok(self.0.purge(&user, id, &owner.scoped(id)).await?)
    }

    pub async fn list(
        &self,
        owner: &Owner,
        before: u64,
        count: u64,
    ) -> Result<(Vec<String>, u64), SessionError> {
        Ok(self.0.listed(&owner.scoped(&owner.user), before, count).await?)
    }

    pub async fn history(&self, owner: &Owner) -> Result<Vec<HistoryLine>, SessionError> {
        let user = owner.scoped(&owner.user);
        let texts = self.0.remembered(&user, LINES_MAX).await?;
        // Others may write there too; what is not a line is not shown.
        let lines = texts.iter().filter_map(|text| parsed(text).ok());
        let mut lines: Vec<HistoryLine> = lines.take(HISTORY_MAX).collect();
        lines.reverse();
        Ok(lines)
    }
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

fn head(fields: [String; 7]) -> Result<Head, SessionError> {
    let [tenant, user, created, active, messages, tokens, bytes] = fields;
    let number = |text: &str| text.parse::<u64>().map_err(|_| foreign());
    Ok(Head {
        tenant,
        user,
        created: number(&created)?,
        active: number(&active)?,
        cleared: Totals {
            messages: number(&messages)?,
            tokens: number(&tokens)?,
            bytes: number(&bytes)?,
        },
    })
}

/// Never what stood there: that may be somebody's message.
fn foreign() -> SessionError {
    SessionError::Store("a key of sessions holds what no gateway wrote".to_owned())
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, SessionError> {
    serde_json::from_str(text).map_err(|_| foreign())
}

fn written(value: &impl serde::Serialize) -> Result<String, SessionError> {
    let refused = |_| SessionError::Store("a record cannot be written".to_owned());
    serde_json::to_string(value).map_err(refused)
}

//! What can go wrong between an owner and the shared ledger.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why an ask has no answer. None of these is an answer: after each but the refusals before sending
/// ([`TooLarge`](Self::TooLarge), [`Unrepresentable`](Self::Unrepresentable), [`Busy`](Self::Busy),
/// [`Away`](Self::Away)) the ask *may have been performed*, and is to be sent again with the same ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A number that Redis' Lua cannot hold exactly. Never sent.
    #[error("{0} of {1} is more than a shared ledger can count (2^53): make it smaller")]
    TooLarge(&'static str, u64),
    /// An ask that makes no sense to the scripts. Never sent.
    #[error("the shared ledger cannot be asked this: {0}")]
    Unrepresentable(&'static str),
    /// As many asks are on their way as may be. Never sent.
    #[error("{0} asks are on their way to Redis already: it is slower than what is asked of it")]
    Busy(usize),
    /// No connection, and none can be made just now. Never sent.
    #[error("Redis cannot be reached: {0}")]
    Away(String),
    /// No answer in time. Unknown whether it was performed.
    #[error("Redis did not answer within {0} ms; the ask may have been performed")]
    Unanswered(u128),
    /// The connection broke. Unknown whether it was performed.
    #[error("the connection to Redis broke; the ask may have been performed: {0}")]
    Broken(String),
    /// The server is no primary, is loading its data, or the cluster has nobody for this slot: somebody else will be.
    #[error("Redis does not serve writes just now: {0}")]
    NotServing(String),
    /// Its memory is full.
    #[error("Redis has no memory left: raise maxmemory, or look for what fills it ({0})")]
    Full(String),
    /// The user may not do what the ledger must.
    #[error(
        "Redis refuses its user: it needs EVAL, EVALSHA, INFO, TIME and all data commands on the \
         keys pointsman:*, token:*, stream:chat:*, chat:req:meta:*, chat:idempotent:*, *session* and history:* ({0})"
    )]
    Forbidden(String),
    /// Something under our keys is not ours.
    #[error("keys of Pointsman's hold something else: give it a database of its own ({0})")]
    Foreign(String),
    /// Any other refusal, or an answer that is none of ours.
    #[error("Redis answered what no script of ours says: {0}")]
    Garbled(String),
}

impl StoreError {
    /// Whether whoever asks next would hear the same: nobody need wait for an answer.
    pub(crate) fn is_for_all(&self) -> bool {
        match self {
            Self::Away(_)
            | Self::Unanswered(_)
            | Self::Broken(_)
            | Self::NotServing(_)
            | Self::Full(_)
            | Self::Forbidden(_) => true,
            Self::TooLarge(..)
            | Self::Unrepresentable(_)
            | Self::Busy(_)
            | Self::Foreign(_)
            | Self::Garbled(_) => false,
        }
    }

    /// What an error of the client library means here.
    pub(super) fn of(error: &RedisError) -> Self {
        let text = error.to_string();
        if error.is_timeout() || error.is_io_error() || error.is_connection_dropped() {
            return Self::Broken(text);
        }
        if text.contains("OOM ") || error.code() == Some("OOM") {
            return Self::Full(text);
        }
        if text.contains("WRONGTYPE") || text.contains("FOREIGN") {
            return Self::Foreign(text);
        }
        if text.contains("READONLY") {
            return Self::NotServing(text);
        }
        let kind = error.kind();
        let away = matches!(
            kind,
            ErrorKind::ClusterConnectionNotFound
                | ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                        | ServerErrorKind::Moved
                        | ServerErrorKind::Ask
                        | ServerErrorKind::TryAgain
                        | ServerErrorKind::ClusterDown
                        | ServerErrorKind::MasterDown
                        | ServerErrorKind::ReadOnly
                )
        );
        let forbidden =
            [ErrorKind::AuthenticationFailed, ErrorKind::Server(ServerErrorKind::NoPerm)];
        if away {
            Self::NotServing(text)
        } else if forbidden.contains(&kind) {
            Self::Forbidden(text)
        } else {
            Self::Garbled(text)
        }
    }

    /// Its name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TooLarge(..) => "too_large",
            Self::Unrepresentable(_) => "unrepresentable",
            Self::Busy(_) => "busy",
            Self::Away(_) => "away",
            Self::Unanswered(_) => "unanswered",
            Self::Broken(_) => "broken",
            Self::NotServing(_) => "not_serving",
            Self::Full(_) => "full",
            Self::Forbidden(_) => "forbidden",
            Self::Foreign(_) => "foreign",
            Self::Garbled(_) => "garbled",
        }
    }

    /// True where another connection may do better: the one that told it is given up.
    pub(super) const fn wants_new_link(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::NotServing(_))
    }
}

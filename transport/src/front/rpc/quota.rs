//! `QuotaService`: the ledger for services beside the gateway. Who asks is judged by the same keys as everywhere; what a
//! call means is in the `.proto`, and [`Till`] does it.

use core::time::Duration;
use std::sync::Arc;

use control::id::Principal;
use control::quota::{Cap, DenyReason, Unit, WindowKind};
use control::units::{Amount, MicroUsd, Tokens};
use proto::quota::v1::quota_service_server::QuotaService;
use proto::quota::v1::{
    Amount as Said, Balance, ExtendRequest, ExtendResponse, GetBalancesRequest,
    GetBalancesResponse, RefundRequest, RefundResponse, ReserveRequest, ReserveResponse,
    SettleRequest, SettleResponse,
};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::status::{self, RETRY_AFTER_MS};
use super::{head, passed};
use crate::front::Authenticate;
use crate::till::{NAME_BYTES_MAX, Refused, Standing, Till};
use crate::trace::Trace;

/// How long a reservation lives without a word, where nothing is said: as long as a request's.
const TTL: Duration = Duration::from_secs(300);
/// What may be said.
const TTLS: core::ops::RangeInclusive<u64> = 1_000..=86_400_000;

/// Answers services.
pub(super) struct Counter {
    pub auth: Arc<dyn Authenticate>,
    pub till: Arc<Till>,
}

impl Counter {
    /// Whose accounts are meant.
    async fn caller(&self, metadata: &MetadataMap, user: &str) -> Result<Principal, Status> {
        if user.len() > NAME_BYTES_MAX {
            return Err(Status::invalid_argument("user_id must have at most 256 bytes"));
        }
        let bearer = head::bearer(&passed(metadata)).map_err(|why| status::of_error(&why))?;
        let user = Some(user).filter(|user| !user.is_empty());
        let caller = self.auth.authenticate(bearer.as_deref(), user, &Trace::default()).await;
        caller.map(|caller| caller.principal).map_err(|why| status::of_error(&why.into()))
    }
}

#[tonic::async_trait]
impl QuotaService for Counter {
    async fn reserve(
        &self,
        request: Request<ReserveRequest>,
    ) -> Result<Response<ReserveResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.caller(&metadata, &asked.user_id).await?;
        let ttl = match asked.ttl_ms {
            0 => TTL,
            millis if TTLS.contains(&millis) => Duration::from_millis(millis),
            _ => return Err(Status::invalid_argument("ttl_ms must be 1,000 to 86,400,000, or 0")),
        };
        let amount = amount(asked.amount, "amount")?;
        let held = self.till.reserve(&who, &asked.reservation_id, amount, ttl).await;
        let held = Some(said(held.map_err(|why| refusal(&who, why))?));
        Ok(Response::new(ReserveResponse { held }))
    }

    async fn extend(
        &self,
        request: Request<ExtendRequest>,
    ) -> Result<Response<ExtendResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.caller(&metadata, "").await?;
        let total = amount(asked.total, "total")?;
        let held = self.till.extend(&who, &asked.reservation_id, total).await;
        let held = Some(said(held.map_err(|why| refusal(&who, why))?));
        Ok(Response::new(ExtendResponse { held }))
    }

    async fn settle(
        &self,
        request: Request<SettleRequest>,
    ) -> Result<Response<SettleResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.caller(&metadata, &asked.user_id).await?;
        let used = (amount(asked.used, "used")?, asked.estimated);
        let settled = self.till.settle(&who, &asked.reservation_id, used).await;
        settled.map_err(|why| refusal(&who, why))?;
        Ok(Response::new(SettleResponse {}))
    }

    async fn refund(
        &self,
        request: Request<RefundRequest>,
    ) -> Result<Response<RefundResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.caller(&metadata, "").await?;
        let refunded = self.till.refund(&who, &asked.reservation_id).await;
        refunded.map_err(|why| refusal(&who, why))?;
        Ok(Response::new(RefundResponse {}))
    }

    async fn get_balances(
        &self,
        request: Request<GetBalancesRequest>,
    ) -> Result<Response<GetBalancesResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.caller(&metadata, &asked.user_id).await?;
        let found = self.till.balances(&who).await.map_err(|why| refusal(&who, why))?;
        let balances = found.iter().filter_map(|one| balance(&who, one)).collect();
        Ok(Response::new(GetBalancesResponse { balances }))
    }
}

fn amount(said: Option<Said>, field: &str) -> Result<Amount, Status> {
    let missing = || Status::invalid_argument(format!("{field} is missing: say how much"));
    let Said { tokens, micro_usd } = said.ok_or_else(missing)?;
    Ok(Amount { tokens: Tokens(tokens), money: MicroUsd(micro_usd) })
}

fn said(amount: Amount) -> Said {
    Said { tokens: amount.tokens.0, micro_usd: amount.money.0 }
}

/// The account's part in who asks: no ids leave.
fn level(who: &Principal, account: control::id::AccountId) -> &'static str {
    if who.key == Some(account) {
        "key"
    } else if who.user == Some(account) {
        "user"
    } else {
        "tenant"
    }
}

fn window(kind: WindowKind) -> &'static str {
    match kind {
        WindowKind::Day => "day",
        WindowKind::Month => "month",
        WindowKind::Rolling => "rolling",
    }
}

/// Nothing where nothing moved and no limit stands. A rolling window is many slices, of which none is a balance by itself.
fn balance(who: &Principal, standing: &Standing) -> Option<Balance> {
    let Standing { key, sums, limits } = standing;
    let kind = key.window.kind();
    let cap = match kind {
        WindowKind::Day => limits.day,
        WindowKind::Month => limits.month,
        WindowKind::Rolling => return None,
    };
    let idle = sums.spent == Amount::default() && sums.outstanding == Amount::default();
    if idle && cap == Cap::default() {
        return None;
    }
    Some(Balance {
        account: level(who, key.account).to_owned(),
        window: window(kind).to_owned(),
        spent: Some(said(sums.spent)),
        held: Some(said(sums.outstanding)),
        tokens_max: cap.tokens.map(|most| most.0),
        micro_usd_max: cap.money.map(|most| most.0),
    })
}

fn refusal(who: &Principal, why: Refused) -> Status {
    let denied = match why {
        Refused::Invalid(words) => return Status::invalid_argument(words),
        Refused::Away(_) => return Status::unavailable(why.to_string()),
        Refused::Denied(denied) => denied,
    };
    let mut status = match denied.reason {
        DenyReason::Spent { account, window: kind, unit, remaining } => {
            let left = match unit {
                Unit::Tokens => format!("{} tokens", remaining.tokens.0),
                Unit::Money => format!("{} micro-USD", remaining.money.0),
            };
            let (whose, span) = (level(who, account), window(kind));
            let words = format!("insufficient_quota: the {whose}'s limit ({span}) has {left} left");
            Status::resource_exhausted(words)
        }
        DenyReason::Full => Status::resource_exhausted(
            "the ledger holds as many reservations as it may: settle or refund some",
        ),
        DenyReason::TooLarge => {
            return Status::invalid_argument("an amount has at most 2^36 of each unit");
        }
        DenyReason::Ended => {
            return Status::failed_precondition(
                "this reservation is not known any more, or has ended: take another id",
            );
        }
        DenyReason::StoreUnreachable => {
            Status::new(Code::Unavailable, "the ledger does not answer")
        }
    };
    let millis = u64::try_from(denied.retry_after.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert(RETRY_AFTER_MS, millis.into());
    status
}

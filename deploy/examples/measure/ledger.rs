//! What the shared ledger costs at its Redis, beside the cheapest write that Redis knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{Ask, Cap, Draw, HoldId, LedgerConfig, Limits, OpId, OwnerId, Reply, StoreOp};
use control::units::{Amount, MicroUsd, Tokens};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use transport::redis::{Settings, Store};

use crate::line::quantile;
use crate::program::Program;
use crate::{Result, TURN, TURNS};

/// Asks on their way at once, over so many tenants. A hot tenant's asks wait for each other's call and leave together; those of
/// many tenants each leave alone.
const AT_ONCE: [(usize, u64); 4] = [(1, 1), (16, 1), (64, 1), (64, 16)];
/// Of a request's path: the key, its user, its tenant.
const ACCOUNTS: u64 = 3;
/// The first tenant.
const TENANT: u64 = 0xa11ce;

/// Reservations and settlements a second against `INCRBY`s, in turns, over the same kind of client: one connection that
/// many share.
pub async fn ledger() -> Result<()> {
    let redis = Program::redis().await?;
    let settings =
        Settings { addresses: vec![("127.0.0.1".to_owned(), redis.port)], ..Settings::default() };
    let store = Arc::new(Store::new(settings, LedgerConfig::default(), 7)?);
    let plain = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port))?
        .get_multiplexed_async_connection()
        .await?;
    let ids = Arc::new(AtomicU64::new(0));
    for (at_once, tenants) in AT_ONCE {
        let (mut asks, mut counts) = (Vec::new(), Vec::new());
        let (mut for_asks, mut for_counts) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..=TURNS {
            let before = redis.cpu()?;
            let asked = in_turn(at_once, |nth| {
                let tenant = AccountId(TENANT + nth as u64 % tenants);
                asking(Arc::clone(&store), Arc::clone(&ids), tenant)
            });
            let asked = asked.await?;
            let between = redis.cpu()?;
            let counted = in_turn(at_once, |_| counting(plain.clone())).await?;
            // The first turn warms up.
            if turn > 0 {
                for_asks += (between - before).div_f64(asked);
                for_counts += (redis.cpu()? - between).div_f64(counted);
                asks.push(asked / TURN.as_secs_f64());
                counts.push(counted / TURN.as_secs_f64());
            }
        }
        let ratios: Vec<f64> = asks.iter().zip(&counts).map(|(a, b)| a / b).collect();
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / TURNS as f64;
        println!(
            "{at_once} at once over {tenants} tenants: {:.0} operations of the ledger a second, {:.0} INCRBY: ratio {:.2} (from {:.2} to {:.2}); \
             CPU of Redis {:.0} us and {:.0} us each",
            quantile(&asks, 0.5),
            quantile(&counts, 0.5),
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.0),
            quantile(&ratios, 1.0),
            each(for_asks),
            each(for_counts),
        );
    }
    Ok(())
}

/// How often it was done in a turn by so many at once.
async fn in_turn<F: Future<Output = Result<u64>> + Send + 'static>(
    at_once: usize,
    one: impl Fn(usize) -> F,
) -> Result<f64> {
    let mut all = JoinSet::new();
    for nth in 0..at_once {
        all.spawn(one(nth));
    }
    let mut sum = 0;
    while let Some(done) = all.join_next().await {
        sum += done??;
    }
    Ok(sum as f64)
}

async fn counting(mut connection: MultiplexedConnection) -> Result<u64> {
    let (until, mut count) = (Instant::now() + TURN, 0);
    while Instant::now() < until {
        let _: i64 =
            redis::cmd("INCRBY").arg("counter").arg(3).query_async(&mut connection).await?;
        count += 1;
    }
    Ok(count)
}

async fn asking(store: Arc<Store>, ids: Arc<AtomicU64>, tenant: AccountId) -> Result<u64> {
    let tokens = |count| Amount { tokens: Tokens(count), money: MicroUsd::ZERO };
    let day = Cap { tokens: Some(Tokens(1 << 40)), money: None };
    let accounts: Vec<_> =
        (1..=ACCOUNTS).map(|id| (AccountId(id), Limits { day, ..Limits::default() })).collect();
    let (until, mut count) = (Instant::now() + TURN, 0);
    while Instant::now() < until {
        let id = ids.fetch_add(1, Ordering::Relaxed);
        let hold =
            HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter: id }));
        let op =
            |ask| StoreOp { op: OpId(id), owner: OwnerId(1), run: None, tenant: Some(tenant), ask };
        let ttl = Duration::from_secs(60);
        let draw = Draw { hold, accounts: accounts.clone(), amount: tokens(300), ttl };
        let answer = store.perform(&op(Ask::Reserve(draw))).await?;
        let Reply::Granted { pins, .. } = answer.reply else {
            return Err(format!("not granted: {:?}", answer.reply).into());
        };
        let (actual, confirmed) = (tokens(200), Some(answer.run));
        let settled = Ask::Settle { hold, pins, actual, estimated: false, confirmed };
        store.perform(&op(settled)).await?;
        count += 2;
    }
    Ok(count)
}

//! Services beside the gateway, which charge its ledger over gRPC: on an embedded one and on a shared one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control::id::Principal;
use control::quota::{DenyReason, LedgerConfig};
use control::units::{Amount as Held, MicroUsd, Tokens};
use proto::chat::v1::ListModelsRequest;
use proto::chat::v1::chat_service_client::ChatServiceClient;
use proto::quota::v1::quota_service_client::QuotaServiceClient;
use proto::quota::v1::{
    Amount, Balance, ExtendRequest, GetBalancesRequest, RefundRequest, ReserveRequest,
    SettleRequest,
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use transport::config::Role;
use transport::keys::generate;
use transport::redis::{Settings, Store};
use transport::till::{Refused, Till};

use crate::server;
use crate::world::{LONG, Worker, World};

/// A chat role of two tenants that may use 1,000 tokens a day each; ann is a user of the first.
struct Shop {
    world: World,
    keys: [String; 2],
    _worker: Worker,
}

impl Shop {
    async fn open() -> Self {
        let worker = Worker::echo(Duration::ZERO);
        let made = [generate().unwrap(), generate().unwrap()];
        let entries = [("one", 0), ("two", 1)].map(|(tenant, nth)| {
            format!("{{name: k{nth}, hash: '{}', tenant: {tenant}}}", made[nth].1)
        });
        let text = format!(
            "server: {{grpc: {{addr: '127.0.0.1:0'}}, quota: {{addr: '127.0.0.1:0'}}}}\n\
             models: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}\n\
             tenants: {{one: {{daily_tokens: 1000}}, two: {{daily_tokens: 1000}}}}\n\
             keys: [{}]",
            worker.url(),
            entries.join(", ")
        );
        let world = World::playing(Role::Chat, &text).await;
        let keys = made.map(|(key, _)| key.expose().to_owned());
        Self { world, keys, _worker: worker }
    }

    async fn client(&self) -> QuotaServiceClient<Channel> {
        QuotaServiceClient::new(channel(self.world.rpc).await)
    }

    fn signed<T>(&self, nth: usize, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let key = format!("Bearer {}", self.keys[nth]).parse().unwrap();
        request.metadata_mut().insert("authorization", key);
        request
    }

    async fn reserve(&self, nth: usize, id: &str, tokens: u64) -> Result<u64, Status> {
        let asked = self.signed(nth, reservation(id, tokens));
        let answer = self.client().await.reserve(asked).await?.into_inner();
        Ok(answer.held.unwrap().tokens)
    }

    async fn settle(&self, nth: usize, id: &str, tokens: u64) -> Result<(), Status> {
        let reservation_id = id.to_owned();
        let used = Some(Amount { tokens, micro_usd: 0 });
        let asked = SettleRequest { reservation_id, used, ..SettleRequest::default() };
        self.client().await.settle(self.signed(nth, asked)).await.map(drop)
    }

    /// Of the tenant's day: spent, set aside, and the limit.
    async fn today(&self, nth: usize) -> (u64, u64, Option<u64>) {
        let asked = self.signed(nth, GetBalancesRequest::default());
        let answer = self.client().await.get_balances(asked).await.unwrap().into_inner();
        let day = |one: &&Balance| one.account == "tenant" && one.window == "day";
        let day = answer.balances.iter().find(day).unwrap();
        (day.spent.unwrap().tokens, day.held.unwrap().tokens, day.tokens_max)
    }
}

async fn channel(addr: Option<SocketAddr>) -> Channel {
    let url = format!("http://{}", addr.unwrap());
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn is_ended(answer: &Result<(), Refused>) -> bool {
    matches!(answer, Err(Refused::Denied(denied)) if denied.reason == DenyReason::Ended)
}

fn tokens_of(count: u64) -> Held {
    Held { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn reservation(id: &str, tokens: u64) -> ReserveRequest {
    let amount = Some(Amount { tokens, micro_usd: 0 });
    ReserveRequest { reservation_id: id.to_owned(), amount, ..ReserveRequest::default() }
}

#[tokio::test]
async fn a_service_spends_what_the_gateways_requests_spend_and_it_survives_a_restart() {
    let shop = Shop::open().await;
    assert_eq!(shop.reserve(0, "a", 300).await.unwrap(), 300);
    assert_eq!(shop.reserve(0, "a", 300).await.unwrap(), 300, "the same again");
    let total = Some(Amount { tokens: 500, micro_usd: 0 });
    let extend = ExtendRequest { reservation_id: "a".to_owned(), total };
    let held = shop.client().await.extend(shop.signed(0, extend)).await.unwrap().into_inner();
    assert_eq!(held.held.unwrap().tokens, 500);
    assert_eq!(shop.today(0).await, (0, 500, Some(1_000)));
    let refused = shop.reserve(0, "b", 600).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let words = refused.message();
    assert!(
        words.contains("insufficient_quota") && words.contains("tenant") && words.contains("500"),
        "{words}"
    );
    assert!(refused.metadata().contains_key("retry-after-ms"), "{refused:?}");
    let Shop { world, keys, _worker } = shop;
    let shop = Shop { world: world.restarted().await, keys, _worker };
    assert_eq!(shop.today(0).await, (0, 500, Some(1_000)), "what was acknowledged is there");
    for _ in 0..2 {
        shop.settle(0, "a", 420).await.unwrap();
    }
    assert_eq!(shop.today(0).await, (420, 0, Some(1_000)));
    let ended = shop.reserve(0, "a", 1).await.unwrap_err();
    assert_eq!(ended.code(), Code::FailedPrecondition, "{ended:?}");
    let key = format!("Bearer {}", shop.keys[0]);
    let signed = [("authorization", key.as_str())];
    let asked = shop.world.ask_with("hi", json!({"max_tokens": 900}), &signed).await;
    assert_eq!(asked.status, 402, "one limit for both");
}

#[tokio::test]
async fn nobody_spends_or_sees_anothers_and_what_makes_no_sense_is_refused() {
    let shop = Shop::open().await;
    shop.reserve(0, "same-name", 300).await.unwrap();
    shop.reserve(1, "same-name", 100).await.unwrap();
    shop.settle(1, "same-name", 50).await.unwrap();
    assert_eq!(shop.today(0).await, (0, 300, Some(1_000)), "another tenant's end is not its own");
    assert_eq!(shop.today(1).await, (50, 0, Some(1_000)));
    let mut client = shop.client().await;
    let nobody = client.reserve(reservation("x", 1)).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody:?}");
    let mut forged = Request::new(reservation("x", 1));
    forged.metadata_mut().insert("authorization", "Bearer sk-pm-nonsense".parse().unwrap());
    assert_eq!(client.reserve(forged).await.unwrap_err().code(), Code::Unauthenticated);
    let huge = "x".repeat(257);
    let bad = [
        reservation("", 1),
        reservation(&huge, 1),
        reservation("x", u64::MAX),
        ReserveRequest { amount: None, ..reservation("x", 1) },
        ReserveRequest { ttl_ms: 1, ..reservation("x", 1) },
        ReserveRequest { user_id: huge.clone(), ..reservation("x", 1) },
    ];
    for asked in bad {
        let refused = client.reserve(shop.signed(0, asked.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{asked:?}: {refused:?}");
        assert!(!refused.message().is_empty());
    }
    let unknown =
        ExtendRequest { reservation_id: "never".to_owned(), total: Some(Amount::default()) };
    let unknown = client.extend(shop.signed(0, unknown)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition, "{unknown:?}");
    let refund = RefundRequest { reservation_id: "same-name".to_owned() };
    client.refund(shop.signed(0, refund)).await.unwrap();
    assert_eq!(shop.today(0).await, (0, 0, Some(1_000)));
    let spent = ReserveRequest { user_id: "ann".to_owned(), ..reservation("y", 10) };
    client.reserve(shop.signed(0, spent)).await.unwrap();
    let asked = GetBalancesRequest { user_id: "ann".to_owned() };
    let all = client.get_balances(shop.signed(0, asked)).await.unwrap().into_inner().balances;
    assert!(
        all.iter().any(|one| one.account == "user" && one.held.unwrap().tokens == 10),
        "{all:?}"
    );
}

#[tokio::test]
async fn a_service_that_died_gives_back_what_it_held() {
    let shop = Shop::open().await;
    let short = ReserveRequest { ttl_ms: 1_000, ..reservation("a", 1_000) };
    shop.client().await.reserve(shop.signed(0, short)).await.unwrap();
    assert_eq!(shop.reserve(0, "b", 1).await.unwrap_err().code(), Code::ResourceExhausted);
    let began = Instant::now();
    let granted = loop {
        match shop.reserve(0, "b", 1_000).await {
            Ok(granted) => break granted,
            Err(refused) => assert!(began.elapsed() < LONG, "{refused}"),
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(granted, 1_000);
    shop.settle(0, "a", 7).await.unwrap();
    assert_eq!(shop.today(0).await.0, 7, "it had used something after all");
}

#[tokio::test]
async fn a_settlement_that_nobody_remembers_is_refused_and_not_charged_again() {
    let shop = Shop::open().await;
    let unknown = shop.settle(0, "never", 5).await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition, "{unknown:?}");
    assert_eq!(shop.today(0).await.0, 0);
    // A shared ledger that remembers two ends.
    let server = server::Server::start();
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), server.port)],
        call_timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    let bounds = LedgerConfig { remembered_max: 2, ..LedgerConfig::default() };
    let store = Arc::new(Store::new(settings, bounds, 7).unwrap());
    let gateway = &shop.world.gateway;
    let ids = gateway.accounts().ids().clone();
    let till = Till::new(gateway.driver(), Some(store), ids.clone());
    let who: Principal = ids.principal("one", None, None);
    let ten = tokens_of(10);
    for name in ["a", "b", "c", "d"] {
        till.reserve(&who, name, ten, Duration::from_secs(60)).await.unwrap();
        till.settle(&who, name, (ten, false)).await.unwrap();
    }
    assert_eq!(till.settle(&who, "d", (ten, false)).await, Ok(()), "the same again");
    let forgotten = till.settle(&who, "a", (ten, false)).await;
    assert!(is_ended(&forgotten), "{forgotten:?}");
    assert_eq!(till.balances(&who).await.unwrap()[0].sums.spent, tokens_of(40));
}

#[tokio::test]
async fn a_shared_ledger_is_charged_by_the_same_words() {
    let mut server = server::Server::start();
    let shop = Shop::open().await;
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), server.port)],
        call_timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    let store = Arc::new(Store::new(settings, LedgerConfig::default(), 7).unwrap());
    let gateway = &shop.world.gateway;
    let ids = gateway.accounts().ids().clone();
    let till = Till::new(gateway.driver(), Some(store), ids.clone());
    let who: Principal = ids.principal("one", Some("ann"), None);
    let tokens = tokens_of;
    let ttl = Duration::from_secs(60);
    for _ in 0..2 {
        assert_eq!(till.reserve(&who, "a", tokens(600), ttl).await, Ok(tokens(600)));
    }
    let denied = till.reserve(&who, "b", tokens(600), ttl).await;
    assert!(matches!(denied, Err(Refused::Denied(_))), "{denied:?}");
    assert_eq!(till.extend(&who, "a", tokens(700)).await, Ok(tokens(700)));
    let today = async || {
        let found = till.balances(&who).await.unwrap();
        assert!(found.iter().any(|one| Some(one.key.account) == who.user), "{found:?}");
        (found[0].sums.spent.tokens.0, found[0].sums.outstanding.tokens.0)
    };
    assert_eq!(today().await, (0, 700));
    for _ in 0..2 {
        till.settle(&who, "a", (tokens(650), false)).await.unwrap();
    }
    till.refund(&who, "b").await.unwrap();
    assert_eq!(today().await, (650, 0));
    till.reserve(&who, "c", tokens(100), ttl).await.unwrap();
    server.ask("FLUSHALL");
    till.settle(&who, "c", (tokens(80), false)).await.unwrap();
    assert_eq!(today().await, (80, 0), "what a failover lost is charged all the same");
    let never = till.settle(&who, "never", (tokens(5), false)).await;
    assert!(is_ended(&never), "{never:?}");
    assert_eq!(today().await, (80, 0), "what nobody knows may have been charged");
    server.kill();
    let away = till.reserve(&who, "d", tokens(1), ttl).await;
    assert!(matches!(&away, Err(Refused::Away(why)) if !why.contains("127.0.0.1")), "{away:?}");
    server.up();
}

#[tokio::test]
async fn on_a_port_of_its_own_the_ledger_is_the_same_and_alone() {
    let shop = Shop::open().await;
    let apart = channel(shop.world.quota).await;
    let mut quota = QuotaServiceClient::new(apart.clone());
    let asked = shop.signed(0, reservation("a", 300));
    assert_eq!(quota.reserve(asked).await.unwrap().into_inner().held.unwrap().tokens, 300);
    // Said at one port, heard at the other.
    assert_eq!(shop.today(0).await, (0, 300, Some(1_000)));
    shop.settle(0, "a", 200).await.unwrap();
    let asked = shop.signed(0, reservation("b", 900));
    assert_eq!(quota.reserve(asked).await.unwrap_err().code(), Code::ResourceExhausted);
    let nobody = quota.reserve(Request::new(reservation("c", 1))).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated, "keys are judged as everywhere");
    let models = ChatServiceClient::new(apart.clone()).list_models(ListModelsRequest {}).await;
    assert_eq!(models.unwrap_err().code(), Code::Unimplemented);
    let mut health = HealthClient::new(apart);
    let mut named = async |service: &str| {
        let asked = HealthCheckRequest { service: service.to_owned() };
        health.check(asked).await.map(|answer| answer.into_inner().status)
    };
    for service in ["", "pointsman.quota.v1.QuotaService"] {
        let began = Instant::now();
        while !matches!(named(service).await, Ok(status) if status == ServingStatus::Serving as i32)
        {
            assert!(began.elapsed() < Duration::from_secs(10), "{service} is never serving");
            sleep(Duration::from_millis(20)).await;
        }
    }
    let chat = named("pointsman.chat.v1.ChatService").await.unwrap_err();
    assert_eq!(chat.code(), Code::NotFound);
}

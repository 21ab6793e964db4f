//! A registry that gateways watch: a simulated Consul, which speaks HTTP with blocking queries to the product's own source.
//!
//! It lists every replica whose process is there, as a health check would find it. What goes wrong with it goes wrong with
//! its answers: a blocking query returns at once with whatever it says now.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::plan::{ConsulTrouble, Speaks, TierBPlan, replica};
use super::replica::{MODEL, PORT as REPLICA_PORT};
use super::stage::Stage;
use super::wire::{Sockets, Wire};
use super::worker;
use crate::coverage::sometimes;

/// Its host's name.
pub(super) const HOST: &str = "consul";
/// The port it listens on.
pub(super) const PORT: u16 = 8_500;
/// Where a blocking query names no time.
const WAIT: Duration = Duration::from_secs(300);

/// What it knows.
pub(super) struct Registry(watch::Sender<Listing>);

/// What it says now.
#[derive(Clone, Debug)]
struct Listing {
    /// Grows with every change.
    index: u64,
    /// Which replicas are there.
    up: Vec<bool>,
    trouble: Option<ConsulTrouble>,
}

impl Registry {
    pub fn new(plan: &TierBPlan) -> Self {
        let up = vec![true; usize::from(plan.replicas)];
        Self(watch::channel(Listing { index: 10, up, trouble: None }).0)
    }

    /// A replica's process came, or went.
    pub fn sees(&self, replica: u8, is_up: bool) {
        self.0.send_modify(|listing| {
            listing.index += 1;
            listing.up[usize::from(replica)] = is_up;
        });
    }

    /// It is so from now on.
    pub fn is(&self, trouble: Option<ConsulTrouble>) {
        match trouble {
            None => {}
            Some(ConsulTrouble::Stale) => sometimes!("b_consul_stale"),
            Some(ConsulTrouble::Partial) => sometimes!("b_consul_partial"),
            Some(ConsulTrouble::Empty) => sometimes!("b_consul_empty"),
            Some(ConsulTrouble::Silent) => sometimes!("b_consul_silent"),
            Some(ConsulTrouble::Garbage) => sometimes!("b_consul_garbage"),
            Some(ConsulTrouble::Fails) => sometimes!("b_consul_fails"),
            Some(ConsulTrouble::Crash) => sometimes!("b_consul_crash"),
        }
        self.0.send_modify(|listing| {
            listing.index += 1;
            listing.trouble = trouble;
        });
    }
}

impl Registry {
    /// What a query is told: at once where it knows less than there is, else when that changes or its time is over.
    async fn asked(&self, known: Option<u64>, wait: Duration) -> Listing {
        let mut listings = self.0.subscribe();
        let is_news = |listing: &Listing| known.is_none_or(|known| known != listing.shown_index());
        // Without a change it answers all the same.
        let _ = timeout(wait, listings.wait_for(is_news)).await;
        let talks = |listing: &Listing| listing.trouble != Some(ConsulTrouble::Silent);
        // The sender is ours: it is never gone.
        let _ = listings.wait_for(talks).await;
        self.0.borrow().clone()
    }
}

impl Listing {
    /// As a query sees it: an old answer has an old index.
    fn shown_index(&self) -> u64 {
        if self.trouble == Some(ConsulTrouble::Stale) { 2 } else { self.index }
    }

    fn lists(&self, replica: usize) -> bool {
        match self.trouble {
            // From before anything happened.
            Some(ConsulTrouble::Stale) => true,
            Some(ConsulTrouble::Partial) => self.up[replica] && replica.is_multiple_of(2),
            Some(ConsulTrouble::Empty) => false,
            None
            | Some(
                ConsulTrouble::Silent
                | ConsulTrouble::Garbage
                | ConsulTrouble::Fails
                | ConsulTrouble::Crash,
            ) => self.up[replica],
        }
    }
}

/// Serves until the host goes down.
pub(super) async fn serve(stage: Arc<Stage>) -> turmoil::Result {
    let door = Sockets::new(&stage, HOST).listen(PORT).await?;
    loop {
        tokio::spawn(converse(Arc::clone(&stage), door.next().await?));
    }
}

async fn converse(stage: Arc<Stage>, wire: Wire) {
    let service = service_fn(|request| answer(Arc::clone(&stage), request));
    let mut http = http1::Builder::new();
    http.auto_date_header(false);
    // Whatever ends a connection is the other side's business.
    let _ = http.serve_connection(TokioIo::new(wire), service).await;
}

async fn answer(
    stage: Arc<Stage>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let said = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let known = said("index").and_then(|index| index.parse::<u64>().ok());
    let wait = said("wait").and_then(|wait| wait.strip_suffix('s')?.parse().ok());
    let wait = wait.map_or(WAIT, Duration::from_secs);
    let listing = stage.registry.asked(known, wait).await;
    Ok(written(&stage.plan, request.uri().path(), &listing))
}

fn written(plan: &TierBPlan, path: &str, listing: &Listing) -> Response<Full<Bytes>> {
    let service = format!("llm-{MODEL}");
    let of_service = path.strip_prefix("/v1/health/service/");
    let (status, body) = match (listing.trouble, path, of_service) {
        (Some(ConsulTrouble::Garbage), ..) => {
            (StatusCode::OK, "<html><body>Welcome</body></html>".to_owned())
        }
        (Some(ConsulTrouble::Fails), ..) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader".to_owned())
        }
        (_, "/v1/catalog/services", _) => {
            let any = (0..listing.up.len()).any(|at| listing.lists(at));
            let mut services = json!({"consul": []});
            if any {
                services[&service] = json!(["worker"]);
            }
            (StatusCode::OK, services.to_string())
        }
        (_, _, Some(name)) if name == service => {
            let listed = (0..plan.replicas).filter(|at| listing.lists(usize::from(*at)));
            let entries: Vec<Value> = listed.map(|at| entry(plan, at)).collect();
            (StatusCode::OK, Value::from(entries).to_string())
        }
        (_, _, Some(_)) => (StatusCode::OK, "[]".to_owned()),
        (_, _, None) => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let index = http::HeaderValue::from(listing.shown_index());
    response.headers_mut().insert("x-consul-index", index);
    response
}

fn entry(plan: &TierBPlan, at: u8) -> Value {
    let (port, protocol) = match plan.speaks(at) {
        Speaks::Http => (REPLICA_PORT, "http"),
        Speaks::Grpc => (worker::PORT, "grpc"),
        Speaks::Quic => (worker::QUIC_PORT, "quic"),
    };
    let mut meta = json!({"model": MODEL, "protocol": protocol});
    if plan.speaks(at) == Speaks::Quic {
        meta["pin"] = worker::identity().pin().to_string().into();
    }
    json!({
        "Node": {"Node": replica(at), "Address": replica(at)},
        "Service": {
            "ID": replica(at), "Service": format!("llm-{MODEL}"), "Address": replica(at),
            "Port": port, "Meta": meta, "Weights": {"Passing": 1, "Warning": 1},
        },
        "Checks": [{"Status": "passing"}],
    })
}

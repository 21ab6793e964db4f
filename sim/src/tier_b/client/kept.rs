//! A client whose stream is kept: it breaks off, comes back elsewhere, comes too late, or comes twice at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::check::Asked;
use super::super::plan::{Guise, Keeping, Rival, Visit};
use super::blocks::Blocks;
use super::{Asker, Seen, key};

/// For one try with all its connections.
pub(super) const PATIENCE: Duration = Duration::from_secs(22);
/// A connection on which nothing comes for so long is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// Longer than any answer.
const FOR_EVER: u32 = u32::MAX;

/// How a connection was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parted {
    /// With the stream's last event, which is `[DONE]` or an error.
    Over { is_done: bool },
    /// The client broke off.
    Left,
    /// Nobody answered, or no more; or it was told that it gets no more here.
    Broken,
}

/// Somebody who reads. Dropped, it has left.
struct Reading<'a> {
    asker: &'a Asker,
    ticket: usize,
    number: usize,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let now = self.asker.stage.now();
        self.asker.stage.scene().checks.reader_leaves(now, self.ticket, self.number);
    }
}

impl Asker {
    /// One try of an operation whose stream is kept.
    pub(super) async fn ask_kept(&self, ticket: usize, keeping: &Keeping) -> Seen {
        let gateway = self.operation.gateway;
        let Some(mut sender) = self.connect_to(gateway).await else { return Seen::Unknown };
        let asked = timeout(SILENCE * 3, sender.send_request(self.request(ticket))).await;
        let Ok(Ok(response)) = asked else { return Seen::Unknown };
        self.name(ticket, &response);
        let status = response.status().as_u16();
        if status != 200 {
            let Ok(body) = response.into_body().collect().await else { return Seen::Unknown };
            self.explain(status, &body.to_bytes());
            return Seen::Refused(status);
        }
        let now = self.stage.now();
        let (id, reach) = (header(&response, STREAM_ID), header(&response, RESUMABLE));
        let number = self.stage.scene().checks.stream_opened(now, ticket, &id, &reach);
        let reading = Reading { asker: self, ticket, number };
        let mut rivals = JoinSet::new();
        if let Some(rival) = keeping.rival.clone() {
            rivals.spawn(self.beside().compete(ticket, id.clone(), rival));
        }
        let mut parted = self.read_on(reading, response, keeping.breaks_off).await;
        drop(sender);
        for visit in &keeping.visits {
            sleep(Duration::from_millis(visit.away_ms)).await;
            let came = self.visit(ticket, &id, visit).await;
            let is_own = matches!(visit.guise, Guise::Honest | Guise::FromTheStart);
            if is_own && !matches!(parted, Parted::Over { .. }) {
                parted = came;
            }
        }
        while rivals.join_next().await.is_some() {}
        match parted {
            Parted::Over { is_done: true } => Seen::Whole,
            Parted::Over { is_done: false } => Seen::Broken,
            Parted::Left => Seen::Left,
            Parted::Broken => Seen::Unknown,
        }
    }

    fn beside(&self) -> Self {
        Self {
            stage: Arc::clone(&self.stage),
            sockets: self.sockets.clone(),
            kept: Arc::clone(&self.kept),
            operation: self.operation.clone(),
            number: self.number,
        }
    }

    async fn compete(self, ticket: usize, id: String, rival: Rival) {
        sleep(Duration::from_millis(rival.after_ms)).await;
        let guise = Guise::FromTheStart;
        let visit = Visit { away_ms: 0, gateway: rival.gateway, guise, breaks_off: None };
        self.visit(ticket, &id, &visit).await;
    }

    /// Asks for the rest once.
    async fn visit(&self, ticket: usize, id: &str, visit: &Visit) -> Parted {
        let Some(mut sender) = self.connect_to(visit.gateway).await else { return Parted::Broken };
        let now = self.stage.now();
        let asked = Asked { gateway: visit.gateway, guise: visit.guise };
        let (number, after) = self.stage.scene().checks.reader_asks(now, ticket, asked);
        let reading = Reading { asker: self, ticket, number };
        let request = self.rest_of(id, visit, after);
        let Ok(Ok(response)) = timeout(SILENCE * 3, sender.send_request(request)).await else {
            return Parted::Broken;
        };
        let status = response.status().as_u16();
        let now = self.stage.now();
        if status == 200 {
            let reach = header(&response, RESUMABLE);
            self.stage.scene().checks.reader_is_let_in(now, ticket, number, &reach);
            return self.read_on(reading, response, visit.breaks_off).await;
        }
        let Ok(body) = response.into_body().collect().await else { return Parted::Broken };
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default();
        self.stage.word(format!("try {ticket} reader {number} is told {status} {code}"));
        let now = self.stage.now();
        self.stage.scene().checks.reader_is_refused(now, ticket, number, (status, code));
        Parted::Broken
    }

    fn rest_of(&self, id: &str, visit: &Visit, after: u64) -> Request<Full<Bytes>> {
        let tenant = match (visit.guise, self.operation.tenant) {
            (Guise::Stranger, Some(_)) => None,
            (Guise::Stranger, None) => Some(0),
            (_, own) => own,
        };
        let key = key(self.tenants(), tenant);
        let last = match visit.guise {
            Guise::Nonsense => "-1".to_owned(),
            Guise::Honest | Guise::FromTheStart | Guise::TooHigh | Guise::Stranger => {
                after.to_string()
            }
        };
        let request = Request::get(format!("/v1/streams/{id}"))
            .header("host", "gateway")
            .header("authorization", format!("Bearer {key}"))
            .header("last-event-id", last);
        request.body(Full::default()).expect("the parts are sound")
    }

    /// Reads until it is over or the client breaks off.
    async fn read_on(
        &self,
        reading: Reading<'_>,
        response: Response<Incoming>,
        breaks_off: Option<u32>,
    ) -> Parted {
        let mut body = response.into_body();
        let (mut blocks, mut events, mut parted) = (Blocks::default(), 0, Parted::Broken);
        loop {
            let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await else { return parted };
            let Ok(data) = frame.into_data() else { continue };
            blocks.push(&data);
            for block in blocks.by_ref() {
                let now = self.stage.now();
                let (ticket, number) = (reading.ticket, reading.number);
                let told = self.stage.scene().checks.block(now, ticket, number, block.trim_end());
                events += u32::from(told.is_event);
                told.error.iter().for_each(|error| self.told(error));
                if let Some(is_done) = told.last {
                    parted = Parted::Over { is_done };
                }
            }
            if matches!(parted, Parted::Broken) && events > breaks_off.unwrap_or(FOR_EVER) {
                return Parted::Left;
            }
        }
    }
}

const STREAM_ID: &str = "x-pointsman-stream-id";
const RESUMABLE: &str = "x-pointsman-resumable";

fn header(response: &Response<Incoming>, name: &str) -> String {
    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

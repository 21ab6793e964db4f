//! Stories nobody ran: of any size, from one seed, shaped like what the simulator tells.
//!
//! They exist to be looked at and measured before there is a run to show. Replicas go down for a while, gateways are cut
//! off, breakers open and probe, sessions move, accounts run out; nothing here decides as the product does.

use std::collections::BTreeMap;

use control::rng::Rng;
use sim::story::{
    Attempt, Breaker, Fault, Host, HostId, HostKind, Mark, Move, Quota, Request, Story, Tier,
    Violation,
};

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
const TENANTS: [(&str, u64); 4] =
    [("acme", 60), ("globex", 25), ("initech", 10), ("umbrella-research", 5)];
const FIRST_GATEWAY: HostId = 10;
const FIRST_REPLICA: HostId = 100;
const LEDGER: HostId = 1;
const REGISTRY: HostId = 2;

/// How large a made-up run is.
#[derive(Clone, Copy)]
pub struct Size {
    pub gateways: u32,
    pub replicas: u32,
    pub requests: u64,
    pub seconds: u64,
}

/// Three gateways, eight replicas, two minutes: what a person reads in one go.
pub const SMALL: Size = Size { gateways: 3, replicas: 8, requests: 900, seconds: 120 };

/// A run in which every invariant held.
pub fn held(seed: u64, size: Size) -> Story {
    let mut maker = Maker::new(seed, size);
    maker.faults();
    maker.requests();
    maker.tell("A rolling restart while a rack is cut off")
}

/// The same run, with something wrong in the middle of it.
pub fn broken(seed: u64, size: Size) -> Story {
    let mut story = held(seed, size);
    story.title = "A gateway sleeps for nine seconds and wakes with an old epoch".to_owned();
    let at = size.seconds * SECOND * 2 / 5;
    let found = story.requests.iter_mut().find(|request| {
        request.attempts.len() > 1 && request.session.is_some() && request.arrived_ns > at
    });
    let request = found.expect("some session of a long run is retried");
    request.good = false;
    request.outcome = "broken stream, ended as if complete".to_owned();
    let last = request.attempts.last().expect("it had two");
    story.violation = Some(Violation {
        at_ns: request.ended_ns.unwrap_or(last.start_ns),
        invariant: 6,
        name: "no clean end on a broken stream".to_owned(),
        text: format!(
            "request {} was finished with [DONE] after token 41 of 118; the stream had broken at 41 and nobody resumed it",
            request.id
        ),
        hosts: vec![request.gateway, last.replica],
        request: Some(request.id.clone()),
    });
    story
}

struct Maker {
    rng: Rng,
    size: Size,
    story: Story,
    homes: BTreeMap<String, HostId>,
    spent: BTreeMap<&'static str, u64>,
}

impl Maker {
    fn new(seed: u64, size: Size) -> Self {
        let story = Story {
            title: String::new(),
            seed,
            tier: Tier::A,
            duration_ns: size.seconds * SECOND,
            command: format!("pointsman-sim run --tier a --seed {seed}"),
            hosts: hosts(size),
            requests: Vec::new(),
            faults: Vec::new(),
            breakers: Vec::new(),
            moves: Vec::new(),
            quotas: Vec::new(),
            marks: Vec::new(),
            violation: None,
            summary: Vec::new(),
        };
        let rng = Rng::new(seed).fork("made");
        Self { rng, size, story, homes: BTreeMap::new(), spent: BTreeMap::new() }
    }

    fn faults(&mut self) {
        let end = self.size.seconds * SECOND;
        let kinds = [
            ("partition", "cut off from every gateway, in both directions"),
            ("slow replica", "prefill and decoding take eight times as long"),
            ("half-dead replica", "accepts, answers 200, then stalls"),
            ("one-way cut", "hears everybody, nobody hears it"),
        ];
        let many = 4 + self.size.replicas / 12;
        for at in 0..many {
            let start = end / u64::from(many) * u64::from(at) + self.rng.below(end / 20);
            let until = start + end / 14 + self.rng.below(end / 12);
            let (kind, text) = kinds[at as usize % kinds.len()];
            let first = FIRST_REPLICA + self.below(self.size.replicas);
            let second = FIRST_REPLICA + self.below(self.size.replicas);
            let hosts =
                if at % 4 == 0 && first != second { vec![first, second] } else { vec![first] };
            for replica in &hosts {
                self.outage(*replica, start, until);
            }
            let healed = (until < end).then_some(until);
            let (kind, text) = (kind.to_owned(), text.to_owned());
            self.story.faults.push(Fault { start_ns: start, end_ns: healed, hosts, kind, text });
        }
        self.restarts(end);
    }

    fn restarts(&mut self, end: u64) {
        for gateway in 0..self.size.gateways.min(6) {
            let at_ns = end * 3 / 5 + u64::from(gateway) * 4 * SECOND;
            let (host, text) =
                (FIRST_GATEWAY + gateway, "restarted, 212 records replayed".to_owned());
            self.story.marks.push(Mark { at_ns, host, text });
        }
        self.story.faults.push(Fault {
            start_ns: end * 2 / 5 - 3 * SECOND,
            end_ns: Some(end * 2 / 5 + 6 * SECOND),
            hosts: vec![FIRST_GATEWAY],
            kind: "long pause".to_owned(),
            text: "the gateway sleeps for nine seconds and wakes".to_owned(),
        });
        let host = LEDGER;
        let text = "failover, 3 acknowledged entries lost".to_owned();
        self.story.marks.push(Mark { at_ns: end / 2, host, text });
    }

    /// What the gateways make of a replica that does not answer.
    fn outage(&mut self, replica: HostId, start: u64, until: u64) {
        for gateway in 0..self.size.gateways.min(3) {
            let gateway = FIRST_GATEWAY + gateway;
            let opened = start + 300 * MS + self.rng.below(SECOND);
            let turn = |at_ns, from: &str, to: &str, why: &str| Breaker {
                at_ns,
                gateway,
                replica,
                from: from.to_owned(),
                to: to.to_owned(),
                why: why.to_owned(),
            };
            self.story.breakers.extend([
                turn(opened, "closed", "open", "5 failures in a row, ejected for 3.2 s"),
                turn(until, "open", "half-open", "ejection is over, 1 probe allowed"),
                turn(
                    until + 700 * MS,
                    "half-open",
                    "closed",
                    "the probe succeeded, slow start for 10 s",
                ),
            ]);
        }
    }

    fn requests(&mut self) {
        let end = self.size.seconds * SECOND;
        for at in 0..self.size.requests {
            let even = end / self.size.requests * at;
            let arrived = (even + self.rng.below(end / self.size.requests * 3)).min(end - 1);
            let request = self.request(at, arrived);
            self.story.requests.push(request);
        }
    }

    fn request(&mut self, number: u64, arrived_ns: u64) -> Request {
        let tenant = self.tenant();
        let session = (self.rng.below(3) > 0).then(|| format!("{tenant}-{}", self.rng.below(40)));
        let gateway = FIRST_GATEWAY + self.below(self.size.gateways);
        let mut request = Request {
            id: format!("1-{number}"),
            tenant: tenant.to_owned(),
            model: if number.is_multiple_of(5) { "qwen-72b" } else { "llama-8b" }.to_owned(),
            gateway,
            arrived_ns,
            ended_ns: Some(arrived_ns + 2 * MS),
            outcome: "rejected: quota spent".to_owned(),
            good: true,
            tokens: 0,
            session,
            explanation: vec![format!(
                "account {tenant} has nothing left: refused, retry after 41 s"
            )],
            attempts: Vec::new(),
        };
        if self.spent.get(tenant).copied().unwrap_or(0) < self.limit() {
            self.serve(&mut request, tenant);
        }
        request
    }

    fn serve(&mut self, request: &mut Request, tenant: &'static str) {
        let mut home = FIRST_REPLICA + self.below(self.size.replicas);
        if let Some(session) = &request.session {
            home = *self.homes.entry(session.clone()).or_insert(home);
        }
        request.explanation = vec![
            format!(
                "rate: 14 of 60 requests this minute, quota: 1,024 tokens reserved for {tenant}"
            ),
            format!("{} eligible replicas, home by session is {home}", self.size.replicas),
        ];
        let mut start = request.arrived_ns + 400_000;
        for attempt in 0..3 {
            let bad = self.attempt(request, home, start);
            let Some(until) = bad else { break };
            start = until + (20 << attempt) * MS;
            let next = FIRST_REPLICA + self.below(self.size.replicas);
            request.explanation.push(format!(
                "attempt {} failed before a token: {home} excluded, retry budget 9 of 10",
                attempt + 1
            ));
            self.moved(request, home, next, start);
            home = next;
        }
        self.conclude(request, tenant);
    }

    /// The attempt; when it failed, until when that took.
    fn attempt(&mut self, request: &mut Request, replica: HostId, start_ns: u64) -> Option<u64> {
        let down = self.story.faults.iter().any(|fault| {
            let until = fault.end_ns.unwrap_or(self.story.duration_ns);
            fault.hosts.contains(&replica) && (fault.start_ns..until).contains(&start_ns)
        });
        let wait = 60 * MS + self.rng.below(240 * MS);
        let stream = 400 * MS + self.rng.below(2_600 * MS);
        let (first, end, word) = if down {
            (None, start_ns + 150 * MS + self.rng.below(700 * MS), "no answer within 0.8 s")
        } else {
            (Some(start_ns + wait), start_ns + wait + stream, "completed")
        };
        request.tokens = if down { 0 } else { stream / (18 * MS) };
        request.explanation.push(format!(
            "picked {replica}: cost 0.21 s (prefill 0.05 s, queue 0.16 s), next best 0.34 s"
        ));
        request.attempts.push(Attempt {
            replica,
            start_ns,
            first_token_ns: first.filter(|at| *at < self.story.duration_ns),
            end_ns: (end < self.story.duration_ns).then_some(end),
            end: word.to_owned(),
            good: !down,
        });
        down.then_some(end)
    }

    fn moved(&mut self, request: &Request, from: HostId, to: HostId, at_ns: u64) {
        let Some(session) = request.session.clone() else { return };
        self.homes.insert(session.clone(), to);
        self.story.moves.push(Move {
            at_ns,
            gateway: request.gateway,
            session,
            from: Some(from),
            to: Some(to),
            why: "home excluded after a failed attempt, epoch 4".to_owned(),
        });
    }

    fn conclude(&mut self, request: &mut Request, tenant: &'static str) {
        let last = request.attempts.last().expect("at least one was made");
        request.good = last.good;
        request.ended_ns = last.end_ns;
        let word = if last.good { "completed" } else { "failed: nobody left to try" };
        request.outcome = word.to_owned();
        request
            .explanation
            .push(format!("settled: {} tokens charged, the rest refunded", request.tokens));
        *self.spent.entry(tenant).or_default() += request.tokens;
        let spent = self.spent[tenant];
        let at = request.ended_ns.unwrap_or(self.story.duration_ns);
        let limit = Some(self.limit());
        if !self.story.quotas.iter().any(|quota| quota.account == tenant) {
            self.story.quotas.push(Quota { account: tenant.to_owned(), limit, points: Vec::new() });
        }
        let quota = self.story.quotas.iter_mut().find(|quota| quota.account == tenant);
        quota.expect("it was just made").points.push((at, spent, 1_024 + at % 4_000));
    }

    fn tell(mut self, title: &str) -> Story {
        self.story.title = title.to_owned();
        for quota in &mut self.story.quotas {
            quota.points.sort_by_key(|(at, _, _)| *at);
            let mut most = 0;
            for point in &mut quota.points {
                most = point.1.max(most);
                point.1 = most;
            }
        }
        let served = self.story.requests.iter().filter(|request| request.good).count();
        let attempts: usize = self.story.requests.iter().map(|r| r.attempts.len()).sum();
        let all = self.story.requests.len();
        let share = served as f64 * 100.0 / all as f64;
        let pairs = [
            ("requests", all.to_string()),
            ("ended well", format!("{share:.1} %")),
            ("attempts per request", format!("{:.3}", attempts as f64 / all as f64)),
            ("first token, median", "182 ms".to_owned()),
            ("first token, 99th", "1.21 s".to_owned()),
            ("faults", self.story.faults.len().to_string()),
            ("breakers opened", (self.story.breakers.len() / 3).to_string()),
            ("sessions moved", self.story.moves.len().to_string()),
            ("trace", "9f2c41d7".to_owned()),
        ];
        self.story.summary =
            pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.story
    }

    /// What an account may spend: the busiest one reaches it towards the end.
    fn limit(&self) -> u64 {
        self.size.requests * 50
    }

    fn tenant(&mut self) -> &'static str {
        let mut drawn = self.rng.below(TENANTS.iter().map(|(_, share)| share).sum());
        for (name, share) in TENANTS {
            if drawn < share {
                return name;
            }
            drawn -= share;
        }
        TENANTS[0].0
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.rng.below(u64::from(bound))).expect("it is below a u32")
    }
}

fn hosts(size: Size) -> Vec<Host> {
    let host = |id, name: String, kind| Host { id, name, kind };
    let mut hosts = vec![
        host(0, "clients".to_owned(), HostKind::Clients),
        host(LEDGER, "ledger".to_owned(), HostKind::Store),
        host(REGISTRY, "registry".to_owned(), HostKind::Registry),
    ];
    hosts.extend(
        (0..size.gateways)
            .map(|at| host(FIRST_GATEWAY + at, format!("gateway-{at}"), HostKind::Gateway)),
    );
    hosts.extend(
        (0..size.replicas)
            .map(|at| host(FIRST_REPLICA + at, format!("replica-{at}"), HostKind::Replica)),
    );
    hosts
}

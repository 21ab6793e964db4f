//! Clients: they ask, wait, hang up, and ask again; and they do not know what became of what they never heard of.

use std::time::Duration;

use control::id::{CallerToken, Digest, Principal, SessionKey};
use control::plane::{Arrival, Idempotency, Input, Session, SessionKind};
use control::units::Tokens;

use super::World;
use super::clock::{MILLI, Nanos};
use super::event::Event;
use crate::plan::{Ask, Host, Plan, tenant_account, user_account};

/// One try of one ask, at one gateway.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub ask: u32,
    pub nth: u32,
    pub gateway: u32,
    /// The process that took it.
    pub life: u32,
    /// Whether a gateway has taken it.
    pub arrived: bool,
    /// The attempts that were made, the latest last.
    pub runs: Vec<u32>,
    /// When the plane ended it.
    pub concluded: Option<Nanos>,
    /// When the client heard of its end, in whatever form, or hung up.
    pub answered: Option<Nanos>,
}

/// How long a client waits before it asks again.
const AGAIN_MS: u64 = 150;

impl World<'_> {
    /// A client asks.
    pub(super) fn ask(&mut self, ask: u32, nth: u32) {
        let wanted = &self.asks[ask as usize];
        // A key is known where it was used, and where gateways share their keys: some clients know that.
        let gateways = self.gateways.len() as u32;
        let gateway = match wanted.key {
            Some(_) if !wanted.roams => wanted.gateway,
            Some(_) | None => (wanted.gateway + nth) % gateways,
        };
        let call = self.calls.len() as u32;
        let leaves = wanted.leaves_ms;
        self.calls.push(Call {
            ask,
            nth,
            gateway,
            life: 0,
            arrived: false,
            runs: Vec::new(),
            concluded: None,
            answered: None,
        });
        let delay = self.network.delay(self.now, Host::Clients, Host::Gateway(gateway));
        self.agenda.plan(self.now + delay, Event::Arrive { call });
        if let Some(leaves) = leaves {
            self.agenda.plan(self.now + leaves * MILLI, Event::Leave { call });
        }
    }

    pub(super) fn arrive(&mut self, id: u32) {
        let Call { ask, gateway, answered, .. } = self.calls[id as usize];
        if answered.is_some() {
            return;
        }
        if !self.network.both_open(Host::Clients, Host::Gateway(gateway)) {
            return self.parked.push(Event::Arrive { call: id });
        }
        let own = &self.gateways[gateway as usize];
        if !own.is_up() || own.journal.full {
            let why = if own.is_up() { "its disk is full" } else { "it is down" };
            let ask = &self.asks[ask as usize];
            self.chronicle.turned_away(self.now, id, ask, (gateway, why));
            // Refused by the machine, or by the shell whose journal takes no work: nothing has happened.
            let delay = self.network.delay(self.now, Host::Gateway(gateway), Host::Clients);
            return self.agenda.plan(self.now + delay, Event::Unknown { call: id });
        }
        let call = &mut self.calls[id as usize];
        (call.arrived, call.life) = (true, own.life);
        let arrival = arrival(id, &self.asks[ask as usize]);
        self.submit(gateway, Input::RequestArrived(Box::new(arrival)));
    }

    /// The client hangs up, if it still waits.
    pub(super) fn leave(&mut self, id: u32) {
        let call = &mut self.calls[id as usize];
        if call.answered.is_none() {
            call.answered = Some(self.now);
            let gateway = Host::Gateway(call.gateway);
            self.chronicle.told(self.now, id, true);
            let delay = self.network.delay(self.now, Host::Clients, gateway);
            self.agenda.plan(self.now + delay, Event::Gone { call: id });
        }
    }

    pub(super) fn gone(&mut self, id: u32) {
        let Call { gateway, life, arrived, concluded, .. } = self.calls[id as usize];
        if !self.network.open(Host::Clients, Host::Gateway(gateway)) {
            return self.parked.push(Event::Gone { call: id });
        }
        if arrived && concluded.is_none() && self.gateways[gateway as usize].life == life {
            self.submit(gateway, Input::ClientGone { caller: CallerToken(u64::from(id)) });
        }
    }

    pub(super) fn answered(&mut self, id: u32, good: bool) {
        let Call { gateway, life, answered, .. } = self.calls[id as usize];
        if self.gateways[gateway as usize].life != life || !self.gateways[gateway as usize].is_up()
        {
            // The process died before it was written: the connection broke instead.
            return;
        }
        if answered.is_none() {
            self.calls[id as usize].answered = Some(self.now);
            self.chronicle.told(self.now, id, true);
            self.judge.acknowledged(id, good, self.now);
            if !good {
                self.again(id);
            }
        }
    }

    /// What became of it, the client does not know.
    pub(super) fn unknown(&mut self, id: u32) {
        if self.calls[id as usize].answered.is_none() {
            self.calls[id as usize].answered = Some(self.now);
            self.chronicle.told(self.now, id, false);
            self.again(id);
        }
    }

    pub(super) fn break_connection(&mut self, id: u32) {
        let gateway = Host::Gateway(self.calls[id as usize].gateway);
        let delay = self.network.delay(self.now, gateway, Host::Clients);
        self.agenda.plan(self.now + delay, Event::Unknown { call: id });
    }

    fn again(&mut self, id: u32) {
        let Call { ask, nth, .. } = self.calls[id as usize];
        if nth < self.asks[ask as usize].again && self.now < self.heal_at {
            let wait = AGAIN_MS * MILLI * u64::from(nth + 1);
            self.agenda.plan(self.now + wait, Event::Ask { ask, nth: nth + 1 });
        }
    }
}

/// What the shell tells the plane of a request.
fn arrival(call: u32, ask: &Ask) -> Arrival {
    let tenant = tenant_account(ask.tenant);
    let hint = |session: u32| SessionKey(u64::from(ask.tenant) << 32 | u64::from(session));
    Arrival {
        caller: CallerToken(u64::from(call)),
        model: Plan::model_name(ask.model).into(),
        principal: Principal {
            tenant,
            user: ask.user.map(|user| user_account(ask.tenant, user)),
            key: None,
        },
        session: ask.session.map(|id| match (ask.stored, ask.named) {
            (true, _) => Session { key: hint(id), kind: SessionKind::Stored },
            (false, true) => Session { key: hint(id | 1 << 31), kind: SessionKind::Named },
            (false, false) => Session { key: hint(id), kind: SessionKind::Hint },
        }),
        idempotency: ask.key.map(|key| Idempotency {
            key: Digest(u128::from(key)),
            // Who uses a key twice seldom asks the same.
            body: Digest(u128::from(key) << 1 | u128::from(ask.prompt & 1)),
        }),
        prompt: Tokens(ask.prompt),
        output_max: ask.output_max.map(Tokens),
        resumable: ask.stream,
        stream: ask.stream,
        patience: ask.patience_ms.map(Duration::from_millis),
    }
}

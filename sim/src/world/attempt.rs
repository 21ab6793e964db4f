//! An attempt: from the gateway's connection to the replica's last token, with the timeouts a shell keeps.

use control::Instant;
use control::id::{AttemptId, CallerToken, EndpointId};
use control::outcome::{AttemptEnd, Failure, Fault, Stage};
use control::plane::{Dispatch, Input};
use control::units::{Tokens, Usage};

use super::World;
use super::clock::{MICRO, MILLI, Nanos, SECOND};
use super::event::Event;
use crate::plan::{Host, ReplicaIllness};

/// One attempt, as its gateway's shell and its replica know it.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub call: u32,
    pub gateway: u32,
    pub life: u32,
    pub attempt: AttemptId,
    pub replica: u32,
    pub endpoint: EndpointId,
    connect_by: Nanos,
    first_by: Nanos,
    gap: Nanos,
    deadline: Nanos,
    stage: At,
    /// When the gateway last heard of it.
    heard: Nanos,
    produced: u64,
    /// Tokens that the client had before it.
    from: u64,
    /// Completion tokens the replica will have written, those before it included.
    target: u64,
    stream: bool,
    /// Whether it holds one of the replica's slots.
    slot: bool,
    /// Whether the gateway's shell still waits for it.
    pub over: bool,
    accepted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Connecting,
    Waiting,
    Streaming,
}

impl World<'_> {
    /// The plane wants an attempt made.
    pub(super) fn dispatch(&mut self, gateway: u32, order: &Dispatch) {
        let call = order.caller.0 as u32;
        let Some(replica) = replica_of(&order.endpoint_name) else { return };
        let ask = &self.asks[self.calls[call as usize].ask as usize];
        let own = &self.gateways[gateway as usize];
        let local = |instant: Instant| own.clock.until(self.now, instant);
        let bound = ask.output_max.unwrap_or(u64::MAX);
        let bound = order.output_max.map_or(bound, |max| bound.min(max.0));
        let from = order.resume.map_or(0, |from| from.0);
        let run = Run {
            call,
            gateway,
            life: own.life,
            attempt: order.attempt,
            replica,
            endpoint: order.endpoint,
            connect_by: local(order.connect_by),
            first_by: local(order.first_token_by),
            gap: own.clock.span(order.gap_max),
            deadline: local(order.deadline),
            stage: At::Connecting,
            heard: self.now,
            produced: from,
            from,
            target: ask.output.min(bound).max(from),
            stream: ask.stream,
            slot: false,
            over: false,
            accepted: false,
        };
        let (id, connect_by) = (self.runs.len() as u32, run.connect_by);
        self.runs.push(run);
        self.calls[call as usize].runs.push(id);
        let (from, to) = (Host::Gateway(gateway), Host::Replica(replica));
        let delay = self.network.delay(self.now, from, to);
        self.agenda.plan(self.now + delay, Event::Reach { run: id });
        self.agenda.plan(connect_by, Event::Watch { run: id });
    }

    /// The plane wants it stopped: the shell stops reading and says what it has.
    pub(super) fn cancel(&mut self, caller: CallerToken, attempt: AttemptId) {
        let mut runs = self.calls[caller.0 as usize].runs.iter().copied();
        let Some(run) = runs.find(|run| self.runs[*run as usize].attempt == attempt) else {
            return;
        };
        if !self.runs[run as usize].over {
            self.hang_up(run);
            self.agenda.plan(self.now + MICRO, Event::Stopped { run });
        }
    }

    pub(super) fn stopped(&mut self, run: u32) {
        let Run { attempt, gateway, produced, .. } = self.runs[run as usize];
        let end = AttemptEnd::Cancelled { produced: Tokens(produced) };
        self.tell(run, gateway, Input::AttemptEnded { attempt, end });
    }

    /// A process died: its connections are reset.
    pub(super) fn stop_runs_of(&mut self, gateway: u32) {
        let running: Vec<u32> = (0..)
            .zip(&self.runs)
            .filter(|(_, run)| run.gateway == gateway && !run.over)
            .map(|(id, _)| id)
            .collect();
        for run in running {
            self.hang_up(run);
        }
    }

    /// A replica's process died: who is connected gets a reset, unless the machine died with it.
    pub(super) fn break_runs_at(&mut self, replica: u32, power: bool) {
        for id in 0..self.runs.len() as u32 {
            let run = &mut self.runs[id as usize];
            if run.replica != replica {
                continue;
            }
            run.slot = false;
            if !run.over && run.stage != At::Connecting && !power {
                let failure = match run.accepted {
                    true => Failure::Truncated,
                    false => Failure::ConnectionLost,
                };
                let (from, to) = (Host::Replica(replica), Host::Gateway(run.gateway));
                let delay = self.network.delay(self.now, from, to);
                self.agenda.plan(self.now + delay, Event::Fail { run: id, failure });
            }
        }
        self.replicas[replica as usize].busy = 0;
    }

    pub(super) fn reach(&mut self, id: u32) {
        let run = &self.runs[id as usize];
        if run.over {
            return;
        }
        let (replica, gateway) = (run.replica, run.gateway);
        let (from, to) = (Host::Gateway(gateway), Host::Replica(replica));
        if !self.network.both_open(from, to) {
            return self.parked.push(Event::Reach { run: id });
        }
        let back = self.network.delay(self.now, to, from);
        match self.replicas[replica as usize].down {
            Some(true) => {}
            Some(false) => {
                let failure = Failure::Connect;
                self.agenda.plan(self.now + back, Event::Fail { run: id, failure });
            }
            None => self.serve(id, back),
        }
    }

    /// The replica has the request.
    fn serve(&mut self, id: u32, back: Nanos) {
        let now = self.now;
        let replica = self.runs[id as usize].replica as usize;
        let plan = &self.plan.topology.replicas[replica];
        let ask = &self.asks[self.calls[self.runs[id as usize].call as usize].ask as usize];
        let state = &mut self.replicas[replica];
        let illness = state.illness();
        let slow = illness.map_or(1, slowness);
        let run = &mut self.runs[id as usize];
        (run.stage, run.heard) = (At::Waiting, now);
        self.agenda.plan(run.first_by, Event::Watch { run: id });
        let prefill = ask.prompt_true * SECOND / u64::from(plan.prefill_rate) * slow + MILLI;
        let fail = |failure, after| (now + back + after, Event::Fail { run: id, failure });
        let (at, event) = match illness {
            Some(ReplicaIllness::Silent) => return,
            Some(ReplicaIllness::Fails { status, .. }) => fail(failed_with(status), MILLI),
            _ if ask.bad => fail(failed_with(400), MILLI),
            _ if state.busy >= plan.slots => fail(Failure::Backpressure(429), MILLI),
            _ => {
                state.busy += 1;
                run.slot = true;
                match run.stream {
                    true => (now + back + prefill / 2, Event::Head { run: id }),
                    false => {
                        let writing = run.target * SECOND / u64::from(plan.rate) * slow;
                        (now + back + prefill + writing, Event::Whole { run: id })
                    }
                }
            }
        };
        self.agenda.plan(at, event);
    }

    pub(super) fn head(&mut self, id: u32) {
        let Some(pace) = self.passes(id, Event::Head { run: id }) else { return };
        let run = &mut self.runs[id as usize];
        (run.accepted, run.heard) = (true, self.now);
        let Run { attempt, gateway, call, from, .. } = *run;
        let ask = &self.asks[self.calls[call as usize].ask as usize];
        let prefill = (ask.prompt_true + from) * SECOND / u64::from(pace.prefill_rate) * pace.slow;
        self.report(id);
        self.tell(id, gateway, Input::AttemptAccepted { attempt });
        self.agenda
            .plan(self.now + prefill / 2 + MILLI, Event::Mark { run: id, produced: from + 1 });
    }

    /// Tokens are at the gateway: the first is told apart, later ones in marks of 16 or a quarter of a second.
    pub(super) fn mark(&mut self, id: u32, produced: u64) {
        let Some(pace) = self.passes(id, Event::Mark { run: id, produced }) else { return };
        let Run { attempt, gateway, target, stage, .. } = self.runs[id as usize];
        match self.replicas[self.runs[id as usize].replica as usize].illness() {
            Some(ReplicaIllness::Stalls { after }) if produced > after => return,
            Some(ReplicaIllness::Dies { after }) if produced > after => {
                return self.fail(id, Failure::Truncated);
            }
            Some(ReplicaIllness::Garbage) => return self.fail(id, Failure::Garbage),
            _ => {}
        }
        let run = &mut self.runs[id as usize];
        (run.heard, run.produced) = (self.now, produced.min(target));
        let produced = Tokens(run.produced);
        self.report(id);
        if stage == At::Streaming {
            self.tell(id, gateway, Input::Progress { attempt, produced });
        } else {
            self.runs[id as usize].stage = At::Streaming;
            let due = self.runs[id as usize].due();
            self.agenda.plan(due, Event::Watch { run: id });
            self.tell(id, gateway, Input::FirstToken { attempt });
        }
        if self.runs[id as usize].over {
            return;
        }
        let chunk = u64::from(pace.rate / 4).clamp(1, 16).min(target - produced.0);
        if chunk == 0 {
            return self.agenda.plan(self.now + MICRO, Event::Whole { run: id });
        }
        let wait = chunk * SECOND / u64::from(pace.rate) * pace.slow;
        let event = Event::Mark { run: id, produced: produced.0 + chunk };
        self.agenda.plan(self.now + wait, event);
    }

    /// The end of an answer is at the gateway.
    pub(super) fn whole(&mut self, id: u32) {
        if self.passes(id, Event::Whole { run: id }).is_none() {
            return;
        }
        let Run { attempt, gateway, call, target, replica, stream, .. } = self.runs[id as usize];
        let ask = &self.asks[self.calls[call as usize].ask as usize];
        let illness = self.replicas[replica as usize].illness();
        match illness {
            Some(ReplicaIllness::Stalls { .. }) if !stream => return,
            Some(ReplicaIllness::Dies { .. }) if !stream => {
                return self.fail(id, Failure::Truncated);
            }
            Some(ReplicaIllness::Garbage) => return self.fail(id, Failure::Garbage),
            _ => {}
        }
        let tells = self.plan.topology.replicas[replica as usize].tells_usage;
        let (mut prompt, mut completion) = (ask.prompt_true, target);
        if let Some(ReplicaIllness::Lies { usage }) = illness {
            completion = usage;
        }
        if !tells {
            (prompt, completion) = (ask.prompt, target);
        }
        let usage = Usage { prompt: Tokens(prompt), completion: Tokens(completion) };
        self.runs[id as usize].produced = target;
        self.report(id);
        self.runs[id as usize].over = true;
        self.free_slot(id);
        let end = AttemptEnd::Completed { usage, estimated: !tells };
        self.judge.delivered(call, target);
        self.chronicle.delivered(call, target);
        self.tell(id, gateway, Input::AttemptEnded { attempt, end });
    }

    /// The gateway's shell learns that the attempt failed.
    pub(super) fn fail(&mut self, id: u32, failure: Failure) {
        let run = &self.runs[id as usize];
        if run.over {
            return;
        }
        let Run { attempt, gateway, produced, replica, .. } = *run;
        let retry_after = match self.replicas[replica as usize].illness() {
            Some(ReplicaIllness::Fails { retry_after_ms, .. }) => retry_after_ms,
            _ => None,
        };
        let retry_after = retry_after.map(std::time::Duration::from_millis);
        self.hang_up(id);
        let end = AttemptEnd::Failed { failure, produced: Tokens(produced), retry_after };
        self.tell(id, gateway, Input::AttemptEnded { attempt, end });
    }

    /// A timeout of the shell, if it has passed.
    pub(super) fn watch(&mut self, id: u32) {
        let run = &self.runs[id as usize];
        if run.over {
            return;
        }
        let due = run.due();
        if due > self.now {
            // Something was heard since it was set.
            return self.agenda.plan(due, Event::Watch { run: id });
        }
        let failure = match run.stage {
            _ if run.deadline <= self.now => Failure::Timeout(Stage::Deadline),
            At::Connecting => Failure::Connect,
            At::Waiting => Failure::Timeout(Stage::FirstToken),
            At::Streaming => Failure::Timeout(Stage::BetweenTokens),
        };
        self.fail(id, failure);
    }

    /// The replica learns that nobody waits.
    pub(super) fn stop(&mut self, id: u32) {
        let Run { gateway, replica, .. } = self.runs[id as usize];
        if self.network.open(Host::Gateway(gateway), Host::Replica(replica)) {
            self.free_slot(id);
        } else {
            self.parked.push(Event::Stop { run: id });
        }
    }

    /// Whether news of an attempt may reach its gateway now, and at what pace its replica works. What is on a cut link
    /// waits for it to be mended.
    fn passes(&mut self, id: u32, event: Event) -> Option<Pace> {
        let run = &self.runs[id as usize];
        if run.over {
            return None;
        }
        let (replica, gateway) = (run.replica, run.gateway);
        if self.replicas[replica as usize].down.is_some() {
            return None;
        }
        if !self.network.open(Host::Replica(replica), Host::Gateway(gateway)) {
            self.parked.push(event);
            return None;
        }
        self.judge.upstream_lives(run.call, run.attempt, self.now);
        let plan = &self.plan.topology.replicas[replica as usize];
        let slow = self.replicas[replica as usize].illness().map_or(1, slowness);
        Some(Pace { prefill_rate: plan.prefill_rate, rate: plan.rate, slow })
    }

    /// The shell stops reading and closes the connection.
    fn hang_up(&mut self, id: u32) {
        let run = &mut self.runs[id as usize];
        run.over = true;
        let (from, to) = (Host::Gateway(run.gateway), Host::Replica(run.replica));
        let delay = self.network.delay(self.now, from, to);
        self.agenda.plan(self.now + delay, Event::Stop { run: id });
    }

    fn free_slot(&mut self, id: u32) {
        let run = &mut self.runs[id as usize];
        if std::mem::replace(&mut run.slot, false) {
            let busy = &mut self.replicas[run.replica as usize].busy;
            *busy = busy.saturating_sub(1);
        }
    }

    /// Tells the plane of the attempt's gateway, if it is still the process that made it.
    pub(super) fn tell(&mut self, id: u32, gateway: u32, input: Input) {
        if self.gateways[gateway as usize].life == self.runs[id as usize].life {
            self.submit(gateway, input);
        }
    }
}

/// At what pace a replica works.
struct Pace {
    prefill_rate: u32,
    rate: u32,
    slow: u64,
}

impl Run {
    /// When the shell gives it up, if nothing is heard.
    fn due(&self) -> Nanos {
        let due = match self.stage {
            At::Connecting => self.connect_by,
            At::Waiting => self.first_by,
            At::Streaming => self.heard.saturating_add(self.gap),
        };
        due.min(self.deadline)
    }
}

fn slowness(illness: ReplicaIllness) -> u64 {
    match illness {
        ReplicaIllness::Slow { times } => u64::from(times.max(1)),
        ReplicaIllness::Silent
        | ReplicaIllness::Stalls { .. }
        | ReplicaIllness::Garbage
        | ReplicaIllness::Dies { .. }
        | ReplicaIllness::Fails { .. }
        | ReplicaIllness::Lies { .. } => 1,
    }
}

/// What a status means, as the transport reads it.
fn failed_with(status: u16) -> Failure {
    match status {
        401 => Failure::EndpointFault(Fault::KeyRefused),
        402 => Failure::EndpointFault(Fault::AccountEmpty),
        403 => Failure::EndpointFault(Fault::Forbidden),
        404 => Failure::EndpointFault(Fault::UnknownModel),
        429 | 503 => Failure::Backpressure(status),
        400..500 => Failure::ClientError(status),
        _ => Failure::Status(status),
    }
}

/// The number of the replica that is registered under a name.
pub(crate) fn replica_of(name: &str) -> Option<u32> {
    name.strip_prefix("replica-")?.parse().ok()
}

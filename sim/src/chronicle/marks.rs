//! Single moments in a host's life.

use std::collections::BTreeMap;

use control::plane::{Input, Observation};

use super::{Names, id_of};
use crate::check::Step;
use crate::plan::Host;
use crate::story::Mark;

/// The moments, and what is needed to tell a change from a repetition.
#[derive(Default)]
pub(crate) struct Marks {
    pub list: Vec<Mark>,
    gateways: BTreeMap<u32, Known>,
    /// Replicas that were ever drained, and whether they are.
    drained: BTreeMap<u32, bool>,
}

/// What was last said of a gateway.
#[derive(Default)]
struct Known {
    config: u64,
    registry_lost: bool,
    registry_refused: bool,
    /// Whether it has a list of replicas: before, all that join are merely the beginning.
    listed: bool,
}

/// Replicas named in one mark.
const NAMED_MAX: usize = 4;

/// What a gateway says of a store that keeps it waiting.
const LATE: &str = "finds the quota store late, and spends what it drew before";

impl Marks {
    fn add(&mut self, at_ns: u64, host: Host, text: String) {
        self.list.push(Mark { at_ns, host: id_of(host), text });
    }

    pub fn died(&mut self, at: u64, gateway: u32, power: bool) {
        let text = if power { "loses power" } else { "is killed" };
        self.add(at, Host::Gateway(gateway), text.to_owned());
    }

    /// Every gateway is told; the first says it for all.
    fn drained(&mut self, at: u64, replica: Option<u32>, on: bool) {
        let Some(replica) = replica else { return };
        let known = self.drained.insert(replica, on).unwrap_or_default();
        if known != on {
            let text = if on { "drains: gets no new picks" } else { "is let back" };
            self.add(at, Host::Replica(replica), text.to_owned());
        }
    }

    pub fn failed_over(&mut self, at: u64, lost: usize) {
        let text = format!("another takes over, without {lost} entries that were acknowledged");
        self.add(at, Host::Store, text);
    }

    /// What happened to a gateway.
    pub fn input(&mut self, step: &Step<'_>) {
        let (at, host) = (step.at, Host::Gateway(step.gateway));
        let known = self.gateways.entry(step.gateway).or_default();
        let text = match &step.input {
            Input::Restarted { incarnation, .. } if *incarnation > 1 => {
                let is_lost = |seen: &&Observation| matches!(seen, Observation::Lost { .. });
                let lost = step.observed.iter().filter(is_lost).count();
                Some(format!("restarts, life {incarnation}; {lost} requests were under way"))
            }
            Input::Configured(config) => {
                let before = std::mem::replace(&mut known.config, config.version);
                let other = before != 0 && before != config.version;
                other.then(|| format!("takes configuration {}", config.version))
            }
            Input::Drain { endpoint, on } => {
                let replica = crate::world::replica_of(endpoint);
                return self.drained(at, replica, *on);
            }
            Input::SourceLost { .. } => {
                let lost = !std::mem::replace(&mut known.registry_lost, true);
                lost.then(|| "hears nothing from the registry: keeps what it knows".to_owned())
            }
            Input::Membership { .. } => {
                let lost = std::mem::take(&mut known.registry_lost);
                lost.then(|| "hears from the registry again".to_owned())
            }
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::LoadReported { .. }
            | Input::RequestArrived(_)
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::FirstToken { .. }
            | Input::Progress { .. }
            | Input::AttemptEnded { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => None,
        };
        if let Some(text) = text {
            self.add(at, host, text);
        }
    }

    /// What the gateway noticed.
    pub fn observed(&mut self, step: &Step<'_>, names: &Names) {
        let host = Host::Gateway(step.gateway);
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        let mut refused = None;
        for observation in step.observed {
            match observation {
                Observation::EndpointAdded(id) => {
                    joined.extend(step.plane.endpoint_name(*id).map(ToString::to_string));
                }
                Observation::EndpointRemoved { name, .. } => left.push(name.to_string()),
                Observation::SourceRefused { why, .. } => refused = Some(why.to_string()),
                Observation::QuotaLate => self.add(step.at, host, LATE.to_owned()),
                Observation::QuotaDegraded(true) => {
                    let text =
                        "cannot reach the quota store: spends what it drew before".to_owned();
                    self.add(step.at, host, text);
                }
                Observation::QuotaDegraded(false) => {
                    self.add(step.at, host, "reaches the quota store again".to_owned());
                }
                Observation::SharedDegraded(true) => {
                    let text = "cannot consult the store: goes by what it knows itself".to_owned();
                    self.add(step.at, host, text);
                }
                Observation::SharedDegraded(false) => {
                    self.add(step.at, host, "consults the store again".to_owned());
                }
                Observation::ChargeLost { reservation, actual } => {
                    let text =
                        format!("{reservation} of {} tokens is lost to the store", actual.tokens.0);
                    self.add(step.at, host, names.named(step.gateway, &text));
                }
                Observation::Arrived { .. }
                | Observation::Consulted { .. }
                | Observation::ConsultLost { .. }
                | Observation::Adopted { .. }
                | Observation::Granted { .. }
                | Observation::Denied { .. }
                | Observation::Picked { .. }
                | Observation::Hedged { .. }
                | Observation::Nobody { .. }
                | Observation::Accepted { .. }
                | Observation::FirstToken { .. }
                | Observation::Ended { .. }
                | Observation::Retrying { .. }
                | Observation::GaveUp { .. }
                | Observation::Bound { .. }
                | Observation::Breaker(_)
                | Observation::Refused { .. }
                | Observation::Finished { .. }
                | Observation::Lost { .. }
                | Observation::Configured { .. }
                | Observation::Stale(_) => {}
            }
        }
        let known = self.gateways.entry(step.gateway).or_default();
        let first = !joined.is_empty() && !std::mem::replace(&mut known.listed, true);
        if let Input::Membership { .. } = step.input {
            let before = std::mem::replace(&mut known.registry_refused, refused.is_some());
            if let Some(why) = refused.filter(|_| !before) {
                self.add(step.at, host, format!("does not believe the registry: {why}"));
            }
        }
        if !first && !joined.is_empty() {
            self.add(step.at, host, format!("learns of {}", some_of(&joined)));
        }
        if !left.is_empty() {
            self.add(step.at, host, format!("takes {} off its list", some_of(&left)));
        }
    }
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

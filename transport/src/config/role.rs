//! Which part of the work a process does, and what that makes of a configuration that all roles share.
//!
//! One file serves every role of a deployment, so that a limit is written once. Each role takes from it what it decides
//! ([`Config::played`]): the gateway role who may ask and how fast, and nothing of quota, retry or placement on workers; the
//! chat role all of that, and no rates, which its gateways hold already. No two layers retry: the gateway role asks again
//! only where a connection was refused.

use super::problem::ProblemKind;
use super::reader::Section;
use super::{Config, Discovery, Limits, LoadBalancer, RetryBudget, Timeouts};

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    #[default]
    All,
    /// Judges who may ask and how fast, speaks to clients, and asks the chat role.
    Gateway,
    /// Sessions, quota, placement and workers; asked by gateways over gRPC.
    Chat,
}

impl Config {
    /// What `role` takes of it.
    pub(super) fn played(mut self, role: Role, root: &Section<'_>) -> Self {
        self.role = role;
        match role {
            Role::All if !self.chats.is_empty() => root.warn(
                "chats",
                "it has no effect without --role gateway: this process asks workers itself".into(),
            ),
            Role::All => {}
            Role::Gateway if self.chats.is_empty() => {
                let expected = "for --role gateway: a list of chat roles, chats: [{url: chat://host:8081}], or --upstream chat://host:8081";
                root.problem("chats", ProblemKind::Missing { expected: expected.to_owned() });
            }
            Role::Gateway => {
                if self.chats.len() > 1 && self.data.redis.is_none() {
                    let words = "without data.redis each of them keeps stored sessions of its own, and a session is found at one alone";
                    root.warn("chats", words.to_owned());
                }
                self.at_the_edge();
            }
            Role::Chat => {
                self.each_limit(|limits| (limits.rpm, limits.tpm) = (None, None));
                self.server.grpc_addr.get_or_insert(super::server::chat_addr());
            }
        }
        self
    }

    fn at_the_edge(&mut self) {
        self.upstreams = std::mem::take(&mut self.chats);
        self.providers.clear();
        self.rules.clear();
        self.discovery = Discovery::default();
        self.each_limit(|limits| {
            *limits = Limits { rpm: limits.rpm, tpm: limits.tpm, ..Limits::default() }
        });
        let routing = &mut self.routing;
        // A session's turns meet at one chat role, and an idempotency key its answer.
        routing.load_balancer = LoadBalancer::Sticky;
        // A refused connection needs no budget; anything else has been tried there as often as it may be.
        routing.retry_budget = RetryBudget { percent: 0, floor_per_second: 0, burst: 0 };
        // Silence is judged by whoever speaks to the worker.
        let patient = |timeouts: &mut Timeouts| {
            (timeouts.first_token, timeouts.between_tokens) = (timeouts.request, timeouts.request);
        };
        patient(&mut routing.timeouts);
        for model in self.models.values_mut() {
            model.endpoints.clear();
            (model.policy, model.concurrency) = (None, None);
            patient(&mut model.timeouts);
        }
    }

    fn each_limit(&mut self, change: impl Fn(&mut Limits)) {
        for tenant in self.tenants.values_mut() {
            change(&mut tenant.limits);
            tenant.per_user.iter_mut().for_each(&change);
            tenant.users.values_mut().for_each(&change);
        }
        self.keys.iter_mut().for_each(|key| change(&mut key.limits));
    }
}

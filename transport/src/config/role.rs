//! Which part of the work a process does, and what that makes of a configuration that all roles share.
//!
//! One file serves every role of a deployment, so that a limit is written once. Each role takes from it what it decides
//! ([`Config::played`]): the gateway role who may ask and how fast, and nothing of quota, retry or placement on workers; the
//! chat role all of that, and no rates, which its gateways hold already. No two layers retry: the gateway role asks again
//! only where a connection was refused.
//!
//! Keys are judged by the auth role where there is one, and what each may use is not: limits stand in the file of the roles
//! that count, by the names of tenants, users and keys. Carried in the auth role's answers they would be inputs of the plane
//! that arrive with requests, differ from role to role for as long as an answer is used, and be a second truth beside the file.

use std::time::Duration;

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
    /// Holds the keys; asked by the other roles over gRPC.
    Auth,
}

impl Config {
    /// What `role` takes of it.
    pub(super) fn played(mut self, role: Role, root: &Section<'_>) -> Self {
        self.role = role;
        self.keys_apart(root);
        if matches!(role, Role::Gateway | Role::Chat) {
            self.sums_apart(root);
        }
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
            // A start without keys is a mistake; who takes the last one away means it.
            Role::Auth if self.keys.is_empty() && !root.is_running() => {
                let expected = "for --role auth: the keys that are let in, keys: [{hash: sha256:...}] (`pointsman key new`)";
                root.problem("keys", ProblemKind::Missing { expected: expected.to_owned() });
            }
            Role::Auth => {
                if self.keys.is_empty() {
                    root.warn("keys", "nobody is let in any more: no key is left".to_owned());
                }
                self.server.grpc_addr.get_or_insert(super::server::auth_addr());
                if self.server.grpc_addr == Some(self.server.admin.addr)
                    && self.server.admin.addr.port() != 0
                {
                    let reason = "the same address as server.grpc.addr; give each its own";
                    let kind = ProblemKind::Invalid(reason.to_owned());
                    root.problem_of(&["server", "admin", "addr"], kind);
                }
            }
            Role::Chat => {
                self.each_limit(|limits| (limits.rpm, limits.tpm) = (None, None));
                self.server.grpc_addr.get_or_insert(super::server::chat_addr());
            }
        }
        self.quota_apart(root);
        self
    }

    /// The ledger's own port is its alone, and is there where the ledger is asked.
    fn quota_apart(&mut self, root: &Section<'_>) {
        let server = &mut self.server;
        let http = match self.role {
            Role::All => Some(server.http.addr),
            Role::Chat => None,
            Role::Gateway | Role::Auth => {
                server.quota_addr = None;
                return;
            }
        };
        let Some(quota) = server.quota_addr.filter(|addr| addr.port() != 0) else { return };
        let others = [
            (http, "server.http.addr; give each its own"),
            (
                server.grpc_addr,
                "server.grpc.addr, which serves QuotaService already; leave this one out, or give each its own",
            ),
            (Some(server.admin.addr), "server.admin.addr; give each its own"),
        ];
        for (_, whose) in others.into_iter().filter(|(addr, _)| *addr == Some(quota)) {
            let kind = ProblemKind::Invalid(format!("the same address as {whose}"));
            root.problem_of(&["server", "quota", "addr"], kind);
        }
    }

    /// Who judges keys: one role, or this process.
    fn keys_apart(&mut self, root: &Section<'_>) {
        let remote = self.auth.remote.is_some();
        match self.role {
            Role::All | Role::Auth => {
                if remote && self.role == Role::All {
                    let words = "url has no effect without --role gateway or chat: this process judges keys itself";
                    root.warn("auth", words.into());
                }
                self.auth.remote = None;
            }
            Role::Gateway | Role::Chat if remote => {
                if self.keys.iter().any(|key| key.hash.is_some()) {
                    let words = "the auth role of auth.url judges keys: of these entries only the limits hold, by name; keep \
                                 hashes in the auth role's file alone";
                    root.warn("keys", words.into());
                }
                self.keys.iter_mut().for_each(|key| key.hash = None);
            }
            Role::Gateway | Role::Chat => {}
        }
    }

    /// What is spent in a day or a month is summed where it is spent.
    fn sums_apart(&self, root: &Section<'_>) {
        let count = self.chats.len();
        if count < 2 || self.data.redis.is_some() {
            return;
        }
        let of_tenants = self.tenants.values().flat_map(|tenant| {
            let users = tenant.users.values().chain(&tenant.per_user);
            users.chain([&tenant.limits])
        });
        let mut all = of_tenants.chain(self.keys.iter().map(|key| &key.limits));
        if all.any(Limits::sums) {
            let words = format!(
                "without data.redis each of these {count} chat roles counts for itself: of a limit a day or a month up to \
                 {count} times as much may be spent; name a data.redis that they share"
            );
            root.warn("chats", words);
        }
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
        // One layer hedges: whoever speaks to the workers.
        routing.hedge.after = Duration::ZERO;
        // Silence is judged by whoever speaks to the worker.
        let patient = |timeouts: &mut Timeouts| {
            (timeouts.first_token, timeouts.between_tokens) = (timeouts.request, timeouts.request);
        };
        patient(&mut routing.timeouts);
        for model in self.models.values_mut() {
            model.endpoints.clear();
            (model.policy, model.concurrency, model.hedge_after) = (None, None, None);
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

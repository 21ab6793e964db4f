//! `models`, `providers`, `upstreams`, `rules`: who serves what.
//!
//! Four ways to say it, because people come from four places. `models` lists the replicas of a model one by one;
//! `upstreams` names servers and asks them what they serve; `providers` are companies with a key and names of their own;
//! `rules` give a provider's models priority and weight one by one. [`routes`](super::routes) makes one table of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use control::units::{MicroUsd, Price};

use super::problem::{Origin, ProblemKind, nearest};
use super::reader::Section;
use super::routing::{HEDGE_AFTER, LoadBalancer, Timeouts};
use super::server::{MILLI, seconds};
use super::trust::WorkerTls;
use super::units::{Secret, Url};

/// Models in the file: as many as anybody serves, times ten.
const MODELS_MAX: usize = 1_000;
/// What the selector is measured at.
const ENDPOINTS_MAX: usize = 10_000;
const PROVIDERS_MAX: usize = 100;
const UPSTREAMS_MAX: usize = 10_000;
const CHATS_MAX: usize = 1_000;
const RULES_MAX: usize = 10_000;

/// A model with settings or replicas of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// How its endpoints are picked; absent, as `routing.load_balancer` says.
    pub policy: Option<LoadBalancer>,
    /// Its replicas.
    pub endpoints: Vec<Endpoint>,
    /// What it costs the caller.
    pub price: Price,
    /// Requests of it that run at once.
    pub concurrency: Option<u32>,
    /// Its timeouts, what it leaves out filled in from `routing`.
    pub timeouts: Timeouts,
    /// After how long a second attempt is made beside one that is silent; absent, as `routing.hedge` says.
    pub hedge_after: Option<Duration>,
}

impl Model {
    /// A model on replicas that no file names, all alike: the built-in ones.
    #[must_use]
    pub fn of_replicas<'a>(
        replicas: impl IntoIterator<Item = (&'a str, SocketAddr)>,
        timeouts: Timeouts,
    ) -> Self {
        let endpoint = |(name, addr): (&str, SocketAddr)| Endpoint {
            name: name.to_owned(),
            url: format!("http://{addr}").parse().expect("an address makes a URL"),
            weight: WEIGHT_DEFAULT,
            priority: PRIORITY_DEFAULT,
            api_key: None,
            model: None,
            in_flight_max: None,
            http2: false,
            tls: None,
            continues: None,
        };
        Self {
            policy: None,
            endpoints: replicas.into_iter().map(endpoint).collect(),
            price: Price::default(),
            concurrency: None,
            timeouts,
            hedge_after: None,
        }
    }
}

/// A replica of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in logs, `explain` and `drain`.
    pub name: String,
    /// Where it is.
    pub url: Url,
    /// Its share among those of its priority.
    pub weight: u32,
    /// Its tier: 1 is asked first, the next when nobody of it is left.
    pub priority: u32,
    /// What it is asked with.
    pub api_key: Option<Secret>,
    /// What it calls the model; absent, as we do.
    pub model: Option<String>,
    /// Requests it gets at once.
    pub in_flight_max: Option<u32>,
    /// Whether HTTP/2 is spoken to it without TLS too.
    pub http2: bool,
    /// TLS with it, where it is a worker over QUIC.
    pub tls: Option<WorkerTls>,
    /// What it runs, where it continues the answers of others that run the same.
    pub continues: Option<String>,
}

/// A provider: one URL, one key, many models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// What it is asked with.
    pub api_key: Option<Secret>,
    /// Where its API is.
    pub base_url: Url,
    /// The longest one attempt there may take.
    pub timeout: Option<Duration>,
    /// Requests a second it gets.
    pub max_rps: Option<u32>,
    /// Our names of its models, each with its own. `None`: it is asked.
    pub models: Option<BTreeMap<String, String>>,
    /// Its tier; own replicas are in tier 1 unless they say otherwise.
    pub priority: u32,
    /// Its share within the tier.
    pub weight: u32,
    /// Whether HTTP/2 is spoken to it without TLS too.
    pub http2: bool,
}

/// A server whose models are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name in logs, `explain` and `drain`.
    pub name: String,
    /// Where it is.
    pub url: Url,
    /// What it is asked with.
    pub api_key: Option<Secret>,
    /// Its share within the tier.
    pub weight: u32,
    /// Its tier.
    pub priority: u32,
    /// Requests it gets at once.
    pub in_flight_max: Option<u32>,
    /// Whether HTTP/2 is spoken to it without TLS too.
    pub http2: bool,
    /// TLS with it, where it is a worker over QUIC.
    pub tls: Option<WorkerTls>,
}

/// One model of one provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Our name of the model.
    pub model_name: String,
    /// The provider.
    pub provider_id: String,
    /// Its tier for this model.
    pub priority: u32,
    /// Its share within the tier.
    pub weight: u32,
    /// Requests a second.
    pub max_rps: u32,
    /// Whether the rule holds.
    pub is_enabled: bool,
}

pub(super) fn read_models(root: &Section<'_>, general: &Timeouts) -> BTreeMap<String, Model> {
    root.named("models", MODELS_MAX, |name, section| Some(Model::read(name, section, general)))
}

pub(super) fn read_providers(root: &Section<'_>) -> BTreeMap<String, Provider> {
    root.named("providers", PROVIDERS_MAX, Provider::read)
}

/// Who is asked for models, and where the chat role is. A flag may name either.
pub(super) fn read_upstreams(root: &Section<'_>) -> (Vec<Upstream>, Vec<Upstream>) {
    let mut upstreams = root.list("upstreams", UPSTREAMS_MAX, |section| {
        Upstream::read(section).filter(|upstream| expect_chat(section, "url", &upstream.url, false))
    });
    let mut chats = root.list("chats", CHATS_MAX, Upstream::read_chat);
    for given in root.upstream_flags() {
        match given.parse::<Url>() {
            Ok(url) if url.is_chat() => chats.push(Upstream::at(url)),
            Ok(url) if url.is_auth() => {
                let reason = "auth:// is the auth role: name it as auth.url in a configuration";
                let kind = ProblemKind::Invalid(reason.to_owned());
                root.problem_from(Origin::Flag("--upstream".into()), "upstreams", kind);
            }
            Ok(url) => upstreams.push(Upstream::at(url)),
            Err(reason) => {
                let origin = Origin::Flag("--upstream".into());
                let kind = ProblemKind::Invalid(String::from(reason));
                root.problem_from(origin, "upstreams", kind);
            }
        }
    }
    (upstreams, chats)
}

/// Whether `url` is of the kind that belongs here.
fn expect_chat(section: &Section<'_>, key: &str, url: &Url, chat: bool) -> bool {
    let fits = url.is_chat() == chat && !url.is_auth();
    if !fits {
        let reason = match chat {
            false if url.is_auth() => "auth:// is the auth role: name it as auth.url",
            true => "the chat role is reached at chat://host:port or chats://host:port",
            false => "chat:// is the chat role: name it under chats, for --role gateway",
        };
        section.problem(key, ProblemKind::Invalid(reason.to_owned()));
    }
    fits
}

pub(super) fn read_rules(root: &Section<'_>, providers: &BTreeMap<String, Provider>) -> Vec<Rule> {
    root.list("rules", RULES_MAX, |section| {
        let (model_name, provider_id) =
            (section.required("model_name"), section.required::<String>("provider_id"));
        let priority = section.between("priority", PRIORITY_DEFAULT, PRIORITIES);
        let weight = section.between("weight", WEIGHT_DEFAULT, WEIGHTS);
        let max_rps = section.between("max_rps", 1_000, RATES);
        let is_enabled = section.get("is_enabled", true);
        let (model_name, provider_id) = (model_name?, provider_id?);
        expect_known(section, "provider_id", "provider", &provider_id, providers);
        Some(Rule { model_name, provider_id, priority, weight, max_rps, is_enabled })
    })
}

/// Reports a name that is not a key of `known`.
pub(super) fn expect_known<T>(
    section: &Section<'_>,
    key: &str,
    what: &'static str,
    name: &str,
    known: &BTreeMap<String, T>,
) {
    if !known.contains_key(name) {
        let suggestion = nearest(name, known.keys().map(String::as_str));
        let found = format!("{name:?}");
        section.problem(key, ProblemKind::NoSuch { what, found, suggestion });
    }
}

/// Leaves room for lighter and heavier ones.
const WEIGHT_DEFAULT: u32 = 100;
/// Own replicas are asked first.
const PRIORITY_DEFAULT: u32 = 1;
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=100;
const RATES: std::ops::RangeInclusive<u32> = 1..=1_000_000;
const IN_FLIGHT: std::ops::RangeInclusive<u32> = 1..=100_000;

impl Model {
    fn read(_name: &str, section: &Section<'_>, general: &Timeouts) -> Self {
        let names = RefCell::new(BTreeSet::new());
        Self {
            policy: section.maybe("policy", "`routing.load_balancer`"),
            endpoints: section.list("endpoints", ENDPOINTS_MAX, |section| {
                let endpoint = Endpoint::read(section)?;
                if !names.borrow_mut().insert(endpoint.name.clone()) {
                    let reason = format!(
                        "this model has another endpoint named {:?}; give each a name",
                        endpoint.name
                    );
                    section.problem("name", ProblemKind::Invalid(reason));
                }
                Some(endpoint)
            }),
            price: section.section("price", |price| Price {
                input: price.between("input", MicroUsd::ZERO, USD),
                output: price.between("output", MicroUsd::ZERO, USD),
            }),
            concurrency: section.maybe_between("concurrency", "no limit", IN_FLIGHT),
            timeouts: section.section("timeouts", |timeouts| general.read_over(timeouts)),
            hedge_after: section.section("hedge", |hedge| {
                hedge.maybe_between("after", "`routing.hedge.after`", HEDGE_AFTER)
            }),
        }
    }
}

/// USD per 1,000,000 tokens. No model costs a hundredth of the upper bound.
const USD: std::ops::RangeInclusive<MicroUsd> = MicroUsd::ZERO..=MicroUsd(100_000_000_000);

impl Endpoint {
    fn read(section: &Section<'_>) -> Option<Self> {
        let url = section.required::<Url>("url");
        let name = section.maybe("name", "the URL's host and port");
        let api_key = section.maybe("api_key", "none");
        let (weight, priority) = (
            section.between("weight", WEIGHT_DEFAULT, WEIGHTS),
            section.between("priority", PRIORITY_DEFAULT, PRIORITIES),
        );
        let model = section.maybe("model", "the model's own name");
        let in_flight_max = section.maybe_between("in_flight_max", "no limit", IN_FLIGHT);
        let http2 = section.get("http2", false);
        let tls = WorkerTls::of(section, url.as_ref());
        let continues = section.maybe::<String>("continues", "it continues no answer");
        let url = url.filter(|url| expect_chat(section, "url", url, false))?;
        if let Some(revision) = &continues {
            expect_revision(section, &url, revision);
        }
        let name = name.unwrap_or_else(|| url.authority().to_owned());
        Some(Self {
            name,
            url,
            weight,
            priority,
            api_key,
            model,
            in_flight_max,
            http2,
            tls,
            continues,
        })
    }
}

/// A revision is a name, and said of a server that cannot say it itself.
fn expect_revision(section: &Section<'_>, url: &Url, revision: &str) {
    let reason = if url.is_worker() {
        "a worker says itself whose answers it continues: give --backend-continues to the worker"
    } else if revision.len() > REVISION_MAX {
        "name what the server runs in 256 bytes at most, like qwen2.5-7b-instruct@a09a354"
    } else {
        return;
    };
    section.problem("continues", ProblemKind::Invalid(reason.to_owned()));
}

/// Longer than a path with a digest.
const REVISION_MAX: usize = 256;

/// Providers whose address everybody knows.
const KNOWN: [(&str, &str); 2] = [
    ("openai", "https://api.openai.com/v1"),
    ("aliyun", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
];

impl Provider {
    fn read(name: &str, section: &Section<'_>) -> Option<Self> {
        let known = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, url)| *url);
        let given: Option<Url> =
            section.maybe("base_url", "known for `openai` and `aliyun`, required for others");
        if known.is_none() && !section.gives("base_url") {
            let expected = "a URL like https://api.example.com/v1".to_owned();
            section.problem("base_url", ProblemKind::Missing { expected });
        }
        let api_key = section.maybe("api_key", "none");
        let timeout =
            section.maybe_between("timeout", "the model's timeouts", MILLI..=seconds(86_400));
        let max_rps = section.maybe_between("max_rps", "no limit", RATES);
        let models = section.renames("models", "asked for at `/v1/models`");
        // Own replicas first.
        let priority = section.between("priority", 2, PRIORITIES);
        let weight = section.between("weight", WEIGHT_DEFAULT, WEIGHTS);
        let http2 = section.get("http2", false);
        let base_url = given.or_else(|| known?.parse().ok())?;
        if !expect_chat(section, "base_url", &base_url, false) {
            return None;
        }
        if base_url.authority() == "dashscope.aliyuncs.com" && base_url.path().starts_with("/api/")
        {
            section.warn(
                "base_url",
                "this is DashScope's own API; the one that is spoken here lies at \
                 https://dashscope.aliyuncs.com/compatible-mode/v1"
                    .into(),
            );
        }
        Some(Self { api_key, base_url, timeout, max_rps, models, priority, weight, http2 })
    }
}

impl Upstream {
    fn read(section: &Section<'_>) -> Option<Self> {
        let url = section.required::<Url>("url");
        let name = section.maybe("name", "the URL's host and port");
        let api_key = section.maybe("api_key", "none");
        let (weight, priority) = (
            section.between("weight", WEIGHT_DEFAULT, WEIGHTS),
            section.between("priority", PRIORITY_DEFAULT, PRIORITIES),
        );
        let in_flight_max = section.maybe_between("in_flight_max", "no limit", IN_FLIGHT);
        let http2 = section.get("http2", false);
        let tls = WorkerTls::of(section, url.as_ref());
        let plain = Self::at(url?);
        let name = name.unwrap_or(plain.name);
        Some(Self { name, url: plain.url, api_key, weight, priority, in_flight_max, http2, tls })
    }

    /// A chat role: it has no key of its own, for its callers show theirs.
    fn read_chat(section: &Section<'_>) -> Option<Self> {
        let url = section.required::<Url>("url");
        let name = section.maybe("name", "the URL's host and port");
        let (weight, priority) = (
            section.between("weight", WEIGHT_DEFAULT, WEIGHTS),
            section.between("priority", PRIORITY_DEFAULT, PRIORITIES),
        );
        let in_flight_max = section.maybe_between("in_flight_max", "no limit", IN_FLIGHT);
        let tls = WorkerTls::of(section, url.as_ref());
        let plain = Self::at(url.filter(|url| expect_chat(section, "url", url, true))?);
        let name = name.unwrap_or_else(|| plain.name.clone());
        Some(Self { name, weight, priority, in_flight_max, tls, ..plain })
    }

    fn at(url: Url) -> Self {
        Self {
            name: url.authority().to_owned(),
            url,
            api_key: None,
            weight: 100,
            priority: 1,
            in_flight_max: None,
            http2: false,
            tls: None,
        }
    }
}

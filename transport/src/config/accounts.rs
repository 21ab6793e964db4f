//! `tenants` and `keys`: who may call, and how much.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use control::units::{MicroUsd, Tokens};

use super::catalogue::expect_known;
use super::problem::ProblemKind;
use super::reader::Section;
use super::tree::Scalar;
use super::units::Secret;
use super::value::{Value, Wrong};
use crate::keys::KeyHash;

/// The tenant of keys that name none, and of callers without a key.
pub const DEFAULT_TENANT: &str = "default";

/// What the owner of a key's own stored sessions is called begins with it, so no user may be called that.
pub(crate) const KEY_OWNER: &str = "key/";

/// Tenants in the file.
const TENANTS_MAX: usize = 10_000;
/// Users with limits of their own, a tenant.
const USERS_MAX: usize = 10_000;
/// Keys in the file. Checking one costs a look into a map; reading the file is what bounds them.
const KEYS_MAX: usize = 10_000;

/// The longest name of a key or its user, in bytes: as long as names of tenants and users may be. The auth role says them to
/// others, which take none that is longer.
pub(crate) const NAME_MAX: usize = 200;

/// What an account may use. Absent is without limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub rpm: Option<u32>,
    /// Tokens a minute.
    pub tpm: Option<Tokens>,
    /// Tokens a day (UTC).
    pub daily_tokens: Option<Tokens>,
    /// Tokens a month (UTC).
    pub monthly_tokens: Option<Tokens>,
    /// Money a day (UTC).
    pub daily_usd: Option<MicroUsd>,
    /// Money a month (UTC).
    pub monthly_usd: Option<MicroUsd>,
}

/// A tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    /// What all its users and keys may use together.
    pub limits: Limits,
    /// Whether what was overspent in one window is taken from the next.
    pub carry_debt: bool,
    /// Users with limits of their own.
    pub users: BTreeMap<String, Limits>,
    /// What each of the others may use.
    pub per_user: Option<Limits>,
}

/// An API key that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The key's hash; the key itself is nowhere. `None` where the auth role has it, and only the limits are here.
    pub hash: Option<KeyHash>,
    /// Who pays.
    pub tenant: String,
    /// The user it belongs to, where it is one's.
    pub user: Option<String>,
    /// Its name in logs and `quota show`.
    pub name: String,
    /// What this key alone may use.
    pub limits: Limits,
    /// The models it may call; absent, all.
    pub models: Option<Vec<String>>,
}

pub(super) fn read_tenants(root: &Section<'_>) -> BTreeMap<String, Tenant> {
    root.named("tenants", TENANTS_MAX, |name, section| {
        if name.contains('/') {
            let reason = "a tenant's name has no slash: it separates tenant and user".to_owned();
            section.problem("", ProblemKind::Invalid(reason));
        }
        Some(Tenant {
            limits: Limits::read(section),
            carry_debt: section.get("carry_debt", false),
            users: section.named("users", USERS_MAX, |name, user| {
                check_user(user, "", name);
                Some(Limits::read(user))
            }),
            per_user: section.maybe_section("per_user", |user| Some(Limits::read(user))),
        })
    })
}

/// Where another role judges them, `judged` is false: an entry is then a name with its limits, and needs no hash.
pub(super) fn read_keys(
    root: &Section<'_>,
    tenants: &BTreeMap<String, Tenant>,
    judged: bool,
) -> Vec<KeyEntry> {
    let (names, hashes) = (RefCell::new(BTreeSet::new()), RefCell::new(BTreeSet::new()));
    root.list("keys", KEYS_MAX, |section| {
        let key = KeyEntry::read(section, tenants, judged)?;
        if key.hash.is_some_and(|hash| !hashes.borrow_mut().insert(hash.to_string())) {
            let reason = "this key is listed twice".to_owned();
            section.problem("hash", ProblemKind::Invalid(reason));
        } else if !names.borrow_mut().insert(key.name.clone()) {
            let reason = format!("another key is named {:?}", key.name);
            section.problem("name", ProblemKind::Invalid(reason));
        }
        Some(key)
    })
}

/// The balances' arithmetic is exact up to 2^53 in every store.
const TOKENS: RangeInclusive<Tokens> = Tokens(0)..=Tokens(1_000_000_000_000_000);
const USD: RangeInclusive<MicroUsd> = MicroUsd(0)..=MicroUsd(1_000_000_000_000_000);

impl Limits {
    /// Whether what is spent is limited, and not only how fast.
    pub(super) fn sums(&self) -> bool {
        let tokens = [self.daily_tokens, self.monthly_tokens].iter().any(Option::is_some);
        tokens || [self.daily_usd, self.monthly_usd].iter().any(Option::is_some)
    }

    fn read(section: &Section<'_>) -> Self {
        let tokens = |key| section.maybe_between(key, "no limit", TOKENS);
        let money = |key| section.maybe_between(key, "no limit", USD);
        Self {
            rpm: section.maybe_between("rpm", "no limit", 1..=10_000_000),
            tpm: section.maybe_between("tpm", "no limit", Tokens(1)..=Tokens(1_000_000_000_000)),
            daily_tokens: tokens("daily_tokens"),
            monthly_tokens: tokens("monthly_tokens"),
            daily_usd: money("daily_usd"),
            monthly_usd: money("monthly_usd"),
        }
    }
}

impl KeyEntry {
    fn read(
        section: &Section<'_>,
        tenants: &BTreeMap<String, Tenant>,
        judged: bool,
    ) -> Option<Self> {
        let hash = match judged {
            true => section.required::<HashText>("hash"),
            false => section.maybe("hash", "the auth role has it"),
        };
        let tenant = section.get("tenant", DEFAULT_TENANT.to_owned());
        if tenant != DEFAULT_TENANT {
            // One that is not there would have no limits, which is not what a misspelling means.
            expect_known(section, "tenant", "tenant", &tenant, tenants);
        }
        let user = section.maybe::<String>("user", "no user");
        let name = section.maybe::<String>("name", "the hash's first 12 digits");
        for (key, text) in [("user", &user), ("name", &name)] {
            short(section, key, text.as_deref());
        }
        if let Some(user) = &user {
            check_user(section, "user", user);
        }
        let limits = Limits::read(section);
        let models = section.texts("models", "every model");
        let hash = hash.map(|HashText(hash)| hash);
        if judged {
            hash?;
        }
        if let (None, None) = (&name, hash) {
            let expected = "the key's name at the auth role, whose limits these are".to_owned();
            section.problem("name", ProblemKind::Missing { expected });
        }
        let name = name.or_else(|| hash.map(|hash| hash.short()))?;
        Some(Self { hash, tenant, user, name, limits, models })
    }
}

fn short(section: &Section<'_>, key: &str, text: Option<&str>) {
    if let Some(bytes) = text.map(str::len).filter(|bytes| *bytes > NAME_MAX) {
        let reason = format!("a name has at most {NAME_MAX} bytes, and this one {bytes}");
        section.problem_of(&[key], ProblemKind::Invalid(reason));
    }
}

fn check_user(section: &Section<'_>, key: &str, name: &str) {
    if name.starts_with(KEY_OWNER) {
        let reason = format!(
            "a user's name does not begin with {KEY_OWNER:?}: that is what keys' own sessions are called"
        );
        section.problem(key, ProblemKind::Invalid(reason));
    }
}

/// A hash as it is written: itself, or the file it stands in.
struct HashText(KeyHash);

impl Value for HashText {
    const SECRET: bool = true;

    fn expected() -> String {
        "a key's hash like sha256:... as `pointsman key new` prints it, or file:/path".into()
    }

    fn read(scalar: &Scalar) -> Result<Self, Wrong> {
        let source = Secret::read(scalar)?;
        if source.expose().starts_with("pm-") {
            let reason = "this is a key, not its hash: anybody who reads the file could use it";
            return Err(Wrong::Because(reason.into()));
        }
        source.expose().parse().map(Self).map_err(|_| Wrong::Type)
    }

    fn show(&self) -> String {
        format!("sha256:{}...", self.0.short())
    }
}

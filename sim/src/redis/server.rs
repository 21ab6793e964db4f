//! The server itself: what it knows, what it answers, and how it forgets.

use std::collections::{BTreeMap, BTreeSet};

use control::id::AccountId;
use control::quota::{Ask, At, Entry, Ledger, LedgerConfig, OpId, OwnerId, StoreOp};
use control::{Instant, Wall};

use super::Command;
use super::common::{Common, READS};
use super::log::Logs;
use super::resp::Said;
use super::words::{Arguments, HERE, Unreadable, named, row, told};

/// What it is just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// The primary.
    #[default]
    Primary,
    /// A replica, which takes no writes.
    Replica,
    /// Reads its data in.
    Loading,
    /// Out of memory.
    Full,
}

/// A server with the ledgers of all tenants.
#[derive(Debug)]
pub struct Server {
    tenants: BTreeMap<AccountId, Tenant>,
    texts: BTreeMap<Vec<u8>, Vec<u8>>,
    common: Common,
    logs: Logs,
    /// The SHAs of scripts that this process has been given.
    scripts: BTreeSet<String>,
    /// What each call wrote, in order: as a replica would receive it.
    calls: Vec<(AccountId, Vec<Entry>)>,
    made: Vec<Made>,
    /// Counts the reigns of primaries.
    reign: u64,
    stance: Stance,
}

/// An entry that a ledger made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Whose.
    pub tenant: AccountId,
    /// What.
    pub entry: Entry,
    /// Its owner says that it is so: no limit was asked.
    pub asserted: bool,
}

#[derive(Debug)]
struct Tenant {
    ledger: Ledger,
    token: String,
    /// Its time never runs backwards.
    latest: Instant,
}

/// Expiries performed in one go.
const EXPIRIES_MAX: usize = 64;

impl Default for Server {
    fn default() -> Self {
        Self {
            tenants: BTreeMap::new(),
            texts: BTreeMap::new(),
            common: Common::default(),
            logs: Logs::default(),
            scripts: BTreeSet::new(),
            calls: Vec::new(),
            made: Vec::new(),
            reign: 1,
            stance: Stance::Primary,
        }
    }
}

impl Server {
    /// Answers a command, on the server's own clocks.
    pub fn answer(&mut self, at: At, command: &Command) -> Said {
        let Some((name, words)) = command.split_first() else { return unknown() };
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        let reads = || {
            let first = words.first().map(Vec::as_slice).unwrap_or_default();
            known().any(|(name, text, sha)| {
                name == READS && (text.as_bytes() == first || sha.as_bytes() == first)
            })
        };
        let writes = match &*name {
            "SET" | "SETNX" | "PEXPIRE" => true,
            "EVAL" | "EVALSHA" => !reads(),
            _ => false,
        };
        if let Some(refusal) = self.refusal(&name, writes) {
            return refusal;
        }
        if let Some(said) = self.logs.answer(at.now.as_nanos() / 1_000_000, &name, words) {
            return said;
        }
        match (&*name, words) {
            ("PING", []) => Said::Word("PONG"),
            ("CLIENT" | "SELECT" | "AUTH", _) => Said::Word("OK"),
            ("INFO", _) => self.info(),
            ("TIME", []) => {
                let micros = at.now.as_nanos() / 1_000;
                let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
                Said::List(vec![Said::text(seconds.to_string()), Said::text(rest.to_string())])
            }
            ("GET", [key]) => self.texts.get(key).cloned().map_or(Said::Nothing, Said::Bulk),
            // When it goes again makes no difference to anybody here.
            ("SET", [key, value, ..]) => {
                self.texts.insert(key.clone(), value.clone());
                Said::Word("OK")
            }
            ("SETNX", [key, value]) => {
                let is_new = !self.texts.contains_key(key);
                self.texts.entry(key.clone()).or_insert_with(|| value.clone());
                Said::Number(u64::from(is_new))
            }
            ("SCRIPT", [load, text]) if load.eq_ignore_ascii_case(b"load") => match sha_of(text) {
                Some(sha) => {
                    self.scripts.insert(sha.to_owned());
                    Said::text(sha)
                }
                None => foreign(),
            },
            ("EVALSHA", [sha, rest @ ..]) => {
                let sha = String::from_utf8_lossy(sha).to_ascii_lowercase();
                if !self.scripts.contains(&sha) {
                    return Said::Error("NOSCRIPT No matching script. Please use EVAL.".into());
                }
                self.run(at, &sha, rest)
            }
            ("EVAL", [text, rest @ ..]) => {
                let Some(sha) = sha_of(text) else { return foreign() };
                self.scripts.insert(sha.to_owned());
                self.run(at, sha, rest)
            }
            _ => unknown(),
        }
    }

    fn refusal(&self, name: &str, writes: bool) -> Option<Said> {
        let words = match self.stance {
            Stance::Loading if name != "INFO" => "LOADING Redis is loading the dataset in memory",
            Stance::Replica if writes => "READONLY You can't write against a read only replica.",
            Stance::Full if writes => "OOM command not allowed when used memory > 'maxmemory'.",
            Stance::Primary | Stance::Replica | Stance::Loading | Stance::Full => return None,
        };
        Some(Said::Error(words.into()))
    }

    fn info(&self) -> Said {
        let role = if self.stance == Stance::Replica { "slave" } else { "master" };
        Said::text(format!(
            "# Replication\r\nrole:{role}\r\nmaster_replid:{}\r\n# Memory\r\nmaxmemory_policy:noeviction\r\n",
            self.replid(),
        ))
    }

    /// Drawn anew whenever a process starts, or one is promoted.
    fn replid(&self) -> String {
        format!("{:040x}", u128::from(self.reign) << 64 | u128::from(control::rng::mix(self.reign)))
    }

    fn run(&mut self, at: At, sha: &str, words: &[Vec<u8>]) -> Said {
        let performed = self.perform(at, sha, words);
        performed.unwrap_or_else(|Unreadable| Said::Error("ERR wrong arguments".into()))
    }

    fn perform(&mut self, at: At, sha: &str, words: &[Vec<u8>]) -> Result<Said, Unreadable> {
        let (script, ..) = known().find(|(.., known)| *known == sha).ok_or(Unreadable)?;
        let mut head = Arguments::new(words);
        let count = usize::try_from(head.number()?).map_err(|_| Unreadable)?;
        let keys = (0..count).map(|_| head.text()).collect::<Result<Vec<_>, _>>()?;
        let arguments = Arguments::new(words.get(count + 1..).ok_or(Unreadable)?);
        let micros = at.now.as_nanos() / 1_000;
        if let Some(said) = self.common.run(micros, script, &keys, arguments) {
            return said;
        }
        let arguments = words.get(count + 1..).unwrap_or_default();
        if let Some(said) = self.logs.run(micros / 1_000, script, &keys, arguments) {
            return said;
        }
        let tenant = tenant_of(keys.first().ok_or(Unreadable)?)?;
        let mut arguments = Arguments::new(words.get(count + 1..).ok_or(Unreadable)?);
        if script == "balances" {
            let (after, count) = (arguments.text()?, arguments.number()?);
            return Ok(self.balances(tenant, after, count));
        }
        let common = arguments.common()?;
        let at = common.at.map_or(at, |(micros, millis)| At {
            now: Instant::from_nanos(micros * 1_000),
            wall: Wall::from_millis(millis),
        });
        let replid = self.replid();
        let of = self.tenants.entry(tenant).or_insert_with(|| Tenant {
            ledger: Ledger::new(common.bounds.clone()),
            token: common.token,
            latest: Instant::ZERO,
        });
        if script != "ledger" {
            return Err(Unreadable);
        }
        let run = format!("{replid}.{}", of.token);
        // All of a call or nothing: nobody hears of half of it, and no replica does.
        let mut asks = Vec::new();
        while let Some(ask) = arguments.ask(&run)? {
            asks.push(ask);
        }
        let (mut answers, mut entries) = (vec![Said::text(run)], Vec::new());
        let note = |entry: &Entry, asserted| Made { tenant, entry: entry.clone(), asserted };
        for (believed, ask) in asks {
            let asserted = matches!(ask, Ask::Assert { .. });
            let (op, owner) = (OpId(0), OwnerId(0));
            let op = StoreOp { op, owner, run: believed, tenant: Some(tenant), ask };
            let (expired, made, reply) = of.perform(at, common.bounds.clone(), &op);
            answers.push(told(&reply));
            self.made.extend(expired.iter().map(|entry| note(entry, false)));
            self.made.extend(made.iter().map(|entry| note(entry, asserted)));
            entries.extend(expired.into_iter().chain(made));
        }
        self.calls.push((tenant, entries));
        Ok(Said::List(answers))
    }

    fn balances(&self, tenant: AccountId, after: &str, count: u64) -> Said {
        let Some(of) = self.tenants.get(&tenant) else { return Said::List(Vec::new()) };
        let open = of.ledger.balances().filter(|(key, _)| *named(key) > *after);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Said::List(open.take(count).map(|(key, sums)| row(&key, sums)).collect())
    }

    /// It is another thing from now on.
    pub fn set_stance(&mut self, stance: Stance) {
        self.stance = stance;
    }

    /// Its process starts anew, with its data or without. Scripts are never kept.
    pub fn restart(&mut self, with_data: bool) {
        self.reign += 1;
        self.scripts.clear();
        if !with_data {
            self.tenants.clear();
            self.texts.clear();
            self.common = Common::default();
            self.logs = Logs::default();
            self.calls.clear();
        }
    }

    /// A replica takes over which lacks the last calls, though they were acknowledged.
    pub fn fail_over(&mut self, lose: usize) {
        self.restart(true);
        self.common.lose(lose);
        self.logs.lose(lose);
        self.calls.truncate(self.calls.len().saturating_sub(lose));
        let before = std::mem::take(&mut self.tenants);
        for (tenant, entries) in &self.calls {
            let Some(known) = before.get(tenant) else { continue };
            let of = self.tenants.entry(*tenant).or_insert_with(|| Tenant {
                ledger: Ledger::new(known.ledger.config().clone()),
                token: known.token.clone(),
                latest: known.latest,
            });
            entries.iter().for_each(|entry| of.ledger.apply(entry));
        }
    }

    /// What was made since the last call.
    pub fn take_made(&mut self) -> Vec<Made> {
        std::mem::take(&mut self.made)
    }

    /// Every entry that it knows.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.calls.iter().flat_map(|(_, entries)| entries)
    }

    /// The ledgers, by tenant.
    pub fn ledgers(&self) -> impl Iterator<Item = (AccountId, &Ledger)> {
        self.tenants.iter().map(|(tenant, of)| (*tenant, &of.ledger))
    }
}

impl Tenant {
    /// What expired, what else was made, and the reply.
    fn perform(
        &mut self,
        at: At,
        bounds: LedgerConfig,
        op: &StoreOp,
    ) -> (Vec<Entry>, Vec<Entry>, control::quota::Reply) {
        let (mut expired, mut made) = (Vec::new(), Vec::new());
        let at = At { now: at.now.max(self.latest), ..at };
        self.latest = at.now;
        self.ledger.set_config(bounds);
        while self.ledger.expire(at, EXPIRIES_MAX, &mut expired).is_break() {}
        let reply = self.ledger.perform(at, HERE, op, &mut made).reply;
        (expired, made, reply)
    }
}

fn sha_of(text: &[u8]) -> Option<&'static str> {
    known().find(|(_, known, _)| known.as_bytes() == text).map(|(.., sha)| sha)
}

/// The product's scripts: name, text and SHA.
fn known() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let ledger = transport::redis::scripts().into_iter();
    ledger.chain(transport::redis::wave_scripts()).chain(transport::redis::stream_scripts())
}

fn tenant_of(key: &str) -> Result<AccountId, Unreadable> {
    let tag = key.split(['{', '}']).nth(1).ok_or(Unreadable)?;
    u64::from_str_radix(tag, 16).map(AccountId).map_err(|_| Unreadable)
}

fn unknown() -> Said {
    Said::Error("ERR unknown command".into())
}

fn foreign() -> Said {
    Said::Error("ERR this server knows no scripts but the product's".into())
}

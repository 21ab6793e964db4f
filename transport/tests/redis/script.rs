//! Random asks for a ledger: few accounts, few holds, and every kind of edge.

use core::time::Duration;

use control::Wall;
use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Ask, BalanceKey, Cap, Draw, HoldId, LedgerConfig, Limits, MAX_AMOUNT, OwnerId, Rolling, Window,
};
use control::units::{Amount, MicroUsd, Tokens};

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// Both clocks go on.
    Wait { micros: u64 },
    /// The wall clock alone jumps, forwards or backwards.
    Jump { millis: i64 },
    /// An ask to the ledger of the tenant of that number.
    Ask { tenant: usize, believed: Belief, confirmed: Belief, ask: Ask },
    /// What was asked since time went on leaves, as one call.
    Go,
}

/// What an owner believes the store's run to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// It has not heard of any.
    None,
    /// What it is.
    Current,
    /// Some other.
    Other,
}

/// A small generator of one's own, so that a seed means the same for ever: SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()].clone()
    }
}

/// Bounds, sometimes so tight that everything overflows.
pub fn bounds(rng: &mut Rng) -> LedgerConfig {
    let usual = LedgerConfig::default();
    let tight = rng.one_in(3);
    LedgerConfig {
        drift_max: rng.of(&[Duration::ZERO, Duration::from_secs(2)]),
        live_max: if tight { 4 } else { usual.live_max },
        accounts_max: if tight { 3 } else { usual.accounts_max },
        remembered_max: if tight { 5 } else { usual.remembered_max },
        remember: rng.of(&[usual.remember, Duration::from_secs(50)]),
    }
}

/// `count` steps for `tenants` tenants. `wall` is where their calendar starts.
pub fn steps(rng: &mut Rng, tenants: usize, count: usize, wall: u64) -> Vec<Step> {
    let mut wall = wall;
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        steps.push(match rng.below(12) {
            0..=2 => {
                let micros = wait(rng);
                wall += micros / 1_000;
                Step::Wait { micros }
            }
            3 if rng.one_in(6) => {
                let millis = rng.of(&[-40_i64 * DAY, -3_600_000, -1, 1, DAY, 31 * DAY]);
                wall = wall.saturating_add_signed(millis);
                Step::Jump { millis }
            }
            _ => Step::Ask {
                tenant: usize::try_from(rng.below(tenants as u64)).unwrap(),
                believed: belief(rng),
                confirmed: belief(rng),
                ask: ask(rng, wall),
            },
        });
    }
    steps
}

/// As many asks of one tenant, in batches of all sizes.
pub fn batches(rng: &mut Rng, count: usize, wall: u64) -> Vec<Step> {
    let mut made = Vec::new();
    let mut wall = wall;
    let mut asks = 0;
    while asks < count {
        let size = rng.of(&[1, 2, 2, 3, 5, 9, 20, 64]);
        asks += size;
        while asks_only(&mut made, steps(rng, 1, 1, wall)) {}
        let of_time = made.last();
        if let Some(Step::Wait { micros }) = of_time {
            wall += micros / 1_000;
        } else if let Some(Step::Jump { millis }) = of_time {
            wall = wall.saturating_add_signed(*millis);
        }
        for _ in 0..size {
            let (believed, confirmed) = (belief(rng), belief(rng));
            made.push(Step::Ask { tenant: 0, believed, confirmed, ask: ask(rng, wall) });
        }
        made.push(Step::Go);
    }
    made
}

/// Takes a step of time. True where it was an ask.
fn asks_only(made: &mut Vec<Step>, steps: Vec<Step>) -> bool {
    let is_ask = matches!(steps[..], [Step::Ask { .. }]);
    if !is_ask {
        made.extend(steps);
    }
    is_ask
}

const DAY: i64 = 86_400_000;

fn wait(rng: &mut Rng) -> u64 {
    if rng.one_in(4) {
        // To the very moment at which something expires, leaves its window or is forgotten.
        return rng.of(&[1_000_000, 3_000_000, 30_000_000, 50_000_000, 66_000_000, 86_400_000_000]);
    }
    let longest = rng.of(&[2, 40_000, 3_000_000, 40_000_000, 3_600_000_000, 100_000_000_000]);
    rng.below(longest)
}

fn belief(rng: &mut Rng) -> Belief {
    rng.of(&[Belief::None, Belief::Current, Belief::Current, Belief::Current, Belief::Other])
}

fn ask(rng: &mut Rng, wall: u64) -> Ask {
    let hold = hold(rng);
    match rng.below(14) {
        0..=5 => {
            let accounts = path(rng).into_iter().map(|account| (account, limits(rng))).collect();
            Ask::Reserve(Draw { hold, accounts, amount: amount(rng), ttl: ttl(rng) })
        }
        6..=7 => Ask::Extend { hold, total: amount(rng) },
        8..=9 => Ask::Assert { hold, pins: pins(rng, wall), total: amount(rng), ttl: ttl(rng) },
        10..=12 => Ask::Settle {
            hold,
            pins: pins(rng, wall),
            actual: amount(rng),
            estimated: rng.one_in(2),
            confirmed: None,
        },
        _ => Ask::Refund { hold },
    }
}

/// The hold of a request, by number.
pub fn request(counter: u64) -> HoldId {
    HoldId::request(OwnerId(7), ReservationId(Minted { incarnation: 1, counter }))
}

/// A draw of one token, without limits, for half a minute.
pub fn draw(hold: HoldId) -> Draw {
    let accounts = vec![(ACCOUNTS[0], Limits::default())];
    let amount = Amount { tokens: Tokens(1), money: MicroUsd(0) };
    Draw { hold, accounts, amount, ttl: Duration::from_secs(30) }
}

fn hold(rng: &mut Rng) -> HoldId {
    let id = ReservationId(Minted {
        incarnation: rng.of(&[1, 1, u32::MAX]),
        counter: rng.of(&[0, 1, 2, 3, 4, u64::MAX]),
    });
    let owner = OwnerId(rng.of(&[7, u64::MAX]));
    if rng.one_in(5) { HoldId::allotment(owner, id) } else { HoldId::request(owner, id) }
}

const ACCOUNTS: [AccountId; 5] =
    [AccountId(1), AccountId(2), AccountId(3), AccountId(u64::MAX), AccountId(1 << 60)];

fn path(rng: &mut Rng) -> Vec<AccountId> {
    let mut path = vec![ACCOUNTS[0]];
    path.extend((0..rng.below(3)).map(|at| ACCOUNTS[usize::try_from(at * 2 + 1).unwrap()]));
    if rng.one_in(4) {
        path[0] = ACCOUNTS[2];
    }
    path
}

fn amount(rng: &mut Rng) -> Amount {
    let mut unit = || match rng.below(12) {
        0..=1 => 0,
        2..=9 => rng.below(120),
        10 => rng.below(MAX_AMOUNT),
        _ => rng.of(&[MAX_AMOUNT, MAX_AMOUNT + 1, (1 << 53) - 1, 1 << 53, u64::MAX]),
    };
    Amount { tokens: Tokens(unit()), money: MicroUsd(unit()) }
}

fn ttl(rng: &mut Rng) -> Duration {
    rng.of(&[0, 1_000_000, 1_000_001, 30_000_000, 600_000_000].map(Duration::from_micros))
}

fn cap(rng: &mut Rng) -> Cap {
    let unit = |rng: &mut Rng| {
        rng.of(&[None, None, Some(0), Some(200), Some(350), Some(MAX_AMOUNT), Some((1 << 53) - 1)])
    };
    Cap { tokens: unit(rng).map(Tokens), money: unit(rng).map(MicroUsd) }
}

fn limits(rng: &mut Rng) -> Limits {
    let rolling = rng.one_in(2).then(|| Rolling {
        window: rng.of(&[0, 1, 33, 64_000, 3_600_000, 86_400_000].map(Duration::from_millis)),
        cap: cap(rng),
    });
    Limits { day: cap(rng), month: cap(rng), rolling, carry_debt: rng.one_in(2) }
}

/// Windows as an owner would name them: mostly now open ones, sometimes long over, yet to come, twice, or none.
fn pins(rng: &mut Rng, wall: u64) -> Vec<BalanceKey> {
    let count = rng.below(5);
    let mut pins = Vec::new();
    for _ in 0..count {
        let off = rng.of(&[0, 0, 0, 0, -DAY, DAY, -35 * DAY, 40 * DAY]);
        let wall = Wall::from_millis(wall.saturating_add_signed(off));
        let account = rng.of(&ACCOUNTS);
        let window = match rng.below(3) {
            0 => Window::Day(wall.day()),
            1 => Window::Month(wall.month()),
            _ => {
                let limits = Limits {
                    rolling: Some(Rolling {
                        window: Duration::from_millis(rng.of(&[33, 64_000, 3_600_000])),
                        cap: Cap::NONE,
                    }),
                    ..Limits::default()
                };
                Window::open(control::quota::WindowKind::Rolling, wall, &limits).unwrap()
            }
        };
        pins.push(BalanceKey { account, window });
    }
    pins
}

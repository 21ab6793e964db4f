//! Tier B: the real gateway, its wires and its journal, on a simulated network, clock and disk.
//!
//! Tier A drives the plane alone and is a thousand times faster. This tier is for what lies around the plane: that an
//! answer's last byte waits for its record, that a client's leaving reaches the replica, that a torn journal recovers,
//! that what goes on at another worker is sewn together without a seam. Hosts are turmoil's: gateways run
//! [`transport::gateway::Gateway`] behind the product's HTTP front, clients speak HTTP through hyper; replicas are scripts that
//! do the same, or the product's workers over gRPC and QUIC; a Redis and a Consul of ours speak to the product's clients.
//!
//! To simulate the gateway's parts one by one was rejected: the faults that matter lie between them.
//!
//! **Determinism.** A run is one thread of its own, with seeded entropy, simulated clocks and biased selects; so the trace's
//! hash is the same in every process whose first run it is. One thing outlives a run: tokio counts the seeds that it gives out
//! in a process, and by them a `watch` chooses which of its receivers it wakes first. A later run of the same process
//! is therefore as good a world, and may be another. Calls from several threads take turns: a swarm on
//! several cores starts a process for each.
//!
//! What it does not cover: TLS over TCP, more than one thread, the operating system's sockets and files, sled, the admin
//! socket; and turmoil's network delivers in whole ticks and never sends again what a cut link lost. Turmoil cannot stop a
//! host's clock: a paused gateway is one that nothing reaches and nothing leaves, while its own timers go on.

mod book;
mod check;
mod client;
mod clock;
mod consul;
mod damage;
mod doors;
mod draw;
mod entropy;
mod follow;
mod gateway;
mod keeps;
mod mirror;
mod nemesis;
mod packets;
mod panics;
mod plan;
mod redis;
mod replica;
mod run;
mod shares;
mod stage;
mod tape;
mod tenancy;
mod till;
mod wire;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::coverage::Coverage;
pub use draw::plan;
pub use plan::{
    ConsulTrouble, Fault, Guise, Keeping, Knobs, Mode, Operation, RedisTrouble, Rival, Speaks,
    TierBPlan, TimedFault, Visit,
};

/// What came out of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The first invariant that did not hold: its number, what happened, and when.
    pub violation: Option<(u8, String, Duration)>,
    /// Over all events, in order.
    pub trace_hash: u64,
    /// Events of the trace.
    pub events: u64,
    /// Requests that clients made, retries counted.
    pub requests: u64,
    /// How far the run came.
    pub simulated: Duration,
    /// The last events before a violation, in words.
    pub last_words: Vec<String>,
    /// The marks that were hit.
    pub coverage: Coverage,
}

/// Runs a plan. `trace` gets one line for each event.
///
/// Independent of whatever else its process does: see the module's words on determinism.
///
/// # Panics
/// Where the plan's configuration is not one that the product takes, or the trace cannot be written.
pub fn run(plan: &TierBPlan, trace: Option<&mut dyn Write>) -> Outcome {
    panics::listen();
    let (of_run, with_text) = (plan.clone(), trace.is_some());
    let simulation =
        thread::Builder::new().name("simulation".into()).stack_size(STACK).spawn(move || {
            let _turn = entropy::seed_this_thread(of_run.seed);
            let ended = std::panic::catch_unwind(|| run::simulate(&of_run, with_text));
            ended.unwrap_or_else(|_| broken(&panics::take().unwrap_or_default()))
        });
    let ended = simulation.expect("the process may have a thread").join();
    let (outcome, text) = ended.unwrap_or_else(|_| broken("the simulation's thread broke"));
    if let Some(trace) = trace {
        trace.write_all(&text).expect("the trace can be written");
    }
    outcome
}

/// Debug builds of hyper's and the product's futures are deep.
const STACK: usize = 16 << 20;

fn broken(panic: &str) -> (Outcome, Vec<u8>) {
    let text = format!("the simulation broke: {panic}");
    let outcome = Outcome {
        violation: Some((7, text, Duration::ZERO)),
        trace_hash: 0,
        events: 0,
        requests: 0,
        simulated: Duration::ZERO,
        last_words: Vec::new(),
        coverage: Coverage::default(),
    };
    (outcome, Vec::new())
}

/// One seed as a program: prints one line, and on a violation the last events. For whoever starts a process per seed.
///
/// # Errors
/// Where the output cannot be written.
pub fn one(seed: u64, out: &mut dyn Write) -> io::Result<ExitCode> {
    let outcome = run(&plan(seed), None);
    let Outcome { trace_hash, events, requests, simulated, .. } = &outcome;
    writeln!(
        out,
        "seed {seed} trace {trace_hash:016x} events {events} requests {requests} simulated {:.3}",
        simulated.as_secs_f64()
    )?;
    let Some((invariant, text, at)) = &outcome.violation else { return Ok(ExitCode::SUCCESS) };
    writeln!(out, "seed {seed} breaks invariant {invariant} at {:.3}: {text}", at.as_secs_f64())?;
    outcome.last_words.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
    Ok(ExitCode::FAILURE)
}

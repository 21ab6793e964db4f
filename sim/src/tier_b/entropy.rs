//! The process's entropy, on the thread of a simulation.
//!
//! The standard library seeds its hash maps from the operating system, once per thread; libraries iterate over such
//! maps (a connection pool closes what is idle in the map's order), and so the order of events would differ from run to
//! run. So this crate defines the C function that asks the system, and answers from a seed where the thread says so.
//! Elsewhere it asks the system as before. A run has a thread of its own, which makes it independent of all that its
//! process did before: one map built earlier on the same thread would shift every later one.
//!
//! Only what links this crate is concerned; the product does not.

#![allow(unsafe_code, reason = "a C function's signature is raw pointers")]

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on this thread's entropy follows from `seed`, and its process's counters begin where they always do. Call
/// it before anything else on a new thread, and hold what it returns until the run is over.
pub fn seed_this_thread(seed: u64) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    STATE.with(|state| state.set(Some(seed)));
    align_task_ids();
    turn
}

/// A runtime that is dropped drops its tasks by their ids' last bits, and ids are counted by the process. So each run
/// begins at an id that ends alike, and runs of one process take turns.
fn align_task_ids() {
    // More than the bits that tokio looks at: two, for a runtime of one thread.
    const STRIDE: u64 = 64;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers needs nothing of the system");
    let id = || runtime.spawn(async {}).id().to_string().parse().unwrap_or(STRIDE);
    while id() % STRIDE != 0 {}
}

/// Whether this thread's entropy is a simulation's.
#[must_use]
pub fn is_simulated() -> bool {
    STATE.try_with(|state| state.get().is_some()).unwrap_or(false)
}

/// What `getrandom(2)` does.
///
/// # Safety
/// `buffer` must be valid for writing `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() {
        return -1;
    }
    // SAFETY: the caller owns so many bytes there, by this function's contract.
    let into = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    let is_filled = if is_simulated() {
        fill(into);
        true
    } else {
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(into)).is_ok()
    };
    if is_filled { isize::try_from(length).unwrap_or(-1) } else { -1 }
}

fn fill(into: &mut [u8]) {
    let mut state = STATE.get().unwrap_or_default();
    for chunk in into.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = control::rng::mix(state).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    STATE.set(Some(state));
}

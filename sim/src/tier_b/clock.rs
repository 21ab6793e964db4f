//! The process's clocks, on the thread of a simulation.
//!
//! The product takes its time from the runtime, whose clock is paused. Libraries do not all: a server dates its answers by
//! the system's calendar, a protocol forgets a stream some seconds after it was reset. So this crate defines the C function
//! that reads a clock, and answers with simulated time where the thread is a simulation's; elsewhere it asks the system.
//!
//! Time stands still within a tick: nothing here could say how long a computation takes.

#![allow(unsafe_code, reason = "a C function's signature is raw pointers")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use super::entropy::is_simulated;

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What every clock shows when a simulation begins: late enough that nothing before it is before 1970.
const BEGINNING: Duration = Duration::from_secs(1_772_323_200);

/// This thread's clocks show so long after the beginning.
pub(super) fn set(now: Duration) {
    NOW.set(now);
}

/// `struct timespec`, where `long` has 64 bits.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

type Read = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Whoever else has a function of that name.
const NEXT: *mut c_void = usize::MAX as *mut c_void;

/// What `clock_gettime(2)` does.
///
/// # Safety
/// `into` must be valid for writing a `struct timespec`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, into: *mut Timespec) -> c_int {
    if !is_simulated() {
        // SAFETY: as the caller promises us.
        return unsafe { system()(clock, into) };
    }
    let now = BEGINNING + NOW.try_with(Cell::get).unwrap_or_default();
    let shown = Timespec {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i64::from(now.subsec_nanos()),
    };
    // SAFETY: the caller owns a `timespec` there, by this function's contract.
    unsafe { into.write(shown) };
    0
}

fn system() -> Read {
    static SYSTEM: OnceLock<Read> = OnceLock::new();
    *SYSTEM.get_or_init(|| {
        // SAFETY: the name ends with a zero, and the library is the loader's word for "the next".
        let found = unsafe { dlsym(NEXT, c"clock_gettime".as_ptr()) };
        assert!(!found.is_null(), "the system has a clock");
        // SAFETY: what has this name has this type: POSIX says so.
        unsafe { std::mem::transmute::<*mut c_void, Read>(found) }
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;

    #[test]
    fn a_simulations_clocks_show_simulated_time_and_other_threads_the_systems() {
        let real = Instant::now();
        std::thread::spawn(|| {
            let _turn = super::super::entropy::seed_this_thread(1);
            set(Duration::ZERO);
            let (instant, calendar) = (Instant::now(), SystemTime::now());
            assert_eq!(instant.elapsed(), Duration::ZERO);
            set(Duration::from_millis(1_500));
            assert_eq!(instant.elapsed(), Duration::from_millis(1_500));
            assert_eq!(calendar.elapsed().ok(), Some(Duration::from_millis(1_500)));
        })
        .join()
        .expect("the simulation's thread holds");
        while real.elapsed().is_zero() {}
    }
}

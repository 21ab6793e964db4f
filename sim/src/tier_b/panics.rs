//! Panics of a simulation's tasks. A runtime catches them and goes on, as a server should; here each is a finding.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use super::entropy::is_simulated;

thread_local! {
    static SEEN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Listens to panics, once per process; those of other threads are reported as before.
pub(super) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !is_simulated() {
                return before(info);
            }
            let text = info.to_string();
            SEEN.with_borrow_mut(|seen| {
                seen.get_or_insert(text);
            });
        }));
    });
}

/// The first panic on this thread since the last call.
pub(super) fn take() -> Option<String> {
    SEEN.with_borrow_mut(Option::take)
}

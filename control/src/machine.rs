//! The contract between what decides and what performs.

use crate::time::Instant;

/// A machine without I/O: inputs with their time go in, effects come out.
///
/// A shell calls [`handle`](Self::handle), drains [`poll_effect`](Self::poll_effect), and comes back with a timeout
/// input at [`poll_timeout`](Self::poll_timeout). Because a timeout is an input too (in production timers fire late),
/// the sequence of (instant, input) alone reproduces a run.
pub trait Machine {
    /// What happens to the machine.
    type Input;
    /// What it asks the shell to do.
    type Effect;
    /// Why a timer was set.
    type TimerName;

    /// Total: never fails, never waits, never looks at a clock. `now` must not be earlier than in the call before.
    fn handle(&mut self, now: Instant, input: Self::Input);

    /// The next effect. Drain in order after every `handle`.
    #[must_use]
    fn poll_effect(&mut self) -> Option<Self::Effect>;

    /// When to come back with a timeout input, and why.
    #[must_use]
    fn poll_timeout(&self) -> Option<(Instant, Self::TimerName)>;
}

//! Keys in one place: the auth role, and how the other roles ask it.
//!
//! Where every role holds the keys of its own file, a key that is taken away has to be taken from each of them, and each of
//! them can be read. The auth role alone has them ([`Role`]), and the others ask it who is there ([`Remote`]), through the seam
//! that [`Accounts`](crate::accounts::Accounts) implements in one process.
//!
//! What is asked with is the key's SHA-256. More is kept nowhere, so more is not needed; and who reads along learns nothing that
//! a gateway would take. The other keyed hashes (sessions, idempotency keys) are made in each role as before: their secret is
//! the salt that those who share a ledger share, and the auth role has no part in it.
//!
//! The way there can break, and must cost neither safety nor service. So:
//!
//! - An answer says for how long it may be used: a key that is taken away is out everywhere after that.
//! - While nobody answers, a key that was let in goes on for a stated grace; one that was not is refused with 503, never let in.
//!   Nobody but a watch asks meanwhile, so that requests do not wait for a deadline each.
//! - Questions about one key are one question. Those about keys that nobody has seen are bounded, in number and in time, apart
//!   from those about keys that are known: whoever tries keys at random neither fills the memory nor keeps others out.
//!
//! Rejected: pushing the list of keys to every role (each would hold all hashes again, and a role that missed one push would
//! let a revoked key in for ever); signed tokens instead of keys (they cannot be taken back before their date).

mod book;
mod meters;
mod remote;
mod role;

pub(crate) use meters::Meters;
pub use remote::{ProbeError, Remote, probe};
pub use role::Role;

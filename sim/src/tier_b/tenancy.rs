//! Nobody pays, or waits, for another.
//!
//! A refusal for quota names an account of the caller's own tenant, and there is none for who has no limit. The plans
//! limit nobody's rate, so that a refusal for rate is somebody else's in any case.

use control::id::AccountId;
use transport::keys::AccountIds;

use super::book::Broken;
use super::gateway::tenant;

/// Who was refused, and with which words.
pub(super) struct Refused<'a> {
    pub gateway: u8,
    pub tenant: Option<u8>,
    /// The error's code, and its message.
    pub code: &'a str,
    pub message: &'a str,
}

impl Refused<'_> {
    /// Whether the caller may be refused so.
    pub fn judge(&self) -> Result<(), Broken> {
        let Self { gateway, tenant: number, code, message } = self;
        let name = tenant(*gateway, *number);
        match *code {
            "rate_limited" => Err((13, format!("{name} has no rate limit: {message}"))),
            "insufficient_quota" if number.is_none() => {
                Err((13, format!("{name} has no quota to spend: {message}")))
            }
            "insufficient_quota" => {
                let own = account(*gateway, *number).to_string();
                if named(message) == Some(own.as_str()) {
                    return Ok(());
                }
                Err((13, format!("{name} is {own}, and is told: {message}")))
            }
            _ => Ok(()),
        }
    }
}

/// The account of a tenant.
pub(super) fn account(gateway: u8, number: Option<u8>) -> AccountId {
    AccountIds::new([gateway.wrapping_add(1); 32]).tenant(&tenant(gateway, number))
}

fn named(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("account ")?;
    rest.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_anothers_quota_or_for_no_quota_breaks_the_thirteenth() {
        let of = |number| format!("The daily quota of account {} is spent.", account(0, number));
        assert_eq!(told(Some(1), "insufficient_quota", &of(Some(1))), Ok(()));
        assert_eq!(told(Some(1), "insufficient_quota", &of(Some(0))), Err(13));
        assert_eq!(told(Some(1), "insufficient_quota", "It is spent."), Err(13));
        assert_eq!(told(None, "insufficient_quota", &of(None)), Err(13));
    }

    #[test]
    fn a_refusal_for_a_rate_that_nobody_limited_breaks_the_thirteenth() {
        assert_eq!(told(Some(0), "rate_limited", "Too fast."), Err(13));
        assert_eq!(told(None, "overloaded", "Too much."), Ok(()));
    }

    fn told(tenant: Option<u8>, code: &str, message: &str) -> Result<(), u8> {
        let refused = Refused { gateway: 0, tenant, code, message };
        refused.judge().map_err(|broken| broken.0)
    }
}

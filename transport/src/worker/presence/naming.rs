//! What a worker is called where other names rule.

use sha2::{Digest as _, Sha256};

/// A DNS label's longest length in octets (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// What of a name that is too long is the model's hash: a hyphen and 8 digits.
const HASH_LENGTH: usize = 9;

/// The service's name in Consul: `llm-` and the model, where DNS can carry that.
///
/// Every character but ASCII letters, digits and `-` becomes one `-`, and `-` at the end goes. What is then longer than a
/// DNS label keeps its first 54 characters, `-`, and 8 hex digits of the SHA-256 of the model's exact name. Two models may
/// share a name (`a.b`, `a-b`): readers go by `meta.model`, which is exact. Of a name without any letter or digit (`模型`)
/// those 8 digits are all that follows `llm-`: gateways look for what begins so. The worker in Python names it the same.
#[must_use]
pub fn service_name(model: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let bent: String = "llm-".chars().chain(model.chars().map(plain)).collect();
    let name = bent.trim_end_matches('-');
    let digest = Sha256::digest(model.as_bytes());
    let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    if name == "llm" {
        return format!("llm-{digits}");
    }
    if name.len() <= LABEL_MAX {
        return name.to_owned();
    }
    format!("{}-{digits}", &name[..LABEL_MAX - HASH_LENGTH])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_dns_can_carry() {
        for (model, name) in [
            ("m", "llm-m"),
            ("org/Model-7b", "llm-org-Model-7b"),
            ("qwen2.5:7b", "llm-qwen2-5-7b"),
            ("模型", "llm-c98e118e"),
            ("é", "llm-4a99557e"),
            ("---", "llm-cb3f91d5"),
            ("模型-7", "llm----7"),
            ("a.b.", "llm-a-b"),
        ] {
            assert_eq!(service_name(model), name);
            assert!(name.len() > "llm-".len() && name.starts_with("llm-"), "{name}");
        }
    }

    #[test]
    fn a_long_name_ends_in_the_hash_of_the_exact_one() {
        let (one, other) = (service_name(&"m.".repeat(40)), service_name(&"m-".repeat(40)));
        assert_eq!((one.len(), other.len()), (LABEL_MAX, LABEL_MAX));
        assert_eq!(one[..54], other[..54]);
        assert_ne!(one, other);
        // As `service_name` of the worker in Python has it.
        let known = "llm-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m-m--73d26540";
        assert_eq!(one, known);
    }
}

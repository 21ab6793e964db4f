//! The shape of real traffic: how long prompts and answers are, how requests come, and who sends them.
//!
//! Twenty quantiles of each published trace stand here as numbers, so that a seed draws the same plan on every machine,
//! whether or not the traces are there. A test compares them with the traces where these are. **Rejected:** replaying
//! the traces themselves by default; a plan would then depend on a folder.
//!
//! Lengths are the traces' own, divided: a simulated second costs what its tokens cost, and what is decided depends on how
//! requests overlap, not on how long a book is.

use control::rng::Rng;

/// Quantiles 0, 1/20, .. 1 of a length in tokens.
pub(crate) type Quantiles = [u64; 21];

/// Prompts of a chat service (Mooncake, conversations).
pub(crate) const CHAT_PROMPT: Quantiles = [
    891, 901, 964, 1261, 1662, 2306, 3263, 4250, 4993, 5870, 6909, 8187, 9570, 11239, 13196, 15368,
    17869, 21467, 27367, 39552, 126_195,
];

/// Answers of a chat service (Mooncake, conversations).
pub(crate) const CHAT_OUTPUT: Quantiles = [
    1, 10, 24, 46, 100, 156, 213, 256, 291, 322, 350, 375, 399, 423, 447, 472, 504, 543, 597, 698,
    2000,
];

/// Prompts of a coding assistant (Azure, 2023).
pub(crate) const CODE_PROMPT: Quantiles = [
    3, 75, 147, 232, 385, 578, 770, 938, 1075, 1261, 1469, 1690, 1909, 2164, 2433, 2745, 3193,
    3923, 5194, 7315, 7437,
];

/// Answers of a coding assistant (Azure, 2023).
pub(crate) const CODE_OUTPUT: Quantiles =
    [6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 29, 39, 55, 90, 1899];

/// Requests in each second of the coding assistant's hour, by its mean of 2.6: three seconds in four are empty.
pub(crate) const CODE_BURST: Quantiles =
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 5, 7, 9, 13, 67];

/// The share of the load of the heaviest tenants, in ten-thousandths (ServeGen, large model).
pub(crate) const TENANT_SHARES: [u64; 24] = [
    2803, 1660, 1339, 631, 343, 342, 245, 242, 202, 200, 191, 182, 121, 109, 95, 92, 76, 65, 63,
    62, 54, 53, 50, 48,
];

/// A length drawn from quantiles: uniform between two neighbours.
pub(crate) fn length(quantiles: &Quantiles, rng: &mut Rng) -> u64 {
    let cell = rng.below(20) as usize;
    let (low, high) = (quantiles[cell], quantiles[cell + 1]);
    low + rng.below(high - low + 1)
}

/// One of `tenants`, the first the heaviest.
pub(crate) fn tenant(tenants: u32, rng: &mut Rng) -> u32 {
    let shares = &TENANT_SHARES[..(tenants as usize).min(TENANT_SHARES.len())];
    let mut drawn = rng.below(shares.iter().sum());
    for (tenant, share) in (0..).zip(shares) {
        match drawn.checked_sub(*share) {
            Some(rest) => drawn = rest,
            None => return tenant,
        }
    }
    tenants - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published traces, or `None`, loudly, where they are not there.
    fn trace(name: &str) -> Option<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/");
        let text = std::fs::read_to_string(format!("{path}{name}"));
        if text.is_err() {
            eprintln!("SKIPPED: {name} is not there, the shape of traffic is not compared");
        }
        text.ok()
    }

    fn quantiles(mut values: Vec<u64>) -> Quantiles {
        values.sort_unstable();
        let last = values.len() - 1;
        std::array::from_fn(|part| values[(part * values.len() / 20).min(last)])
    }

    #[test]
    fn the_chat_lengths_are_those_of_the_published_trace() {
        let Some(text) = trace("mooncake/conversation_trace.jsonl") else { return };
        let rows: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
        let column = |name: &str| rows.iter().map(|row| row[name].as_u64().expect("n")).collect();
        assert_eq!(quantiles(column("input_length")), CHAT_PROMPT);
        assert_eq!(quantiles(column("output_length")), CHAT_OUTPUT);
    }

    #[test]
    fn the_code_lengths_are_those_of_the_published_trace() {
        let Some(text) = trace("azure2023/AzureLLMInferenceTrace_code.csv") else { return };
        let column = |at: usize| {
            let rows = text.lines().skip(1).filter(|line| !line.is_empty());
            rows.map(|row| row.split(',').nth(at).expect("n").trim().parse().expect("n")).collect()
        };
        assert_eq!(quantiles(column(1)), CODE_PROMPT);
        assert_eq!(quantiles(column(2)), CODE_OUTPUT);
    }

    #[test]
    fn the_tenants_shares_are_those_of_the_published_windows() {
        let Some(text) = trace("servegen/m-large_clients.csv") else { return };
        let mut rates = std::collections::BTreeMap::<&str, f64>::new();
        for row in text.lines().skip(1) {
            let mut cells = row.split(',');
            let (client, rate) = (cells.next().expect("client"), cells.nth(1).expect("rate"));
            *rates.entry(client).or_default() += rate.parse::<f64>().expect("a rate");
        }
        let mut shares: Vec<f64> = rates.values().copied().collect();
        shares.sort_by(|one, two| two.total_cmp(one));
        let total: f64 = shares.iter().sum();
        let measured = shares.iter().map(|share| (share / total * 10_000.0).round() as u64);
        assert!(measured.take(24).eq(TENANT_SHARES));
    }

    #[test]
    fn the_first_tenant_is_the_heaviest() {
        let (mut rng, mut counts) = (Rng::new(1), [0_u32; 8]);
        for _ in 0..10_000 {
            counts[tenant(8, &mut rng) as usize] += 1;
        }
        assert!(counts.is_sorted_by(|one, two| one + 200 > *two), "{counts:?}");
    }
}

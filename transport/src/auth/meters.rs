//! Figures of a role that asks for keys.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct By {
    outcome: &'static str,
}

/// How keys were judged, and what came of asking.
#[derive(Default)]
pub(crate) struct Meters {
    judged: Family<By, Counter>,
    asks: Family<By, Counter>,
    keys: Gauge,
    away: Gauge,
}

impl Meters {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Keys judged: cached, asked, grace (nobody answered, and it was known), refused, busy, away";
        registry.register("pointsman_auth_judged", help, self.judged.clone());
        let help = "Questions to the auth role by what came of them: known, unknown, failed";
        registry.register("pointsman_auth_asks", help, self.asks.clone());
        registry.register("pointsman_auth_cached_keys", "Keys held", self.keys.clone());
        registry.register(
            "pointsman_auth_away",
            "1 while the auth role does not answer",
            self.away.clone(),
        );
    }

    pub(super) fn judged(&self, outcome: &'static str) {
        self.judged.get_or_create(&By { outcome }).inc();
    }

    pub(super) fn asked(&self, outcome: &'static str) {
        self.asks.get_or_create(&By { outcome }).inc();
    }

    pub(super) fn hold(&self, keys: usize, away: bool) {
        self.keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.away.set(i64::from(away));
    }
}

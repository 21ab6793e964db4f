//! Figures about kept streams.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::reader::Reader;
use super::{Last, Missed};
use crate::exchange::End;

pub(super) struct Meters {
    registry: Registry,
    opened: Counter,
    refused: Counter,
    resumed: Family<Labelled, Counter>,
    ended: Family<Labelled, Counter>,
    cut_off: Gauge,
    kept: Gauge,
    over: Gauge,
    bytes: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labelled {
    outcome: &'static str,
}

impl Meters {
    pub fn new() -> Self {
        let mut meters = Self {
            registry: Registry::default(),
            opened: Counter::default(),
            refused: Counter::default(),
            resumed: Family::default(),
            ended: Family::default(),
            cut_off: Gauge::default(),
            kept: Gauge::default(),
            over: Gauge::default(),
            bytes: Gauge::default(),
        };
        let r = &mut meters.registry;
        r.register("pointsman_streams_opened", "Resumable streams", meters.opened.clone());
        let help = "Resumable streams refused because as many run as may";
        r.register("pointsman_streams_refused", help, meters.refused.clone());
        let help = "Streams asked for again, by what came of it";
        r.register("pointsman_streams_resumed", help, meters.resumed.clone());
        let help = "Resumable streams by their end";
        r.register("pointsman_streams_ended", help, meters.ended.clone());
        let help =
            "Running streams that only this gateway can resume, as the shared log does not answer";
        r.register("pointsman_streams_cut_off", help, meters.cut_off.clone());
        r.register("pointsman_streams_kept", "Streams kept", meters.kept.clone());
        let help = "Streams kept that are over";
        r.register("pointsman_streams_kept_ended", help, meters.over.clone());
        let help = "What kept streams take in memory";
        r.register("pointsman_streams_kept_bytes", help, meters.bytes.clone());
        meters
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn levels(&self, kept: usize, over: usize, bytes: usize) {
        let set = |gauge: &Gauge, level: usize| gauge.set(i64::try_from(level).unwrap_or(i64::MAX));
        set(&self.kept, kept);
        set(&self.over, over);
        set(&self.bytes, bytes);
    }

    pub fn opened(&self) {
        self.opened.inc();
    }

    pub fn refused(&self) {
        self.refused.inc();
    }

    pub fn resumed(&self, resumed: &Result<Reader, Missed>) {
        let outcome = match resumed {
            Ok(reader) if reader.is_here() => "here",
            Ok(_) => "elsewhere",
            Err(Missed::Unknown) => "unknown",
            Err(Missed::Beyond { .. }) => "beyond",
            Err(Missed::Gone { .. }) => "gone",
            Err(Missed::Complete) => "complete",
            Err(Missed::Away(_)) => "store_away",
        };
        self.resumed.get_or_create(&Labelled { outcome }).inc();
    }

    pub fn refused_elsewhere(&self) {
        self.resumed.get_or_create(&Labelled { outcome: "refused_elsewhere" }).inc();
    }

    pub fn passed_on(&self) {
        self.resumed.get_or_create(&Labelled { outcome: "elsewhere" }).inc();
    }

    pub fn ended(&self, last: &Last) {
        let outcome = match last {
            Last::End(End { outcome: control::plane::Outcome::Completed, .. }) => "completed",
            Last::End(_) | Last::Unrecorded(_) | Last::Lost => "broken",
            Last::Abandoned => "abandoned",
            Last::Stopped => "stopped",
        };
        self.ended.get_or_create(&Labelled { outcome }).inc();
    }

    pub fn cut_off(&self) {
        self.cut_off.inc();
    }

    pub fn reached(&self) {
        self.cut_off.dec();
    }
}

//! What a data directory tells of each request: read by the library, compared with what clients saw.

use std::collections::BTreeMap;
use std::path::Path;

use control::id::RequestId;
use control::outcome::{AttemptEnd, Failure};
use control::plane::{Observation, Outcome};
use transport::inspect::Inspection;

use super::{printed, run};

/// The journal of a run, summed up.
#[derive(Debug, Default)]
pub struct Told {
    /// Records that were reproduced.
    pub records: u64,
    /// Tokens charged, by request.
    pub charged: BTreeMap<String, u64>,
    /// Tokens delivered by the last mark, of requests that were lost with the process.
    pub lost: BTreeMap<String, u64>,
    /// Requests that ended without an answer.
    pub refused: u64,
    pub retries: u64,
    pub cancels: u64,
    pub timeouts: u64,
    pub trips: u64,
    pub denials: u64,
    pub configurations: u64,
    pub migrations: u64,
}

impl Told {
    /// Replays what is retained, which must hold.
    pub fn of(data: &Path) -> Self {
        let mut told = Self::default();
        let inspection = Inspection::open(data).unwrap();
        let verified = inspection.replay(|plane, _| {
            while let Some(observation) = plane.poll_observation() {
                told.take(&observation);
            }
        });
        let verified = verified.unwrap();
        assert_eq!(verified.failure, None);
        assert_eq!(verified.from, 0, "the test wants the whole run");
        told.records = verified.reproduced;
        told
    }

    /// All that was charged.
    pub fn sum(&self) -> u64 {
        self.charged.values().sum()
    }

    /// What a request was charged; nothing, where the journal does not say that it was.
    pub fn charged(&self, request: &str) -> u64 {
        self.charged.get(request).copied().unwrap_or(0)
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "this tallies some kinds of what is noticed")]
    fn take(&mut self, observation: &Observation) {
        let name = |request: &RequestId| request.to_string();
        match observation {
            Observation::Finished { request, charged, outcome, .. } => {
                self.cancels += u64::from(*outcome == Outcome::Cancelled);
                let before = self.charged.insert(name(request), charged.tokens.0);
                assert_eq!(before, None, "{request} was charged twice");
            }
            Observation::Lost { request, produced } => {
                self.lost.insert(name(request), produced.0);
            }
            Observation::Refused { .. } => self.refused += 1,
            Observation::Retrying { .. } => self.retries += 1,
            Observation::Denied { .. } => self.denials += 1,
            Observation::Configured { .. } => self.configurations += 1,
            Observation::Bound { moved_from: Some(_), .. } => self.migrations += 1,
            Observation::Breaker(moved) if moved.to == control::breaker::Phase::Open => {
                self.trips += 1;
            }
            Observation::Ended {
                end: AttemptEnd::Failed { failure: Failure::Timeout(_), .. },
                ..
            } => self.timeouts += 1,
            Observation::Arrived { .. }
            | Observation::Granted { .. }
            | Observation::Picked { .. }
            | Observation::Hedged { .. }
            | Observation::Nobody { .. }
            | Observation::Accepted { .. }
            | Observation::FirstToken { .. }
            | Observation::Ended { .. }
            | Observation::GaveUp { .. }
            | Observation::Bound { .. }
            | Observation::Breaker(_)
            | Observation::EndpointAdded(_)
            | Observation::EndpointRemoved { .. }
            | Observation::SourceRefused { .. }
            | Observation::ChargeLost { .. }
            | Observation::QuotaLate
            | Observation::QuotaDegraded(_)
            | Observation::SharedDegraded(_)
            | Observation::Consulted { .. }
            | Observation::ConsultLost { .. }
            | Observation::Adopted { .. }
            | Observation::Stale(_) => {}
        }
    }
}

/// What `quota audit` printed.
#[derive(Debug)]
pub struct Audited {
    /// Tokens charged to the account that was charged most: that of a tenant.
    pub charged: u64,
    /// Reservations that are held.
    pub outstanding: u64,
    pub text: String,
}

/// Runs `quota audit`, which must find that every sum holds.
pub fn audit(data: &Path) -> Audited {
    let output = run("quota audit --data", data);
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    let number = |line: &str, label: &str| -> Option<u64> {
        let rest = &line[line.find(label)? + label.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let of_tokens = text.lines().filter(|line| line.contains(" tokens: "));
    let charged = of_tokens.filter_map(|line| number(line, "= charged ")).max().unwrap_or(0);
    let last = text.lines().last().unwrap_or_default();
    let outstanding = number(last, "outstanding reservations: ").expect("the last line says it");
    Audited { charged, outstanding, text }
}

/// One record of a segment, by its bytes' places in the file.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub offset: u64,
    pub payload: u64,
    pub end: u64,
    pub position: u64,
}

/// The records of a segment's bytes. The layout is the one that the journal's documentation states.
pub fn frames(bytes: &[u8]) -> Vec<Frame> {
    const SEGMENT_HEADER: usize = 40;
    const RECORD_HEADER: usize = 16;
    let (mut at, mut frames) = (SEGMENT_HEADER, Vec::new());
    while at + RECORD_HEADER <= bytes.len() {
        let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let position = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        let end = at + RECORD_HEADER + (word & 0x00ff_ffff) as usize;
        if word >> 24 == 1 {
            let (offset, payload) = (at as u64, (at + RECORD_HEADER) as u64);
            frames.push(Frame { offset, payload, end: end as u64, position });
        }
        at = end;
    }
    frames
}

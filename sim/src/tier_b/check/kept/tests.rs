//! The judge of kept streams rings where it should, and nowhere else.

use super::super::super::plan::{Keeping, Speaks};
use super::*;

const NOW: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(4);

#[test]
fn what_follows_goes_through_and_the_joined_text_is_the_answer() {
    let mut kept = Kept::of(4);
    (1..=2).for_each(|id| kept.token(0, id));
    kept.leaves(0, NOW);
    let (back, after) = kept.asks(Guise::Honest, 0);
    assert_eq!(after, 2);
    kept.let_in(back);
    (3..=4).for_each(|id| kept.token(back, id));
    kept.block(back, "id: 5\ndata: [DONE]");
    let (again, after) = kept.asks(Guise::Honest, 0);
    assert_eq!(after, 5);
    kept.refused(again, (204, ""));
    assert_eq!(kept.broken(), None);
    assert_eq!(kept.checks.take_acknowledged().len(), 1, "one end");
    let (whole, _) = kept.asks(Guise::FromTheStart, 0);
    kept.let_in(whole);
    (1..=4).for_each(|id| kept.token(whole, id));
    kept.block(whole, "id: 5\ndata: [DONE]");
    assert_eq!(kept.broken(), None);
    assert!(kept.checks.take_acknowledged().is_empty(), "and no other");
}

#[test]
fn a_repetition_a_hole_and_another_event_break_the_sixth() {
    for wrong in [1, 2, 4] {
        let mut kept = Kept::of(9);
        (1..=2).for_each(|id| kept.token(0, id));
        let (back, _) = kept.asks(Guise::Honest, 0);
        kept.let_in(back);
        kept.token(back, wrong);
        assert_eq!(kept.broken(), Some(6), "event {wrong}");
    }
    let mut kept = Kept::of(9);
    kept.token(0, 1);
    let (back, _) = kept.asks(Guise::FromTheStart, 0);
    kept.let_in(back);
    kept.block(back, "id: 1\ndata: {\"choices\":[]}");
    assert_eq!(kept.broken(), Some(6), "it was another");
}

#[test]
fn what_comes_behind_the_end_or_without_a_number_breaks_the_sixth() {
    for (first, second) in [
        ("id: 1\ndata: {\"error\":{\"code\":\"stream_abandoned\"}}", "id: 2\ndata: [DONE]"),
        ("data: {\"error\":{\"code\":\"stream_taken_over\"}}", "id: 1\ndata: {}"),
    ] {
        let mut kept = Kept::of(3);
        kept.checks.calm_since = None;
        kept.block(0, first);
        assert_eq!(kept.broken(), None, "{first}");
        kept.block(0, second);
        assert_eq!(kept.broken(), Some(6), "{second}");
    }
    let mut kept = Kept::of(3);
    kept.block(0, "data: {\"choices\":[]}");
    assert_eq!(kept.broken(), Some(6));
}

#[test]
fn another_tenant_that_is_shown_or_told_anything_breaks_the_thirteenth() {
    let mut kept = Kept::of(3);
    let (stranger, _) = kept.asks(Guise::Stranger, 0);
    kept.refused(stranger, (404, "stream_not_found"));
    assert_eq!(kept.broken(), None);
    kept.refused(stranger, (204, ""));
    assert_eq!(kept.broken(), Some(13));
    let mut kept = Kept::of(3);
    let (stranger, _) = kept.asks(Guise::Stranger, 0);
    kept.let_in(stranger);
    assert_eq!(kept.broken(), Some(13));
}

#[test]
fn who_keeps_it_knows_it_while_it_lives() {
    for (died, gateway, broken) in [(None, 0, Some(10)), (Some(NOW), 0, None), (None, 1, None)] {
        let mut kept = Kept::of(3);
        died.into_iter().for_each(|at| kept.checks.process_died(at, 0));
        let (back, _) = kept.asks(Guise::Honest, gateway);
        kept.refused(back, (404, "stream_not_found"));
        assert_eq!(kept.broken(), broken, "{died:?} gateway-{gateway}");
    }
    let mut kept = Kept::of(3);
    kept.checks.shelf.is_log_sound = true;
    let (back, _) = kept.asks(Guise::Honest, 1);
    kept.refused(back, (404, "stream_not_found"));
    assert_eq!(kept.broken(), None, "only its gateway was said to know it");
    let (back, _) = kept.asks(Guise::Honest, 0);
    kept.checks.reader_is_let_in(NOW, 0, back, "any-gateway");
    let (back, _) = kept.asks(Guise::Honest, 1);
    kept.refused(back, (400, "last_event_id_beyond"));
    assert_eq!(kept.broken(), Some(10), "everybody was");
}

#[test]
fn a_number_that_no_event_has_is_refused_in_its_own_words() {
    for (guise, code, broken) in [
        (Guise::TooHigh, "last_event_id_beyond", None),
        (Guise::Nonsense, "invalid_last_event_id", None),
        (Guise::Nonsense, "last_event_id_beyond", Some(6)),
        (Guise::Honest, "invalid_last_event_id", Some(10)),
    ] {
        let mut kept = Kept::of(3);
        let (asks, _) = kept.asks(guise, 0);
        kept.refused(asks, (400, code));
        assert_eq!(kept.broken(), broken, "{guise:?} {code}");
    }
    let mut kept = Kept::of(3);
    let (asks, _) = kept.asks(Guise::TooHigh, 0);
    kept.let_in(asks);
    assert_eq!(kept.broken(), Some(6));
}

#[test]
fn an_earlier_reader_that_reads_on_breaks_the_sixth_where_it_was_calm() {
    for (calm, broken) in [(Some(Duration::ZERO), Some(6)), (None, None)] {
        let mut kept = Kept::of(9);
        kept.checks.calm_since = calm;
        kept.token(0, 1);
        let (later, _) = kept.checks.reader_asks(NOW * 2, 0, HONEST);
        kept.checks.reader_is_let_in(NOW * 2, 0, later, "this-gateway");
        kept.token(0, 2);
        assert_eq!(kept.broken(), None, "it may take a moment");
        let block = kept.words(3);
        kept.checks.block(NOW * 2 + TAKEN_OVER_AFTER * 2, 0, 0, &block);
        assert_eq!(kept.broken(), broken, "{calm:?}");
    }
}

#[test]
fn to_be_given_up_before_the_grace_time_breaks_the_sixth() {
    let given_up = "id: 2\ndata: {\"error\":{\"code\":\"stream_abandoned\"}}";
    for (back_at, broken) in [(NOW + Duration::from_millis(900), Some(6)), (NOW * 3, None)] {
        let mut kept = Kept::of(9);
        kept.token(0, 1);
        kept.leaves(0, NOW);
        let (back, _) = kept.asks(Guise::Honest, 0);
        kept.checks.reader_is_let_in(back_at, 0, back, "this-gateway");
        kept.checks.block(back_at, 0, back, given_up);
        assert_eq!(kept.broken(), broken, "{back_at:?}");
    }
}

#[test]
fn work_goes_on_for_the_grace_time_and_no_longer() {
    for (gateway, heard_within) in [(0, HEARD_WITHIN), (1, WORK_AFTER_END)] {
        let mut kept = Kept::of(9);
        (kept.checks.plan.knobs.request_ms, kept.checks.plan.shared) = (60_000, true);
        let (back, _) = kept.asks(Guise::Honest, gateway);
        kept.let_in(back);
        kept.leaves(0, NOW);
        kept.leaves(back, NOW);
        let grace = Duration::from_millis(kept.checks.plan.grace_ms());
        let late = NOW + grace + heard_within;
        kept.checks.look(late);
        assert_eq!(kept.broken(), None);
        kept.checks.look(late + Duration::from_millis(5));
        assert_eq!(kept.broken(), Some(12), "gateway-{gateway}");
    }
}

#[test]
fn a_bill_for_less_than_was_shown_or_more_than_was_said_breaks_the_third() {
    // Two of the prompt, and one each five milliseconds.
    for (shown, tokens, broken) in [(3, 3, None), (3, 2, Some(3)), (1, 9, Some(3))] {
        let mut kept = Kept::of(90);
        (1..=shown).for_each(|id| kept.token(0, id));
        let charge = Charge { gateway: 0, request: REQUEST.into(), tokens, is_estimate: false };
        kept.checks.charged(NOW + Duration::from_millis(20), &charge);
        assert_eq!(kept.broken(), broken, "{shown} shown, {tokens} charged");
    }
    let mut kept = Kept::of(90);
    let charge = Charge { gateway: 0, request: REQUEST.into(), tokens: 2, is_estimate: false };
    kept.checks.charged(LATER, &charge);
    (1..=3).for_each(|id| kept.token(0, id));
    assert_eq!(kept.broken(), Some(3), "what is shown afterwards is owed as well");
}

const REQUEST: &str = "req_1-1";
const HONEST: Asked = Asked { gateway: 0, guise: Guise::Honest };

/// A stream of the plan's first operation, whose answer is `t7`, with its first reader.
struct Kept {
    checks: Checks,
}

impl Kept {
    fn of(tokens: u32) -> Self {
        let mut plan = super::super::super::plan(1);
        (plan.gateways, plan.doors, plan.shared) = (2, 0, false);
        (plan.speaks, plan.knobs.each_ms, plan.knobs.grace_ms) = (Vec::<Speaks>::new(), 5, 1_000);
        let keeping = Keeping { breaks_off: None, visits: Vec::new(), rival: None };
        plan.operations[0].keeping = Some(keeping);
        (plan.operations[0].gateway, plan.operations[0].keyed) = (0, false);
        let mut checks = Checks::new(&plan);
        checks.begins(NOW, 0);
        checks.named(0, REQUEST.into(), None);
        let (request, ticket) = (REQUEST.to_owned(), Some(0));
        let work = Work { replica: 0, gateway: 0, request, ticket, prompt: 2, tokens };
        checks.asked(NOW, 7, work);
        assert_eq!(checks.stream_opened(NOW, 0, REQUEST, "this-gateway"), 0);
        Self { checks }
    }

    fn words(&self, id: u64) -> String {
        format!(
            "id: {id}\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"t7.{} \"}}}}]}}",
            id - 1
        )
    }

    fn token(&mut self, reader: usize, id: u64) {
        let block = self.words(id);
        self.block(reader, &block);
    }

    fn block(&mut self, reader: usize, block: &str) {
        self.checks.block(NOW, 0, reader, block);
    }

    fn asks(&mut self, guise: Guise, gateway: u8) -> (usize, u64) {
        self.checks.reader_asks(NOW, 0, Asked { gateway, guise })
    }

    fn let_in(&mut self, reader: usize) {
        self.checks.reader_is_let_in(NOW, 0, reader, "this-gateway");
    }

    fn refused(&mut self, reader: usize, told: (u16, &str)) {
        self.checks.reader_is_refused(NOW, 0, reader, told);
    }

    fn leaves(&mut self, reader: usize, at: Duration) {
        self.checks.reader_leaves(at, 0, reader);
    }

    fn broken(&self) -> Option<u8> {
        self.checks.violation().map(|violation| violation.invariant)
    }
}

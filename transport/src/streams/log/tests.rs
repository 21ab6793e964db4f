#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { entries_max: 4, bytes_max: 1_000 };

fn log_of(count: usize) -> Log {
    let mut log = Log::new(BOUNDS);
    for _ in 0..count {
        assert!(log.has_room());
        let number = log.push(b"data: x\n\n");
        log.show(number);
    }
    log
}

fn text(found: Found) -> (String, u64) {
    let Found::Events(bytes, last) = found else { panic!("{found:?}") };
    (String::from_utf8(bytes.to_vec()).unwrap(), last)
}

#[test]
fn every_event_has_its_number_and_is_read_once() {
    let log = log_of(2);
    let (both, last) = text(log.read(0, 1_000));
    assert_eq!((&*both, last), ("id: 1\ndata: x\n\nid: 2\ndata: x\n\n", 2));
    assert_eq!(text(log.read(1, 1_000)), ("id: 2\ndata: x\n\n".to_owned(), 2));
    assert_eq!(log.read(2, 1_000), Found::Nothing);
    assert_eq!(text(log.read(0, 1)).1, 1, "one event at least, whatever its size");
}

#[test]
fn what_is_not_shown_is_not_read() {
    let mut log = log_of(1);
    log.push(b"data: y\n\n");
    assert_eq!(text(log.read(0, 1_000)).1, 1);
    assert_eq!(log.read(1, 1_000), Found::Nothing);
    log.end();
    assert_eq!(log.read(1, 1_000), Found::Nothing, "the last event is not shown yet");
    log.show(2);
    assert_eq!(text(log.read(1, 1_000)).1, 2);
    assert_eq!(log.read(2, 1_000), Found::End);
    assert!(log.is_end(2) && !log.is_end(1));
}

#[test]
fn what_nobody_was_sent_is_never_dropped() {
    let mut log = log_of(4);
    assert!(!log.has_room());
    assert_eq!(log.first(), 1);
    log.sent(2);
    assert!(log.has_room());
    assert_eq!(log.first(), 2, "as much room as is needed, and no more");
    log.push(b"data: x\n\n");
    assert_eq!(log.read(0, 1_000), Found::Gone(2));
    assert!(matches!(log.read(1, 1_000), Found::Events(_, 4)), "what is not shown waits");
}

#[test]
fn bytes_are_bounded_as_entries_are() {
    let mut log = Log::new(Bounds { entries_max: 100, bytes_max: 50 });
    for _ in 0..2 {
        assert!(log.has_room());
        log.push(&[b'x'; 30]);
    }
    assert!(!log.has_room());
    log.show(2);
    log.sent(2);
    assert!(log.has_room());
}

#[test]
fn a_log_whose_writer_broke_says_so_behind_its_last_event() {
    let mut log = log_of(1);
    log.push(b"data: y\n\n");
    log.lose();
    assert_eq!(text(log.read(1, 1_000)).1, 2, "what is there is shown");
    assert_eq!(log.read(2, 1_000), Found::Lost);
    let mut log = log_of(1);
    log.end();
    log.lose();
    assert_eq!(log.read(1, 1_000), Found::End, "an end is an end");
}

#[test]
fn what_is_shipped_is_cut_by_count_and_by_bytes() {
    let log = log_of(4);
    let (from, events) = log.unshipped(1, 2, 1_000);
    assert_eq!((from, events.len()), (2, 2));
    let (from, events) = log.unshipped(0, 100, 20);
    assert_eq!((from, events.len()), (1, 1));
    assert_eq!(log.unshipped(4, 100, 100).1.len(), 0);
}

proptest! {
    /// Whatever is done to it, a log stays within its bounds (and one event), and a reader who keeps up misses nothing and
    /// gets nothing twice.
    #[test]
    fn a_reader_who_keeps_up_gets_every_event_once(steps in proptest::collection::vec(0_u8..4, 0..200)) {
        let mut log = Log::new(BOUNDS);
        let (mut at, mut got) = (0, Vec::new());
        for step in steps {
            match step {
                0 | 1 => if log.has_room() { log.push(b"data: x\n\n"); },
                2 => log.show(log.head()),
                _ => if let Found::Events(bytes, last) = log.read(at, 40) {
                    got.push(bytes);
                    log.sent(last);
                    at = last;
                },
            }
            prop_assert!(log.events.len() <= BOUNDS.entries_max);
            prop_assert!(!matches!(log.read(at, 40), Found::Gone(_)));
        }
        let all: String = (1..=at).map(|number| format!("id: {number}\ndata: x\n\n")).collect();
        prop_assert_eq!(String::from_utf8(got.concat()).unwrap(), all);
    }
}

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod crashes;
mod failures;
mod snapshots;
mod tasks;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::seam::{FaultyDisk, RealDisk};

#[test]
fn a_new_directory_is_empty_and_what_is_appended_comes_back() {
    let disk = FaultyDisk::new();
    let (journal, opened) = open(&disk, &small());
    assert_eq!((opened.incarnation, opened.last_incarnation, opened.next), (1, 0, 0));
    assert_eq!(opened.seed, 42);
    assert!(opened.snapshot.is_none() && opened.tail.count() == 0);
    append(&journal, 0..100);
    journal.close().unwrap();

    let other_seed = Options { seed: 7, ..small() };
    let (_journal, opened) = open(&disk, &other_seed);
    assert_eq!((opened.incarnation, opened.last_incarnation, opened.next), (2, 1, 100));
    assert_eq!(opened.seed, 42, "a directory keeps its seed");
    assert_eq!(opened.report.records, 100);
    assert_eq!(opened.report.cut, None);
    let tail: Vec<_> = opened.tail.collect();
    assert!(tail.iter().all(|record| record.incarnation == 1 && record.logic_version == 1));
    assert_eq!(payloads(tail), expected(0..100));
}

#[test]
fn a_kill_loses_nothing_that_was_written() {
    let disk = FaultyDisk::new();
    for round in 0..5 {
        let (journal, opened) = open(&disk.process(), &small());
        assert_eq!(opened.next, round * 40);
        append(&journal, round * 40..(round + 1) * 40);
        disk.kill();
    }
    let (_journal, opened) = open(&disk.process(), &small());
    assert_eq!(opened.incarnation, 6);
    assert_eq!(payloads(opened.tail), expected(0..200));
}

#[test]
fn segments_are_named_after_their_first_position_and_follow_each_other() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    assert_eq!(journal.appender().finished(), 0);
    journal.appender().roll();
    append(&journal, 10..20);
    assert_eq!(journal.appender().finished(), 10);
    assert!(journal.appender().synced() >= 10, "a finished segment is synced");
    journal.close().unwrap();
    assert_eq!(
        disk.list(&dir().join("journal")).unwrap(),
        ["00000000000000000000.seg", "00000000000000000010.seg"]
    );
}

#[test]
fn a_second_process_is_told_who_has_the_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (journal, _) = Journal::open(Arc::clone(&disk), temporary.path(), &small()).unwrap();
    let refused = Journal::open(Arc::clone(&disk), temporary.path(), &small());
    let error = refused.err().unwrap().to_string();
    let us = format!("in use by process {}", std::process::id());
    assert!(error.contains(&us), "{error}");
    drop(journal);
    Journal::open(disk, temporary.path(), &small()).unwrap();
}

#[test]
fn another_logic_begins_a_segment_of_its_own() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..3);
    journal.close().unwrap();
    let newer = Options { logic_version: 2, ..small() };
    let (journal, opened) = open(&disk, &newer);
    assert_eq!(opened.logic_version, 1);
    append(&journal, 3..5);
    journal.close().unwrap();
    // Twice in a row without a record between: the empty segment is used again.
    for logic_version in [3, 4] {
        let (_journal, opened) = open(&disk, &Options { logic_version, ..small() });
        assert_eq!(opened.logic_version, logic_version - 1);
    }
    let reader = Reader::open(Arc::new(disk), &dir()).unwrap();
    let logic: Vec<_> = reader.records(0).unwrap().map(|record| record.logic_version).collect();
    assert_eq!(logic, [1, 1, 1, 2, 2]);
    assert_eq!(reader.format().logic, 4);
}

#[test]
fn a_reader_beside_a_writer_sees_only_whole_records() {
    let temporary = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (journal, _) = Journal::open(Arc::clone(&disk), temporary.path(), &small()).unwrap();
    let reader = Reader::open(disk, temporary.path()).unwrap();
    let appender = journal.appender();
    let writing = std::thread::spawn(move || {
        for position in 0..3_000 {
            while appender.append(&payload(position)).is_err() {
                std::thread::yield_now();
            }
        }
    });
    while !writing.is_finished() {
        let written = journal.appender().written();
        let mut records = reader.records(0).unwrap().until(written);
        assert_eq!(payloads(records.by_ref()), expected(0..written));
        assert_eq!(records.end(), Some(&End::Clean));
        let mut records = reader.records(written / 2).unwrap();
        let seen: Vec<_> = records.by_ref().collect();
        assert!(seen.len() as u64 >= written - written / 2);
        assert_eq!(payloads(seen.clone()), expected(written / 2..written / 2 + seen.len() as u64));
        let end = records.end().unwrap();
        assert!(matches!(end, End::Clean | End::Torn { .. }), "{end}");
    }
    writing.join().unwrap();
    journal.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wait_for_their_records_and_each_wakes() {
    let disk = FaultyDisk::new();
    let (journal, _) =
        open(&disk, &Options { buffer_max: 1 << 20, segment_bytes: 1 << 20, ..small() });
    let waiting: Vec<_> = (0..500)
        .map(|position| {
            let appender = journal.appender();
            tokio::spawn(async move {
                let taken = appender.append(&payload(position)).unwrap();
                appender.wait_written(taken).await.unwrap();
                assert!(appender.written() > taken);
            })
        })
        .collect();
    for task in waiting {
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }
    journal.close().unwrap();
}

#[tokio::test]
async fn who_waits_for_what_will_never_come_is_told_so() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    let appender = journal.appender();
    let waiting = tokio::spawn({
        let appender = appender.clone();
        async move { appender.wait_written(5).await }
    });
    tokio::task::yield_now().await;
    journal.close().unwrap();
    let failed = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(matches!(*failed.unwrap_err().0, JournalError::Closed));
    assert!(matches!(appender.append(b"x"), Err(Refused::Failing(_))));
    assert!(appender.admits().is_err());
}

/// Not asserted: says what the machine it runs on can do. `cargo test --release -p transport measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test"]
fn measure_appends_and_the_wait_until_written() {
    let temporary = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open(Arc::new(RealDisk), temporary.path(), &Options::default()).unwrap();
    let appender = journal.appender();
    let start = Instant::now();
    let record = [7_u8; 120];
    for _ in 0..1_000_000 {
        while appender.append(&record).is_err() {
            std::thread::yield_now();
        }
    }
    wait(&appender, 1_000_000);
    println!("{:.0} appends a second", 1e6 / start.elapsed().as_secs_f64());
    let mut waits: Vec<_> = (0..5_000)
        .map(|_| {
            // Long enough for the writer to fall asleep: the wait includes waking it.
            std::thread::sleep(Duration::from_micros(200));
            let start = Instant::now();
            let position = appender.append(&record).unwrap();
            while appender.written() <= position {
                std::hint::spin_loop();
            }
            start.elapsed()
        })
        .collect();
    waits.sort();
    println!("written after p50 {:?}, p99 {:?}", waits[2_500], waits[4_950]);
}

fn dir() -> PathBuf {
    PathBuf::from("/data")
}

/// Small enough that a test crosses segments.
fn small() -> Options {
    Options {
        segment_bytes: 2_000,
        segments_max: 1_000,
        fsync: FsyncPolicy::Interval(Duration::from_millis(1)),
        buffer_max: 1_500,
        logic_version: 1,
        seed: 42,
        background: Background::Threads,
    }
}

fn open(disk: &FaultyDisk, options: &Options) -> (Journal, Opened) {
    Journal::open(Arc::new(disk.clone()), &dir(), options).unwrap()
}

fn payload(position: u64) -> Vec<u8> {
    let length = (position * 7 % 50) as usize;
    format!("{position}:")
        .into_bytes()
        .into_iter()
        .chain(std::iter::repeat_n(b'x', length))
        .collect()
}

fn expected(positions: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    positions.map(payload).collect()
}

fn payloads(records: impl IntoIterator<Item = Record>) -> Vec<Vec<u8>> {
    records.into_iter().map(|record| record.payload.to_vec()).collect()
}

/// Appends the payloads of these positions and waits until they are written.
fn append(journal: &Journal, positions: std::ops::Range<u64>) {
    let appender = journal.appender();
    for position in positions.clone() {
        while let Err(refused) = appender.append(&payload(position)) {
            assert!(matches!(refused, Refused::Behind), "{refused}");
            std::thread::yield_now();
        }
    }
    wait(&appender, positions.end);
}

fn wait(appender: &Appender, written: u64) {
    eventually("it is written", || appender.written() >= written);
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "never came true: {what}");
        std::thread::yield_now();
    }
}

fn segment(disk: &FaultyDisk, number: usize) -> PathBuf {
    let names = disk.list(&dir().join("journal")).unwrap();
    Path::new(&dir()).join("journal").join(&names[number])
}

//! The disk says no.

use bytes::Bytes;

use super::*;

#[test]
fn a_full_disk_keeps_what_was_taken_and_goes_on_when_there_is_space() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..5);
    let appender = journal.appender();
    let used: usize = disk.image().values().map(Vec::len).sum();
    // Some room, so that the write stops in the middle of a record.
    disk.set_capacity(Some(used as u64 + 7));
    assert_eq!(appender.append(&payload(5)).unwrap(), 5);
    eventually("the failure shows", || appender.failure().is_some());
    assert!(appender.failure().unwrap().to_string().contains("no space is left"));
    assert!(matches!(appender.admits(), Err(Refused::Failing(_))), "nothing new begins");
    assert_eq!(appender.written(), 5);
    let mut taken = 6;
    let refused = loop {
        match appender.append(&payload(taken)) {
            Ok(position) => assert_eq!(position, taken),
            Err(refused) => break refused,
        }
        taken += 1;
        assert!(taken < 1_000, "the buffer has no bound");
    };
    assert!(taken > 6, "what runs may end");
    assert!(matches!(refused, Refused::Failing(_)), "{refused}");

    disk.set_capacity(None);
    wait(&appender, taken);
    eventually("the failure passes", || appender.failure().is_none());
    append(&journal, taken..taken + 3);
    journal.close().unwrap();
    let (_journal, opened) = open(&disk, &small());
    assert_eq!(opened.report.cut, None);
    assert_eq!(payloads(opened.tail), expected(0..taken + 3));
}

#[test]
fn a_failed_write_never_leaves_half_a_record_before_a_whole_one() {
    let disk = FaultyDisk::new();
    disk.set_append_max(Some(11));
    let (journal, _) = open(&disk, &small());
    for round in 0..10 {
        disk.fail_appends(round as u32 % 3);
        append(&journal, round * 10..(round + 1) * 10);
        let mut records = Reader::open(Arc::new(disk.clone()), &dir()).unwrap().records(0).unwrap();
        assert_eq!(payloads(records.by_ref()), expected(0..(round + 1) * 10));
        assert_eq!(records.end(), Some(&End::Clean));
    }
    disk.fail_appends(0);
    journal.close().unwrap();
}

#[test]
fn a_journal_that_cannot_be_closed_well_says_so_and_loses_nothing_written() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..5);
    disk.fail_appends(u32::MAX);
    journal.appender().append(&payload(5)).unwrap();
    let error = journal.close().unwrap_err();
    assert!(matches!(*error.0, JournalError::Write { .. }), "{error}");
    disk.fail_appends(0);
    let (_journal, opened) = open(&disk, &small());
    assert_eq!(payloads(opened.tail), expected(0..5));
}

#[test]
fn a_failed_sync_is_final() {
    for fsync in [FsyncPolicy::Interval(Duration::from_millis(1)), FsyncPolicy::Always] {
        let disk = FaultyDisk::new();
        let (journal, _) = open(&disk, &Options { fsync, ..small() });
        append(&journal, 0..5);
        eventually("it is synced", || journal.appender().synced() == 5);
        disk.fail_syncs(1);
        let appender = journal.appender();
        appender.append(&payload(5)).unwrap();
        eventually("the failure shows", || appender.failure().is_some());
        assert!(appender.failure().unwrap().is_final());
        assert!(matches!(appender.append(&payload(6)), Err(Refused::Failing(_))));
        assert_eq!(appender.synced(), 5, "nobody knows about the rest");
        let error = journal.close().unwrap_err();
        assert!(matches!(*error.0, JournalError::Sync { .. }), "{error}");
        assert_eq!(appender.synced(), 5, "and nobody pretends to know later");
    }
}

#[test]
fn a_record_too_large_is_refused_alone() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    let refused = journal.appender().append(&[0; 1_500]).unwrap_err();
    assert!(matches!(refused, Refused::TooLarge { bytes: 1_500, .. }), "{refused}");
    append(&journal, 0..1);
    let Refused::TooLarge { max, .. } = refused else { unreachable!() };
    assert_eq!(journal.appender().append(&vec![0; max]).unwrap(), 1);
    wait(&journal.appender(), 2);
}

#[test]
fn a_full_ring_refuses_and_overwrites_nothing_until_a_snapshot_comes() {
    let disk = FaultyDisk::new();
    let options = Options { segments_max: 3, ..small() };
    let (journal, _) = open(&disk, &options);
    let appender = journal.appender();
    let mut taken = 0;
    while appender.failure().is_none() {
        if appender.append(&payload(taken)).is_ok() {
            taken += 1;
        }
        assert!(taken < 10_000, "the ring has no end");
    }
    let failure = appender.failure().unwrap();
    assert!(matches!(*failure, JournalError::RingFull { segments: 3 }), "{failure}");
    assert!(appender.admits().is_err());
    let written = appender.written();
    let reader = Reader::open(Arc::new(disk.clone()), &dir()).unwrap();
    assert_eq!(payloads(reader.records(0).unwrap()), expected(0..written), "all still there");

    // One snapshot is enough when the ring is full, though two are kept otherwise.
    appender.write_snapshot(appender.finished(), Bytes::from_static(b"state")).unwrap();
    wait(&appender, taken);
    eventually("the failure passes", || appender.failure().is_none());
    journal.close().unwrap();
    let (_journal, opened) = open(&disk, &options);
    let snapshot = opened.snapshot.unwrap();
    assert_eq!(payloads(opened.tail), expected(snapshot.position..taken));
}

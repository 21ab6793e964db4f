//! Snapshots, and what they let go of.

use bytes::Bytes;

use super::*;

#[test]
fn recovery_is_the_last_snapshot_and_the_records_after_it() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..50);
    journal.appender().write_snapshot(30, Bytes::from_static(b"state at 30")).unwrap();
    disk.kill();
    let (_journal, opened) = open(&disk.process(), &small());
    let snapshot = opened.snapshot.unwrap();
    assert_eq!((snapshot.position, snapshot.incarnation), (30, 1));
    assert_eq!(snapshot.payload, "state at 30");
    assert_eq!(opened.report.snapshot, Some(30));
    assert_eq!(payloads(opened.tail), expected(30..50));
}

#[test]
fn segments_before_the_older_of_two_snapshots_go() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    for round in 0..4 {
        append(&journal, round * 10..(round + 1) * 10);
        journal.appender().roll();
    }
    append(&journal, 40..41);
    let appender = journal.appender();
    let reader = Reader::open(Arc::new(disk.clone()), &dir()).unwrap();
    appender.write_snapshot(30, Bytes::new()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(reader.retained_from().unwrap(), Some(0), "one snapshot has no fallback");
    appender.write_snapshot(35, Bytes::new()).unwrap();
    eventually("old segments go", || reader.retained_from().unwrap() == Some(30));
    appender.write_snapshot(41, Bytes::new()).unwrap();
    let snapshots = || disk.list(&dir().join("snapshots")).unwrap().len();
    eventually("old snapshots go", || snapshots() == 2);
    assert_eq!(reader.retained_from().unwrap(), Some(30), "position 35 is still needed");
    let mut asked_too_early = reader.records(7).unwrap();
    assert_eq!(asked_too_early.by_ref().count(), 0);
    assert_eq!(asked_too_early.end(), Some(&End::Missing { expected: 7, found: Some(30) }));
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_one_before() {
    for damage in [0, 9, 30, 39, 41] {
        let disk = FaultyDisk::new();
        let (journal, _) = open(&disk, &small());
        append(&journal, 0..50);
        journal.appender().write_snapshot(20, Bytes::from_static(b"older")).unwrap();
        journal.appender().write_snapshot(40, Bytes::from_static(b"newer")).unwrap();
        journal.close().unwrap();
        let newest = dir().join("snapshots/00000000000000000040.snap");
        assert!(disk.flip(&newest, damage, 1));
        let (journal, opened) = open(&disk, &small());
        assert_eq!(opened.snapshot.unwrap().payload, "older");
        assert_eq!(payloads(opened.tail), expected(20..50));
        assert!(opened.report.to_string().contains("the snapshot of position 40"));
        journal.close().unwrap();
        let (_journal, opened) = open(&disk, &small());
        assert!(opened.report.rejected.is_empty(), "it was set aside");
    }
}

#[test]
fn without_a_sound_snapshot_a_journal_without_its_beginning_is_refused() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    journal.appender().roll();
    append(&journal, 10..20);
    let appender = journal.appender();
    appender.write_snapshot(10, Bytes::new()).unwrap();
    appender.write_snapshot(15, Bytes::new()).unwrap();
    let reader = Reader::open(Arc::new(disk.clone()), &dir()).unwrap();
    eventually("the first segment goes", || reader.retained_from().unwrap() == Some(10));
    journal.close().unwrap();
    for position in [10, 15] {
        assert!(disk.flip(&dir().join(format!("snapshots/{position:020}.snap")), 36, 1));
    }
    let error = refused(&disk);
    assert!(error.contains("begins at position 10"), "{error}");
    assert!(error.contains("the snapshot of position 15 does not match its checksum"), "{error}");
}

#[test]
fn a_snapshot_ahead_of_what_a_loss_of_power_left_is_gone_on_from() {
    let mut ahead = 0;
    for seed in 0..20 {
        let disk = FaultyDisk::new();
        let (journal, _) = open(&disk, &Options { fsync: FsyncPolicy::Never, ..small() });
        append(&journal, 0..10);
        journal.appender().write_snapshot(10, Bytes::from_static(b"ten")).unwrap();
        disk.power_loss(crate::seam::disk::PowerLoss { seed, reorder: false });
        drop(journal);
        let (journal, opened) = open(&disk.process(), &small());
        assert_eq!((opened.next, opened.tail.count()), (10, 0));
        ahead += usize::from(opened.report.cut.is_some());
        append(&journal, 10..20);
        journal.close().unwrap();
        let (_journal, opened) = open(&disk.process(), &small());
        assert_eq!(opened.snapshot.unwrap().payload, "ten");
        assert_eq!(payloads(opened.tail), expected(10..20));
    }
    assert!(ahead > 0, "no seed lost a record");
}

fn refused(disk: &FaultyDisk) -> String {
    let result = Journal::open(Arc::new(disk.clone()), &dir(), &small());
    result.err().unwrap().to_string()
}

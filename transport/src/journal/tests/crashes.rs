//! Crashes, damage, and what comes back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::seam::disk::PowerLoss;

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    disk.kill_after(9);
    journal.appender().append(&payload(10)).unwrap();
    eventually("the process is dead", || journal.appender().failure().is_some());
    drop(journal);
    let (journal, opened) = open(&disk.process(), &small());
    let report = opened.report;
    let cut = report.cut.clone().unwrap();
    assert_eq!((cut.position, cut.bytes), (10, 9));
    assert!(report.to_string().contains("cut 9 bytes at position 10"), "{report}");
    assert_eq!(payloads(opened.tail), expected(0..10));
    append(&journal, 10..20);
    journal.close().unwrap();
    let (_journal, opened) = open(&disk.process(), &small());
    assert_eq!(opened.report.cut, None);
    assert_eq!(payloads(opened.tail), expected(0..20));
}

#[test]
fn a_damaged_record_before_sound_ones_is_refused_and_nothing_is_changed() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    journal.close().unwrap();
    assert!(disk.flip(&segment(&disk, 0), 120, 0x10));
    let before = data(&disk);
    let error = refused(&disk);
    assert!(error.contains("the record at position"), "{error}");
    assert!(error.contains("of 00000000000000000000.seg"), "{error}");
    assert!(error.contains("restore a backup"), "{error}");
    assert_eq!(data(&disk), before);
}

#[test]
fn damage_to_the_very_last_record_of_a_closed_journal_is_no_torn_tail() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    journal.close().unwrap();
    let path = segment(&disk, 0);
    let size = disk.image()[&path].len() as u64;
    assert!(disk.flip(&path, size - frame::SYNCED_BYTES as u64 - 1, 1));
    let error = refused(&disk);
    assert!(error.contains("position 9 is damaged"), "{error}");
    assert!(error.contains("it had been synced"), "{error}");
}

#[test]
fn a_hole_that_a_loss_of_power_left_is_cut() {
    let mut holes = 0;
    for seed in 0..200 {
        let disk = unsynced_after_ten();
        disk.power_loss(PowerLoss { seed, reorder: true });
        // An attempt that is refused for another reason does not forget that the machine was restarted.
        let (format, aside) = (dir().join("FORMAT"), dir().join("FORMAT.aside"));
        disk.process().rename(&format, &aside).unwrap();
        assert!(refused(&disk.process()).contains("FORMAT is missing"));
        disk.process().rename(&aside, &format).unwrap();
        let (journal, opened) = open(&disk.process(), &small());
        let cut = opened.report.cut.map(|cut| cut.end);
        holes += usize::from(matches!(cut, Some(End::Corrupt { synced: false, .. })));
        let kept = payloads(opened.tail);
        assert!(kept.len() >= 10 && expected(0..RECORDS).starts_with(&kept));
        journal.close().unwrap();
    }
    assert!(holes > 0, "no seed left a hole");
}

#[test]
fn the_same_hole_without_a_loss_of_power_is_damage() {
    let disk = unsynced_after_ten();
    disk.kill();
    let path = segment(&disk.process(), 0);
    let size = disk.image()[&path].len() as u64;
    assert!(disk.flip(&path, size / 2, 1));
    let error = refused(&disk.process());
    assert!(error.contains("it had not been synced"), "{error}");
}

#[test]
fn a_loss_of_power_does_not_excuse_damage_to_what_was_synced() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..10);
    eventually("they are synced", || journal.appender().synced() == 10);
    // Carries the mark that says so.
    append(&journal, 10..12);
    eventually("they are synced", || journal.appender().synced() == 12);
    disk.power_loss(PowerLoss { seed: 0, reorder: true });
    assert!(disk.flip(&segment(&disk.process(), 0), 150, 1));
    let error = refused(&disk.process());
    assert!(error.contains("it had been synced"), "{error}");
    // Trying again changes nothing about that.
    assert_eq!(refused(&disk.process()), error);
}

#[test]
fn a_missing_segment_is_named() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    for round in 0..3 {
        append(&journal, round * 10..(round + 1) * 10);
        journal.appender().roll();
    }
    append(&journal, 30..31);
    journal.close().unwrap();
    disk.remove(&segment(&disk, 1)).unwrap();
    let error = refused(&disk);
    assert!(error.contains("positions 10 to 19 are missing"), "{error}");
}

#[test]
fn a_segment_of_another_plane_is_not_taken_for_ours() {
    let (ours, other) = (FaultyDisk::new(), FaultyDisk::new());
    for (disk, seed) in [(&ours, 1), (&other, 2)] {
        let (journal, _) = open(disk, &Options { seed, ..small() });
        append(&journal, 0..3);
        journal.close().unwrap();
    }
    let path = segment(&ours, 0);
    ours.cut(&path, 0);
    let foreign = other.image()[&path].clone();
    let mut file = ours.open_append(&path).unwrap();
    crate::seam::disk::append_all(file.as_mut(), &foreign).unwrap();
    assert!(refused(&ours).contains("belongs to another plane"));
}

#[test]
fn another_format_is_refused_and_untouched() {
    refused_as(FORMAT_VERSION + 1, "and this program knows only up to");
    refused_as(FORMAT_VERSION - 1, "and this program reads only");
}

fn refused_as(format: u32, words: &str) {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..3);
    journal.close().unwrap();
    let path = dir().join("FORMAT");
    let ours = String::from_utf8(disk.image()[&path].clone()).unwrap();
    let other = ours.replace(&format!("format {FORMAT_VERSION}"), &format!("format {format}"));
    crate::seam::disk::replace(&disk, &path, other.as_bytes()).unwrap();
    // Not even a lock is made.
    disk.remove(&dir().join("LOCK")).unwrap();
    let before = disk.image();
    let error = refused(&disk);
    let told = format!("has format {format} {words} {FORMAT_VERSION}");
    assert!(error.contains(&told), "{error}");
    assert!(Reader::open(Arc::new(disk.clone()), &dir()).is_err());
    assert_eq!(disk.image(), before);
}

#[test]
fn a_directory_that_lost_its_format_is_refused() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..3);
    journal.close().unwrap();
    disk.remove(&dir().join("FORMAT")).unwrap();
    assert!(refused(&disk).contains("FORMAT is missing or unreadable"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Lives that end by a kill or a loss of power, in the middle of whatever was going on. What was promised is there,
    /// and what is there was appended.
    #[test]
    fn what_was_promised_survives(
        policy in prop_oneof![
            Just(FsyncPolicy::Never),
            Just(FsyncPolicy::Always),
            Just(FsyncPolicy::Interval(Duration::from_micros(100))),
        ],
        append_max in prop_oneof![Just(None), (1_usize..100).prop_map(Some)],
        lives in prop::collection::vec(life(), 1..5),
    ) {
        let disk = FaultyDisk::new();
        let options = Options { fsync: policy, ..small() };
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut incarnation = 0;
        for life in lives {
            disk.set_append_max(append_max);
            let (journal, opened) = open(&disk.process(), &options);
            prop_assert!(opened.incarnation > incarnation);
            incarnation = opened.incarnation;
            prop_assert_eq!(opened.next, kept.len() as u64);
            prop_assert_eq!(&payloads(opened.tail), &kept);
            let appended = live(&disk, &journal, &life, kept);
            let promised = match life.death {
                Death::Kill | Death::KillInWrite { .. } => journal.appender().written(),
                Death::Power { .. } => journal.appender().synced(),
            };
            let promised = usize::try_from(promised).unwrap();
            if policy == FsyncPolicy::Always && matches!(life.death, Death::Power { .. }) {
                // The writer may be at work between the two looks, so what counts as written is looked at first.
                let written = journal.appender().written();
                prop_assert!(written <= journal.appender().synced());
            }
            match life.death {
                Death::Kill | Death::KillInWrite { .. } => disk.kill(),
                Death::Power { seed, reorder } => disk.power_loss(PowerLoss { seed, reorder }),
            }
            drop(journal);
            let reader = Reader::open(Arc::new(disk.process()), &dir()).unwrap();
            kept = payloads(reader.records(0).unwrap());
            prop_assert!(kept.len() >= promised, "{} kept of {} promised", kept.len(), promised);
            prop_assert!(appended.starts_with(&kept), "something was made up");
        }
    }

    /// One flipped bit anywhere in a closed journal: found, or of no consequence.
    #[test]
    fn no_flipped_bit_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let disk = closed();
        let files = segments(&disk);
        let total: usize = files.iter().map(|(_, size)| size).sum();
        let (path, offset) = locate(&files, at.index(total));
        disk.flip(&path, offset as u64, 1 << bit);
        let before = data(&disk);
        match Journal::open(Arc::new(disk.clone()), &dir(), &small()) {
            Ok((_journal, opened)) => {
                // Only the closing mark may be lost without losing a record.
                prop_assert!(opened.report.cut.is_some());
                prop_assert_eq!(payloads(opened.tail), expected(0..RECORDS));
            }
            Err(_) => prop_assert_eq!(data(&disk), before),
        }
    }

    /// A last segment that ends too early is a crash like any other.
    #[test]
    fn a_cut_anywhere_in_the_last_segment_leaves_a_prefix(at in any::<prop::sample::Index>()) {
        let disk = closed();
        let (path, size) = segments(&disk).pop().unwrap();
        disk.cut(&path, at.index(size) as u64);
        let (journal, opened) = open(&disk, &small());
        let kept = payloads(opened.tail);
        prop_assert!(expected(0..RECORDS).starts_with(&kept));
        let next = kept.len() as u64;
        append(&journal, next..next + 5);
        journal.close().unwrap();
        let (_journal, opened) = open(&disk, &small());
        prop_assert_eq!(payloads(opened.tail), expected(0..next + 5));
    }
}

#[derive(Clone, Debug)]
struct Life {
    sizes: Vec<(usize, Wait)>,
    death: Death,
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    Not,
    Written,
    Synced,
    Roll,
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Kill,
    KillInWrite { bytes: u64 },
    Power { seed: u64, reorder: bool },
}

fn life() -> impl Strategy<Value = Life> {
    let wait = prop_oneof![
        8 => Just(Wait::Not),
        2 => Just(Wait::Written),
        1 => Just(Wait::Synced),
        1 => Just(Wait::Roll),
    ];
    let death = prop_oneof![
        1 => Just(Death::Kill),
        2 => (0..3_000_u64).prop_map(|bytes| Death::KillInWrite { bytes }),
        3 => (any::<u64>(), any::<bool>()).prop_map(|(seed, reorder)| Death::Power { seed, reorder }),
    ];
    (prop::collection::vec((0..400_usize, wait), 0..40), death)
        .prop_map(|(sizes, death)| Life { sizes, death })
}

/// Appends what the life says; returns all that was ever appended.
fn live(disk: &FaultyDisk, journal: &Journal, life: &Life, kept: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut appended = kept;
    let appender = journal.appender();
    if let Death::KillInWrite { bytes } = life.death {
        disk.kill_after(bytes);
    }
    for (size, wait) in &life.sizes {
        let payload = vec![(appended.len() % 251) as u8; *size];
        let position = loop {
            match appender.append(&payload) {
                Ok(position) => break position,
                Err(Refused::Behind) => std::thread::yield_now(),
                Err(_) => return appended,
            }
        };
        assert_eq!(position, appended.len() as u64);
        appended.push(payload);
        let over = || appender.failure().is_some();
        match wait {
            Wait::Not => {}
            Wait::Written => eventually("written", || appender.written() > position || over()),
            Wait::Synced => {
                // Some policies never sync by themselves: then this only lets time pass.
                for _ in 0..200 {
                    if appender.synced() > position || over() {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            Wait::Roll => appender.roll(),
        }
    }
    appended
}

const RECORDS: u64 = 60;

/// Ten records that recovery has synced, and further ones that nobody has, in one segment.
fn unsynced_after_ten() -> FaultyDisk {
    let disk = FaultyDisk::new();
    let never = Options { fsync: FsyncPolicy::Never, segment_bytes: 1 << 20, ..small() };
    for positions in [0..10, 10..RECORDS] {
        disk.kill();
        let (journal, _) = open(&disk.process(), &never);
        append(&journal, positions);
        disk.kill();
    }
    disk
}

fn closed() -> FaultyDisk {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &small());
    append(&journal, 0..RECORDS);
    journal.close().unwrap();
    disk
}

fn segments(disk: &FaultyDisk) -> Vec<(PathBuf, usize)> {
    let journal = dir().join("journal");
    let image = disk.image().into_iter().filter(|(path, _)| path.starts_with(&journal));
    image.map(|(path, bytes)| (path, bytes.len())).collect()
}

fn locate(files: &[(PathBuf, usize)], mut at: usize) -> (PathBuf, usize) {
    for (path, size) in files {
        if at < *size {
            return (path.clone(), at);
        }
        at -= size;
    }
    unreachable!("the caller stays below the total")
}

/// Everything but the lock, whose text names its last holder.
fn data(disk: &FaultyDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut image = disk.image();
    image.remove(&dir().join("LOCK"));
    image
}

fn refused(disk: &FaultyDisk) -> String {
    let result = Journal::open(Arc::new(disk.clone()), &dir(), &small());
    result.err().unwrap().to_string()
}

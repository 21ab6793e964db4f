#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::PathBuf;

use super::*;

/// Runs on both disks: whatever code relies on must hold on each.
fn on_both(check: impl Fn(&dyn Disk, &Path)) {
    let temporary = tempfile::tempdir().unwrap();
    check(&RealDisk, temporary.path());
    check(&FaultyDisk::new(), Path::new("/data"));
}

#[test]
fn what_is_appended_reads_back_and_may_be_cut() {
    on_both(|disk, root| {
        let dir = root.join("a/b");
        disk.create_dir(&dir).unwrap();
        let path = dir.join("file");
        let mut file = disk.open_append(&path).unwrap();
        append_all(file.as_mut(), b"hello world").unwrap();
        file.syncer().unwrap().sync().unwrap();
        file.truncate(5).unwrap();
        append_all(file.as_mut(), b"!").unwrap();
        assert_eq!(read_all(disk, &path).unwrap(), b"hello!");
        assert_eq!(file.size().unwrap(), 6);
        assert_eq!(disk.open_append(&path).unwrap().size().unwrap(), 6);
    });
}

#[test]
fn files_are_listed_renamed_and_removed_by_name() {
    on_both(|disk, root| {
        let dir = root.join("dir");
        assert_eq!(disk.list(&dir).unwrap(), Vec::<String>::new());
        disk.create_dir(&dir).unwrap();
        for name in ["b", "a", "c"] {
            disk.open_append(&dir.join(name)).unwrap();
        }
        disk.rename(&dir.join("c"), &dir.join("a")).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["a", "b"]);
        disk.remove(&dir.join("b")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["a"]);
        let missing = disk.remove(&dir.join("b")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_is_held_once_and_shows_what_its_holder_wrote() {
    on_both(|disk, root| {
        disk.create_dir(root).unwrap();
        let path = root.join("LOCK");
        let mut lock = disk.lock(&path).unwrap();
        lock.write("17\n").unwrap();
        let Err(LockError::Held(text)) = disk.lock(&path) else { panic!("locked twice") };
        assert_eq!(text, "17\n");
        drop(lock);
        assert_eq!(disk.lock(&path).unwrap().previous(), "17\n");
    });
}

#[test]
fn a_replaced_file_has_the_old_bytes_or_the_new_ones_after_a_loss_of_power() {
    for seed in 0..200 {
        let disk = FaultyDisk::new();
        let path = PathBuf::from("/d/file");
        disk.create_dir(Path::new("/d")).unwrap();
        replace(&disk, &path, b"old").unwrap();
        disk.kill_after(seed % 4);
        let replaced = replace(&disk, &path, b"new");
        disk.power_loss(PowerLoss { seed, reorder: true });
        let held = read_all(&disk.process(), &path).unwrap();
        match replaced {
            Ok(()) => assert_eq!(held, b"new"),
            Err(_) => assert_eq!(held, b"old"),
        }
    }
}

#[test]
fn a_kill_keeps_what_was_written_and_a_loss_of_power_what_was_synced() {
    let mut shortest = usize::MAX;
    for seed in 0..50 {
        let disk = FaultyDisk::new();
        let path = PathBuf::from("/d/file");
        disk.create_dir(Path::new("/d")).unwrap();
        let mut file = disk.open_append(&path).unwrap();
        append_all(file.as_mut(), b"synced ").unwrap();
        file.syncer().unwrap().sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        append_all(file.as_mut(), b"written").unwrap();
        disk.kill();
        assert!(file.append(b"x").is_err(), "a dead process writes nothing");
        let process = disk.process();
        assert_eq!(read_all(&process, &path).unwrap(), b"synced written");
        disk.power_loss(PowerLoss { seed, reorder: false });
        let held = read_all(&disk.process(), &path).unwrap();
        assert!(b"synced written".starts_with(&held) && held.len() >= 7);
        shortest = shortest.min(held.len());
    }
    assert_eq!(shortest, 7, "no seed lost anything");
}

#[test]
fn a_full_disk_takes_what_fits_and_then_nothing() {
    let disk = FaultyDisk::new();
    disk.create_dir(Path::new("/d")).unwrap();
    disk.set_capacity(Some(4));
    let mut file = disk.open_append(Path::new("/d/file")).unwrap();
    assert_eq!(file.append(b"sixsix").unwrap(), 4);
    assert_eq!(file.append(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
    disk.set_capacity(None);
    assert_eq!(file.append(b"x").unwrap(), 1);
}

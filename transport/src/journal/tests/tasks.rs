//! The same journal without threads.

use super::*;
use tokio::time::{advance, sleep};

#[tokio::test(start_paused = true)]
async fn tasks_write_what_threads_write() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &in_tasks());
    let appender = journal.appender();
    for position in 0..200 {
        appender.append(&payload(position)).unwrap();
        appender.wait_written(position).await.unwrap();
    }
    journal.close().unwrap();
    let (_journal, opened) = open(&disk, &in_tasks());
    assert_eq!(payloads(opened.tail), expected(0..200));
}

#[tokio::test(start_paused = true)]
async fn a_closing_journal_writes_what_its_task_had_not_yet() {
    let disk = FaultyDisk::new();
    disk.set_latency(Duration::from_secs(1));
    let (journal, _) = open(&disk, &in_tasks());
    journal.appender().append(&payload(0)).unwrap();
    // Taken by the task, which waits for its slow disk.
    sleep(Duration::from_millis(10)).await;
    assert_eq!(journal.appender().written(), 0);
    journal.close().unwrap();
    assert_eq!(payloads(open(&disk, &in_tasks()).1.tail), expected(0..1));
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_on_when_a_full_disk_has_space_again() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &in_tasks());
    disk.set_capacity(Some(0));
    let appender = journal.appender();
    let position = appender.append(&payload(0)).unwrap();
    sleep(Duration::from_secs(5)).await;
    assert!(appender.failure().is_some() && appender.admits().is_err());
    disk.set_capacity(None);
    appender.wait_written(position).await.unwrap();
    assert!(appender.failure().is_none() && appender.admits().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_task_syncs_by_the_interval_and_what_was_synced_survives_a_loss_of_power() {
    let disk = FaultyDisk::new();
    let (journal, _) = open(&disk, &in_tasks());
    let appender = journal.appender();
    let position = appender.append(&payload(0)).unwrap();
    appender.wait_written(position).await.unwrap();
    assert_eq!(appender.synced(), 0);
    advance(Duration::from_millis(2)).await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(appender.synced(), 1);
    disk.power_loss(crate::seam::disk::PowerLoss { seed: 3, reorder: true });
    drop(journal);
    assert_eq!(payloads(open(&disk.process(), &in_tasks()).1.tail), expected(0..1));
}

fn in_tasks() -> Options {
    Options { background: Background::Tasks, ..small() }
}

//! Starts that must not succeed, and disks that fill up: what the program says, and that it leaves what it finds alone.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::client::{Ask, Client};
use support::journal::{audit, frames};
use support::{Server, World, free_port, get, overwrite, printed, run, until};

fn configuration(world: &World, port: u16, replica: &Server) -> String {
    format!(
        "version: 1
server:
  http: {{addr: '127.0.0.1:{port}', drain_grace: 10s}}
  admin: {{addr: '127.0.0.1:0'}}
data: {{dir: '{}'}}
models: {{demo: {{endpoints: [{}]}}}}
",
        world.data().display(),
        replica.endpoint(),
    )
}

/// A gateway over one replica, running.
fn serve(world: &World, flags: &str) -> (Server, Server) {
    let replica = world.replica("one", flags);
    let port = free_port();
    world.write_config(&configuration(world, port, &replica));
    let mut gateway = world.gateway(port);
    gateway.start();
    (gateway, replica)
}

/// A data directory of a gateway that answered a few requests and was stopped.
fn used(world: &World) -> Server {
    let (mut gateway, replica) = serve(world, "--ttft 0ms --gap 0ms");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(gateway.port);
        for number in 0..20 {
            let stream = number % 2 == 0;
            assert!(client.ask(&Ask { stream, tokens: 5, ..Ask::default() }).await.whole);
        }
    });
    assert!(gateway.process.stop().success());
    replica
}

/// Runs `serve` on this world's configuration, which must fail; returns what it said.
fn refused(world: &World) -> String {
    let began = Instant::now();
    let output = run("serve --config", &world.config());
    let said = printed(&output);
    println!("{said}");
    assert!(!output.status.success(), "{said}");
    assert!(began.elapsed() < Duration::from_secs(20), "it does not wait for what will not come");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("pointsman cannot serve: "), "{words}");
    assert!(!words.contains("panicked"), "{words}");
    words
}

/// Every file below a folder but the lock, whose text names the last process that looked.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(path);
            } else if path.file_name().unwrap() != "LOCK" {
                found.insert(path.clone(), std::fs::read(path).unwrap_or_default());
            }
        }
    }
    found
}

fn segment(data: &Path) -> PathBuf {
    std::fs::read_dir(data.join("journal")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_directory_in_use_is_refused_by_the_process_that_has_it() {
    let world = World::new();
    let (gateway, replica) = serve(&world, "--ttft 0ms --gap 0ms");
    world.write_config(&configuration(&world, free_port(), &replica));
    let words = refused(&world);
    let holder = format!("in use by process {}", gateway.process.pid());
    assert!(words.contains(&holder), "{words}");
    assert!(words.contains("stop it, or choose another directory"), "{words}");
    assert_eq!(get(gateway.port, "/ready").unwrap().0, 200, "the first one goes on");
    assert!(run("status --data", &world.data()).status.success(), "its socket still answers");
}

#[test]
fn a_newer_directory_is_refused_and_left_alone() {
    let world = World::new();
    let _replica = used(&world);
    let format = world.data().join("FORMAT");
    let ours = format!("format {}\n", transport::journal::FORMAT_VERSION);
    let text = std::fs::read_to_string(&format).unwrap();
    assert!(text.contains(&ours), "{text}");
    std::fs::write(&format, text.replace(&ours, "format 7\n")).unwrap();
    let before = files(&world.data());
    let words = refused(&world);
    assert!(words.contains("format 7") && words.contains("run a newer pointsman"), "{words}");
    assert_eq!(files(&world.data()), before, "nothing was changed");
    let verified = run("journal verify", &world.data());
    assert!(!verified.status.success() && printed(&verified).contains("format 7"));
}

#[test]
fn a_journal_damaged_in_the_middle_is_refused_and_left_alone() {
    let world = World::new();
    let _replica = used(&world);
    // Without its last snapshot, which would stand in for all that comes before.
    for snapshot in std::fs::read_dir(world.data().join("snapshots")).unwrap() {
        std::fs::remove_file(snapshot.unwrap().path()).unwrap();
    }
    let path = segment(&world.data());
    let bytes = std::fs::read(&path).unwrap();
    let frames = frames(&bytes);
    let victim = frames[frames.len() / 2];
    overwrite(&path, victim.payload, &[!bytes[victim.payload as usize]]);
    let before = files(&world.data());
    let words = refused(&world);
    let place = format!("position {} is damaged", victim.position);
    assert!(words.contains(&place) && words.contains("restore a backup"), "{words}");
    assert_eq!(files(&world.data()), before, "nothing was changed");
    let verified = run("journal verify", &world.data());
    assert!(!verified.status.success());
    assert!(printed(&verified).contains(&format!("record {}:", victim.position)));
}

#[test]
fn a_torn_tail_is_cut_and_reported_and_the_rest_is_kept() {
    let world = World::new();
    let (mut gateway, _replica) = serve(&world, "--ttft 0ms --gap 0ms");
    assert_eq!(get(gateway.port, "/ready").unwrap().0, 200);
    // Nothing has been acknowledged yet: what the first steps recorded is written when the writer gets to it.
    let path = segment(&world.data());
    let written = || std::fs::read(&path).is_ok_and(|bytes| !frames(&bytes).is_empty());
    until("a first record is written", 10, written);
    gateway.process.kill();
    let before = audit(&world.data());
    let mut bytes = std::fs::read(&path).unwrap();
    let first = frames(&bytes)[0];
    // The beginning of a record that a crash has cut short.
    bytes.extend_from_within(first.offset as usize..first.payload as usize + 3);
    std::fs::write(&path, bytes).unwrap();
    gateway.start();
    let health = get(gateway.port, "/health").unwrap().1;
    assert!(health.contains("cut 19 torn bytes"), "{health}");
    assert!(gateway.process.said().contains("cut 19 bytes"), "the log says it too");
    assert_eq!(audit(&world.data()).charged, before.charged);
    let verified = run("journal verify", &world.data());
    assert!(verified.status.success(), "{}", printed(&verified));
}

#[test]
fn an_unreadable_configuration_is_named() {
    let world = World::new();
    let replica = world.replica("one", "--ttft 0ms");
    let words = refused(&world);
    assert!(words.contains("config.yaml"), "it is not there: {words}");
    world.write_config("version: 1\nserver: [\n");
    assert!(refused(&world).contains("config.yaml"), "it is no YAML");
    let wrong = configuration(&world, free_port(), &replica).replace("models:", "modles:");
    world.write_config(&wrong);
    let words = refused(&world);
    assert!(words.contains("modles") && words.contains("models"), "{words}");
    std::fs::write(world.config(), [0xff, 0xfe, 0, 0x80]).unwrap();
    assert!(refused(&world).contains("config.yaml"), "it is no text");
    std::fs::remove_file(world.config()).unwrap();
    std::fs::create_dir(world.config()).unwrap();
    assert!(refused(&world).contains("config.yaml"), "it is a folder");
    assert!(!world.data().exists(), "nothing was begun");
}

#[test]
fn a_port_in_use_is_named_with_the_key_that_asks_for_it() {
    let world = World::new();
    let replica = world.replica("one", "--ttft 0ms");
    world.write_config(&configuration(&world, replica.port, &replica));
    let words = refused(&world);
    assert!(words.contains(&format!("127.0.0.1:{}", replica.port)), "{words}");
    assert!(words.contains("server.http.addr"), "{words}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let world = World::new();
    let replica = world.replica("one", "--ttft 0ms");
    std::fs::write(world.data(), "a file stands in its place").unwrap();
    world.write_config(&configuration(&world, free_port(), &replica));
    let words = refused(&world);
    assert!(words.contains(&world.data().display().to_string()), "{words}");
}

/// A file system of a few megabytes, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mut command = Command::new("mount");
        let mounted = command.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        for size in [64 << 10, 4 << 10, 1 << 8, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }
}

/// Whether this process may do what root may.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut ids = status.lines().filter_map(|line| line.strip_prefix("Uid:"));
    ids.next().is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_new_requests_ends_what_runs_and_passes() {
    let world = World::new();
    let Some(disk) = SmallDisk::mount(world.data()) else {
        // CI runs as root; a person's own account has no such right, and is told.
        let must = is_root() || std::env::var_os("CI").is_some();
        assert!(!must, "a small file system cannot be mounted, so no full disk was tried");
        eprintln!("SKIPPED: no right to mount a small file system, so no full disk was tried");
        return;
    };
    let (mut gateway, _replica) = serve(&world, "--ttft 1ms --gap 20ms");
    let client = Client::new(gateway.port);
    let short = Ask { tokens: 2, ..Ask::default() };
    assert!(client.ask(&short).await.whole);

    // Two streams run while the disk fills up: one ends before there is space again, one after.
    let long = |tokens| {
        let (client, ask) = (client.clone(), Ask { stream: true, tokens, ..Ask::default() });
        tokio::spawn(async move { client.ask(&ask).await })
    };
    let (sooner, later) = (long(100), long(60 * 60));
    tokio::time::sleep(Duration::from_millis(300)).await;
    disk.fill();
    // The journal's last page has room for a few more.
    let mut tries = 0;
    while client.ask(&short).await.whole {
        tries += 1;
        assert!(tries < 1_000, "a full disk ends it");
    }
    assert_eq!(get(gateway.port, "/ready").unwrap().0, 503);
    let (_, reasons) = get(gateway.port, "/ready").unwrap();
    assert!(reasons.contains("no space is left"), "{reasons}");
    let refused = client.ask(&short).await;
    assert_eq!((refused.status, refused.error.as_deref()), (503, Some("journal_unavailable")));
    let sooner = sooner.await.unwrap();
    assert!(!sooner.is_silent() && sooner.broken.is_none(), "{sooner:?}");
    assert_eq!(sooner.error.as_deref(), Some("answer_not_recorded"), "{sooner:?}");

    std::fs::remove_file(disk.filler()).unwrap();
    until("the gateway is ready again", 20, || get(gateway.port, "/ready").unwrap().0 == 200);
    assert!(client.ask(&short).await.whole);
    later.abort();
    let _ = later.await;
    until("nothing is held", 20, || audit(&world.data()).outstanding == 0);
    assert!(gateway.process.stop().success());
    let charged = audit(&world.data());
    assert_eq!(charged.outstanding, 0);
    let least = sooner.prompt + sooner.received;
    assert!(
        charged.charged > least,
        "what was delivered without a record is charged: {}",
        charged.text
    );
    let verified = run("journal verify", &world.data());
    assert!(verified.status.success(), "{}", printed(&verified));
}

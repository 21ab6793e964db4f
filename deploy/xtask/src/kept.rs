//! Processes that outlive us: each has a directory with its ports, its process id and whatever else it keeps.
//!
//! A process is ended by its id and no other way, after a look whether the process of that id is still the one we started:
//! ids are reused. Ports are preferred ones, or free ones where those are taken, and are kept in the directory, so that what
//! is started again is found where it was.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::process::run;

/// A second port is this much above the first, if that is free.
const SECOND_ABOVE: u16 = 1_000;

/// The longest one question to a process of ours may take.
const ASK_MAX: Duration = Duration::from_secs(5);

/// What is shown of a log when something went wrong.
const LAST_LINES: usize = 15;

/// One process and its directory.
#[derive(Clone, Debug)]
pub struct Kept {
    /// As people call it.
    pub name: &'static str,
    /// Its directory.
    pub place: PathBuf,
    /// The port that it is asked at.
    pub port: u16,
    /// The second, where it has one.
    pub second: u16,
}

impl Kept {
    /// The process of that name below `home`, with the ports it had, else `preferred`, else free ones.
    pub fn new(home: &Path, name: &'static str, preferred: u16) -> Result<Self, String> {
        let place = home.join(name);
        fs::create_dir_all(&place).map_err(|why| at(&place, why))?;
        let place = place.canonicalize().map_err(|why| at(&place, why))?;
        let kept = place.join("ports");
        let (port, second) = match fs::read_to_string(&kept) {
            Ok(text) => ports(&text).ok_or_else(|| at(&kept, "is not two ports: remove it"))?,
            Err(_) => {
                let chosen = (free(preferred)?, free(preferred + SECOND_ABOVE)?);
                let text = format!("{} {}\n", chosen.0, chosen.1);
                fs::write(&kept, text).map_err(|why| at(&kept, why))?;
                chosen
            }
        };
        Ok(Self { name, place, port, second })
    }

    /// Where it is reached.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process, if that runs and has all of `marks` in its command line.
    pub fn process(&self, marks: &[String]) -> Option<u32> {
        let id = fs::read_to_string(self.place.join("pid")).ok()?.trim().parse::<u32>().ok()?;
        is_ours(id, marks).then_some(id)
    }

    /// An error where somebody else has one of its ports.
    pub fn want_ports(&self) -> Result<(), String> {
        for port in [self.port, self.second] {
            TcpListener::bind(("127.0.0.1", port)).map_err(|_| {
                format!(
                    "{}: port {port} is taken by another program: end that, or remove {} to have another chosen",
                    self.name,
                    self.place.join("ports").display()
                )
            })?;
        }
        Ok(())
    }

    /// Starts it in a process group of its own, so that it outlives us, and notes its id. What it prints goes to `log`; what it
    /// printed the last time is kept beside that as `.previous`.
    pub fn spawn(&self, command: &mut Command, log: &Path) -> Result<Child, String> {
        let mut previous = log.as_os_str().to_owned();
        previous.push(".previous");
        match fs::rename(log, previous) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(at(log, why)),
            Ok(()) | Err(_) => {}
        }
        let out = File::create(log).map_err(|why| at(log, why))?;
        let errors = out.try_clone().map_err(|why| at(log, why))?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|why| format!("{}: {why}", self.name))?;
        let noted = self.place.join("pid");
        fs::write(&noted, format!("{}\n", child.id())).map_err(|why| at(&noted, why))?;
        Ok(child)
    }

    /// Asks it to end (SIGTERM) and waits so long for that. Whether it ran.
    pub fn stop(&self, marks: &[String], within: Duration) -> Result<bool, String> {
        let Some(id) = self.process(marks) else { return Ok(false) };
        // The shell's own `kill`: the program of that name is not everywhere.
        run(Command::new("sh").args(["-c", &format!("kill -TERM {id}")]))?;
        let started = Instant::now();
        // Not by its file: some take that away before they end.
        while is_ours(id, marks) {
            if started.elapsed() > within {
                return Err(format!("{} (process {id}) does not end", self.name));
            }
            sleep(Duration::from_millis(50));
        }
        println!("{} is down", self.name);
        Ok(true)
    }
}

/// Waits until `ready`, as long as `child` lives. Else the error has the last lines of its log.
pub fn wait_ready(
    name: &str,
    child: &mut Child,
    log: &Path,
    within: Duration,
    ready: impl Fn() -> bool,
) -> Result<(), String> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|why| why.to_string())? {
            return Err(format!("{name} ended at its start ({status}). {}", last_lines(log)));
        }
        if ready() {
            return Ok(());
        }
        if started.elapsed() > within {
            let seconds = within.as_secs();
            return Err(format!("{name} is not ready within {seconds} s. {}", last_lines(log)));
        }
        sleep(Duration::from_millis(50));
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    format!("The last lines of {}:\n{}", log.display(), last.join("\n"))
}

/// Status and body of an HTTP exchange with a process of ours; nothing where nobody answers.
pub fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ASK_MAX).ok()?;
    stream.set_read_timeout(Some(ASK_MAX)).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\naccept: text/plain\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
}

/// Whether somebody listens on a port.
pub fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ASK_MAX).is_ok()
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let (port, second) = text.trim().split_once(' ')?;
    Some((port.parse().ok()?, second.parse().ok()?))
}

/// `preferred`, or any other that nobody listens on.
fn free(preferred: u16) -> Result<u16, String> {
    let listener = TcpListener::bind(("127.0.0.1", preferred))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .map_err(|why| format!("no free port: {why}"))?;
    listener.local_addr().map(|address| address.port()).map_err(|why| why.to_string())
}

fn is_ours(id: u32, marks: &[String]) -> bool {
    arguments(id).is_some_and(|args| marks.iter().all(|mark| args.contains(mark)))
}

/// The command line of a process, its words apart by blanks. Where there is no `/proc`, `ps` knows. One that has ended and
/// was not waited for has none.
fn arguments(id: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).ok().or_else(|| {
        let mut ps = Command::new("ps");
        ps.args(["-o", "args=", "-p", &id.to_string()]);
        Some(ps.output().ok()?.stdout)
    });
    Some(String::from_utf8(bytes?).ok()?.replace('\0', " "))
}

/// What is wrong with a file.
pub fn at(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pointsman-{name}-{}", std::process::id()))
    }

    #[test]
    fn ports_are_kept_and_other_text_is_refused() {
        assert_eq!(ports("17379 18379\n"), Some((17_379, 18_379)));
        assert_eq!(ports("17379"), None);
        assert_eq!(ports("17379 70000"), None);
    }

    #[test]
    fn a_port_that_is_taken_is_not_given_out_and_one_that_was_kept_is_asked_back() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("it is bound").port();
        assert_ne!(free(port).expect("another is free"), port);
        let home = place("ports");
        let mut kept = Kept::new(&home, "one", port).expect("free ports are found");
        assert_eq!(kept.want_ports(), Ok(()));
        kept.port = port;
        let told = kept.want_ports().expect_err("we hold it ourselves");
        assert!(told.contains(&port.to_string()) && told.contains("one/ports"), "{told}");
        fs::remove_dir_all(&home).expect("our own directory can be removed");
    }

    #[test]
    fn a_stale_process_id_is_nobody() {
        let home = place("pid");
        let kept = Kept::new(&home, "one", 17_999).expect("free ports are found");
        let own = std::process::id().to_string();
        fs::write(kept.place.join("pid"), own).expect("a file is written");
        assert_eq!(kept.process(&["no such word".to_owned()]), None, "that process is this test");
        fs::remove_dir_all(&home).expect("our own directory can be removed");
    }

    #[test]
    fn who_ends_at_its_start_is_told_of_with_its_last_words() {
        let home = place("end");
        let kept = Kept::new(&home, "one", 17_998).expect("free ports are found");
        let log = home.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo the reason >&2; exit 3"]);
        let mut child = kept.spawn(&mut command, &log).expect("there is a shell");
        let told = wait_ready("one", &mut child, &log, Duration::from_secs(30), || false);
        let told = told.expect_err("it ends");
        assert!(told.contains("exit status: 3") && told.ends_with("the reason"), "{told}");
        assert!(told.contains("\n100\n") && !told.contains("\n50\n"), "{told}");
        let mut again = kept.spawn(&mut Command::new("true"), &log).expect("it starts");
        again.wait().expect("it ends");
        let previous = fs::read_to_string(home.join("log.previous")).expect("it is kept");
        assert!(previous.ends_with("the reason\n"), "{previous}");
        fs::remove_dir_all(&home).expect("our own directory can be removed");
    }
}

//! A replica dies, is probed too early, comes back, and earns its share. Then somebody revokes its key.
//!
//! Left the second, then what happens, then what the breaker says to it; silence where it says nothing.

use alloc::format;
use alloc::string::String;

use super::*;

const STORY: &str = "\
0   success
1   failure
1   failure
1   full
2   failure
2   failure
2   failure        closed -> open, share 0: 5 failures in a row
3   late success
6   time passes
7   time passes    open -> half-open, share 1000: the ejection is over, a probe may pass
7   failure        half-open -> open, share 0: a probe failed
15  time passes
17  time passes    open -> half-open, share 1000: the ejection is over, a probe may pass
17  full
18  success        half-open -> closed, share 100: the probes succeeded
19  time passes    closed -> closed, share 190: returning, with a larger share
23  time passes    closed -> closed, share 550: returning, with a larger share
28  time passes    closed -> closed, share 1000: returning, with a larger share
30  key revoked    closed -> open, share 0: the endpoint refuses our key (401): check its api_key
60  time passes
";

#[test]
fn a_replica_dies_comes_back_and_has_its_key_revoked() {
    let mut bench = Bench::new();
    let start = bench.now;
    let late = bench.begin();
    let mut told = String::new();
    for line in STORY.lines() {
        let second: u64 = line[..3].trim().parse().unwrap();
        let event = line[4..].split("  ").next().unwrap();
        bench.now = start + Duration::from_secs(second);
        let moved = match event {
            "success" => bench.ask(Verdict::Success),
            "failure" => bench.ask(Verdict::Failure),
            "full" => bench.ask(Verdict::Backpressure),
            "late success" => bench.record(late, Verdict::Success),
            "key revoked" => bench.ask(Verdict::Fault(Fault::KeyRefused)),
            "time passes" => bench.pass(Duration::ZERO).pop(),
            other => panic!("no such event: {other}"),
        };
        let said = moved.map_or(
            String::new(),
            |Transition { from, to, share_permille, cause, .. }| {
                format!("{from} -> {to}, share {share_permille}: {cause}")
            },
        );
        told += format!("{second:<3} {event:<14} {said}").trim_end();
        told.push('\n');
    }
    assert_eq!(told, STORY, "\n{told}");
}

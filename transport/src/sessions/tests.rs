#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bytes::Bytes;
use serde_json::value::RawValue;

use super::*;
use crate::exchange::Stored;

const BODY: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn limits() -> Limits {
    Limits {
        tokens_max: Tokens(4_000),
        messages_max: 2_000,
        bytes_max: 4 << 20,
        sessions_max: 10,
        ttl: Duration::from_secs(60),
    }
}

fn over(kv: Kv) -> Arc<Sessions> {
    let store = Store::Embedded(Embedded::new(kv));
    Sessions::over(store, limits(), WallClock::System, &Health::new())
}

fn ann() -> Owner {
    Owner { tenant: "default".into(), user: "ann".into() }
}

fn stored(id: &str, is_new: bool) -> Stored {
    Stored { id: id.into(), is_new, owner: ann() }
}

fn answer() -> Option<Box<RawValue>> {
    RawValue::from_string(r#"{"role":"assistant","content":"ho"}"#.to_owned()).ok()
}

fn head() -> Head {
    let owner = ann();
    Head {
        tenant: owner.tenant.to_string(),
        user: owner.user.to_string(),
        created: 1,
        active: 1,
        cleared: Totals::default(),
    }
}

fn entry() -> Entry {
    let totals = Totals { messages: 1, tokens: 2, bytes: 3 };
    Entry { turn: "t1".to_owned(), at: 1, totals, whole: true, message: answer().unwrap() }
}

async fn begin(sessions: &Arc<Sessions>, stored: &Stored) -> Result<Turn, SessionError> {
    let soon = Instant::now() + Duration::from_millis(200);
    let begun = Turn::begin(sessions, stored, &Bytes::from_static(BODY), soon).await;
    begun.map(|(turn, _)| turn)
}

#[tokio::test]
async fn a_turn_that_is_cut_leaves_nothing_behind_and_lets_the_next_begin() {
    let sessions = over(Kv::memory());
    let id = Sessions::mint().unwrap();
    let mut turn = begin(&sessions, &stored(&id, true)).await.unwrap();
    turn.announce();
    assert_eq!(begin(&sessions, &stored(&id, false)).await.err(), Some(SessionError::Busy));
    drop(turn);
    assert_eq!(sessions.get(&ann(), &id).await.unwrap().message_count, 0);
    let turn = begin(&sessions, &stored(&id, false)).await.unwrap();
    turn.end(answer(), true).await.unwrap();
    assert_eq!(sessions.get(&ann(), &id).await.unwrap().message_count, 2);
}

#[tokio::test]
async fn sessions_that_begin_at_once_are_not_more_than_may_be() {
    let sessions = over(Kv::memory());
    let ids: Vec<String> = (0..13).map(|_| Sessions::mint().unwrap()).collect();
    let begun = ids.iter().map(|id| async { begin(&sessions, &stored(id, true)).await });
    let mut turns: Vec<_> = futures_util::future::join_all(begun).await;
    let refused = turns.iter().filter(|turn| turn.is_err()).count();
    assert_eq!(refused, 3, "10 may be");
    assert_eq!(turns.pop().unwrap().err(), Some(SessionError::TooMany(10)));
    // Those of which nobody has heard go with their turns.
    drop(turns);
    let page = PageOf { page: 1, size: 10 };
    while sessions.list(&ann(), page).await.unwrap().total > 0 {
        tokio::task::yield_now().await;
    }
    assert!(begin(&sessions, &stored(&ids[0], true)).await.is_ok());
}

#[tokio::test]
async fn a_turn_that_is_written_twice_is_there_once() {
    let store = Embedded::new(Kv::memory());
    store.create("s", &head(), 10).await.unwrap();
    let entry = entry();
    for _ in 0..3 {
        store.append("s", 2, std::slice::from_ref(&entry), &[]).await.unwrap();
    }
    assert_eq!(store.page("s", 0, 10).await.unwrap().len(), 1);
    assert_eq!(store.head("s").await.unwrap().unwrap().1, entry.totals);
}

#[tokio::test]
async fn a_turn_whose_flush_failed_is_not_kept_until_one_succeeds() {
    let kv = Kv::memory();
    let Kv::Memory(memory) = kv.clone() else { panic!("it is in memory") };
    let store = Embedded::new(kv);
    store.create("s", &head(), 10).await.unwrap();
    let entry = entry();
    memory.failing.store(2, Ordering::Relaxed);
    let append = || store.append("s", 2, std::slice::from_ref(&entry), &[]);
    let (first, second, third) = (append().await, append().await, append().await);
    assert!(matches!(first, Err(SessionError::Store(_))), "{first:?}");
    assert!(
        matches!(second, Err(SessionError::Store(_))),
        "a repeat was taken for kept: {second:?}"
    );
    assert_eq!(third, Ok(()));
    assert_eq!(store.page("s", 0, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_looks_at_nothing_before_the_one_before_it_is_over() {
    let home = tempfile::tempdir().unwrap();
    let kv = Kv::open(home.path()).unwrap();
    let store = Embedded::new(kv.clone());
    store.create("s", &head(), 10).await.unwrap();
    let mark = Totals { messages: 1, tokens: 2, bytes: 3 };
    // One change has looked, and writes only now; another begins meanwhile.
    let first = store.hang();
    let (other, before) = (store.clone(), store.begun.load(Ordering::SeqCst));
    let second = tokio::spawn(async move { other.clear("s", mark).await });
    let began = Instant::now();
    while store.begun.load(Ordering::SeqCst) == before {
        assert!(began.elapsed() < Duration::from_secs(20), "it never begins");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let changed = serde_json::to_vec(&Head { active: 99, ..head() }).unwrap();
    kv.write(vec![(b"hs".to_vec(), Some(changed))]).unwrap();
    drop(first);
    second.await.unwrap().unwrap();
    let (kept, _) = store.head("s").await.unwrap().unwrap();
    assert_eq!((kept.active, kept.cleared), (99, mark), "one undid the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_once_undo_nothing_of_each_other() {
    let home = tempfile::tempdir().unwrap();
    let sessions = over(Kv::open(home.path()).unwrap());
    for round in 0..10 {
        let turns = (0..4).map(|_| async {
            let id = Sessions::mint().unwrap();
            let turn = begin(&sessions, &stored(&id, true)).await.unwrap();
            turn.end(answer(), true).await.unwrap();
            id
        });
        let ids = futures_util::future::join_all(turns).await;
        let after = sessions.history(&ann()).await.unwrap();
        assert_eq!(after.len(), 8, "round {round}: a line took another's place");
        for id in ids {
            let lines = after.iter().filter(|line| line.session == id).count();
            assert_eq!(lines, 2, "round {round}");
            sessions.purge(&ann(), &id).await.unwrap();
        }
    }
    sessions.close();
}

#[tokio::test]
async fn what_is_on_a_disk_is_there_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let id = Sessions::mint().unwrap();
    {
        let sessions = over(Kv::open(home.path()).unwrap());
        let turn = begin(&sessions, &stored(&id, true)).await.unwrap();
        turn.end(answer(), false).await.unwrap();
    }
    let sessions = over(Kv::open(home.path()).unwrap());
    let page = PageOf { page: 1, size: 10 };
    let kept = sessions.messages(&ann(), &id, page).await.unwrap();
    assert_eq!((kept.total, kept.items[1].is_whole), (2, false));
    assert_eq!(sessions.history(&ann()).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_has_no_turn_under_way() {
    let sessions = over(Kv::memory());
    let id = Sessions::mint().unwrap();
    let turn = begin(&sessions, &stored(&id, true)).await.unwrap();
    turn.end(answer(), true).await.unwrap();
    let turn = begin(&sessions, &stored(&id, false)).await.unwrap();
    assert_eq!(sessions.purge(&ann(), &id).await, Err(SessionError::Busy));
    turn.end(answer(), true).await.unwrap();
    assert_eq!(sessions.get(&ann(), &id).await.unwrap().message_count, 4);
    assert_eq!(sessions.purge(&ann(), &id).await, Ok(()));
    assert_eq!(sessions.get(&ann(), &id).await, Err(SessionError::NotFound));
    // A turn that waited for it finds nothing.
    assert_eq!(begin(&sessions, &stored(&id, false)).await.err(), Some(SessionError::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_turns_that_are_not_written_and_not_for_ever() {
    let sessions = over(Kv::memory());
    assert!(sessions.turns_written().await);
    let id = Sessions::mint().unwrap();
    let turn = begin(&sessions, &stored(&id, true)).await.unwrap();
    let began = Instant::now();
    assert!(!sessions.turns_written().await);
    assert_eq!(began.elapsed(), STORE_PATIENCE + MOMENT);
    let ending = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        turn.end(answer(), true).await.unwrap();
    };
    let (written, ()) = tokio::join!(sessions.turns_written(), ending);
    assert!(written);
    assert_eq!(sessions.get(&ann(), &id).await.unwrap().message_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_write_hangs_is_told_unknown_and_holds_its_session_till_it_is_known() {
    let home = tempfile::tempdir().unwrap();
    let store = Embedded::new(Kv::open(home.path()).unwrap());
    let sessions =
        Sessions::over(Store::Embedded(store.clone()), limits(), WallClock::System, &Health::new());
    let id = Sessions::mint().unwrap();
    let mut turn = begin(&sessions, &stored(&id, true)).await.unwrap();
    turn.announce();
    let disk = store.hang();
    let ending = tokio::spawn(turn.end(answer(), true));
    for _ in 0..100 {
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    let told = ending.await.unwrap();
    assert!(matches!(told, Err(SessionError::Unconfirmed(_))), "{told:?}");
    let guard = sessions.guard(&ann().scoped(&id));
    assert!(guard.try_lock().is_err(), "the next turn would not see what is written yet");
    drop(disk);
    // The disk comes back, and what was begun is done.
    drop(guard.lock().await);
    assert_eq!(sessions.get(&ann(), &id).await.unwrap().message_count, 2);
}

#[test]
fn ids_are_long_random_and_told_from_others() {
    let (one, other) = (Sessions::mint().unwrap(), Sessions::mint().unwrap());
    assert!(one != other && is_minted(&one) && is_minted(&other));
    for bad in ["", "sess_", "x", &one[1..], &format!("{one}0"), &one.to_uppercase()] {
        assert!(!is_minted(bad), "{bad}");
    }
}

//! Streams that are kept for a client which goes away.
//!
//! The book of a stream is what all its readers together were shown, event by event. Each reader gets what follows the event
//! that it named, without a hole or a repetition, and each event is the same for all: so the joined text is one answer, which
//! is judged as any other (6). Whoever has another key gets nothing (13). What a client was shown is known to who keeps the
//! stream while that one lives, and to everybody beside it once that is promised (10). Nobody is worked for who has been away for
//! longer than the grace time (12), nobody is given up before (6), and the one bill has all that was shown and no more than can
//! have been said until then (3).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::super::plan::{Fault, Guise, TierBPlan};
use super::{Charge, Checks, WORK_AFTER_END, Work};
use crate::coverage::sometimes;

/// A reader that was replaced may be shown something for so long: one elsewhere says that it is there twice a second, and is
/// looked for every second.
const TAKEN_OVER_AFTER: Duration = Duration::from_millis(2_500);
/// What is seen of a reader elsewhere is so old, at most.
const SEEN_LATE: Duration = Duration::from_secs(2);
/// Who keeps a stream hears that its reader has gone, and whoever worked for it that it ended.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// More than any stream has.
const TOO_HIGH: u64 = 1_000_000;

/// All kept streams of a run.
#[derive(Debug)]
pub(super) struct Shelf {
    /// By try.
    books: BTreeMap<usize, Book>,
    /// When each machine's process ended last.
    died: BTreeMap<u8, Duration>,
    /// When its disk lost something.
    lost: BTreeMap<u8, Duration>,
    /// What each request was charged, by who charged it.
    charged: BTreeMap<(u8, String), (Duration, u64)>,
    /// When somebody first worked for a request, and how many tokens its prompt can have.
    begun: BTreeMap<(u8, String), (Duration, u32)>,
    /// Nothing is ever wrong with the log that gateways share, or on the way there.
    is_log_sound: bool,
}

/// What is known of one.
#[derive(Debug)]
struct Book {
    id: String,
    opened: Duration,
    /// Of all readers together; the first has number 1.
    events: Vec<String>,
    /// The number of the last event there is.
    last: Option<u64>,
    /// Tokens among them.
    tokens: u64,
    usage: Option<u64>,
    /// Everybody was said to know it.
    is_anywhere: bool,
    readers: Vec<Reader>,
    unread_since: Option<Duration>,
    /// The longest time without a reader, as far as readers know.
    gap_max: Duration,
}

/// One connection for it.
#[derive(Clone, Debug)]
struct Reader {
    asked: Asked,
    began: Duration,
    let_in: Option<Duration>,
    at: u64,
    /// It was told that it gets no more.
    is_cut: bool,
    has_left: bool,
}

/// Where somebody asks for the rest of a stream, and as whom.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Asked {
    pub gateway: u8,
    pub guise: Guise,
}

/// What a block of a stream was.
#[derive(Debug, Default)]
pub(in super::super) struct Block {
    pub is_event: bool,
    /// It is the stream's last event, and a clean end or not.
    pub last: Option<bool>,
    pub error: Option<Value>,
}

impl Shelf {
    pub fn new(plan: &TierBPlan) -> Self {
        let is_log_sound = plan.shared && plan.faults.iter().all(|timed| spares_log(&timed.fault));
        Self {
            books: BTreeMap::new(),
            died: BTreeMap::new(),
            lost: BTreeMap::new(),
            charged: BTreeMap::new(),
            begun: BTreeMap::new(),
            is_log_sound,
        }
    }

    /// When a machine's disk lost something last.
    pub fn lost_at(&self, gateway: u8) -> Option<&Duration> {
        self.lost.get(&gateway)
    }

    /// A gateway names its requests from the beginning again.
    pub fn begins_anew(&mut self, gateway: u8) {
        self.charged.retain(|(of, _), _| *of != gateway);
        self.begun.retain(|(of, _), _| *of != gateway);
    }

    pub fn forgets(&mut self, now: Duration, gateway: u8) {
        self.lost.insert(gateway, now);
    }
}

/// Whether a fault leaves alone what gateways share, and the way there.
fn spares_log(fault: &Fault) -> bool {
    let is_log = |name: &String| name == super::super::redis::HOST;
    match fault {
        Fault::Cut { a, b } | Fault::Hold { a, b } | Fault::Latency { a, b, .. } => {
            !is_log(a) && !is_log(b)
        }
        Fault::CutOneWay { from, to } => !is_log(from) && !is_log(to),
        Fault::Redis { .. } | Fault::Pause { .. } => false,
        Fault::Replica { .. }
        | Fault::ReplicaCrash { .. }
        | Fault::Drain { .. }
        | Fault::Reload { .. }
        | Fault::Consul { .. }
        | Fault::Kill { .. }
        | Fault::PowerLoss { .. }
        | Fault::Restart { .. }
        | Fault::DiskFull { .. }
        | Fault::DiskSlow { .. }
        | Fault::AppendsFail { .. }
        | Fault::SyncFails { .. }
        | Fault::BitFlip { .. }
        | Fault::CrashTwice { .. }
        | Fault::ClockJump { .. } => true,
    }
}

impl Checks {
    /// A client's stream begins, and is named. Returns the number of its first reader.
    pub fn stream_opened(&mut self, now: Duration, ticket: usize, id: &str, reach: &str) -> usize {
        sometimes!("b_kept_opened");
        if id.is_empty() || !["any-gateway", "this-gateway"].contains(&reach) {
            let text = format!("try {ticket} is to be resumable, and is called {id:?}, {reach:?}");
            self.violated(now, 6, text);
        }
        let of = &self.tickets[ticket];
        let gateway = self.plan.operations[of.operation].gateway;
        let reader = Reader {
            asked: Asked { gateway, guise: Guise::Honest },
            began: of.began,
            let_in: Some(now),
            at: 0,
            is_cut: false,
            has_left: false,
        };
        let book = Book {
            id: id.to_owned(),
            opened: of.began,
            events: Vec::new(),
            last: None,
            tokens: 0,
            usage: None,
            is_anywhere: reach == "any-gateway",
            readers: vec![reader],
            unread_since: None,
            gap_max: Duration::ZERO,
        };
        self.shelf.books.insert(ticket, book);
        0
    }

    /// Somebody asks for the rest of a stream. Returns the reader's number, and the last event that it says it has.
    pub fn reader_asks(&mut self, now: Duration, ticket: usize, asked: Asked) -> (usize, u64) {
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return (0, 0) };
        let at = match asked.guise {
            Guise::Honest => book.events.len() as u64,
            Guise::FromTheStart | Guise::Nonsense | Guise::Stranger => 0,
            Guise::TooHigh => TOO_HIGH,
        };
        let reader = Reader { asked, began: now, let_in: None, at, is_cut: false, has_left: false };
        book.readers.push(reader);
        (book.readers.len() - 1, at)
    }

    /// It is shown what follows.
    pub fn reader_is_let_in(&mut self, now: Duration, ticket: usize, number: usize, reach: &str) {
        let keeper = self.keeper(ticket);
        let died = keeper.and_then(|keeper| self.shelf.died.get(&keeper)).copied();
        let front_died = self.plan.doors > 0;
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return };
        let first = book.readers[0].asked.gateway;
        let reader = &mut book.readers[number];
        reader.let_in = Some(now);
        let Asked { gateway, guise } = reader.asked;
        match guise {
            Guise::Honest | Guise::FromTheStart => {}
            Guise::Stranger => {
                let text = format!("{} is shown to another tenant", book.id);
                return self.violated(now, 13, text);
            }
            Guise::TooHigh | Guise::Nonsense => {
                let text = format!("{} goes on behind an event that it has not", book.id);
                return self.violated(now, 6, text);
            }
        }
        if gateway == first {
            sometimes!("b_kept_here");
        } else {
            sometimes!("b_kept_elsewhere");
        }
        let door = self.shelf.died.get(&first).filter(|_| front_died);
        if died.or(door.copied()).is_some_and(|at| at > book.opened) {
            sometimes!("b_kept_after_death");
        }
        book.is_anywhere = reach == "any-gateway";
        if let Some(since) = book.unread_since.take() {
            book.gap_max = book.gap_max.max(now.saturating_sub(since));
        }
    }

    /// It is refused.
    pub fn reader_is_refused(
        &mut self,
        now: Duration,
        ticket: usize,
        number: usize,
        (status, code): (u16, &str),
    ) {
        let must_know = self.must_know(ticket, number);
        let Some(book) = self.shelf.books.get(&ticket) else { return };
        let (reader, id) = (&book.readers[number], &book.id);
        let is_own = self.plan.tenants_of(reader.asked.gateway)
            == self.plan.tenants_of(book.readers[0].asked.gateway);
        let is_known = match (status, reader.asked.guise) {
            (500.., _) => return,
            (401, _) if !is_own => return,
            (404, Guise::Stranger) => return sometimes!("b_kept_stranger"),
            (400, Guise::Nonsense) if code == "invalid_last_event_id" => {
                return sometimes!("b_kept_nonsense");
            }
            (400, Guise::TooHigh) if code == "last_event_id_beyond" => {
                return sometimes!("b_kept_beyond");
            }
            (204, Guise::Honest) if book.last == Some(reader.at) => {
                return sometimes!("b_kept_complete");
            }
            (404, Guise::Honest | Guise::FromTheStart | Guise::TooHigh)
            | (400 | 410, Guise::Honest | Guise::FromTheStart) => !must_know,
            _ => {
                let text = format!("{id}: {:?} is told {status} {code}", reader.asked);
                let invariant = if reader.asked.guise == Guise::Stranger { 13 } else { 6 };
                return self.violated(now, invariant, text);
            }
        };
        if is_known {
            return sometimes!("b_kept_unknown");
        }
        let (at, gateway) = (reader.at, reader.asked.gateway);
        let text =
            format!("{id}: gateway-{gateway} answers {status} {code} to who has event {at} of it");
        self.violated(now, 10, text);
    }

    /// Whether whom this reader asked has to know the stream up to what it was shown.
    fn must_know(&self, ticket: usize, number: usize) -> bool {
        let Some(book) = self.shelf.books.get(&ticket) else { return false };
        let reader = &book.readers[number];
        let lives = self.keeper(ticket).is_some_and(|keeper| {
            self.shelf.died.get(&keeper).is_none_or(|died| *died < book.opened)
        });
        if self.plan.doors > 0 {
            // Whoever is asked must reach who keeps it.
            return lives && self.calm_since.is_some_and(|since| since <= reader.began);
        }
        let is_there = lives && reader.asked.gateway == book.readers[0].asked.gateway;
        is_there || self.shelf.is_log_sound && book.is_anywhere
    }

    /// The machine that keeps a try's stream.
    fn keeper(&self, ticket: usize) -> Option<u8> {
        let of = &self.tickets[ticket];
        let gateway = self.plan.operations[of.operation].gateway;
        if self.plan.doors > 0 { of.house } else { Some(gateway) }
    }

    /// A reader is gone.
    pub fn reader_leaves(&mut self, now: Duration, ticket: usize, number: usize) {
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return };
        let Some(reader) = book.readers.get_mut(number) else { return };
        reader.has_left = true;
        let is_read = book.readers.iter().any(|reader| !reader.has_left && reader.let_in.is_some());
        if !is_read {
            book.unread_since.get_or_insert(now);
        }
    }

    /// Since when nobody is there for a try, as far as its work has to end with that.
    pub(super) fn unread_since(&self, ticket: usize) -> Option<Duration> {
        let of = &self.tickets[ticket];
        let ended = of.ended.map(|(ended, _)| ended);
        let grace = Duration::from_millis(self.plan.grace_ms());
        match self.shelf.books.get(&ticket) {
            Some(book) => Some(book.unread_since? + grace),
            // Its client may have left before it heard of it.
            None if self.plan.operations[of.operation].keeping.is_some() => Some(ended? + grace),
            None => ended,
        }
    }

    /// Whether nobody came for the rest of a try's stream.
    pub(super) fn has_one_reader(&self, ticket: usize) -> bool {
        self.shelf.books.get(&ticket).is_none_or(|book| book.readers.len() == 1)
    }

    /// How long after a try's end somebody may still work for it. The time of who keeps a stream begins when it hears that its
    /// reader is gone: at once, but for a reader elsewhere.
    pub(super) fn work_after_end(&self, ticket: usize) -> Duration {
        let Some(book) = self.shelf.books.get(&ticket) else { return WORK_AFTER_END };
        if self.is_seen_late(book) { WORK_AFTER_END } else { HEARD_WITHIN }
    }

    /// Whether a reader may have read the log that is shared. A door does so of whatever it is asked.
    fn is_seen_late(&self, book: &Book) -> bool {
        let first = book.readers[0].asked.gateway;
        let mut came_back = book.readers.iter().skip(1);
        self.plan.shared
            && came_back.any(|reader| self.plan.doors > 0 || reader.asked.gateway != first)
    }

    /// A machine's process ended.
    pub fn process_died(&mut self, now: Duration, gateway: u8) {
        self.shelf.died.insert(gateway, now);
    }

    /// A reader gets a block of the stream.
    pub fn block(&mut self, now: Duration, ticket: usize, number: usize, block: &str) -> Block {
        let (mut id, mut data, mut comment) = (None, None, None);
        for line in block.lines() {
            if let Some(rest) = line.strip_prefix("id: ") {
                id = rest.parse::<u64>().ok();
            } else if let Some(rest) = line.strip_prefix("data: ") {
                data = Some(rest);
            } else {
                comment = line.strip_prefix(": ");
            }
        }
        let Some(data) = data else {
            self.aside(ticket, comment.unwrap_or_default());
            return Block::default();
        };
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return Block::default() };
        let reader = &mut book.readers[number];
        if reader.is_cut {
            let text = format!("{}: a reader gets more behind its end: {data}", book.id);
            self.violated(now, 6, text);
            return Block::default();
        }
        let Some(id) = id else {
            reader.is_cut = true;
            return self.cut(now, ticket, data);
        };
        if id != reader.at + 1 {
            let text = format!("{}: a reader gets event {id} behind {}", book.id, reader.at);
            self.violated(now, 6, text);
            return Block::default();
        }
        reader.at = id;
        self.shown(now, ticket, (number, id), data)
    }

    /// Something that is no event.
    fn aside(&mut self, ticket: usize, comment: &str) {
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return };
        if comment.starts_with("resumed after ") {
            sometimes!("b_seam");
        } else if comment.starts_with("the log of streams does not answer") {
            book.is_anywhere = false;
        } else if comment.starts_with("the log of streams answers again") {
            book.is_anywhere = true;
        }
    }

    /// The last words to a reader, which are no event of the stream.
    fn cut(&mut self, now: Duration, ticket: usize, data: &str) -> Block {
        let value: Value = serde_json::from_str(data).unwrap_or_default();
        let error = value.get("error").cloned();
        match error.as_ref().and_then(|error| error["code"].as_str()) {
            None => {
                let text = format!("try {ticket}: an event of a kept stream has no id: {data}");
                self.violated(now, 6, text);
            }
            Some("stream_taken_over") => sometimes!("b_kept_taken_over"),
            Some("stream_gateway_lost") => sometimes!("b_kept_lost"),
            Some("stream_abandoned") => self.given_up(now, ticket),
            Some(_) => {}
        }
        Block { error, ..Block::default() }
    }

    fn shown(
        &mut self,
        now: Duration,
        ticket: usize,
        (number, id): (usize, u64),
        data: &str,
    ) -> Block {
        self.is_only_reader(now, ticket, number);
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return Block::default() };
        let is_last = book.last == Some(id);
        if let Some(known) = book.events.get(id as usize - 1) {
            if known != data {
                let text = format!("{}: event {id} is {data}, and was {known}", book.id);
                self.violated(now, 6, text);
            }
            let last = is_last.then_some(data == DONE);
            let reader = self.shelf.books.get_mut(&ticket);
            reader.into_iter().for_each(|book| book.readers[number].is_cut |= is_last);
            return Block { is_event: true, last, error: None };
        }
        if book.last.is_some() {
            let text = format!("{}: event {id} comes behind its end: {data}", book.id);
            self.violated(now, 6, text);
            return Block::default();
        }
        book.events.push(data.to_owned());
        self.first_shown(now, ticket, (number, id), data)
    }

    /// An event that nobody was shown before.
    fn first_shown(
        &mut self,
        now: Duration,
        ticket: usize,
        (number, id): (usize, u64),
        data: &str,
    ) -> Block {
        let value: Value = serde_json::from_str(data).unwrap_or_default();
        let error = value.get("error").cloned();
        let is_done = data == DONE;
        let Some(book) = self.shelf.books.get_mut(&ticket) else { return Block::default() };
        if is_done || error.is_some() {
            book.last = Some(id);
            book.readers[number].is_cut = true;
        }
        book.usage = value["usage"]["total_tokens"].as_u64().or(book.usage);
        let usage = book.usage;
        let token = value["choices"][0]["delta"]["content"].as_str();
        book.tokens += u64::from(token.is_some());
        if is_done {
            sometimes!("b_kept_whole");
            self.clean_end(now, ticket, usage);
        } else if let Some(token) = token {
            self.token(now, ticket, token.trim());
        } else if value.is_null() {
            self.nonsense(now, ticket, data);
        }
        if let Some(completion) = value["usage"]["completion_tokens"].as_u64() {
            self.billed(now, ticket, completion);
        }
        match error.as_ref().and_then(|error| error["code"].as_str()) {
            Some("stream_abandoned") => self.given_up(now, ticket),
            Some("gateway_stopping") => sometimes!("b_kept_stopped"),
            Some(_) | None => {}
        }
        self.owes(now, ticket);
        let last = (is_done || error.is_some()).then_some(is_done);
        Block { is_event: true, last, error }
    }

    /// Nobody who came before another still reads, a while after that one was let in.
    fn is_only_reader(&mut self, now: Duration, ticket: usize, number: usize) {
        let Some(book) = self.shelf.books.get(&ticket) else { return };
        let reader = &book.readers[number];
        let later = book.readers.iter().find(|later| {
            let is_later = reader.let_in.is_some_and(|let_in| later.began > let_in);
            let is_long_there = later.let_in.is_some_and(|at| at + TAKEN_OVER_AFTER < now);
            is_later && is_long_there && self.calm_since.is_some_and(|since| since <= later.began)
        });
        if let Some(later) = later {
            let text = format!("{} is read by {reader:?} and by {later:?}", book.id);
            self.violated(now, 6, text);
        }
    }

    /// A stream was given up: nobody read it for the grace time.
    fn given_up(&mut self, now: Duration, ticket: usize) {
        sometimes!("b_kept_given_up");
        let Some(book) = self.shelf.books.get(&ticket) else { return };
        let was_calm = self.calm_since.is_some_and(|since| since <= book.opened);
        let late = if self.is_seen_late(book) { SEEN_LATE } else { Duration::ZERO };
        let grace = Duration::from_millis(self.plan.grace_ms());
        if was_calm && book.gap_max + late < grace {
            let (id, gap) = (&book.id, book.gap_max);
            let text = format!("{id} is given up, and nobody read it for {gap:?} at most");
            self.violated(now, 6, text);
        }
    }

    /// How the judge calls the request behind a try where it is charged.
    fn charged_as(&self, ticket: usize) -> Option<(u8, String)> {
        if self.plan.doors > 0 {
            return self.joined.request_of(ticket);
        }
        let of = &self.tickets[ticket];
        Some((self.plan.operations[of.operation].gateway, of.request.clone()))
    }

    /// A replica begins to work for a request.
    pub(super) fn began_to_work(&mut self, now: Duration, work: &Work) {
        let begun = self.shelf.begun.entry((work.gateway, work.request.clone()));
        let (_, prompt) = begun.or_insert((now, work.prompt));
        *prompt = work.prompt.max(*prompt);
    }

    /// A request is charged: what can have been said by now, at most, and of a kept stream all that was shown.
    pub(super) fn is_billed(&mut self, now: Duration, charge: &Charge) {
        let key = (charge.gateway, charge.request.clone());
        self.shelf.charged.insert(key.clone(), (now, charge.tokens));
        let Some((begun, prompt)) = self.shelf.begun.get(&key) else { return };
        let each = Duration::from_millis(self.plan.knobs.each_ms.max(1));
        let said = (now - *begun).as_nanos() / each.as_nanos() + 2;
        let most = u128::from(*prompt) + said;
        if !charge.is_estimate && u128::from(charge.tokens) > most {
            let (request, tokens) = (&charge.request, charge.tokens);
            let text =
                format!("{request} is charged {tokens} tokens, and at most {most} were said");
            return self.violated(now, 3, text);
        }
        let owed: Vec<usize> = self.shelf.books.keys().copied().collect();
        let owed =
            owed.into_iter().filter(|ticket| self.charged_as(*ticket).as_ref() == Some(&key));
        owed.collect::<Vec<_>>().into_iter().for_each(|ticket| self.owes(now, ticket));
    }

    /// What a reader was shown is in the bill, once there is one.
    fn owes(&mut self, now: Duration, ticket: usize) {
        let Some(key) = self.charged_as(ticket) else { return };
        let Some(&(at, charged)) = self.shelf.charged.get(&key) else { return };
        let Some(book) = self.shelf.books.get(&ticket) else { return };
        // Who died knows what was used up to its last mark.
        let lived = self.shelf.died.get(&key.0).is_none_or(|died| *died < book.opened);
        if !lived || at < book.opened {
            return;
        }
        sometimes!("b_kept_billed");
        if book.tokens > charged {
            let (id, shown) = (&book.id, book.tokens);
            let text = format!("{id}: {shown} tokens are shown, and {charged} charged");
            self.violated(now, 3, text);
        }
    }
}

const DONE: &str = "[DONE]";

#[cfg(test)]
mod tests;

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use proptest::prelude::*;

use super::*;

/// Everything the parser says about `chunks`: blocks, whether it refused, and what was cut off.
fn parse(chunks: &[&[u8]], max: usize) -> (Vec<Event>, bool, Option<Event>) {
    let mut parser = Parser::new(max);
    let mut events = Vec::new();
    for chunk in chunks {
        parser.insert(Bytes::copy_from_slice(chunk));
        loop {
            match parser.poll_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, true, parser.finish()),
            }
        }
    }
    (events, false, parser.finish())
}

fn data_of(stream: &[u8]) -> Vec<String> {
    let (events, refused, _) = parse(&[stream], EVENT_BYTES_MAX);
    assert!(!refused);
    events.into_iter().filter_map(|event| event.data.map(text)).collect()
}

fn text(bytes: Bytes) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_examples_of_the_standard_give_what_the_standard_says() {
    assert_eq!(data_of(b"data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
    assert_eq!(data_of(b"data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
    assert_eq!(data_of(b"data:test\n\ndata: test\n\n"), ["test", "test"]);
    let stream =
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
    let (events, _, _) = parse(&[stream], EVENT_BYTES_MAX);
    assert_eq!(events.len(), 4);
    assert_eq!(events[0].data, None, "a comment is no event, yet it is forwarded");
    assert_eq!(events[1].id.as_deref(), Some(&b"1"[..]));
    assert_eq!(events[2].id.as_deref(), Some(&b""[..]));
    assert_eq!(events[3].data.as_deref(), Some(&b" third event"[..]));
}

#[test]
fn lines_may_end_in_lf_crlf_or_cr() {
    for stream in [
        &b"data: a\n\ndata: b\n\n"[..],
        b"data: a\r\n\r\ndata: b\r\n\r\n",
        b"data: a\r\rdata: b\r\r",
        b"data: a\n\r\ndata: b\r\n\n",
        b"\xEF\xBB\xBFdata: a\r\r\ndata: b\r\r",
    ] {
        assert_eq!(data_of(stream), ["a", "b"], "{:?}", String::from_utf8_lossy(stream));
    }
}

#[test]
fn a_crlf_event_keeps_its_last_line_feed_and_a_cr_event_waits_for_nobody() {
    let (events, _, rest) = parse(&[b"data: a\r\n\r", b"\ndata: b\r\n\r", b"\n"], EVENT_BYTES_MAX);
    assert_eq!(events[0].raw, "data: a\r\n\r\n");
    assert_eq!(events[1].raw, "data: b\r\n\r\n");
    assert_eq!(rest, None);

    let (events, _, rest) = parse(&[b"data: a\r\r"], EVENT_BYTES_MAX);
    assert_eq!(events[0].raw, "data: a\r\r");
    assert_eq!(rest, None);
}

#[test]
fn fields_follow_the_standard() {
    let stream =
        b"event: first\nevent: error\nid: a\0b\nretry: 1500\nretry: x\nunknown: y\ndata: z\n\n";
    let (events, _, _) = parse(&[stream], EVENT_BYTES_MAX);
    assert_eq!(events[0].name.as_deref(), Some(&b"error"[..]));
    assert_eq!(events[0].id, None);
    assert_eq!(events[0].retry, Some(Duration::from_millis(1_500)));
    assert_eq!(events[0].data.as_deref(), Some(&b"z"[..]));
}

#[test]
fn only_the_first_byte_order_mark_is_dropped() {
    let (events, _, _) = parse(&[b"\xEF", b"\xBB", b"\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n"], 99);
    assert_eq!(events[0].raw, "data: a\n\n");
    assert_eq!(events[1].data, None, "the field's name is not `data` any more");
    let (events, _, _) = parse(&[b"\xEF", b"\xBBdata: a\n\n"], 99);
    assert_eq!(events[0].raw, &b"\xEF\xBBdata: a\n\n"[..], "half a mark is no mark");
}

#[test]
fn an_event_inside_one_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"data: one\n\ndata: two\n\n");
    let mut parser = Parser::default();
    parser.insert(chunk.clone());
    let first = parser.poll_event().unwrap().unwrap();
    let second = parser.poll_event().unwrap().unwrap();
    assert_eq!(first.raw.as_ptr(), chunk.as_ptr());
    assert_eq!(second.data.unwrap().as_ptr(), chunk[17..].as_ptr());
}

#[test]
fn what_the_end_cuts_off_is_handed_out_apart() {
    let (events, _, rest) = parse(&[b"data: a\n\ndata: [DONE]"], EVENT_BYTES_MAX);
    assert_eq!(events.len(), 1);
    assert_eq!(rest.unwrap().data.unwrap(), "[DONE]");
}

#[test]
fn an_event_above_the_maximum_is_refused_whether_or_not_it_ends() {
    for chunks in [
        &[&b"data: 1\n\n"[..], b"data: 0123456789\n\n"][..],
        &[b"data: 1\n\n", b"data: 0123", b"456789", b"0123456789"],
    ] {
        let (events, refused, _) = parse(chunks, 16);
        assert_eq!((events.len(), refused), (1, true));
    }
    let mut parser = Parser::new(4);
    parser.insert(Bytes::from_static(b"data: 1\n\n"));
    assert_eq!(parser.poll_event(), Err(TooLarge { max: 4 }));
    parser.insert(Bytes::from_static(b"\n\n"));
    assert_eq!(parser.poll_event(), Err(TooLarge { max: 4 }), "it stays refused");
}

#[test]
fn chunks_inserted_without_draining_are_joined() {
    let mut parser = Parser::default();
    parser.insert(Bytes::from_static(b"data: a\n\nda"));
    parser.insert(Bytes::from_static(b"ta: b\n\n"));
    assert_eq!(parser.poll_event().unwrap().unwrap().data.unwrap(), "a");
    assert_eq!(parser.poll_event().unwrap().unwrap().data.unwrap(), "b");
    assert_eq!(parser.poll_event().unwrap(), None);
}

/// The standard read literally, on the whole stream at once: (data, name) of each dispatched event.
fn reference(stream: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let stream = stream.strip_prefix(&MARK).unwrap_or(stream);
    let mut lines = vec![Vec::new()];
    let mut index = 0;
    while index < stream.len() {
        match stream[index] {
            b'\r' => {
                index += usize::from(stream.get(index + 1) == Some(&b'\n'));
                lines.push(Vec::new());
            }
            b'\n' => lines.push(Vec::new()),
            byte => lines.last_mut().unwrap().push(byte),
        }
        index += 1;
    }
    lines.pop();
    let (mut events, mut data, mut name) = (Vec::new(), None::<Vec<u8>>, None);
    for line in lines {
        if line.is_empty() {
            if let Some(data) = data.take() {
                events.push((data, name.take()));
            }
            name = None;
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value).to_vec();
        match &line[..colon] {
            b"data" => match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend(value);
                }
                None => data = Some(value),
            },
            b"event" => name = Some(value),
            _ => {}
        }
    }
    events
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        &b"\n"[..],
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"data",
        b"data: ",
        b"data:",
        b": c",
        b"event: e",
        b"id: 1",
        b"x",
        b"\xEF\xBB\xBF",
        "ж誕🙂".as_bytes(),
        b"\xFF",
        b"\0",
        b"{\"a\":1}",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_chunking_gives_the_same_events(
        stream in streams(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        max in prop::sample::select(vec![12_usize, 40, EVENT_BYTES_MAX]),
    ) {
        let whole = parse(&[&stream], max);
        prop_assert_eq!(&parse(&cut(&stream, &cuts), max), &whole);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(&parse(&bytes, max), &whole);
    }

    #[test]
    fn the_raw_bytes_are_the_stream_and_the_events_are_the_standards(stream in streams()) {
        let (events, _, rest) = parse(&[&stream], EVENT_BYTES_MAX);
        let raw: Vec<u8> = events.iter().chain(&rest).flat_map(|event| event.raw.to_vec()).collect();
        let unmarked = stream.strip_prefix(&MARK).unwrap_or(&stream);
        // What follows the last block may be line ends alone, which nobody needs.
        prop_assert!(unmarked.starts_with(&raw));
        prop_assert!(unmarked[raw.len()..].iter().all(|byte| b"\r\n".contains(byte)));

        let dispatched: Vec<_> = events
            .into_iter()
            .filter_map(|event| Some((event.data?.to_vec(), event.name.map(|name| name.to_vec()))))
            .collect();
        let expected = reference(&stream);
        // A stream that ends in CR leaves its last empty line open: an LF could still follow.
        let open = usize::from(stream.ends_with(b"\r") && dispatched.len() + 1 == expected.len());
        prop_assert_eq!(&dispatched[..], &expected[..expected.len() - open]);
    }
}

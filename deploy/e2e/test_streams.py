"""Streams that outlive their client's connection, on one gateway: as the official client and others see them."""

import time

from asking import Streamed, client_of
from harness import endpoints, get, new_key, until
from ledger import audited
from resumable import Resumable, after

RESUMABLE = {"x-pointsman-resumable": "true"}


def test_the_official_client_reads_a_resumable_stream_as_any_other(three, client):
    plain = Streamed(client, "Count to me.", max_tokens=30, stream_options={"include_usage": True})
    kept = Streamed(
        client, "Count to me.", max_tokens=30, stream_options={"include_usage": True}, extra_headers=RESUMABLE
    )
    assert kept.whole and kept.text and kept.usage == plain.usage
    always = client_of(three.gateway, default_headers=RESUMABLE)
    assert Streamed(always).whole, "for a whole client at once"
    assert always.models.list().data, "and where nothing streams it is of no account"


def test_a_client_that_lost_its_connection_gets_the_rest_and_no_piece_twice(three):
    stream = Resumable(three.gateway, "unused", "demo", "Tell me more.", 60).read(after(5))
    assert (stream.where, stream.id) == ("this-gateway", stream.request_id)
    assert stream.dones == 0
    stream.at(three.gateway).read()
    assert stream.dones == 1 and not stream.errors
    assert len(stream.pieces) == stream.usage["completion_tokens"]
    again = Resumable(three.gateway, "unused", "demo", "", 0)
    again.id = stream.id
    again.at(three.gateway).read()
    assert (again.events, again.dones) == (stream.events, 1), "it is kept for a while after its end"
    status, body = get(f"{three.gateway.url}/v1/streams/req_1-0")
    assert (status, "stream_not_found" in body) == (404, True), body


def test_a_client_that_stays_away_pays_for_what_was_generated_until_then(world):
    key, digest = new_key()
    replica = world.replica("slow", ttft="5ms", gap="20ms", tokens="400")
    config = {"version": 1, "models": {"demo": {"endpoints": endpoints(replica)}}, "streams": {"grace": "1s"}}
    config |= {"tenants": {"acme": {"daily_tokens": 100_000}}}
    gateway = world.serve(config={**config, "keys": [{"name": "k", "hash": digest, "tenant": "acme"}]})
    stream = Resumable(gateway, key, "demo", "Tell me more.", 400).read(after(5))
    left = time.monotonic()
    until("the answer is given up", lambda: 'pointsman_streams_ended_total{outcome="abandoned"} 1' in figures(gateway))
    assert time.monotonic() - left > 0.9, "not before the grace time was over"
    seen = len(stream.pieces)
    stream.at(gateway).read()
    assert [error["error"]["code"] for error in stream.errors] == ["stream_abandoned"] and stream.dones == 0
    generated = len(stream.pieces)
    assert seen < generated < 400
    assert gateway.stop() == 0
    prompt = audited(world.data) - generated
    assert 0 < prompt < 20, "the prompt once, and every piece that is in the log"


def figures(gateway):
    """What it measures."""
    return get(f"{gateway.url}/metrics")[1]

"""Server-sent events: whole events come out, wherever the bytes were cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.api import sse
from tollhouse.errors import BrokenAnswer, RequestError

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b": comment",
        b"event: message",
        "data: é€😀".encode(),
        b"data:",
        b"id: 1",
    ]
)
EVENTS = st.lists(st.lists(LINES, min_size=1, max_size=3), min_size=1, max_size=6)


@given(events=EVENTS, ending=st.sampled_from([b"\n", b"\r\n", b"\r"]), data=st.data())
def test_a_stream_is_cut_into_the_same_events_however_it_arrives(
    events: list[list[bytes]], ending: bytes, data: st.DataObject
) -> None:
    whole = [ending.join(lines) + ending * 2 for lines in events]
    stream = b"".join(whole)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    splitter = sse.Splitter()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < end:
            found += splitter.feed(stream[start:end])
    if rest := splitter.rest():
        found.append(rest)
    assert b"".join(found) == stream
    assert [sse.data_of(event) for event in found] == [sse.data_of(event) for event in whole]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b"data:x\r\n\r\n", b"x"),
        (b"event: e\ndata: 1\ndata: 2\n\n", b"1\n2"),
        (b": keep-alive\n\n", b""),
        (b"data\n\n", b""),
        (b"data:  two spaces\n\n", b" two spaces"),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes) -> None:
    assert sse.data_of(event) == data


def test_an_event_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    splitter = sse.Splitter()
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(BrokenAnswer):
        splitter.feed(b"x" * 90)


def test_a_failed_stream_ends_in_an_error_event() -> None:
    event = sse.error_event(RequestError("timeout", "too slow"))
    assert event == (
        b'data: {"error":{"message":"too slow","type":"provider_error","param":null,'
        b'"code":"timeout"}}\n\n'
    )


WILD = (
    b"\xef\xbb\xbf: a comment\r\n\r\n"
    b"event: message\ndata: 1\n\n"
    b"data: {\r\ndata: }\r\n\r\n"
    b"id: 7\rdata: a\rdata: b\r\r" + "data: é€😀\n\n".encode() + b"data:\n\nretry: 5\ndata: [DONE]"
)
"""Everything that servers are known to send; the last event without its blank line."""
WILD_DATA = [b"", b"1", b"{\n}", b"a\nb", "é€😀".encode(), b"", b"[DONE]"]


def split_at(*cuts: int) -> list[bytes]:
    splitter = sse.Splitter()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(WILD)], strict=True):
        found += splitter.feed(WILD[start:end])
    found.append(splitter.rest())
    return found


def test_what_servers_send_is_read_the_same_at_every_pair_of_split_points() -> None:
    for first in range(1, len(WILD)):
        for second in range(first + 1, len(WILD)):
            found = split_at(first, second)
            assert [sse.data_of(event) for event in found] == WILD_DATA, (first, second)
            assert b"".join(found) == WILD[3:]


def test_what_servers_send_is_read_the_same_byte_by_byte() -> None:
    assert [sse.data_of(event) for event in split_at(*range(1, len(WILD)))] == WILD_DATA


def test_a_mark_is_only_a_mark_at_the_start() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n")[1].startswith(b"\xef\xbb\xbf")


def test_a_keep_alive_is_no_event() -> None:
    assert sse.data_of(sse.KEEP_ALIVE) == b""

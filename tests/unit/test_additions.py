"""What callers get of an answer: what is added, what is taken out, and what stays in its bytes."""

import json
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tollhouse.api import answers, cost
from tollhouse.api.additions import Origin
from tollhouse.snapshot import Pricing

ORIGIN = Origin(
    requested_model="fast:high",
    requested_provider="openai",
    used_model="openai/o4",
    used_provider="main",
    upstream_model="o4",
    pricing=Pricing(input="2.50", output="10.00"),
)
STRICT = msgspec.structs.replace(ORIGIN, strict=True)
QUIET = msgspec.structs.replace(ORIGIN, exclude_reasoning=True)
METADATA = {
    "requested_model": "fast:high",
    "requested_provider": "openai",
    "used_model": "openai/o4",
    "used_provider": "main",
    "underlying_used_model": "o4-2025",
}
USAGE = {"prompt_tokens": 24, "completion_tokens": 52, "total_tokens": 76}


def completion(message: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x", **(message or {})}}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "o4-2025",
        "choices": [{**choice, "logprobs": None, "finish_reason": "stop"}],
        **more,
    }


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "o4-2025",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }


def whole(answer: dict[str, Any], origin: Origin = ORIGIN) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(made(json.dumps(answer).encode(), origin))
    return decoded


def made(body: bytes, origin: Origin) -> bytes:
    read = answers.Whole()
    return read.made(origin, cost.of(read.read(body), origin.pricing))


def streamed(
    *chunks: dict[str, Any], origin: Origin = ORIGIN, wants_usage: bool = False
) -> list[dict[str, Any]]:
    watch = answers.StreamWatch(wants_usage=wants_usage, origin=lambda: origin).fresh()
    events = [watch.see(b"data: " + json.dumps(piece).encode() + b"\n\n") for piece in chunks]
    assert watch.see(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    return [json.loads(event[6:]) for event in events if event]


def test_a_whole_answer_says_who_was_asked_and_what_it_cost() -> None:
    assert whole(completion(usage=USAGE)) == {
        **completion(),
        "model": "fast:high",
        "usage": {**USAGE, "cost": 0.00058},
        "metadata": METADATA,
    }


def test_an_unknown_price_is_null_and_never_nought() -> None:
    unknown = msgspec.structs.replace(ORIGIN, pricing=None)
    assert whole(completion(usage=USAGE), unknown)["usage"]["cost"] is None


def test_the_provider_that_does_not_say_its_model_has_the_one_it_was_asked_for() -> None:
    answer = whole(completion(model=None))
    assert answer["metadata"]["underlying_used_model"] == "o4"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 0}},
            {
                "reasoning_tokens": 9,
                "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 0},
            },
        ),
        (
            {"reasoning_tokens": 9},
            {"reasoning_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 9}},
        ),
        (
            {"prompt_cache_hit_tokens": 8},
            {"prompt_cache_hit_tokens": 8, "prompt_tokens_details": {"cached_tokens": 8}},
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": 8}},
            {"prompt_tokens_details": {"cached_tokens": 8}},
        ),
    ],
)
def test_token_details_are_where_either_kind_of_client_looks(
    more: dict[str, Any], expected: dict[str, Any]
) -> None:
    usage = whole(completion(usage={**USAGE, **more}))["usage"]
    assert {k: v for k, v in usage.items() if k not in {*USAGE, "cost"}} == expected


BOTH = {"reasoning": "hm", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    "given",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"reasoning": None, "reasoning_content": "hm"},
        BOTH,
    ],
)
def test_reasoning_has_both_of_its_names(given: dict[str, Any]) -> None:
    message = whole(completion(given))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "x", **BOTH}
    (piece,) = streamed(chunk(given))
    assert piece["choices"][0]["delta"] == BOTH
    assert piece["model"] == "fast:high"


def test_reasoning_that_the_caller_excludes_is_taken_out() -> None:
    details = {"reasoning_details": [{"type": "reasoning.text"}]}
    answer = whole(completion({**BOTH, **details}), QUIET)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "x"}
    pieces = streamed(
        chunk({"role": "assistant", "reasoning": ""}),
        chunk({"content": None, **BOTH}),
        chunk({"content": "x"}),
        chunk({"reasoning": "last"}, "stop"),
        origin=QUIET,
    )
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas == [{"role": "assistant"}, {"content": "x"}, {}]


def test_images_stay() -> None:
    images = {"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}]}
    assert whole(completion(images))["choices"][0]["message"]["images"] == images["images"]
    assert streamed(chunk(images))[0]["choices"][0]["delta"] == images


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("tool_use", "tool_calls"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("max_tokens", "length"),
    ],
)
def test_finish_reasons_are_openais(said: str, means: str) -> None:
    answer = completion()
    answer["choices"][0]["finish_reason"] = said
    assert whole(answer)["choices"][0]["finish_reason"] == means
    assert streamed(chunk({}, said))[0]["choices"][0]["finish_reason"] == means


STREAM = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "x"}),
    chunk({}, "stop"),
    {**chunk({}), "choices": [], "usage": USAGE},
)


def test_a_streams_last_chunk_says_who_answered() -> None:
    pieces = streamed(*STREAM)
    assert [piece["model"] for piece in pieces] == ["fast:high"] * 3
    assert ["metadata" in piece for piece in pieces] == [False, False, True]
    assert pieces[-1]["metadata"] == METADATA
    assert not any("usage" in piece for piece in pieces)


def test_a_streams_usage_holds_the_cost_for_who_asked() -> None:
    last = streamed(*STREAM, wants_usage=True)[-1]
    assert last["choices"] == []
    assert last["usage"] == {**USAGE, "cost": 0.00058}
    assert last["metadata"] == METADATA


def test_usage_that_rides_on_the_last_piece_is_shown_only_to_who_asked() -> None:
    riding = chunk({"content": "x"}, "stop", usage=USAGE)
    (hidden,) = streamed(riding)
    assert "usage" not in hidden
    (shown,) = streamed(riding, wants_usage=True)
    assert shown["usage"]["cost"] == 0.00058


@pytest.mark.parametrize(
    "data",
    [
        '{"id":"1","model":"o4-2025","x":"\\"model\\": 1","choices":[{"delta":{"content":"a"}}]}',
        '{"id":"1", "model": "o4-2025", "choices": [{"delta": {"content": "a"}}]}',
        '{ "id":"1" , "model" : "o4-2025" , "choices":[{"delta":{"content":"a"}}]}',
        '{"choices":[{"delta":{"content":"a","model":"b"}}],"model":"o4-2025","id":"1"}',
        '{"model":null,"choices":[{"delta":{"content":"a"}}]}',
        '{"choices":[{"delta":{"content":"a","model":"b"}}]}',
        '{"x":{"model":"b"},"choices":[{"delta":{"content":"a"}}]}',
        '{"x":{"model":"b"},"model":"c","choices":[{"delta":{"content":"a"}}]}',
        '{"m\\u006fdel":"o4-2025","choices":[{"delta":{"content":"a"}}]}',
        '{"x":"\\"model\\"","model":"o4-2025","choices":[{"delta":{"content":"a"}}]}',
    ],
)
def test_only_the_chunks_own_model_is_exchanged(data: str) -> None:
    for _ in range(2):
        watch = answers.StreamWatch(wants_usage=False, origin=lambda: ORIGIN)
        first = watch.see(f"data: {data}\n\n".encode())
        again = watch.see(f"data: {data}\n\n".encode())
        assert first == again
        assert json.loads(first[6:]) == {**json.loads(data), "model": "fast:high"}


def test_chunks_whose_heads_differ_are_each_read_anew() -> None:
    for created in (1, 2, 2, 3):
        (piece,) = streamed(chunk({"content": "x"}, created=created))
        assert (piece["created"], piece["model"]) == (created, "fast:high")
    pieces = streamed(*(chunk({"content": "x"}, created=number) for number in (1, 1, 2, 1)))
    assert [piece["created"] for piece in pieces] == [1, 1, 2, 1]
    assert {piece["model"] for piece in pieces} == {"fast:high"}


def test_everything_else_of_a_chunk_stays_in_its_bytes() -> None:
    odd = b'"choices":[{"delta":{"content":"\\u00e9"} , "index":0}],"big":12345678901234567890123}'
    watch = answers.StreamWatch(wants_usage=False, origin=lambda: ORIGIN)
    assert watch.see(b'data: {"model":"o4-2025",' + odd + b"\n\n") == (
        b'data: {"model":"fast:high",' + odd + b"\n\n"
    )


def test_an_event_of_several_lines_stays_one_event() -> None:
    watch = answers.StreamWatch(wants_usage=False, origin=lambda: ORIGIN)
    lines = b'data: {"model":"o4-2025",\ndata: "choices":[{"delta":{"content":"a"}}]}\n\n'
    assert watch.see(lines) == lines.replace(b"o4-2025", b"fast:high")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"1", b'"x"', b'{"choices":1}', b'{"choices":[1],"usage":1}', b'{"choices":[{}]}'],
)
@pytest.mark.parametrize("origin", [ORIGIN, STRICT, QUIET], ids=["added", "strict", "excluded"])
def test_what_is_no_completion_breaks_nothing(body: bytes, origin: Origin) -> None:
    assert json.loads(made(body, origin)) is not None
    watch = answers.StreamWatch(wants_usage=True, origin=lambda: origin)
    assert watch.see(b"data: " + body + b"\n\n").endswith(b"\n\n")


EXTRAS: dict[str, Any] = {
    **BOTH,
    "reasoning_details": [],
    "images": [],
    "tool_calls": [
        {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    ],
}
RICH_USAGE = {
    **USAGE,
    "prompt_cache_hit_tokens": 1,
    "cost": 9,
    "completion_tokens_details": {"reasoning_tokens": 3, "image_tokens": 1},
}


def test_a_strict_answer_is_openais_to_the_letter() -> None:
    # A tool call of a whole answer has no index; OpenAI's SDK takes it for an extra field.
    calls = [{k: v for k, v in EXTRAS["tool_calls"][0].items() if k != "index"}]
    answer = completion(
        {**EXTRAS, "tool_calls": calls}, usage=RICH_USAGE, provider="x", citations=[]
    )
    answer["choices"][0]["native_finish_reason"] = "eos"
    exact = ChatCompletion.model_validate(whole(answer, STRICT), extra="forbid")
    assert exact.model == "fast:high"
    assert exact.choices[0].message.tool_calls is not None
    assert exact.usage is not None and exact.usage.completion_tokens_details is not None
    assert exact.usage.completion_tokens_details.reasoning_tokens == 3


def test_a_strict_stream_is_openais_to_the_letter() -> None:
    pieces = streamed(
        chunk({"role": "assistant", "content": "", **EXTRAS}, provider="x", obfuscation="y"),
        chunk({"content": "x", "reasoning_details": []}, provider="x"),
        chunk({}, "stop", usage=None, x_groq={}),
        {**chunk({}), "choices": [], "usage": RICH_USAGE},
        origin=STRICT,
        wants_usage=True,
    )
    exact = [ChatCompletionChunk.model_validate(piece, extra="forbid") for piece in pieces]
    assert len(exact) == 4
    assert exact[1].choices[0].delta.content == "x"
    assert exact[-1].usage is not None and exact[-1].usage.total_tokens == 76


USED = b'"usage":{"prompt_tokens":24,"completion_tokens":52}'
CHOICES = b'"choices":[{"index":0,"message":{"content":"%s"},"finish_reason":"stop"}]'
TRICKS = (
    b"plain",
    b'\\"model\\":\\"x\\" \\"usage\\":{}',
    b"\\\\",
    "\u00e9".encode(),
    b"}",
)


@pytest.mark.parametrize("text", TRICKS)
@pytest.mark.parametrize(
    "layout",
    [
        b'{"model":"o4-2025",%s,%s}',
        b'{ "id" : "1", "model" : "o4-2025" , %s , %s }\n',
        b'{"model":"o4-2025","x":{"model":1,"usage":2},%s,%s,"y":{"usage":1,"model":2}}',
        b'{%s,"model":"o4-2025",%s}',
        b'{%s,%s,"model":"o4-2025"}',
        b'{"x":{"model":"n"},%s,%s,"model":"o4-2025"}',
        b'{"model":"o4-2025",%s,%s,"metadata":{"a":1}}',
        b'{"m\\u006fdel":"o4-2025",%s,%s}',
    ],
)
def test_what_is_added_does_not_depend_on_where_things_stand(layout: bytes, text: bytes) -> None:
    body = layout % (CHOICES % text, USED)
    given = json.loads(body)
    answer = json.loads(made(body, ORIGIN))
    assert answer == {
        **given,
        "model": "fast:high",
        "usage": {**given["usage"], "cost": 0.00058},
        "metadata": METADATA,
    }


def test_a_long_answer_is_not_read_again_for_its_additions() -> None:
    odd = b'"logprobs" : null , "big":12345678901234567890123'
    body = b'{"model":"o4-2025",' + CHOICES % b"x" + b"," + odd + b"," + USED + b"}"
    assert b"," + odd + b"," in made(body, ORIGIN)


def test_a_strict_answer_has_no_place_for_a_calls_number() -> None:
    answer = completion({"tool_calls": EXTRAS["tool_calls"], "annotations": []}, usage=USAGE)
    assert "index" not in whole(answer, STRICT)["choices"][0]["message"]["tool_calls"][0]
    ChatCompletion.model_validate(whole(answer, STRICT), extra="forbid")
    (piece,) = streamed(
        chunk({"content": "x", "annotations": [], "tool_calls": EXTRAS["tool_calls"]}),
        origin=STRICT,
    )
    ChatCompletionChunk.model_validate(piece, extra="forbid")
    assert piece["choices"][0]["delta"]["tool_calls"][0]["index"] == 0

"""Answers and streams of responses: made of chat's, or a provider's own."""

import json
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tollhouse.api import cost, responses, sse
from tollhouse.api.additions import Origin
from tollhouse.api.estimate import Estimate
from tollhouse.api.responses_answer import Frame, encoded, from_chat, from_native
from tollhouse.api.responses_stream import NativeWatch, TranslatedWatch
from tollhouse.api.usage import Usage
from tollhouse.errors import BrokenAnswer, StatusError
from tollhouse.snapshot import Pricing


def parsed(**fields: Any) -> responses.ResponsesRequest:
    return responses.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


ORIGIN = Origin(
    requested_model="m",
    requested_provider=None,
    used_model="x/m",
    used_provider="p",
    upstream_model="n",
    pricing=Pricing(input="1", cached_input="0.5", output="10"),
)
METADATA = {
    "requested_model": "m",
    "requested_provider": None,
    "used_model": "x/m",
    "used_provider": "p",
    "underlying_used_model": "n",
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CITED = {
    "type": "url_citation",
    "start_index": 0,
    "end_index": 9,
    "title": "There",
    "url": "https://a.example/",
}
STRICT = msgspec.structs.replace(ORIGIN, strict=True)


def frame(**fields: Any) -> Frame:
    return Frame(parsed(**fields), name="x", created=1)


def made(body: dict[str, Any], origin: Origin = ORIGIN) -> dict[str, Any]:
    """The response that a whole chat completion comes to."""
    fields, usage = from_chat(json.dumps(body).encode(), frame(), excluded=origin.exclude_reasoning)
    answer: dict[str, Any] = json.loads(encoded(fields, origin, cost.of(usage, origin.pricing)))
    return answer


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    return made({"choices": [{"message": message, "finish_reason": finish}], **more})


def test_a_chat_completion_as_a_response() -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": ""}}]
    answer = whole({"content": "Hi", "reasoning": "Hm.", "tool_calls": calls}, "tool_calls")
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    assert answer["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert answer["output"][2]["arguments"] == "{}"
    assert (answer["id"], answer["status"], answer["usage"]) == ("resp_x", "completed", None)


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete(finish: str, reason: str) -> None:
    answer = whole({"content": "Hi"}, finish)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert answer["output"][0]["status"] == "incomplete"


def test_a_refusal_is_a_part_of_its_own() -> None:
    answer = whole({"content": None, "refusal": "No."})
    assert answer["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}'])
def test_what_is_no_chat_completion(body: bytes) -> None:
    with pytest.raises(ValueError, match="answer"):
        from_chat(body, frame())


def test_one_form_of_usage_for_one_price() -> None:
    _, native = from_native(
        b'{"model":"n","usage":{"input_tokens":5,"output_tokens":2,'
        b'"input_tokens_details":{"cached_tokens":1}}}'
    )
    _, translated = from_chat(
        b'{"choices":[{"message":{}}],"usage":{"prompt_tokens":5,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":1}}}',
        frame(),
    )
    assert native == translated is not None


def test_the_searches_among_a_providers_items_are_counted() -> None:
    _, counted = from_native(
        b'{"output":[{"type":"web_search_call"},{"type":"message"},{"type":"web_search_call"}],'
        b'"usage":{"input_tokens":5,"output_tokens":2}}'
    )
    assert counted == Usage(5, 2, web_searches=2)


def delta(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": fields}]}).encode() + b"\n\n"


FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"%s"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def events(*given: bytes) -> list[dict[str, Any]]:
    watch = TranslatedWatch(frame(), ORIGIN)
    sent = b"".join(watch.see(event) for event in given)
    return [
        json.loads(line[6:]) for line in sent.decode().splitlines() if line.startswith("data: ")
    ]


def test_log_probabilities_come_with_the_words() -> None:
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
    body = {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [token]}}]}
    answer = made(body)
    piece = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [token]}}]}
    seen = events(b"data: " + json.dumps(piece).encode() + b"\n\n", FINISH % b"stop", DONE)
    (text,) = [event for event in seen if event["type"] == "response.output_text.delta"]
    assert text["logprobs"] == [token]
    for response in (answer, seen[-1]["response"]):
        assert response["output"][0]["content"][0]["logprobs"] == [token]


def test_each_event_has_its_name() -> None:
    sent = TranslatedWatch(frame(), ORIGIN).see(delta(content="a"))
    for event in sent.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        assert name == b"event: " + json.loads(data[6:])["type"].encode()


def test_thoughts_between_words_are_items_of_their_own() -> None:
    seen = events(
        delta(reasoning_content="a"),
        delta(content="b"),
        delta(reasoning="c"),
        delta(content="d"),
        FINISH % b"stop",
        DONE,
    )
    output = seen[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"] * 2
    assert len({item["id"] for item in output}) == 4
    done = [event["item"] for event in seen if event["type"] == "response.output_item.done"]
    assert done == output


def call(index: int | None, **fields: Any) -> bytes:
    number = {} if index is None else {"index": index}
    return delta(tool_calls=[{**number, **fields}])


@pytest.mark.parametrize(
    "pieces",
    [
        [
            call(0, id="a", function={"name": "f", "arguments": "{"}),
            call(1, id="b", function={"name": "g", "arguments": ""}),
            call(0, function={"arguments": "}"}),
            call(1, function={"arguments": "[]"}),
        ],
        [
            call(0, id="a", function={"name": "f", "arguments": "{}"}),
            call(0, id="b", function={"name": "g", "arguments": "[]"}),
        ],
        [
            call(None, id="a", function={"name": "f", "arguments": "{}"}),
            call(None, id="b", function={"name": "g", "arguments": "[]"}),
        ],
    ],
    ids=["interleaved", "all-counted-0", "not-counted"],
)
def test_calls_are_told_apart(pieces: list[bytes]) -> None:
    output = events(*pieces, FINISH % b"tool_calls", DONE)[-1]["response"]["output"]
    assert [(it["call_id"], it["name"], it["arguments"]) for it in output] == [
        ("a", "f", "{}"),
        ("b", "g", "[]"),
    ]


def test_a_stream_that_was_cut_short_by_the_cap() -> None:
    last = events(delta(content="a"), FINISH % b"length", DONE)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_refusal_streams_as_such() -> None:
    kinds = [event["type"] for event in events(delta(refusal="No"), FINISH % b"stop", DONE)]
    assert "response.refusal.delta" in kinds and "response.refusal.done" in kinds


def test_a_stream_begins_with_its_first_content() -> None:
    watch = TranslatedWatch(frame(), ORIGIN)
    assert b"response.created" in watch.see(delta(role="assistant", content=""))
    assert not bool(watch.begun)
    words = watch.see(delta(content="a"))
    assert b"response.output_text.delta" in words
    assert (bool(watch.begun), watch.finished) == (True, False)
    assert watch.see(b": keep-alive\n\n") == b": keep-alive\n\n"


def test_broken_chunks_are_not_passed_over() -> None:
    watch = TranslatedWatch(frame(), ORIGIN)
    with pytest.raises(BrokenAnswer):
        watch.see(b"data: {\n\n")
    with pytest.raises(StatusError) as caught:
        watch.see(b'data: {"error":{"message":"no","code":429}}\n\n')
    assert caught.value.status == 429


def test_native_events_that_hold_no_response_keep_their_bytes() -> None:
    watch = NativeWatch(ORIGIN, parsed())
    event = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta" }\n\n'
    assert watch.see(event) == event and watch.begun
    begun = watch.see(b'data: {"type":"response.created","response":{"model":"n","z":1}}\n\n')
    assert data_of(begun)["response"] == {"model": "m", "z": 1}
    done = watch.see(b'data: {"type":"response.completed",\ndata: "response":{"model":"n"}}\n\n')
    assert data_of(done)["response"] == {"model": "m", "tollhouse_metadata": METADATA}
    assert watch.done


def data_of(event: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(sse.data_of(event))
    return decoded


NATIVE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "n",
    "status": "completed",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "a",
                    "annotations": [{**CITED, "odd": 1}],
                    "logprobs": [],
                    "odd": 1,
                }
            ],
            "odd": 1,
        },
        {"id": "rs_1", "type": "reasoning", "summary": [], "odd": 1},
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "metadata": {"a": "b"},
    "usage": {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0, "odd": 1},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 12,
        "cost_in_ticks": 9,
    },
    "store": True,
}


def test_a_native_response_keeps_all_and_says_what_it_cost() -> None:
    fields, usage = from_native(json.dumps(NATIVE).encode())
    shown = json.loads(encoded(fields, ORIGIN, cost.of(usage, ORIGIN.pricing)))
    assert shown == {
        **NATIVE,
        "model": "m",
        "usage": {**NATIVE["usage"], "cost": 0.000028},  # type: ignore[dict-item]  # because NATIVE is of many types
        "tollhouse_metadata": METADATA,
    }


def test_a_strict_native_response_and_its_events_are_openais() -> None:
    fields, usage = from_native(json.dumps(NATIVE).encode())
    exact = json.loads(encoded(fields, STRICT, cost.of(usage, STRICT.pricing)))
    assert Response.model_validate(exact, extra="forbid").output_text == "a"
    watch = NativeWatch(STRICT, parsed())
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "sequence_number": 1}
    given: list[dict[str, Any]] = [
        {"type": "response.created", "sequence_number": 0, "response": NATIVE},
        {
            "type": "response.output_text.delta",
            **place,
            "delta": "a",
            "obfuscation": "xyz",
            "logprobs": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}],
        },
        {"type": "response.completed", "sequence_number": 2, "response": NATIVE, "odd": 1},
    ]
    for payload in given:
        event = watch.see(b"data: " + json.dumps(payload).encode() + b"\n\n")
        assert event.startswith(b"event: " + payload["type"].encode() + b"\n")
        EVENT.validate_python(data_of(event), extra="forbid")
    assert watch.usage is not None and watch.usage.cached_tokens == 4


def test_citations_of_a_chat_answer_are_a_responses() -> None:
    chat_form = {
        "type": "url_citation",
        "url_citation": {k: CITED[k] for k in CITED if k != "type"},
    }
    other = {"type": "file", "file": {"hash": "x"}}
    answer = whole({"content": "See there.", "annotations": [chat_form, other]})
    assert answer["output"][0]["content"][0]["annotations"] == [CITED]
    seen = events(
        delta(content="See there."),
        delta(annotations=[chat_form]),
        delta(annotations=[chat_form, other]),
        FINISH % b"stop",
        DONE,
    )
    (added,) = [it for it in seen if it["type"] == "response.output_text.annotation.added"]
    assert (added["annotation"], added["annotation_index"]) == (CITED, 0)
    for event in seen:
        if event["type"] in ("response.content_part.done", "response.output_item.done"):
            part = event.get("part") or event["item"]["content"][0]
            assert part["annotations"] == [CITED]
    assert seen[-1]["response"]["output"] == [
        {**answer["output"][0], "id": seen[-1]["response"]["output"][0]["id"]}
    ]


@pytest.mark.parametrize("odd", [7, ["x"], [{"type": "url_citation"}], [{"image_url": "x"}], {}])
def test_odd_annotations_and_images_break_nothing(odd: Any) -> None:
    message = {"content": "a", "annotations": odd, "images": odd}
    (item,) = whole(message)["output"]
    assert item["content"][0]["annotations"] == []
    last = events(delta(**message), FINISH % b"stop", DONE)[-1]
    assert len(last["response"]["output"]) == 1


def test_an_image_that_came_by_address_keeps_it() -> None:
    images = [{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]
    (item,) = whole({"content": None, "images": images})["output"]
    assert (item["type"], item["result"]) == ("image_generation_call", "https://a.example/b.png")
    kinds = [it["type"] for it in events(delta(images=images), FINISH % b"stop", DONE)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.image_generation_call.completed",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'{"type":"error","code":"rate_limit_exceeded","message":"slow"}', 429),
        (b'{"type":"error","error":{"message":"no"}}', 500),
        (b'{"type":"response.failed","response":{"error":{"code":"server_error"}}}', 500),
        (b'{"error":{"message":"no","code":503}}', 503),
    ],
)
def test_a_native_failure_is_one(event: bytes, status: int) -> None:
    with pytest.raises(StatusError) as caught:
        NativeWatch(ORIGIN, parsed()).see(b"data: " + event + b"\n\n")
    assert caught.value.status == status


@pytest.mark.parametrize("native", [False, True], ids=["translated", "native"])
def test_what_was_written_before_a_stream_was_cut_is_estimated(native: bool) -> None:
    request = parsed(instructions="Be kind.", input=[{"role": "user", "content": "four char"}])
    watch: NativeWatch | TranslatedWatch
    if native:
        watch = NativeWatch(ORIGIN, request)
        watch.see(b'data: {"type":"response.output_text.delta","delta":"eight or"}\n\n')
    else:
        watch = TranslatedWatch(Frame(request, name="x", created=1), ORIGIN)
        watch.see(delta(content="eight"))
        watch.see(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": " or"}}]))
    assert isinstance(watch.usage, Estimate)
    assert (watch.usage.prompt_tokens, watch.usage.completion_tokens) == (5, 2)
    assert watch.fresh().usage is None

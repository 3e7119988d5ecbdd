"""Responses and chat completions as each other: golden pairs, mistakes, and streams' odd cases."""

import json
from typing import Any

import msgspec
import pytest

from tollhouse.api import chat, cost, responses
from tollhouse.api.additions import Origin
from tollhouse.api.responses_answer import Frame, encoded, from_chat, from_native
from tollhouse.api.responses_chat import to_chat
from tollhouse.api.responses_stream import NativeWatch, TranslatedWatch
from tollhouse.errors import BrokenAnswer, RequestError, StatusError
from tollhouse.providers.responses import native_request, translated_request
from tollhouse.snapshot import Parameters, Pricing, Provider


def parsed(**fields: Any) -> responses.ResponsesRequest:
    return responses.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def as_chat(**fields: Any) -> dict[str, Any]:
    """The chat completion that a request comes to, without its model."""
    body: dict[str, Any] = json.loads(to_chat(parsed(**fields)))
    assert body.pop("model") == "m"
    return body


HI = [{"role": "user", "content": "hi"}]
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"messages": HI}),
        (
            {"instructions": "Be brief."},
            {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
        ),
        (
            {"temperature": 0.5, "top_p": 0.9, "user": "u", "parallel_tool_calls": False},
            {
                "temperature": 0.5, "top_p": 0.9, "user": "u", "parallel_tool_calls": False,
                "messages": HI,
            },
        ),
        ({"max_output_tokens": 9}, {"messages": HI, "max_tokens": 9}),
        ({"store": True, "metadata": {"a": "b"}, "truncation": "auto"}, {"messages": HI}),
        ({"top_k": 4, "temperature": None}, {"top_k": 4, "messages": HI}),
        (
            {"reasoning": {"effort": "high", "summary": "auto"}},
            {"messages": HI, "reasoning_effort": "high"},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True},
                      "verbosity": "low"}},
            {
                "messages": HI,
                "verbosity": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {}, "strict": True},
                },
            },
        ),
        ({"text": {"format": {"type": "text"}}}, {"messages": HI}),
        (
            {
                "tools": [
                    {"type": "function", "name": "f", "parameters": {}, "strict": True},
                    {"type": "web_search_preview", "search_context_size": "low"},
                ],
                "tool_choice": {"type": "function", "name": "f"},
            },
            {
                "messages": HI,
                "tools": [
                    {"type": "function",
                     "function": {"name": "f", "parameters": {}, "strict": True}},
                    {"type": "web_search", "search_context_size": "low"},
                ],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        (
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
            {"messages": HI, "top_logprobs": 2, "logprobs": True},
        ),
    ],
    ids=[
        *("text", "instructions", "same-words", "cap", "only-of-a-stored-response"),
        *("unknown-and-null", "reasoning", "json-schema", "plain-text", "tools", "logprobs"),
    ],
)  # fmt: skip
def test_a_request_as_a_chat_completion(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert as_chat(**fields) == expected


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([{"role": "developer", "content": "x"}], [{"role": "developer", "content": "x"}]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
            [{"role": "user", "content": "x"}],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what?"},
                        {"type": "input_image", "image_url": "https://a/b", "detail": "low"},
                        {"type": "input_file", "filename": "a.pdf", "file_data": "data:,"},
                    ],
                }
            ],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what?"},
                        {"type": "image_url", "image_url": {"url": "https://a/b", "detail": "low"}},
                        {"type": "file", "file": {"file_data": "data:,", "filename": "a.pdf"}},
                    ],
                }
            ],
        ),
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
                },
                CALL,
                {**CALL, "call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "2"}],
                },
            ],
            [
                {
                    "role": "assistant",
                    "content": "I look.",
                    "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
            ],
        ),
        ([CALL], [{"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}]),
    ],
    ids=["role", "one-text", "parts", "turn-with-calls", "calls-alone"],
)
def test_items_as_messages(items: list[Any], expected: list[Any]) -> None:
    assert as_chat(input=items)["messages"] == expected


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("{}", "missing_field", "model"),
        ('{"model":"m"}', "missing_field", "input"),
        ('{"model":"m","input":null}', "missing_field", "input"),
        ('{"model":"m","input":1}', "invalid_value", "input"),
        ('{"model":"m","input":"x","temperature":3}', "invalid_value", "temperature"),
        ('{"model":"m","input":"x","top_p":"a"}', "invalid_value", "top_p"),
        ('{"model":"m","input":"x","max_output_tokens":0}', "invalid_value", "max_output_tokens"),
        ('{"model":"m","input":"x","truncation":"some"}', "invalid_value", "truncation"),
        ('{"model":"m","input":"x","tools":[1]}', "invalid_value", "tools[0]"),
    ],
)
def test_a_mistake_is_named(body: str, code: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        responses.parse(body.encode())
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": []}, "invalid_value", "input"),
        ({"input": [1]}, "invalid_value", "input"),
        ({"input": [{"role": "robot", "content": ""}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user"}]}, "invalid_value", "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "missing_field",
            "input[0].content[0].text",
        ),
        ({"input": [{**CALL, "name": 1}]}, "invalid_value", "input[0].name"),
        ({"input": [{"type": "item_reference"}]}, "unsupported_parameter", "input[0].type"),
        ({"tools": [{"type": "mcp"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_field", "tools[0].name"),
        ({"tool_choice": {"type": "mcp"}}, "unsupported_parameter", "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "missing_field",
            "text.format.schema",
        ),
        ({"previous_response_id": "r"}, "unsupported_parameter", "previous_response_id"),
        ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
    ],
)
def test_what_chat_cannot_ask_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        to_chat(parsed(**fields))
    assert (caught.value.code, caught.value.param) == (code, param)


def test_state_and_background_false_are_nothing() -> None:
    fields = {"background": False, "previous_response_id": None}
    assert as_chat(**fields) == {"messages": HI}


OPENAI = Provider("ai", "o", "OpenAI", "https://api.openai.com/v1", responses_native=True)
OTHER = Provider("ai", "p", "OpenAI", "https://llm.example/v1")
ROUTE = Parameters(
    defaults={"temperature": 0.1, "max_tokens": 7, "seed": 1, "reasoning_effort": "low"},
    overrides={"service_tier": "flex", "stop": "x"},
)


def test_a_routes_parameters_in_the_words_of_responses() -> None:
    request = parsed(temperature=0.9, reasoning={"summary": "auto"})
    url, body = native_request(request, provider=OPENAI, model="n", cap=5, parameters=ROUTE)
    assert url == "https://api.openai.com/v1/responses"
    assert json.loads(body) == {
        "model": "n",
        "input": "hi",
        "temperature": 0.9,
        "reasoning": {"summary": "auto", "effort": "low"},
        "max_output_tokens": 5,
        "service_tier": "flex",
    }


def test_what_the_caller_says_beats_the_models_name() -> None:
    assert as_chat()["messages"] == HI
    named = responses.with_effort(parsed(reasoning={"summary": "auto"}), "high")
    assert json.loads(to_chat(named))["reasoning_effort"] == "high"
    assert json.loads(bytes(named.fields["reasoning"])) == {"summary": "auto", "effort": "high"}
    said = parsed(reasoning={"effort": "low"})
    assert responses.with_effort(said, "high") is said


@pytest.mark.parametrize(
    ("provider", "field"), [(OPENAI, "max_completion_tokens"), (OTHER, "max_tokens")]
)
@pytest.mark.parametrize(("asked", "cap", "sent"), [(9, 5, 5), (3, 5, 3), (3, None, 3)])
def test_the_cap_is_clamped_under_the_providers_name_for_it(
    provider: Provider, field: str, asked: int, cap: int | None, sent: int
) -> None:
    request = chat.parse(to_chat(parsed(max_output_tokens=asked)))
    url, body = translated_request(
        request, provider=provider, model="m", cap=cap, parameters=Parameters()
    )
    assert url == f"{provider.base_url}/chat/completions"
    shown = json.loads(body)
    assert {name: value for name, value in shown.items() if "max" in name} == {field: sent}


ORIGIN = Origin(
    requested_model="m",
    requested_provider=None,
    used_model="x/m",
    used_provider="p",
    upstream_model="n",
    pricing=Pricing(input="1", cached_input="0.5", output="10"),
)
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
    watch = NativeWatch(ORIGIN)
    event = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta" }\n\n'
    assert watch.see(event) == event and watch.begun
    done = watch.see(b'data: {"type":"response.completed","response":{"model":"n","z":1}}\n\n')
    assert msgspec.json.decode(done.split(b"data: ")[1])["response"] == {"model": "m", "z": 1}
    assert watch.done


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
        NativeWatch(ORIGIN).see(b"data: " + event + b"\n\n")
    assert caught.value.status == status

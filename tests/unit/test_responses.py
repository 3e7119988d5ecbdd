"""Requests for responses as chat completions: golden pairs, and mistakes."""

import json
from typing import Any

import pytest

from tollhouse.api import chat, responses
from tollhouse.api.responses_chat import to_chat
from tollhouse.errors import RequestError
from tollhouse.providers.responses import native_request, translated_request
from tollhouse.snapshot import Parameters, Provider


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


def test_a_search_by_field_is_a_tool() -> None:
    request = parsed(webSearchEnabled=True, free_models_only=True)
    assert request.searches and not request.has_tools and request.free_models_only
    assert json.loads(bytes(request.fields["tools"])) == [{"type": "web_search"}]
    assert not {"webSearchEnabled", "free_models_only"} & request.fields.keys()
    both = parsed(webSearchEnabled=True, tools=[{"type": "web_search_preview"}])
    assert both.tools == [{"type": "web_search_preview"}]

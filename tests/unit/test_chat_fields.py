"""Every field of a chat request: what is taken, what is refused, and which field is named then."""

import json
from typing import Any

import pytest

from tollhouse.api import chat
from tollhouse.errors import RequestError

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def parse(*messages: Any, **fields: Any) -> chat.ChatRequest:
    body = {"model": "m", "messages": messages or [USER], **fields}
    return chat.parse(json.dumps(body).encode())


def says(part: Any) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [0, 2, 0.3]),
        ("top_p", [0, 1, 0.5]),
        ("frequency_penalty", [-2, 2, 0]),
        ("presence_penalty", [-2.0, 2.0]),
        ("n", [1, 128]),
        ("max_tokens", [1, 1_000_000]),
        ("max_completion_tokens", [1]),
        ("stop", ["x", "", [], ["a", "b"], ["s"] * chat.MOST_STOPS]),
        ("seed", [0, -1, 2**63, 12345678901234567890123]),
        ("logprobs", [True, False]),
        ("top_logprobs", [0, 20]),
        ("logit_bias", [{}, {"50256": -100}]),
        ("user", ["", "u-1"]),
        ("response_format", [{"type": "text"}, {"type": "json_object"}]),
        (
            "response_format",
            [{"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": True}}],
        ),
        ("tools", [[], [FUNCTION], [{"type": "web_search"}], [{"type": "new", "new": {"a": 1}}]]),
        ("tool_choice", ["none", "auto", "required"]),
        ("tool_choice", [{"type": "function", "function": {"name": "f"}}, {"type": "new"}]),
        ("parallel_tool_calls", [True, False]),
        ("stream", [True, False]),
        ("stream_options", [{}, {"include_usage": True}, {"include_usage": None, "new": 1}]),
        ("modalities", [["text", "audio"]]),
        ("metadata", [{}, {"k": "v"}]),
        ("service_tier", ["auto"]),
        ("store", [True]),
        ("prediction", [{"type": "content", "content": "x"}]),
        ("audio", [{"voice": "alloy", "format": "wav"}]),
        ("reasoning_effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
        ("reasoning", [{}, {"effort": "high"}, {"max_tokens": 1000, "exclude": True}]),
        ("thinking", [{"type": "enabled"}, {"type": "disabled"}]),
        ("thinking", [{"type": "enabled", "budget_tokens": 1024}]),
        ("webSearchEnabled", [True, False]),
        ("free_models_only", [True, False]),
        ("quite_new", [1, "a", [None], {"a": {}}]),
    ],
)
def test_what_the_reference_allows_is_taken_and_so_is_null(field: str, values: list[Any]) -> None:
    for value in [*values, None]:
        request = parse(**{field: value})
        assert json.loads(bytes(request.fields[field])) == value


@pytest.mark.parametrize(
    ("field", "value", "param", "message"),
    [
        ("temperature", 2.1, None, "`temperature` must be at most 2."),
        ("temperature", -0.1, None, "at least 0"),
        ("temperature", "1", None, "must be a number, not a string"),
        ("top_p", 1.01, None, "at most 1"),
        ("frequency_penalty", 2.5, None, "at most 2"),
        ("presence_penalty", -2.5, None, "at least -2"),
        ("n", 0, None, "at least 1"),
        ("n", 129, None, "at most 128"),
        ("n", 1.5, None, "an integer"),
        ("max_tokens", -1, None, "at least 1"),
        ("max_completion_tokens", 0, None, "at least 1"),
        ("stop", 1, None, "a string or a list"),
        ("stop", ["a", 1], "stop[1]", "a string"),
        ("stop", ["a"] * 17, None, "at most 16 entries"),
        ("seed", "1", None, "an integer"),
        ("logprobs", 1, None, "true or false"),
        ("top_logprobs", 21, None, "at most 20"),
        ("logit_bias", {"1": 101}, "logit_bias[...]", "at most 100"),
        ("user", 5, None, "a string"),
        ("response_format", "json", None, "an object"),
        ("response_format", {"type": "yaml"}, "response_format.type", "cannot be 'yaml'"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema", "Send"),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema.name",
            "Send",
        ),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "s", "schema": "x"}},
            "response_format.json_schema.schema",
            "an object",
        ),
        ("tools", {}, None, "a list"),
        ("tools", [{}], "tools[0].type", "Send"),
        ("tools", [{"type": "function"}], "tools[0].function", "Send"),
        ("tools", [{"type": "function", "function": {}}], "tools[0].function.name", "Send"),
        ("tool_choice", "sometimes", None, "cannot be 'sometimes'"),
        ("tool_choice", {"type": "function"}, "tool_choice.function", "Send"),
        ("parallel_tool_calls", "yes", None, "true or false"),
        ("stream", "true", None, "true or false"),
        ("stream_options", True, None, "an object"),
        ("stream_options", {"include_usage": 1}, "stream_options.include_usage", "true or false"),
        ("modalities", "text", None, "a list"),
        ("metadata", "m", None, "an object"),
        ("service_tier", 1, None, "a string"),
        ("store", "no", None, "true or false"),
        ("reasoning_effort", "extreme", None, "cannot be 'extreme'"),
        ("reasoning", {"effort": 1}, "reasoning.effort", "a string"),
        ("reasoning", {"max_tokens": -1}, "reasoning.max_tokens", "at least 0"),
        ("thinking", {}, "thinking.type", "Send"),
        ("thinking", {"type": "on"}, "thinking.type", "cannot be 'on'"),
        ("webSearchEnabled", 1, None, "true or false"),
        ("free_models_only", "yes", None, "true or false"),
    ],
)
def test_a_field_out_of_type_or_range_is_named(
    field: str, value: Any, param: str | None, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, param or field)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "tool_calls": [CALL]}],
        [{"role": "assistant", "content": "", "refusal": None, "annotations": []}],
        [{"role": "tool", "tool_call_id": "c", "content": "{}"}],
        [{"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "t"}]}],
        [{"role": "function", "name": "f", "content": None}],
        [says({"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}})],
        [says({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}})],
        [
            says(
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA", "detail": "low"},
                }
            )
        ],
        [says({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})],
        [says({"type": "file", "file": {"file_id": "file-1"}})],
        [says({"type": "refusal", "refusal": "no"})],
        [says({"type": "quite_new", "quite_new": [1]})],
    ],
)
def test_messages_of_every_role_and_part_are_taken(messages: list[Any]) -> None:
    assert len(parse(*messages).messages) == len(messages)


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ({"role": "robot", "content": "x"}, "role", "cannot be 'robot'"),
        ({"role": "user"}, "content", "a string or a list of parts"),
        ({"role": "user", "content": 1}, "content", "a string or a list"),
        ({"role": "assistant", "content": None}, "content", "beside `tool_calls`"),
        ({"role": "tool", "content": "x"}, "tool_call_id", "the `id` of the call"),
        (says({}), "content[0].type", "Send"),
        (says("x"), "content[0]", "an object"),
        (says({"type": "text"}), "content[0].text", "Send"),
        (says({"type": "text", "text": 1}), "content[0].text", "a string"),
        (says({"type": "image_url"}), "content[0].image_url", "Send"),
        (says({"type": "image_url", "image_url": "https://x"}), "content[0].image_url", "object"),
        (
            says({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
            "content[0].image_url.url",
            "an https: URL or a data: URI",
        ),
        (says({"type": "input_audio"}), "content[0].input_audio", "Send"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]},
            "tool_calls[0].function",
            "its name and arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]},
            "tool_calls[0].function.arguments",
            "Send",
        ),
    ],
)
def test_a_malformed_message_is_named_by_its_place(
    message: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(USER, message)
    assert caught.value.param == f"messages[1].{param}"
    assert words in caught.value.message


def test_a_callers_own_value_is_not_repeated_at_length() -> None:
    with pytest.raises(RequestError) as caught:
        parse(reasoning_effort="x" * 10_000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("fields", "search", "tool", "other"),
    [
        ({}, False, None, False),
        ({"tools": [FUNCTION]}, False, None, True),
        ({"tools": [{"type": "web_search"}]}, True, "web_search", False),
        ({"tools": [FUNCTION, {"type": "web_search_preview"}]}, True, "web_search_preview", True),
        ({"webSearchEnabled": True}, True, None, False),
        ({"webSearchEnabled": False}, False, None, False),
        ({"functions": [{"name": "f"}]}, False, None, True),
    ],
)
def test_web_search_is_told_from_other_tools(
    fields: dict[str, Any], search: bool, tool: str | None, other: bool
) -> None:
    request = parse(**fields)
    assert (request.web_search, request.web_search_tool, request.has_tools) == (search, tool, other)


def test_what_a_target_has_to_be_able_to_do_is_seen() -> None:
    image = says({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}})
    request = parse(
        image,
        free_models_only=True,
        n=3,
        reasoning_effort="high",
        reasoning={"effort": "low", "exclude": True},
        thinking={"type": "enabled", "budget_tokens": 2048},
    )
    assert (request.has_images, request.free_models_only, request.n) == (True, True, 3)
    assert request.reasoning_effort == "high"
    assert request.reasoning == chat.Reasoning(effort="low", exclude=True)
    assert request.thinking == chat.Thinking(type="enabled", budget_tokens=2048)
    assert not parse(says({"type": "text", "text": "t"})).has_images

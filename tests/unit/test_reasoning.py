"""Reasoning and web search: every way to ask comes to one form, and each target gets its own."""

from typing import Any

import msgspec
import pytest

from tollhouse.api import chat
from tollhouse.api import reasoning as reasons
from tollhouse.errors import RequestError
from tollhouse.providers import openai
from tollhouse.snapshot import Capabilities, Parameters, Provider, Route

PROVIDER = Provider("ai", "p", "OpenAI", "https://llm.example/v1")
NO_REASONING = Capabilities(reasoning=False)


def request(**fields: Any) -> chat.ChatRequest:
    messages = [{"role": "user", "content": "hi"}]
    return chat.parse(msgspec.json.encode({"model": "m", "messages": messages, **fields}))


def sent(
    suffix: str | None = None,
    defaults: dict[str, Any] | None = None,
    capabilities: Capabilities | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """What a provider gets beside the model and the messages."""
    checked = request(**fields)
    _, body = openai.chat_request(
        checked,
        provider=PROVIDER,
        model="m",
        cap=None,
        parameters=Parameters(defaults=defaults or {}),
        reasoning=reasons.asked(checked, suffix),
        capabilities=capabilities,
    )
    decoded: dict[str, Any] = msgspec.json.decode(body)
    return {name: value for name, value in decoded.items() if name not in ("model", "messages")}


@pytest.mark.parametrize(
    ("fields", "suffix", "effort", "budget", "param"),
    [
        ({"reasoning_effort": "low"}, None, "low", None, "reasoning_effort"),
        ({"reasoning": {"effort": "low"}}, None, "low", None, "reasoning.effort"),
        ({"reasoning": {"max_tokens": 3000}}, None, None, 3000, "reasoning.max_tokens"),
        ({"thinking": {"type": "enabled"}}, None, "medium", None, "thinking"),
        ({"thinking": {"type": "disabled"}}, None, "none", None, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, None, None, 9, "thinking"),
        ({}, "high", "high", None, "model"),
        ({"reasoning_effort": "low"}, "high", "low", None, "reasoning_effort"),
        ({"reasoning": {"max_tokens": 3000}}, "high", None, 3000, "reasoning.max_tokens"),
        ({"thinking": {"type": "disabled"}}, "high", "none", None, "thinking"),
        ({"reasoning": {"exclude": True}}, "high", "high", None, "model"),
        (
            {"reasoning": None, "thinking": None, "reasoning_effort": None},
            "max",
            "max",
            None,
            "model",
        ),
        (
            {"reasoning_effort": "low", "reasoning": {"effort": "high", "max_tokens": 5}},
            None,
            "low",
            5,
            "reasoning_effort",
        ),
        (
            {"reasoning": {"effort": "high"}, "thinking": {"type": "disabled"}},
            None,
            "high",
            None,
            "reasoning.effort",
        ),
        (
            {"reasoning_effort": "none", "reasoning": {"max_tokens": 5}},
            None,
            "none",
            None,
            "reasoning_effort",
        ),
    ],
)
def test_every_way_to_ask_has_one_form(
    fields: dict[str, Any], suffix: str | None, effort: str, budget: int | None, param: str
) -> None:
    asked = reasons.asked(request(**fields), suffix)
    assert asked is not None
    assert (asked.effort, asked.max_tokens, asked.param) == (effort, budget, param)


def test_nothing_asked_is_nothing() -> None:
    assert reasons.asked(request(reasoning=None, reasoning_effort=None), None) is None


@pytest.mark.parametrize(
    ("budget", "word"),
    [(1, "minimal"), (1999, "minimal"), (2000, "low"), (5000, "medium"), (10_000, "high")],
)
def test_a_budget_comes_to_a_word(budget: int, word: str) -> None:
    assert sent(reasoning={"max_tokens": budget}) == {"reasoning_effort": word}


@pytest.mark.parametrize(
    ("fields", "suffix", "expected"),
    [
        ({}, None, {}),
        ({}, "high", {"reasoning_effort": "high"}),
        ({"reasoning_effort": None}, "high", {"reasoning_effort": "high"}),
        ({"reasoning_effort": "low"}, "high", {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "low", "exclude": True}}, None, {"reasoning_effort": "low"}),
        ({"reasoning": {"exclude": True}}, None, {}),
        ({"thinking": {"type": "disabled"}}, None, {"reasoning_effort": "none"}),
    ],
)
def test_an_openai_compatible_target_gets_the_word(
    fields: dict[str, Any], suffix: str | None, expected: dict[str, Any]
) -> None:
    assert sent(suffix, **fields) == expected


QWEN = {"chat_template_kwargs": {"enable_thinking": False, "x": 1}}
MIMO = {"thinking": {"type": "disabled"}}
ROUTER = {"reasoning": {"effort": "low"}}


@pytest.mark.parametrize(
    ("defaults", "fields", "expected"),
    [
        (QWEN, {}, QWEN),
        (
            QWEN,
            {"reasoning_effort": "high"},
            {"chat_template_kwargs": {"enable_thinking": True, "x": 1}},
        ),
        (
            QWEN,
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"x": 2}},
            {"chat_template_kwargs": {"enable_thinking": False, "x": 2}},
        ),
        (MIMO, {}, MIMO),
        (MIMO, {"reasoning_effort": "high"}, {"thinking": {"type": "enabled"}}),
        (MIMO, {"reasoning_effort": "none"}, MIMO),
        (
            MIMO,
            {"reasoning": {"max_tokens": 2048}},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        ),
        (ROUTER, {"reasoning_effort": "high"}, {"reasoning": {"effort": "high"}}),
        (
            ROUTER,
            {"thinking": {"type": "enabled", "budget_tokens": 7}},
            {"reasoning": {"max_tokens": 7}},
        ),
    ],
)
def test_a_routes_defaults_say_which_form_its_targets_take(
    defaults: dict[str, Any], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sent(defaults=defaults, **fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "high"},
        {"reasoning": {"effort": "high"}},
        {"thinking": {"type": "enabled"}},
    ],
)
def test_a_model_that_does_not_reason_is_not_asked_to(fields: dict[str, Any]) -> None:
    assert sent(capabilities=NO_REASONING, **fields) == {}


@pytest.mark.parametrize(
    ("fields", "suffix", "param"),
    [
        ({"reasoning_effort": "high"}, None, "reasoning_effort"),
        ({"reasoning": {"effort": "high"}}, None, "reasoning.effort"),
        ({"thinking": {"type": "enabled"}}, None, "thinking"),
        ({}, "high", "model"),
    ],
)
def test_a_route_may_refuse_instead(fields: dict[str, Any], suffix: str | None, param: str) -> None:
    asked = reasons.asked(request(**fields), suffix)
    route = Route("ai", "r", ("m",), (), capabilities=NO_REASONING)
    reasons.check(asked, route)
    refusing = msgspec.structs.replace(route, parameters=Parameters(unsupported="Reject"))
    with pytest.raises(RequestError) as caught:
        reasons.check(asked, refusing)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert caught.value.param == param
    reasons.check(reasons.asked(request(reasoning_effort="none"), None), refusing)


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"webSearchEnabled": True}, {"web_search_options": {}}),
        ({"webSearchEnabled": False}, {}),
        (
            {"tools": [{"type": "web_search"}], "tool_choice": "auto"},
            {"web_search_options": {}},
        ),
        (
            {"tools": [TOOL, {"type": "web_search"}], "tool_choice": "auto"},
            {"tools": [TOOL], "tool_choice": "auto", "web_search_options": {}},
        ),
        (
            {
                "tools": [
                    {
                        "type": "web_search",
                        "search_context_size": "low",
                        "user_location": {"type": "approximate", "city": "Paris"},
                    }
                ]
            },
            {
                "web_search_options": {
                    "search_context_size": "low",
                    "user_location": {"type": "approximate", "approximate": {"city": "Paris"}},
                }
            },
        ),
        (
            {"webSearchEnabled": True, "web_search_options": {"search_context_size": "high"}},
            {"web_search_options": {"search_context_size": "high"}},
        ),
    ],
)
def test_web_search_becomes_the_providers_own(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sent(**fields) == expected

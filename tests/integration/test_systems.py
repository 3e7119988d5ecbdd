"""Callers of five documented systems switch by changing base URL and key: each documented request.

What the requests are is in ``support/systems.py``; the answers' shapes and errors are here.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from support import gateway as g
from support.gateway import Gateway
from support.systems import EXAMPLES, HELLO, TOOL, Example

LIMITED_KEY = "sk-th-PLANTED-a-key-with-limits-of-the-tests"
MODELS = ["openai/gpt-4o", "xai/grok-4", "openai/gpt-5", "openai/gpt-4o-mini"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(modelAliases={"fast": "openai/gpt-4o-mini"}, maxTokens={"openai/capped": 100}),
        g.caller("narrow", g.OTHER_KEY, allowedModels=["openai/gpt-4o"]),
        g.caller("limited", LIMITED_KEY, limits=[{"requests": 1, "per": "Day"}]),
        g.mock("echo"),
        g.mock("tools", toolCalls=[{"name": "get_weather", "arguments": '{"city":"Paris"}'}]),
        g.mock("busy", failWith={"status": 429}),
        g.mock("down", failWith={"status": 500}),
        *(
            g.route(f"m{number}", [model, model.partition("/")[2]], "echo")
            for number, model in enumerate(MODELS)
        ),
        g.route("tools", ["openai/tools"], "tools"),
        g.route("busy", ["openai/busy"], "busy", retries={"attempts": 0}),
        g.route("down", ["openai/down"], "down", retries={"attempts": 0}),
    )
    with g.running(folder, name="systems") as running:
        yield running


def post(gateway: Gateway, body: Any, key: str | None = g.KEY) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_each_documented_request_gets_the_documented_answer(
    gateway: Gateway, example: Example
) -> None:
    answer = post(gateway, example.body)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    (choice,) = body["choices"]
    assert choice["index"] == 0 and choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == example.said
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_each_documented_request_can_be_streamed(gateway: Gateway, example: Example) -> None:
    answer = post(gateway, {**example.body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == example.said
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_documented_python_code_works_as_it_stands(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
        said: Any = HELLO
        response = client.chat.completions.create(model="gpt-4o", messages=said)
        assert response.choices[0].message.content == "Hello"
        stream = client.chat.completions.create(model="xai/grok-4", messages=said, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello"


def test_a_tool_call_ends_as_documented(gateway: Gateway) -> None:
    body = post(gateway, {"model": "openai/tools", "messages": HELLO, "tools": [TOOL]}).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("body", "key", "status", "kind", "code"),
    [
        ({"messages": HELLO}, g.KEY, 400, "invalid_request_error", "missing_field"),
        ({"model": "gpt-4o"}, g.KEY, 400, "invalid_request_error", "missing_field"),
        (
            {"model": "gpt-4o", "messages": HELLO, "max_tokens": "many"},
            g.KEY,
            400,
            "invalid_request_error",
            "invalid_value",
        ),
        ({"model": "gpt-4o", "messages": HELLO}, None, 401, "auth_error", "missing_api_key"),
        (
            {"model": "gpt-4o", "messages": HELLO},
            "sk-PLANTED-a-key-that-nobody-has",
            401,
            "auth_error",
            "invalid_api_key",
        ),
        (
            {"model": "xai/grok-4", "messages": HELLO},
            g.OTHER_KEY,
            403,
            "forbidden",
            "model_not_allowed",
        ),
        (
            {"model": "nobody/has-this", "messages": HELLO},
            g.KEY,
            404,
            "invalid_request_error",
            "model_not_found",
        ),
        (
            {"model": "openai/busy", "messages": HELLO},
            g.KEY,
            429,
            "rate_limit_exceeded",
            "provider_rate_limit",
        ),
        (
            {"model": "openai/down", "messages": HELLO},
            g.KEY,
            502,
            "provider_error",
            "provider_error",
        ),
    ],
    ids=[
        "no-model",
        "no-messages",
        "wrong-type",
        "no-key",
        "unknown-key",
        "denied",
        "unknown-model",
        "limited",
        "provider-down",
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_each_documented_error(
    gateway: Gateway,
    body: dict[str, Any],
    key: str | None,
    status: int,
    kind: str,
    code: str,
    stream: bool,
) -> None:
    answer = post(gateway, {**body, "stream": stream}, key)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert (error["type"], error["code"]) == (kind, code)


def test_a_limit_of_the_key_is_the_documented_429(gateway: Gateway) -> None:
    body = {"model": "gpt-4o", "messages": HELLO}
    assert post(gateway, body, LIMITED_KEY).status_code == 200
    for stream in (False, True):
        answer = post(gateway, {**body, "stream": stream}, LIMITED_KEY)
        assert answer.status_code == 429
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_exceeded", "requests_limit")
        assert {"message", "type", "param", "code"} <= set(error)
        assert int(answer.headers["retry-after"]) >= 1

"""The OpenAI Python SDK, unmodified, through a real gateway with only ``base_url`` changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from support import gateway as g
from support.gateway import Gateway

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(modelAliases={"fast": "mock/echo"}),
        g.caller("narrow", g.OTHER_KEY, allowedModels=["mock/text"]),
        g.mock("echo"),
        g.mock("text", reply="Text", text="A fixed answer.", reasoning="First I think.", chunks=3),
        g.mock("tools", toolCalls=[{"name": "get_weather", "arguments": '{"city":"Paris"}'}]),
        g.mock("busy", failWith={"status": 429}),
        g.mock("down", failWith={"status": 500}),
        g.mock("picky", failWith={"status": 400, "body": '{"error":{"message":"bad seed"}}'}),
        g.route("echo", ["mock/echo"], "echo"),
        g.route("text", ["mock/text"], "text"),
        g.route("tools", ["mock/tools"], "tools"),
        g.route("busy", ["mock/busy"], "busy", retries={"attempts": 0}),
        g.route("down", ["mock/down"], "down", retries={"attempts": 0}),
        g.route("picky", ["mock/picky"], "picky"),
    )
    with g.running(folder, name="sdk") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0) as client:
        yield client


ASK: Any = [{"role": "user", "content": "Say it back to me."}]


def test_a_whole_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock/echo", messages=ASK)
    assert answer.choices[0].message.content == "Say it back to me."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == 10


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="fast", messages=ASK, stream=True)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Say it back to me."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_for_who_asked(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="mock/text", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None and last.usage.completion_tokens > 0


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="mock/text", messages=ASK) as stream:
        assert stream.get_final_completion().choices[0].message.content == "A fixed answer."


async def test_the_async_client(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
        whole = await client.chat.completions.create(model="mock/echo", messages=ASK)
        assert whole.choices[0].message.content == "Say it back to me."
        stream = await client.chat.completions.create(model="mock/echo", messages=ASK, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == "Say it back to me."


def test_tool_calls_pass_through(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock/tools", messages=ASK, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')
    assert answer.choices[0].finish_reason == "tool_calls"


def test_streamed_tool_calls_pass_through(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="mock/tools", messages=ASK, tools=[TOOL]) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')


def test_the_models_that_a_key_may_use(client: openai.OpenAI, gateway: Gateway) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == sorted(
        f"mock/{name}" for name in ("busy", "down", "echo", "picky", "text", "tools")
    )
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.OTHER_KEY) as narrow:
        assert [model.id for model in narrow.models.list()] == ["mock/text"]


@pytest.mark.parametrize(
    ("model", "key", "raised", "code"),
    [
        (
            "mock/echo",
            "sk-PLANTED-not-a-key-of-anyone",
            openai.AuthenticationError,
            "invalid_api_key",
        ),
        ("mock/echo", g.OTHER_KEY, openai.PermissionDeniedError, "model_not_allowed"),
        ("mock/nothing", g.KEY, openai.NotFoundError, "model_not_found"),
        ("", g.KEY, openai.BadRequestError, "invalid_value"),
        ("mock/picky", g.KEY, openai.BadRequestError, "provider_rejected"),
        ("mock/busy", g.KEY, openai.RateLimitError, "provider_rate_limit"),
        ("mock/down", g.KEY, openai.InternalServerError, "provider_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_each_class_of_error_is_the_sdks_own_exception(
    gateway: Gateway,
    model: str,
    key: str,
    raised: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as client,
        pytest.raises(raised) as caught,
    ):
        client.chat.completions.create(model=model, messages=ASK, stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id


def test_the_sdk_does_not_repeat_what_cannot_succeed(gateway: Gateway) -> None:
    seen: list[httpx.Response] = []
    http = httpx.Client(event_hooks={"response": [seen.append]})
    with (
        openai.OpenAI(
            base_url=gateway.base_url, api_key=g.OTHER_KEY, max_retries=3, http_client=http
        ) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.chat.completions.create(model="mock/echo", messages=ASK)
    assert len(seen) == 1
    assert seen[0].headers["x-should-retry"] == "false"


def test_the_answer_says_who_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fast", messages=ASK)
    assert raw.headers["x-tollhouse-provider"] == "echo"
    assert raw.headers["x-tollhouse-model"] == "echo"
    assert raw.headers["x-tollhouse-attempts"] == "1"
    assert float(raw.headers["x-tollhouse-overhead-ms"]) < 100


@pytest.mark.parametrize(
    ("given", "kept"), [("my-request-1", True), ("x" * 200, False), ("a b", False)]
)
def test_a_sane_request_id_is_kept(client: openai.OpenAI, given: str, kept: bool) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="fast", messages=ASK, extra_headers={"x-request-id": given}
    )
    assert (raw.headers["x-request-id"] == given) is kept
    assert raw.headers["x-request-id"]


def test_the_keys_of_other_sdks_are_read(gateway: Gateway, tmp_path: Path) -> None:
    for header in ("x-api-key", "api-key"):
        answer = httpx.get(f"{gateway.base_url}/models", headers={header: g.KEY})
        assert answer.status_code == 200

"""``POST /v1/responses`` by the OpenAI Python SDK, unmodified, through a real gateway."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import BaseModel

from support import gateway as g
from support import upstream as u
from support.gateway import Gateway

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
ARGUMENTS = '{"city":"Paris"}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(modelAliases={"fast": "mock/echo"}),
        g.caller("narrow", g.OTHER_KEY, allowedModels=["mock/text"]),
        g.mock("echo"),
        g.mock(
            "text",
            reply="Text",
            text="A fixed answer.",
            reasoning="First I think.",
            chunks=3,
            usage={
                "promptTokens": 11,
                "completionTokens": 7,
                "cachedTokens": 5,
                "reasoningTokens": 4,
            },
        ),
        g.mock("json", reply="Text", text=ARGUMENTS),
        g.mock(
            "tools",
            toolCalls=[
                {"name": "get_weather", "arguments": ARGUMENTS},
                {"name": "get_weather", "arguments": '{"city":"Rome"}'},
            ],
        ),
        g.mock("down", failWith={"status": 500}),
        g.mock("picky", failWith={"status": 400, "body": '{"error":{"message":"bad seed"}}'}),
        g.mock("breaks", reply="Text", text="one two three", failWith={"afterChunks": 3}),
        *(
            g.route(name, [f"mock/{name}"], name, retries={"attempts": 0})
            for name in ("echo", "text", "json", "tools", "down", "picky", "breaks")
        ),
        g.route(
            "rescued", ["mock/rescued"], {"provider": {"name": "down"}, "priority": 0},
            {"provider": {"name": "text"}, "priority": 1}, retries={"attempts": 0},
        ),
    )  # fmt: skip
    with g.running(folder, name="responses") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0) as client:
        yield client


def test_a_whole_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="fast", instructions="Be kind.", input="Say it back.", metadata={"a": "b"}
    )
    assert answer.output_text == "Say it back."
    assert (answer.status, answer.model, answer.instructions) == ("completed", "fast", "Be kind.")
    assert answer.id.startswith("resp_") and answer.metadata == {"a": "b"}
    # Everything that OpenAI's own model of a response requires is there.
    openai.types.responses.Response.model_validate(answer.to_dict())


def test_reasoning_and_usage_in_detail(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="mock/text", input="Hi", reasoning={"effort": "low", "summary": "auto"}
    )
    reasoning, message = answer.output
    assert reasoning.type == "reasoning" and reasoning.summary[0].text == "First I think."
    assert message.type == "message" and answer.output_text == "A fixed answer."
    assert answer.reasoning is not None and answer.reasoning.effort == "low"
    usage = answer.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 7, 18)
    assert usage.input_tokens_details.cached_tokens == 5
    assert usage.output_tokens_details.reasoning_tokens == 4


def test_tools_and_their_results(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="mock/tools", input="Weather?", tools=[TOOL])
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == [
        ("get_weather", ARGUMENTS),
        ("get_weather", '{"city":"Rome"}'),
    ]
    history: Any = [
        {"role": "user", "content": "Weather?"},
        *(call.to_dict() for call in calls),
        *(
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
            for call in calls
        ),
        {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]
    again = client.responses.create(model="mock/echo", input=history, tools=[TOOL])
    assert again.output_text == "And now?"


class City(BaseModel):
    city: str


def test_structured_answers_are_parsed(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="mock/json", input="Where?", text_format=City)
    assert answer.output_parsed == City(city="Paris")
    with client.responses.stream(model="mock/json", input="Where?", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(city="Paris")


def test_the_sequence_of_a_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="mock/text", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.completed",
    ]
    assert kinds.count("response.output_text.delta") == 3
    # Each event is what OpenAI's own model of it says, required fields and all.
    for event in events:
        type(event).model_validate(event.to_dict())
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == "A fixed answer."
    assert last.response.usage is not None and last.response.usage.output_tokens == 7


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="mock/text", input="Hi") as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        final = stream.get_final_response()
    assert text == final.output_text == "A fixed answer."


def test_streamed_tool_calls(client: openai.OpenAI) -> None:
    with client.responses.stream(model="mock/tools", input="Weather?", tools=[TOOL]) as stream:
        final = stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == [ARGUMENTS, '{"city":"Rome"}']


async def test_the_async_client(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
        whole = await client.responses.create(model="mock/echo", input="Hello")
        assert whole.output_text == "Hello"
        async with client.responses.stream(model="mock/echo", input="Hello") as stream:
            assert (await stream.get_final_response()).output_text == "Hello"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_provider_that_is_down_is_passed_over(client: openai.OpenAI, stream: bool) -> None:
    raw = client.responses.with_raw_response.create(model="mock/rescued", input="Hi", stream=stream)
    assert raw.headers["x-tollhouse-provider"] == "text"
    assert raw.headers["x-tollhouse-attempts"] == "2"


def test_a_stream_that_breaks_is_never_completed(client: openai.OpenAI) -> None:
    seen: list[str] = []
    stream = client.responses.create(model="mock/breaks", input="Hi", stream=True)
    with pytest.raises(openai.APIError) as caught:
        seen.extend(event.type for event in stream)
    assert seen[-1] == "response.failed" and "response.completed" not in seen
    assert caught.value.code == "provider_error"


@pytest.mark.parametrize(
    ("model", "key", "raised", "code"),
    [
        ("mock/echo", "sk-PLANTED-no-key", openai.AuthenticationError, "invalid_api_key"),
        ("mock/echo", g.OTHER_KEY, openai.PermissionDeniedError, "model_not_allowed"),
        ("mock/nothing", g.KEY, openai.NotFoundError, "model_not_found"),
        ("mock/picky", g.KEY, openai.BadRequestError, "provider_rejected"),
        ("mock/down", g.KEY, openai.InternalServerError, "provider_error"),
    ],
    ids=["unknown-key", "not-allowed", "no-model", "rejected", "down"],
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
        client.responses.create(model=model, input="Hi", stream=stream)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True)],
)
def test_state_is_refused_where_the_provider_keeps_none(
    client: openai.OpenAI, field: str, value: Any
) -> None:
    asked: Any = {field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="mock/echo", input="Hi", **asked)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 2},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 15,
}


def native_response(status: str = "completed", **more: Any) -> dict[str, Any]:
    """A response as OpenAI itself sends it."""
    text = {"type": "output_text", "text": "native", "annotations": [], "logprobs": []}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    return {
        "id": "resp_theirs",
        "object": "response",
        "created_at": 1,
        "model": "their-model",
        "status": status,
        "output": [message] if status == "completed" else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "agent_depth": 2,
        "usage": USAGE if status == "completed" else None,
        **more,
    }


def native_event(kind: str, number: int, **fields: Any) -> bytes:
    payload = {"type": kind, "sequence_number": number, **fields}
    return f"event: {kind}\ndata: {json.dumps(payload)}\n\n".encode()


DELTA: Any = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
OPENING = (
    native_event("response.created", 0, response=native_response("in_progress")),
    native_event("response.output_text.delta", 1, delta="native", **DELTA),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def native(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[u.Upstream, Gateway]]:
    """A gateway before a provider that speaks /responses itself, and one that does not."""
    folder: Path = tmp_path_factory.mktemp("native")
    async with u.serving(u.always()) as upstream:
        g.write(
            folder,
            g.caller(maxTokens={"*": 100}),
            g.openai_compatible("native", upstream.base_url, responses="Native"),
            g.mock("plain"),
            g.route(
                "native", ["x/native"], {"provider": {"name": "native"}, "model": "their-model"},
                parameters={"defaults": {"reasoning_effort": "low", "seed": 1}},
                retries={"attempts": 0},
            ),
            g.route("mixed", ["x/mixed"], "plain", {"provider": {"name": "native"}, "priority": 1}),
        )  # fmt: skip
        with g.running(folder, name="responses-native") as gateway:
            yield upstream, gateway


def caller_of(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0)


def answering(body: dict[str, Any]) -> u.Answer:
    async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


@pytest.mark.asyncio(loop_scope="module")
async def test_a_native_provider_gets_what_was_sent(native: tuple[u.Upstream, Gateway]) -> None:
    upstream, gateway = native
    upstream.answer = answering(native_response())
    async with caller_of(gateway) as client:
        answer = await client.responses.create(
            model="x/native",
            input="Hi",
            previous_response_id="resp_0",
            max_output_tokens=5000,
            store=True,
            extra_body={"agent": {"depth": 2}},
        )
    received = upstream.received[-1]
    assert received.path == "/v1/responses"
    assert received.json == {
        "model": "their-model",
        "input": "Hi",
        "previous_response_id": "resp_0",
        "max_output_tokens": 100,
        "store": True,
        "agent": {"depth": 2},
        "reasoning": {"effort": "low"},
    }
    assert (answer.output_text, answer.model, answer.id) == ("native", "x/native", "resp_theirs")
    assert answer.to_dict()["agent_depth"] == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_native_stream_passes_through(native: tuple[u.Upstream, Gateway]) -> None:
    upstream, gateway = native
    upstream.answer = u.streaming(
        *OPENING, native_event("response.completed", 2, response=native_response())
    )
    before = gateway.ops("/metrics")[1]
    async with caller_of(gateway) as client:
        stream = await client.responses.create(model="x/native", input="Hi", stream=True)
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    last = events[-1]
    assert last.type == "response.completed" and last.response.model == "x/native"
    assert tokens(gateway.ops("/metrics")[1]) - tokens(before) == 15


def tokens(metrics: str) -> float:
    """All tokens that the route x/native has been counted for."""
    lines = [line for line in metrics.splitlines() if line.startswith("tollhouse_tokens_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "ai/native" in line)


async def read_into(seen: list[str], stream: openai.AsyncStream[Any]) -> None:
    async for event in stream:
        seen.append(event.type)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("cut", [False, True], ids=["says-so", "cut"])
async def test_a_native_stream_that_fails(native: tuple[u.Upstream, Gateway], cut: bool) -> None:
    upstream, gateway = native
    failure = native_response("failed", error={"code": "server_error", "message": "no more"})
    end = [] if cut else [native_event("response.failed", 2, response=failure)]
    upstream.answer = u.streaming(*OPENING, 0.2, *end, cut=cut)
    seen: list[str] = []
    async with caller_of(gateway) as client:
        stream = await client.responses.create(model="x/native", input="Hi", stream=True)
        with pytest.raises(openai.APIError):
            await read_into(seen, stream)
    assert seen[:2] == ["response.created", "response.output_text.delta"]
    assert seen[2:] == ([] if cut else ["response.failed"])


@pytest.mark.asyncio(loop_scope="module")
async def test_state_goes_to_the_target_that_keeps_it(native: tuple[u.Upstream, Gateway]) -> None:
    upstream, gateway = native
    upstream.answer = answering(native_response())
    async with caller_of(gateway) as client:
        here = await client.responses.create(model="x/mixed", input="Hi")
        there = await client.responses.create(
            model="x/mixed", input="Hi", previous_response_id="resp_0"
        )
    assert (here.output_text, there.output_text) == ("Hi", "native")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_native_error_keeps_its_status(native: tuple[u.Upstream, Gateway]) -> None:
    upstream, gateway = native
    upstream.answer = u.failing(400, "no such response")
    async with caller_of(gateway) as client:
        with pytest.raises(openai.BadRequestError, match="no such response"):
            await client.responses.create(model="x/native", input="Hi")

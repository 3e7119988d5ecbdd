"""Reasoning, web search, cost and who answered: through a real gateway, by the real SDK."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from support import gateway as g
from support import upstream as u
from support.gateway import Gateway

ASK: Any = [{"role": "user", "content": "Say it back to me."}]
PRICES = {"input": "2.50", "cachedInput": "1.25", "output": "10.00"}
COUNTED = {"promptTokens": 100, "completionTokens": 10, "cachedTokens": 40, "reasoningTokens": 8}
COST = 0.0003


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    thinker = {"provider": {"name": "thinker"}, "pricing": PRICES}
    g.write(
        folder,
        g.caller(modelAliases={"fast": "mock/thinker"}),
        g.mock(
            "thinker",
            reply="Text",
            text="A fixed answer.",
            reasoning="First I think.",
            images=["https://example.com/cat.png"],
            usage=COUNTED,
        ),
        g.route("thinker", ["mock/thinker"], thinker),
        g.route("strict", ["mock/strict"], {**thinker, "model": "s"}, strict=True),
        g.route("free", ["mock/free"], thinker, free=True),
        g.route("unpriced", ["mock/unpriced"], "thinker"),
        g.route(
            "plain",
            ["mock/plain"],
            "thinker",
            capabilities={"reasoning": False},
            parameters={"unsupported": "Reject"},
        ),
    )
    with g.running(folder, name="additions") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0) as client:
        yield client


def whole(client: openai.OpenAI, model: str, **more: Any) -> tuple[dict[str, Any], Any]:
    """The answer's JSON and its headers."""
    raw = client.chat.completions.with_raw_response.create(model=model, messages=ASK, **more)
    return json.loads(raw.content), raw.headers


def chunks(client: openai.OpenAI, model: str, **more: Any) -> list[dict[str, Any]]:
    stream = client.chat.completions.create(model=model, messages=ASK, stream=True, **more)
    return [chunk.to_dict() for chunk in stream]


USAGE: Any = {"stream_options": {"include_usage": True}}
METADATA = {
    "requested_model": "fast",
    "requested_provider": "mock",
    "used_model": "mock/thinker",
    "used_provider": "thinker",
    "underlying_used_model": "thinker",
}


def test_an_answer_says_who_answered_and_what_it_cost(client: openai.OpenAI) -> None:
    answer, headers = whole(client, "fast")
    assert answer["model"] == "fast"
    assert answer["metadata"] == METADATA
    assert answer["usage"]["cost"] == COST
    assert answer["usage"]["reasoning_tokens"] == 8
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 40}
    assert headers["x-tollhouse-cost"] == "0.0003"
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "First I think."
    assert message["images"][0]["image_url"]["url"] == "https://example.com/cat.png"


def test_a_stream_says_so_in_its_last_chunk(client: openai.OpenAI) -> None:
    pieces = chunks(client, "fast")
    assert {piece["model"] for piece in pieces} == {"fast"}
    assert [piece.get("metadata") for piece in pieces] == [None] * (len(pieces) - 1) + [METADATA]
    assert not any("usage" in piece for piece in pieces)
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == "First I think."
    assert any("images" in delta for delta in deltas)


def test_a_stream_tells_the_cost_to_who_asks_for_usage(client: openai.OpenAI) -> None:
    last = chunks(client, "fast", **USAGE)[-1]
    assert last["usage"]["cost"] == COST
    assert last["metadata"] == METADATA


def test_free_is_nought_and_unknown_is_null(client: openai.OpenAI) -> None:
    free, headers = whole(client, "mock/free")
    assert free["usage"]["cost"] == 0
    assert headers["x-tollhouse-cost"] == "0"
    unpriced, headers = whole(client, "mock/unpriced")
    assert unpriced["usage"]["cost"] is None
    assert "x-tollhouse-cost" not in headers


@pytest.mark.parametrize(
    ("model", "headers"),
    [("mock/strict", {}), ("fast", {"x-tollhouse-strict": "true"})],
    ids=["route", "header"],
)
def test_strict_is_openais_shape_with_nothing_beside_it(
    client: openai.OpenAI, model: str, headers: dict[str, str]
) -> None:
    answer, _ = whole(client, model, extra_headers=headers)
    assert ChatCompletion.model_validate(answer, extra="forbid").model == model
    pieces = chunks(client, model, extra_headers=headers, **USAGE)
    exact = [ChatCompletionChunk.model_validate(piece, extra="forbid") for piece in pieces]
    assert "".join(c.choices[0].delta.content or "" for c in exact if c.choices) == (
        "A fixed answer."
    )
    assert exact[-1].usage is not None


def test_reasoning_can_be_kept_out_of_the_answer(client: openai.OpenAI) -> None:
    excluded: Any = {"extra_body": {"reasoning": {"exclude": True}}}
    answer, _ = whole(client, "fast", **excluded)
    assert not {"reasoning", "reasoning_content"} & set(answer["choices"][0]["message"])
    text = json.dumps(chunks(client, "fast", **excluded))
    assert "reasoning" not in text
    assert "answer." in text


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        ("mock/plain", {"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ("mock/plain:high", {}, "model"),
        ("fast", {"tools": [{"type": "web_search"}]}, "tools"),
        ("fast", {"webSearchEnabled": True}, "webSearchEnabled"),
    ],
)
def test_what_no_target_can_do_is_refused_by_its_name(
    client: openai.OpenAI, model: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ASK, extra_body=body)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)


@asynccontextmanager
async def behind(folder: Path, upstream: u.Upstream) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a gateway with one route to this upstream, which reasons and searches."""
    g.write(
        folder,
        g.caller(),
        g.openai_compatible("one", upstream.base_url),
        g.route("m", ["lab/m"], "one", capabilities={"reasoning": True, "webSearch": True}),
    )
    gateway = g.launch(folder, name="mapping")
    try:
        await asyncio.to_thread(g.wait_until_ready, gateway)
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
            yield client
    finally:
        await asyncio.to_thread(gateway.stop)


async def test_a_provider_gets_its_own_form_and_nothing_of_ours(tmp_path: Path) -> None:
    async with u.serving(u.always()) as upstream, behind(tmp_path, upstream) as client:
        cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("lab/m", {}, {}),
            ("lab/m:high", {}, {"reasoning_effort": "high"}),
            ("lab/m:high", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
            ("lab/m", {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
            ("lab/m", {"webSearchEnabled": True}, {"web_search_options": {}}),
            ("lab/m", {"tools": [{"type": "web_search"}]}, {"web_search_options": {}}),
        ]
        for model, body, expected in cases:
            answer = await client.chat.completions.create(
                model=model, messages=ASK, extra_body=body
            )
            assert answer.model == model
            assert upstream.received[-1].json == {"model": "m", "messages": ASK, **expected}


async def test_the_content_of_a_stream_waits_for_nothing(tmp_path: Path) -> None:
    slow = u.streaming(
        u.chunk({"role": "assistant", "content": "a"}),
        u.chunk({"content": "b"}, "stop"),
        1.0,
        u.USAGE_EVENT,
        u.DONE,
    )
    async with u.serving(slow) as upstream, behind(tmp_path, upstream) as client:
        clock = asyncio.get_running_loop().time
        stream = await client.chat.completions.create(model="lab/m", messages=ASK, stream=True)
        begun, seen = clock(), []
        async for chunk in stream:
            seen.append((chunk.choices[0].delta.content, clock() - begun))
    assert [text for text, _ in seen] == ["a", "b"]
    assert all(after < 0.5 for _, after in seen)

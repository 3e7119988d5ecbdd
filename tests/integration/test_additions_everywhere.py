"""Cost, origin and strictness on /v1/responses and the endpoints that pass bytes through."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import pytest_asyncio
from aiohttp import web
from openai import types
from openai.types import audio, responses
from pydantic import BaseModel, TypeAdapter

from support import gateway as g
from support import upstream as u
from support.gateway import Gateway

PRICES = {"input": "2.50", "cachedInput": "1.25", "output": "10.00"}
COUNTED = {"promptTokens": 100, "completionTokens": 10, "cachedTokens": 40, "reasoningTokens": 8}
COST = 0.0003
PICTURE = "data:image/png;base64,iVBORw=="
EVENT: TypeAdapter[Any] = TypeAdapter(responses.ResponseStreamEvent)
METADATA = {
    "requested_model": "fast",
    "requested_provider": "mock",
    "used_model": "mock/thinker",
    "used_provider": "thinker",
    "underlying_used_model": "thinker",
}


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
            images=[PICTURE],
            usage=COUNTED,
        ),
        g.route("thinker", ["mock/thinker"], thinker),
        g.route("strict", ["mock/strict"], {**thinker, "model": "s"}, strict=True),
        g.route("unpriced", ["mock/unpriced"], "thinker"),
    )
    with g.running(folder, name="everywhere") as running:
        yield running


def post(
    gateway: Gateway, path: str, body: dict[str, Any], **headers: str
) -> tuple[dict[str, Any], httpx.Headers]:
    answer = httpx.post(
        f"{gateway.base_url}{path}",
        json=body,
        headers={"Authorization": f"Bearer {g.KEY}", **headers},
    )
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers


def events(
    gateway: Gateway, path: str, body: dict[str, Any], **headers: str
) -> list[dict[str, Any]]:
    """The data of each event of a stream, without ``[DONE]``."""
    answer = httpx.post(
        f"{gateway.base_url}{path}",
        json={**body, "stream": True},
        headers={"Authorization": f"Bearer {g.KEY}", **headers},
    )
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = (line[6:] for line in answer.text.splitlines() if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


STRICTLY = {"x-tollhouse-strict": "true"}
RESPOND: dict[str, Any] = {"model": "fast", "input": "Hi", "metadata": {"tenant": "7"}}


def test_a_model_costs_the_same_on_both_endpoints(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    chat, chat_headers = post(gateway, "/chat/completions", {"model": "fast", "messages": messages})
    response, headers = post(gateway, "/responses", RESPOND)
    streamed = events(gateway, "/responses", RESPOND)[-1]["response"]
    for answer in (chat, response, streamed):
        assert answer["usage"]["cost"] == COST
    assert headers["x-tollhouse-cost"] == chat_headers["x-tollhouse-cost"] == "0.0003"


def test_a_response_says_who_answered_and_keeps_the_callers_metadata(gateway: Gateway) -> None:
    whole, _ = post(gateway, "/responses", RESPOND)
    *before, last = events(gateway, "/responses", RESPOND)
    assert last["type"] == "response.completed"
    for response in (whole, last["response"]):
        assert response["metadata"] == {"tenant": "7"}
        assert response["tollhouse_metadata"] == METADATA
        assert response["model"] == "fast"
    assert not any("tollhouse_metadata" in json.dumps(event) for event in before)


def test_a_response_without_a_price_has_none(gateway: Gateway) -> None:
    response, headers = post(gateway, "/responses", {**RESPOND, "model": "mock/unpriced"})
    assert response["usage"]["cost"] is None
    assert "x-tollhouse-cost" not in headers


@pytest.mark.parametrize(
    ("model", "headers"), [("mock/strict", {}), ("fast", STRICTLY)], ids=["route", "header"]
)
def test_a_strict_response_is_openais_with_nothing_beside_it(
    gateway: Gateway, model: str, headers: dict[str, str]
) -> None:
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    body = {**RESPOND, "model": model, "tools": [tool], "reasoning": {"effort": "low"}}
    answer, told = post(gateway, "/responses", body, **headers)
    exact = responses.Response.model_validate(answer, extra="forbid")
    assert (exact.model, exact.output_text) == (model, "A fixed answer.")
    assert exact.metadata == {"tenant": "7"}
    assert told["x-tollhouse-cost"] == "0.0003"
    seen = events(gateway, "/responses", body, **headers)
    for event in seen:
        EVENT.validate_python(event, extra="forbid")
    assert seen[-1]["response"]["usage"] == answer["usage"]


def test_made_images_are_items_of_a_response(gateway: Gateway) -> None:
    whole, _ = post(gateway, "/responses", RESPOND)
    streamed = events(gateway, "/responses", RESPOND)
    for output in (whole["output"], streamed[-1]["response"]["output"]):
        (image,) = [item for item in output if item["type"] == "image_generation_call"]
        assert (image["result"], image["output_format"]) == ("iVBORw==", "png")
        assert image["status"] == "completed"
    kinds = [event["type"] for event in streamed]
    assert "response.image_generation_call.completed" in kinds
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
        with client.responses.stream(model="fast", input="Hi") as stream:
            final = stream.get_final_response()
    assert {item.type for item in final.output} == {"reasoning", "message", "image_generation_call"}


def test_reasoning_can_be_kept_out_of_a_response(gateway: Gateway) -> None:
    body = {**RESPOND, "reasoning": {"exclude": True}}
    whole, _ = post(gateway, "/responses", body)
    streamed = events(gateway, "/responses", body)
    for output in (whole["output"], streamed[-1]["response"]["output"]):
        assert "reasoning" not in [item["type"] for item in output]
    assert "First I think" not in json.dumps([whole, streamed])


def test_an_endpoint_that_passes_bytes_says_so_too(gateway: Gateway) -> None:
    asked = {"model": "fast", "prompt": "Hi"}
    completion, headers = post(gateway, "/completions", asked)
    assert completion["metadata"] == METADATA
    assert (completion["usage"]["cost"], headers["x-tollhouse-cost"]) == (0.0003, "0.0003")
    embeddings, headers = post(gateway, "/embeddings", {"model": "fast", "input": "Hi"})
    assert embeddings["metadata"] == METADATA
    assert (embeddings["usage"]["cost"], headers["x-tollhouse-cost"]) == (0.00025, "0.00025")
    moderation, headers = post(gateway, "/moderations", {"model": "fast", "input": "Hi"})
    assert moderation["metadata"]["used_provider"] == "thinker"
    assert "usage" not in moderation and "x-tollhouse-cost" not in headers
    rerank, _ = post(
        gateway, "/rerank", {"model": "fast", "query": "a", "documents": ["a"]}, **STRICTLY
    )
    assert "metadata" not in rerank and rerank["results"][0]["index"] == 0


def test_a_streamed_completion_tells_its_cost_at_the_end(gateway: Gateway) -> None:
    asked = {"model": "fast", "prompt": "Hi there", "stream_options": {"include_usage": True}}
    *pieces, finished, counted = events(gateway, "/completions", asked)
    assert not any("metadata" in piece for piece in pieces)
    assert finished["metadata"] == counted["metadata"] == METADATA
    assert counted["usage"]["cost"] == 0.0003
    for piece in events(gateway, "/completions", asked, **STRICTLY):
        # The SDK takes the chunks of a text completion for completions of their own.
        assert set(piece) <= set(types.Completion.model_fields)
        assert "cost" not in (piece.get("usage") or {})


def each(model: type[BaseModel], value: object) -> dict[str, object]:
    """Every field of a model, with this value."""
    return {field.alias or name: value for name, field in model.model_fields.items()}


ODD: dict[str, dict[str, Any]] = {
    "/embeddings": {
        "object": "list",
        "model": "theirs",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5], "odd": 1}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1, "odd": 1},
    },
    "/completions": {
        "id": "1",
        "object": "text_completion",
        "created": 1,
        "model": "theirs",
        "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": "stop", "odd": 1}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "odd": 1},
    },
    "/moderations": {
        "id": "1",
        "model": "theirs",
        "results": [
            {
                "flagged": False,
                "categories": each(types.moderation.Categories, False),
                "category_scores": each(types.moderation.CategoryScores, 0.0),
                "category_applied_input_types": each(
                    types.moderation.CategoryAppliedInputTypes, []
                ),
                "odd": 1,
            }
        ],
    },
    "/images/generations": {
        "created": 1,
        "data": [{"b64_json": "eA==", "odd": 1}],
        "usage": {
            "input_tokens": 4,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 4},
            "output_tokens": 2,
            "total_tokens": 6,
            "odd": 1,
        },
    },
    "/audio/transcriptions": {
        "text": "heard",
        "usage": {
            "type": "tokens",
            "input_tokens": 4,
            "output_tokens": 2,
            "total_tokens": 6,
            "input_token_details": {"audio_tokens": 4, "text_tokens": 0},
            "odd": 1,
        },
    },
    "/audio/translations": {"text": "heard"},
}
"""Answers with a field in each object that OpenAI's have not."""
MODELS: dict[str, type[BaseModel]] = {
    "/embeddings": types.CreateEmbeddingResponse,
    "/completions": types.Completion,
    "/moderations": types.ModerationCreateResponse,
    "/images/generations": types.ImagesResponse,
    "/audio/transcriptions": audio.Transcription,
    "/audio/translations": audio.Translation,
}
PRICED = {
    "/embeddings": 0.000001,
    "/completions": 0.000003,
    "/images/generations": 0.000008,
    "/audio/transcriptions": 0.000008,
}


async def odd(received: u.Received, request: web.Request) -> web.StreamResponse:
    return web.json_response({**ODD[received.path.removeprefix("/v1")], "odd": {"a": 1}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before_odd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """A gateway before a provider whose every answer holds more than OpenAI's."""
    folder: Path = tmp_path_factory.mktemp("odd")
    async with u.serving(odd) as upstream:
        target = {"provider": {"name": "odd"}, "pricing": {"input": "1", "output": "2"}}
        g.write(
            folder,
            g.caller(),
            g.openai_compatible("odd", upstream.base_url),
            g.route("odd", ["odd/m"], target),
        )
        gateway = g.launch(folder, name="odd")
        try:
            await asyncio.to_thread(g.wait_until_ready, gateway)
            yield gateway
        finally:
            await asyncio.to_thread(gateway.stop)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ODD)
async def test_strict_or_not_on_every_json_endpoint(before_odd: Gateway, path: str) -> None:
    async def ask(**headers: str) -> tuple[dict[str, Any], httpx.Headers]:
        form = path.startswith("/audio")
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{before_odd.base_url}{path}",
                headers={"Authorization": f"Bearer {g.KEY}", **headers},
                json=None if form else {"model": "odd/m", "input": "x", "prompt": "x"},
                data={"model": "odd/m"} if form else None,
                files={"file": ("a.wav", b"RIFF")} if form else None,
            )
        assert answer.status_code == 200, answer.text
        return answer.json(), answer.headers

    exact, told = await ask(**STRICTLY)
    MODELS[path].model_validate(exact, extra="forbid")
    whole, headers = await ask()
    assert whole["metadata"]["underlying_used_model"] == ODD[path].get("model", "m")
    price = PRICED.get(path)
    assert ("usage" in whole) is (price is not None)
    if price is not None:
        assert whole["usage"]["cost"] == price
        assert float(headers["x-tollhouse-cost"]) == float(told["x-tollhouse-cost"]) == price
    # All that the provider said is still there.
    usage = {k: v for k, v in whole.pop("usage", {}).items() if k != "cost"}
    expected = {**ODD[path], "odd": {"a": 1}}
    assert usage == expected.pop("usage", {})
    assert {k: v for k, v in whole.items() if k not in ("metadata", "model")} == {
        k: v for k, v in expected.items() if k != "model"
    }
    assert whole.get("model") == ("odd/m" if "model" in expected else None)

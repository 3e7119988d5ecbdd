"""What the five systems add to OpenAI's shape: reasoning, search, metadata, catalogues."""

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from support import gateway as g
from support.gateway import Gateway
from support.systems import HELLO

IMAGE = "data:image/png;base64,AAAA"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(),
        g.mock(
            "thinker",
            reply="Text",
            text="A plan.",
            reasoning="First I think.",
            images=[IMAGE],
            usage={
                "promptTokens": 12,
                "completionTokens": 8,
                "cachedTokens": 4,
                "reasoningTokens": 3,
            },
        ),
        g.route("grok", ["xai/grok-4", "grok-4"], "thinker", shareWith={"from": "All"}),
        g.route("llama", ["meta/llama3:8b"], "thinker"),
        g.openai_compatible("anthropic", "http://127.0.0.1:9/v1"),
        g.route("anthropic", ["anthropic/*"], "anthropic", retries={"attempts": 0}),
    )
    with g.running(folder, name="additions") as running:
        yield running


def ask(gateway: Gateway, model: str = "xai/grok-4", **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{gateway.base_url}/chat/completions",
        json={"model": model, "messages": HELLO, **fields},
        headers={"Authorization": f"Bearer {g.KEY}"},
    )


@pytest.mark.parametrize("effort", ["low", "medium", "high", "max"])
def test_an_effort_suffix_is_taken_off(gateway: Gateway, effort: str) -> None:
    answer = ask(gateway, f"xai/grok-4:{effort}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == f"xai/grok-4:{effort}"


def test_another_suffix_stays_in_the_name(gateway: Gateway) -> None:
    assert ask(gateway, "meta/llama3:8b").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "minimal"},
        {"reasoning": {"effort": "high"}},
        {"thinking": {"type": "enabled"}},
        {"thinking": {"type": "disabled"}},
    ],
    ids=["reasoning_effort", "reasoning", "thinking-enabled", "thinking-disabled"],
)
def test_each_form_of_reasoning_is_taken(gateway: Gateway, fields: dict[str, Any]) -> None:
    assert ask(gateway, **fields).status_code == 200


def test_an_answer_of_llm_gateway_is_whole(gateway: Gateway) -> None:
    body = ask(gateway).json()
    message = body["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "First I think."
    assert message["images"] == [{"type": "image_url", "image_url": {"url": IMAGE}}]
    assert body["usage"]["reasoning_tokens"] == 3
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    metadata = body["metadata"]
    assert set(metadata) == {
        "requested_model",
        "requested_provider",
        "used_model",
        "used_provider",
        "underlying_used_model",
    }
    assert metadata["requested_model"] == "xai/grok-4"
    assert metadata["used_provider"] == "thinker"


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"type": "web_search"}]}, {"webSearchEnabled": True}],
    ids=["tool", "field"],
)
def test_web_search_without_a_target_that_has_it_is_refused(
    gateway: Gateway, fields: dict[str, Any]
) -> None:
    answer = ask(gateway, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_paid_model_is_forbidden_to_who_wants_free_ones(gateway: Gateway) -> None:
    answer = ask(gateway, free_models_only=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_free")


def test_a_bare_name_finds_its_provider(gateway: Gateway) -> None:
    # Nobody listens there: what matters is who was asked.
    answer = ask(gateway, "claude-3-5-sonnet-20241022")
    assert (answer.status_code, answer.json()["error"]["metadata"]["provider"]) == (
        502,
        "anthropic",
    )


def test_responses_answer_at_the_same_models(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
        answer = client.responses.create(model="xai/grok-4", input="Hello", instructions="Plan.")
        assert answer.output_text == "A plan."


def test_the_catalogues(gateway: Gateway) -> None:
    public = httpx.get(gateway.base_url.removesuffix("/v1") + "/api/models")
    assert public.status_code == 200 and "xai/grok-4" in public.text
    own = httpx.get(f"{gateway.base_url}/models", headers={"Authorization": f"Bearer {g.KEY}"})
    entry = next(model for model in own.json()["data"] if model["id"] == "xai/grok-4")
    assert "pricing" in entry and "context_window" in entry and "capabilities" in entry

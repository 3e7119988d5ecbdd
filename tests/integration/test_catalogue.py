"""Catalogues, and routes that choose among others, through a real gateway."""

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from support import gateway as g
from support.gateway import Gateway

ASK: Any = [{"role": "user", "content": "Say it back to me."}]
PICTURE: Any = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
    }
]


def priced(name: str, model: str, price: str, provider: str, **spec: Any) -> g.Manifest:
    pricing = {"input": price, "output": price}
    targets = [{"provider": {"name": provider}, "pricing": pricing}]
    return g.manifest("ModelRoute", name, {"models": [model], "targets": targets, **spec})


def choice(name: str, *models: str, by: str = "Price") -> g.Manifest:
    select = {"from": list(models), "by": by}
    return g.manifest("ModelRoute", name, {"models": [name], "select": select})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    everybody = {"shareWith": {"from": "All"}}
    g.write(
        folder,
        g.caller(owner="shop@example.com", expiresAt="2099-01-01T00:00:00Z"),
        g.caller("narrow", g.OTHER_KEY, allowedModels=["pool/dear"]),
        g.mock("echo"),
        g.mock("quick"),
        g.mock("slow", firstByteDelay="300ms"),
        g.mock("down", failWith={"status": 500}),
        priced("dear", "pool/dear", "9", "echo", **everybody),
        priced("blind", "pool/blind", "1", "echo", capabilities={"vision": False}),
        priced("small", "pool/small", "2", "echo", capabilities={"contextWindow": 100}),
        priced("broken", "frail/cheap", "1", "down", retries={"attempts": 0}),
        priced("sound", "frail/dear", "5", "echo"),
        priced("slow", "race/slow", "1", "slow"),
        priced("quick", "race/quick", "9", "quick"),
        priced("gratis", "gratis/model", "0", "echo"),
        g.route("any", ["any/*"], "echo"),
        choice("tight", "pool/small", "pool/dear"),
        choice("auto", "pool/*"),
        priced("mute", "able/mute", "1", "echo", capabilities={"tools": False, "reasoning": False}),
        priced("dull", "able/dull", "2", "echo", capabilities={"reasoning": False}),
        priced("full", "able/full", "3", "echo"),
        priced("finder", "able/finder", "9", "echo", capabilities={"webSearch": True}),
        choice("able", "able/*"),
        choice("unable", "able/mute"),
        choice("frail", "frail/*"),
        choice("race", "race/*", by="Latency"),
        choice("thrifty", "pool/*", "gratis/*"),
    )
    with g.running(folder, name="catalogue") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0) as client:
        yield client


def served_by(client: openai.OpenAI, model: str, messages: Any = ASK, **extra: Any) -> str:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages, extra_body=extra or None
    )
    assert raw.parse().choices
    return str(raw.headers["x-tollhouse-model"])


def get(gateway: Gateway, path: str, key: str | None = g.KEY) -> httpx.Response:
    root = gateway.base_url.removesuffix("/v1")
    return httpx.get(root + path, headers={"authorization": f"Bearer {key}"} if key else {})


class TestSelect:
    def test_the_cheapest_model_serves(self, client):
        assert served_by(client, "auto") == "blind"

    def test_a_model_that_takes_no_images_is_passed_over_for_one(self, client):
        assert served_by(client, "auto", PICTURE) == "small"

    def test_a_model_with_too_small_a_window_is_passed_over(self, client):
        long: Any = [{"role": "user", "content": "words " * 200}]
        assert served_by(client, "tight") == "small"
        assert served_by(client, "tight", long) == "dear"

    def test_the_next_best_model_stands_in(self, client):
        assert served_by(client, "frail") == "dear"

    def test_the_quickest_model_serves_once_it_is_known(self, client):
        for _ in range(3):
            served_by(client, "race")
        assert {served_by(client, "race") for _ in range(3)} == {"quick"}

    def test_free_models_only(self, client):
        assert served_by(client, "thrifty", free_models_only=True) == "model"

    def test_a_paid_model_is_refused_to_who_wants_free_ones(self, client):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            served_by(client, "pool/dear", free_models_only=True)
        assert caught.value.code == "not_free"

    def test_what_is_missing_is_named_when_no_model_is_left(self, client):
        with pytest.raises(openai.BadRequestError, match="being free"):
            served_by(client, "auto", free_models_only=True)


def answered_by(client: openai.OpenAI, model: str, given: Any = "Hi", **extra: Any) -> str:
    """The model that answers a request for a response."""
    raw = client.responses.with_raw_response.create(
        model=model, input=given, extra_body=extra or None
    )
    return str(raw.headers["x-tollhouse-model"])


CHAT_TOOL: Any = {"type": "function", "function": {"name": "f"}}
TOOL: Any = {"type": "function", "name": "f", "parameters": {}, "strict": False}


class TestWhatARequestNeeds:
    @pytest.mark.parametrize(
        ("model", "extra", "serves"),
        [
            ("able", {}, "mute"),
            ("able", {"tools": [CHAT_TOOL]}, "dull"),
            ("able", {"functions": [{"name": "f"}]}, "dull"),
            ("able", {"reasoning_effort": "high"}, "full"),
            ("able", {"thinking": {"type": "enabled"}}, "full"),
            ("able:high", {}, "full"),
            ("able:high", {"reasoning_effort": "none"}, "mute"),
            ("able", {"reasoning_effort": "none"}, "mute"),
            ("able", {"webSearchEnabled": True}, "finder"),
        ],
    )
    def test_a_chat_goes_to_the_cheapest_model_that_has_it(self, client, model, extra, serves):
        assert served_by(client, model, **extra) == serves

    @pytest.mark.parametrize(
        ("model", "extra", "serves"),
        [
            ("able", {}, "mute"),
            ("able", {"tools": [TOOL]}, "dull"),
            ("able", {"reasoning": {"effort": "high"}}, "full"),
            ("able:high", {}, "full"),
            ("able:high", {"reasoning": {"effort": "none"}}, "mute"),
            ("able", {"tools": [{"type": "web_search"}]}, "finder"),
            ("able", {"webSearchEnabled": True}, "finder"),
            ("auto", {}, "blind"),
            ("thrifty", {"free_models_only": True}, "model"),
        ],
    )
    def test_so_does_a_response(self, client, model, extra, serves):
        assert answered_by(client, model, **extra) == serves

    def test_images_and_length_of_a_responses_input_count(self, client):
        image = {"type": "input_image", "image_url": "https://example.com/a.png"}
        assert answered_by(client, "auto", [{"role": "user", "content": [image]}]) == "small"
        assert answered_by(client, "tight") == "small"
        assert answered_by(client, "tight", "words " * 200) == "dear"

    @pytest.mark.parametrize(
        ("extra", "missing"),
        [({"tools": [TOOL]}, "tools"), ({"reasoning": {"effort": "high"}}, "reasoning")],
    )
    def test_what_is_missing_is_named(self, client, extra, missing):
        with pytest.raises(openai.BadRequestError, match=f"missing: {missing}"):
            answered_by(client, "unable", **extra)

    @pytest.mark.parametrize(
        "extra", [{"tools": [{"type": "web_search"}]}, {"webSearchEnabled": True}]
    )
    def test_a_response_cannot_search_by_a_model_that_does_not(self, client, extra):
        with pytest.raises(openai.BadRequestError) as caught:
            answered_by(client, "pool/dear", **extra)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")


class TestCatalogues:
    def test_a_key_sees_what_it_may_call_and_what_it_costs(self, client):
        models = {it.id: it.to_dict() for it in client.models.list()}
        assert {"auto", "pool/dear", "any/*"} <= models.keys()
        dear: Any = models["pool/dear"]
        assert dear["pricing"] == {"input": "9", "cached_input": None, "output": "9"}
        small: Any = models["pool/small"]
        assert small["context_window"] == 100
        blind: Any = models["pool/blind"]
        assert blind["capabilities"]["vision"] is False

    @pytest.mark.parametrize("path", ["pool/dear", "pool%2Fdear", "any/thing", "auto"])
    def test_one_model_by_its_id(self, gateway, path):
        answer = get(gateway, f"/v1/models/{path}")
        assert answer.status_code == 200
        assert answer.json()["id"] == path.replace("%2F", "/")

    def test_the_sdk_finds_a_model_with_a_slash(self, client):
        assert client.models.retrieve("pool/dear").id == "pool/dear"

    @pytest.mark.parametrize(
        ("key", "path", "status", "code"),
        [
            (g.KEY, "nope", 404, "model_not_found"),
            (g.OTHER_KEY, "pool/blind", 403, "model_not_allowed"),
            (g.OTHER_KEY, "auto", 403, "model_not_allowed"),
        ],
        ids=["unknown", "not allowed", "a choice that is not allowed"],
    )
    def test_a_model_that_cannot_be_called_is_not_described(self, gateway, key, path, status, code):
        answer = get(gateway, f"/v1/models/{path}", key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    def test_anybody_sees_what_is_shared_with_all(self, gateway):
        answer = get(gateway, "/api/models", None)
        assert answer.status_code == 200
        (provider,) = answer.json()["providers"]
        assert (provider["id"], [it["id"] for it in provider["models"]]) == ("pool", ["pool/dear"])

    def test_a_key_sees_itself(self, gateway):
        answer = get(gateway, "/v1/key").json()
        assert (answer["name"], answer["owner"]) == ("caller", "shop@example.com")
        assert answer["expires_at"] == "2099-01-01T00:00:00+00:00"
        assert get(gateway, "/v1/key", None).status_code == 401
        assert get(gateway, "/v1/key", g.OTHER_KEY).json()["allowed_models"] == ["pool/dear"]


def test_the_public_catalogue_can_be_switched_off(tmp_path) -> None:
    shared = {"shareWith": {"from": "All"}}
    g.write(tmp_path, g.caller(), g.mock("echo"), priced("m", "a/m", "1", "echo", **shared))
    with g.running(tmp_path, "--no-public-catalogue", name="no-catalogue") as gateway:
        answer = get(gateway, "/api/models", None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "GET /v1/models" in answer.json()["error"]["message"]
        assert get(gateway, "/v1/models").status_code == 200
    with g.running(tmp_path, name="catalogue-again") as gateway:
        assert get(gateway, "/api/models", None).status_code == 200

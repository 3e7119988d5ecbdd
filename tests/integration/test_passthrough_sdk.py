"""The OpenAI SDK's endpoints other than chat, through a real gateway, against the Mock provider."""

import base64
import io
import math
import wave
from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest

from support import gateway as g
from support.gateway import Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(),
        g.mock("echo"),
        g.mock("down", failWith={"status": 500}),
        g.route("echo", ["mock/echo"], "echo"),
        g.route("down", ["mock/down"], "down", retries={"attempts": 0}),
        g.route("moderation", ["openai/omni-moderation-latest"], "echo"),
    )
    with g.running(folder, name="passthrough") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY, max_retries=0) as client:
        yield client


def test_embeddings_as_numbers_and_packed(client: openai.OpenAI, gateway: Gateway) -> None:
    # Without an encoding the SDK itself asks for base64 and unpacks it.
    packed = client.embeddings.create(model="mock/echo", input=["a", "bc"], dimensions=16)
    plain = client.embeddings.create(
        model="mock/echo", input=["a", "bc"], dimensions=16, encoding_format="float"
    )
    assert packed.model == plain.model == "mock/echo"
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert len(one.embedding) == 16
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-6)
    assert plain.usage.prompt_tokens == 2
    counted = 'tollhouse_tokens_total{direction="input",route="ai/echo"}'
    assert counted in gateway.ops("/metrics")[1]


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mock/echo", prompt="Once upon a time")
    assert answer.choices[0].text == "Once upon a time"
    assert answer.model == "mock/echo"
    assert answer.usage is not None and answer.usage.prompt_tokens == 4


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_streamed_completion(client: openai.OpenAI, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    chunks = list(
        client.completions.create(
            model="mock/echo", prompt="Once upon a time", stream=True, extra_body=options
        )
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == "Once upon a time"
    assert {chunk.model for chunk in chunks} == {"mock/echo"}
    assert (chunks[-1].usage is not None) is wants_usage


def test_moderations_with_and_without_a_model(client: openai.OpenAI) -> None:
    answer = client.moderations.create(model="mock/echo", input=["a", "b"])
    assert [result.flagged for result in answer.results] == [False, False]
    assert client.moderations.create(input="a").model == "omni-moderation-latest"


def test_rerank(gateway: Gateway) -> None:
    answer = httpx.post(
        f"{gateway.base_url}/rerank",
        headers={"Authorization": f"Bearer {g.KEY}"},
        json={"model": "mock/echo", "query": "red fox", "documents": ["a dog", "a red fox"]},
    )
    assert answer.status_code == 200
    assert [result["index"] for result in answer.json()["results"]] == [1, 0]


# The SDK deprecates its call; the endpoint is still there to be called.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_images(client: openai.OpenAI) -> None:
    made = client.images.generate(model="mock/echo", prompt="a fox", n=2)
    edited = client.images.edit(model="mock/echo", prompt="a fox", image=("a.png", b"\x89PNG"))
    varied = client.images.create_variation(model="mock/echo", image=("a.png", b"\x89PNG"))
    assert [len(answer.data or []) for answer in (made, edited, varied)] == [2, 1, 1]
    for answer in (made, edited, varied):
        picture = (answer.data or [])[0].b64_json
        assert picture is not None and base64.b64decode(picture).startswith(b"\x89PNG\r\n")


def test_speech_is_streamed_in_its_own_type(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="mock/echo", voice="alloy", input="hello", response_format="wav"
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        assert answer.headers["x-tollhouse-provider"] == "echo"
        sound = b"".join(answer.iter_bytes())
    with wave.open(io.BytesIO(sound)) as parsed:
        assert (parsed.getframerate(), parsed.getnframes()) == (8000, 800)


# The SDK deprecates its call; the endpoint is still there to be called.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_transcription_and_translation(client: openai.OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="mock/echo", file=("a.wav", b"RIFF"))
    translated = client.audio.translations.create(model="mock/echo", file=("a.wav", b"RIFF"))
    assert heard.text == translated.text == "This is the Tollhouse mock provider."


def test_the_same_request_gets_the_same_answer(client: openai.OpenAI) -> None:
    once, again = (
        client.images.edit(model="mock/echo", prompt="a", image=("a.png", b"1")) for _ in range(2)
    )
    assert (once.data or [])[0].b64_json is not None and once.created == again.created
    first, second = (client.images.generate(model="mock/echo", prompt="a") for _ in range(2))
    assert first == second


def test_a_failing_provider_is_the_sdks_own_exception(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.embeddings.create(model="mock/down", input="a")
    assert caught.value.code == "provider_error"


@pytest.mark.parametrize(
    ("path", "content_type", "body", "status", "code", "param"),
    [
        ("/embeddings", "application/json", b'{"input":"a"}', 400, "missing_field", "model"),
        ("/embeddings", "application/json", b'{"model":7}', 400, "invalid_value", "model"),
        ("/embeddings", "application/json", b'{"model":""}', 400, "invalid_value", "model"),
        ("/embeddings", "application/json", b'{"model":"no"}', 404, "model_not_found", "model"),
        ("/embeddings", "application/json", b"[]", 400, "invalid_value", None),
        ("/embeddings", "application/json", b'{"model"', 400, "invalid_json", None),
        ("/embeddings", "text/plain", b"{}", 415, "unsupported_media_type", None),
        ("/images/edits", "application/json", b"{}", 415, "unsupported_media_type", None),
        (
            "/audio/transcriptions",
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
            400,
            "missing_field",
            "model",
        ),
        ("/images/paint", "application/json", b"{}", 404, "not_found", None),
    ],
    ids=[
        "no model",
        "model of another type",
        "empty model",
        "unknown model",
        "not an object",
        "not JSON",
        "not declared as JSON",
        "not a form",
        "a form without a model",
        "unknown path",
    ],
)
def test_what_is_wrong_is_said_in_the_envelope(
    gateway: Gateway,
    path: str,
    content_type: str,
    body: bytes,
    status: int,
    code: str,
    param: str | None,
) -> None:
    answer = httpx.post(
        f"{gateway.base_url}{path}",
        headers={"Authorization": f"Bearer {g.KEY}", "Content-Type": content_type},
        content=body,
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    if code == "not_found":
        assert "/v1/images/generations" in error["message"]


def test_only_post_and_only_with_a_key(gateway: Gateway) -> None:
    auth = {"Authorization": f"Bearer {g.KEY}"}
    for path in ("/embeddings", "/images/edits", "/audio/speech"):
        url = f"{gateway.base_url}{path}"
        refused = httpx.get(url, headers=auth)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert httpx.post(url, json={"model": "mock/echo"}).status_code == 401

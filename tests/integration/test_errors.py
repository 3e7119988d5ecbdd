"""Every failure has the documented JSON envelope, whatever was asked and however badly."""

import asyncio
import http.client
import json
import zlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from support import gateway as g
from support.gateway import Gateway
from tollhouse.limits import Limits
from tollhouse.proxy import Proxy
from tollhouse.routing import Table
from tollhouse.server import Server
from tollhouse.settings import Settings
from tollhouse.snapshot import Key, Mock, Pricing, Provider, Route, Snapshot, Target, key_digest
from tollhouse.store.memory import MemoryStore
from tollhouse.telemetry import Metrics, Tracer
from tollhouse.upstream import Upstream

CHAT = "/v1/chat/completions"
AUTH = {"Authorization": f"Bearer {g.KEY}"}
JSON = {"Content-Type": "application/json", **AUTH}
GOOD = json.dumps({"model": "mock/echo", "messages": [{"role": "user", "content": "hi"}]}).encode()
LIMIT = 200_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder, flags = tmp_path_factory.mktemp("config"), ("--max-body-bytes", str(LIMIT))
    with g.echoing(folder, "mock/echo", flags=flags, name="errors") as running:
        yield running


def ask(
    gateway: Gateway, method: str, path: str, headers: dict[str, str], body: Any = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=headers, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def envelope(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    assert headers["content-type"] == "application/json"
    decoded = json.loads(body)
    assert set(decoded) == {"error"}
    error: dict[str, Any] = decoded["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str) and error["message"]
    assert "PLANTED" not in body.decode() and "Traceback" not in body.decode()
    return error


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "kind", "code"),
    [
        ("GET", "/", AUTH, None, 404, "invalid_request_error", "not_found"),
        ("GET", "/v1/nothing", AUTH, None, 404, "invalid_request_error", "not_found"),
        ("POST", "/v1/../etc/passwd", JSON, GOOD, 404, "invalid_request_error", "not_found"),
        ("GET", CHAT, AUTH, None, 405, "invalid_request_error", "method_not_allowed"),
        ("DELETE", "/v1/models", AUTH, None, 405, "invalid_request_error", "method_not_allowed"),
        (
            "POST",
            CHAT,
            {"Content-Type": "application/json"},
            GOOD,
            401,
            "auth_error",
            "missing_api_key",
        ),
        ("GET", "/v1/models", {}, None, 401, "auth_error", "missing_api_key"),
        ("POST", CHAT, AUTH, GOOD, 415, "invalid_request_error", "unsupported_media_type"),
        (
            "POST",
            CHAT,
            {**AUTH, "Content-Type": "text/plain"},
            GOOD,
            415,
            "invalid_request_error",
            "unsupported_media_type",
        ),
        ("POST", CHAT, JSON, b"", 400, "invalid_request_error", "invalid_json"),
        ("POST", CHAT, JSON, GOOD[:-5], 400, "invalid_request_error", "invalid_json"),
        ("POST", CHAT, JSON, b"\xff\xfe", 400, "invalid_request_error", "invalid_json"),
        ("POST", CHAT, JSON, b"[" * 100_000, 400, "invalid_request_error", "invalid_value"),
        ("POST", CHAT, JSON, b"x" * (LIMIT + 1), 413, "invalid_request_error", "request_too_large"),
        (
            "POST",
            CHAT,
            JSON,
            iter([b"x" * 100_000] * 3),
            413,
            "invalid_request_error",
            "request_too_large",
        ),
        (
            "POST",
            CHAT,
            {**JSON, "Content-Encoding": "deflate"},
            b"not deflate",
            400,
            "invalid_request_error",
            "invalid_http",
        ),
    ],
    ids=[
        "root",
        "unknown-path",
        "path-traversal",
        "get-chat",
        "delete-models",
        "no-key",
        "no-key-models",
        "no-content-type",
        "text",
        "empty",
        "cut-json",
        "not-utf8",
        "deep",
        "too-large",
        "too-large-chunked",
        "broken-encoding",
    ],
)
def test_a_mistake_gets_the_envelope(
    gateway: Gateway,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any,
    status: int,
    kind: str,
    code: str,
) -> None:
    answered, answer_headers, answer = ask(gateway, method, path, headers, body)
    error = envelope(answer_headers, answer)
    assert (answered, error["type"], error["code"]) == (status, kind, code)
    assert answer_headers["x-request-id"]


def test_a_wrong_method_names_the_right_one(gateway: Gateway) -> None:
    _, headers, _ = ask(gateway, "GET", CHAT, AUTH)
    assert headers["allow"] == "POST"


def test_a_compressed_body_that_unfolds_beyond_the_limit_is_refused(gateway: Gateway) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    assert len(bomb) < LIMIT
    status, headers, body = ask(
        gateway, "POST", CHAT, {**JSON, "Content-Encoding": "deflate"}, bomb
    )
    assert (status, envelope(headers, body)["code"]) == (413, "request_too_large")


def test_a_connection_goes_on_after_a_mistake(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    for body, status in ((b"{", 400), (GOOD, 200), (b"{}", 400), (GOOD, 200)):
        connection.request("POST", CHAT, body=body, headers=JSON)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_forbidden_is_400_where_the_setting_says_so(tmp_path: Any) -> None:
    g.write(
        tmp_path,
        g.caller(allowedModels=["mock/other"]),
        g.mock("echo"),
        g.route("echo", ["mock/echo"], "echo"),
    )
    with g.running(tmp_path, "--denied-model-status", "400", name="denied") as gateway:
        status, headers, body = ask(gateway, "POST", CHAT, JSON, GOOD)
    assert (status, envelope(headers, body)["code"]) == (400, "model_not_allowed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either a folder, or --snapshot"),
        (("nowhere",), "nowhere is not a folder"),
        (("--snapshot", "x"), "NAMESPACE/NAME"),
        (("examples", "--tls-cert", "x"), "go together"),
        (("examples", "--store", "http://127.0.0.1"), "--store takes memory"),
        (("examples", "--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
    ],
)
def test_a_process_that_cannot_serve_says_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    gateway = g.launch(*arguments, name="refused")
    assert gateway.process.wait(20) == 2
    lines = gateway.text().strip().splitlines()
    assert said in lines[-1]
    assert "Traceback" not in gateway.text()


async def test_a_fault_of_ours_is_an_internal_error(capsys: pytest.CaptureFixture[str]) -> None:
    """What no compiler lets through: a snapshot whose price is no number, met by a real proxy."""
    target = Target("ai/echo", pricing=Pricing(input="cheap", output="cheap"))
    snapshot = Snapshot.of(
        [Provider("ai", "echo", "Mock", mock=Mock())],
        [
            Route("ai", "bad", ("bad",), (target,)),
            Route("ai", "good", ("good",), (Target("ai/echo"),)),
        ],
        {key_digest(g.KEY): Key(namespace="ai", name="caller")},
    )
    registry = CollectorRegistry()
    metrics, tracer = Metrics(registry), Tracer()
    upstream = Upstream(metrics, tracer)
    limits = Limits(MemoryStore(), metrics)
    proxy = Proxy(Settings(), upstream, limits, metrics, tracer)
    proxy.table = Table(snapshot, "digest")
    server = Server(proxy.handle)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    messages: Any = [{"role": "user", "content": "hi"}]
    try:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=g.KEY, max_retries=0
        ) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(
                    model="bad", messages=messages, extra_headers={"x-request-id": "mine-1"}
                )
            # The caller is told whom to ask by which id; the reason stays in the log.
            error = caught.value
            assert (error.status_code, error.type, error.code) == (
                500,
                "internal_error",
                "internal_error",
            )
            assert "mine-1" in error.message
            assert "decimal" not in error.response.text
            logged = capsys.readouterr()
            assert "mine-1" in logged.out + logged.err and "decimal" in logged.out + logged.err
            again = await client.chat.completions.create(model="good", messages=messages)
            assert again.choices[0].message.content == "hi"
    finally:
        listener.close()
        server.pre_shutdown()
        await server.shutdown(1)
        await upstream.close()
    assert registry.get_sample_value("tollhouse_in_flight_requests") == 0

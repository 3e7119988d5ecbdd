"""What a provider gets and what a caller gets, byte by byte, on the endpoints other than chat."""

import asyncio
import email
import email.policy
import io
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from support import gateway as g
from support import upstream as u

MIB = 1024 * 1024
AUTH = {"Authorization": f"Bearer {g.KEY}"}


@pytest.fixture(scope="module")
def port() -> int:
    """Where each test has an upstream of its own, on which the gateway's one provider points."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[g.Gateway]:
    theirs = {"provider": {"name": "one"}, "model": "theirs"}
    spare = {"provider": {"name": "spare"}, "priority": 1}
    tuned = {"defaults": {"temperature": 0.5}, "maxTokens": 10}
    folder = tmp_path_factory.mktemp("config")
    g.write(
        folder,
        g.caller(),
        g.mock("spare"),
        g.openai_compatible("one", f"http://127.0.0.1:{port}/v1"),
        g.route("m", ["ours/m"], theirs, retries={"attempts": 2, "backoff": "1ms"}),
        g.route("tuned", ["ours/tuned"], theirs, parameters=tuned),
        g.route("events", ["ours/events"], theirs),
        g.route("two", ["ours/two"], theirs, spare),
    )
    with g.running(folder, name="bytes") as running:
        yield running


def answering(body: bytes | str, content_type: str = "application/json") -> u.Answer:
    async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, headers={"Content-Type": content_type})

    return answer


async def post(
    gateway: g.Gateway, path: str, data: Any, headers: dict[str, str]
) -> tuple[int, str, bytes]:
    async with (
        aiohttp.ClientSession(headers=AUTH) as session,
        session.post(f"{gateway.base_url}{path}", data=data, headers=headers) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.read()


def parts_of(received: u.Received) -> dict[str, tuple[str | None, bytes]]:
    """Each field's file name and content, as a parser of others reads them."""
    head = f"Content-Type: {received.headers['Content-Type']}\r\n\r\n".encode()
    form = email.message_from_bytes(head + received.body, policy=email.policy.HTTP)
    parts = {}
    for part in form.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(name, str) and isinstance(content, bytes)
        parts[name] = (part.get_filename(), content)
    return parts


JSON = {"Content-Type": "application/json"}


METADATA = (
    '"metadata":{"requested_model":"%s","requested_provider":"ours","used_model":"%s",'
    '"used_provider":"one","underlying_used_model":"theirs"}'
)


async def test_only_what_is_documented_differs_on_the_way_there_and_back(
    gateway: g.Gateway, port: int
) -> None:
    sent = b'{"input":["x"],"model":"ours/m","odd":1.50,"nested":{"a" : 1e3}}'
    back = '{"object":"list","data":[{"embedding":[0.10]}],"model":"theirs","odd":1.0,'
    back += '"usage":{"prompt_tokens":9,"total_tokens":9}}'
    async with u.serving(answering(back), port) as one:
        status, _, got = await post(gateway, "/embeddings", sent, JSON)
        metrics = (await asyncio.to_thread(gateway.ops, "/metrics"))[1]
    assert status == 200
    assert one.received[0].path == "/v1/embeddings"
    assert one.received[0].headers["Authorization"] == f"Bearer {g.PROVIDER_KEY}"
    assert one.received[0].body == sent.replace(b"ours/m", b"theirs")
    kept, _, usage = back.replace("theirs", "ours/m").partition('"usage":')
    added = f',"cost":null}},{METADATA % ("ours/m", "ours/m")}}}'
    assert got.decode() == f'{kept}"usage":{usage.removesuffix("}}")}{added}'
    assert 'tollhouse_tokens_total{direction="input",route="ai/m"} 9.0' in metrics


async def test_a_completion_gets_the_routes_parameters_and_cap(
    gateway: g.Gateway, port: int
) -> None:
    stream = u.streaming(
        b'data: {"choices":[{"text":"a","finish_reason":null}],"model":"theirs"}\n\n',
        b'data: {"choices":[{"text":"","finish_reason":"stop"}],"model":"theirs"}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        u.DONE,
    )
    body = b'{"model":"ours/tuned","prompt":"p","max_tokens":99,"stream":true}'
    async with u.serving(stream, port) as one:
        _, kind, got = await post(gateway, "/completions", body, JSON)
    sent = one.received[0].json
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 10)
    assert sent["stream_options"] == {"include_usage": True}
    assert kind.startswith("text/event-stream")
    metadata = "," + METADATA % ("ours/tuned", "ours/tuned")
    assert got.count(metadata.encode()) == 1
    passed = got.replace(metadata.encode(), b"")
    assert b"theirs" not in passed and b"usage" not in passed and got.endswith(u.DONE)


async def test_a_form_arrives_as_it_was_sent_with_the_models_name_replaced(
    gateway: g.Gateway, port: int
) -> None:
    usage = '{"text":"heard","usage":{"type":"duration","seconds":3}}'
    sound = bytes(range(256)) * 10
    async with u.serving(answering(usage), port) as one:
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
            heard = await client.audio.transcriptions.create(
                model="ours/m", file=("a.wav", sound), language="fr", prompt="--model--"
            )
    assert heard.text == "heard"
    assert parts_of(one.received[0]) == {
        "model": (None, b"theirs"),
        "language": (None, b"fr"),
        "prompt": (None, b"--model--"),
        "file": ("a.wav", sound),
    }
    assert int(one.received[0].headers["Content-Length"]) == len(one.received[0].body)


async def test_a_large_form_is_sent_again_and_memory_stays_flat(
    gateway: g.Gateway, port: int
) -> None:
    """The file comes before ``model``, in full, and the first attempt fails."""

    async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
        if len(one.received) == 1:
            return await u.failing(503)(received, request)
        return web.json_response({"text": "heard"})

    async def form() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for number in range(25 * 16):
            yield bytes([number % 251]) * (MIB // 16)
        yield b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nours/m\r\n--b--\r\n'

    def memory(process: int) -> int:
        """The most that this process ever had in memory, in bytes."""
        status = Path(f"/proc/{process}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    async with u.serving(answer, port) as one:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        small = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nours/m\r\n--b--\r\n'
        await post(gateway, "/audio/transcriptions", small, kind)
        one.received.clear()
        before = memory(gateway.process.pid)
        status, _, got = await post(gateway, "/audio/transcriptions", form(), kind)
        grown = memory(gateway.process.pid) - before
    assert (status, json.loads(got)["text"]) == (200, "heard")
    first, second = (received.body for received in one.received)
    assert first == second and len(first) > 25 * MIB
    whole = b"".join([piece async for piece in form()])
    assert second == whole.replace(b"\r\nours/m\r\n", b"\r\ntheirs\r\n")
    print(f"a form of 25 MiB raised the peak by {grown / MIB:.1f} MiB")
    assert grown < 8 * MIB


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain; charset=utf-8", b"1\n00:00 --> 00:01\nhi\n"),
        ("audio/mpeg", b"\xff\xfb" * 9000),
    ],
)
async def test_other_content_types_pass_as_they_are(
    gateway: g.Gateway, port: int, content_type: str, body: bytes
) -> None:
    async with u.serving(answering(body, content_type), port):
        sent = b'{"model":"ours/m","input":"x","voice":"v"}'
        assert await post(gateway, "/audio/speech", sent, JSON) == (200, content_type, body)


async def test_typed_events_pass_and_their_usage_counts(gateway: g.Gateway, port: int) -> None:
    events = [
        b'event: transcript.text.delta\ndata: {"type":"transcript.text.delta","delta":"h"}\n\n',
        b'data: {"type":"transcript.text.done","usage":{"input_tokens":14,"output_tokens":3}}\n\n',
    ]
    form = aiohttp.FormData({"model": "ours/events", "stream": "true"})
    form.add_field("file", b"x", filename="a.wav")
    async with u.serving(u.streaming(*events), port):
        _, _, got = await post(gateway, "/audio/transcriptions", form, {})
        metrics = (await asyncio.to_thread(gateway.ops, "/metrics"))[1]
    first, last, rest = got.split(b"\n\n")
    assert (first + b"\n\n", rest) == (events[0], b"")
    told = json.loads(last.removeprefix(b"data: "))
    assert told["usage"] == {"input_tokens": 14, "output_tokens": 3, "cost": None}
    assert told["metadata"]["used_provider"] == "one"
    assert 'tollhouse_tokens_total{direction="input",route="ai/events"} 14.0' in metrics


async def test_a_binary_answer_that_breaks_off_is_not_taken_for_whole(
    gateway: g.Gateway, port: int
) -> None:
    async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        await response.write(b"RIFF")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with u.serving(answer, port):
        with pytest.raises(aiohttp.ClientPayloadError):
            await post(gateway, "/audio/speech", b'{"model":"ours/m"}', JSON)
        metrics = (await asyncio.to_thread(gateway.ops, "/metrics"))[1]
    assert 'tollhouse_upstream_attempts_total{outcome="broken",provider="ai/one"} 1.0' in metrics


@pytest.mark.parametrize("status", [404, 405])
async def test_a_provider_without_the_endpoint_is_passed_over(
    gateway: g.Gateway, port: int, status: int
) -> None:
    async with u.serving(u.failing(status), port) as one:
        spared, _, _ = await post(gateway, "/embeddings", b'{"model":"ours/two"}', JSON)
        alone, _, got = await post(gateway, "/embeddings", b'{"model":"ours/m"}', JSON)
    assert (spared, alone, len(one.received)) == (200, 502, 2)
    error = json.loads(got)["error"]
    assert (error["code"], error["metadata"]["status"]) == ("provider_error", status)
    assert "does not serve this endpoint" in error["message"]


async def test_a_large_form_without_a_temporary_directory_is_a_503(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = tmp_path / "config"
    g.write(folder, g.caller(), g.mock("echo"), g.route("m", ["m"], "echo"))
    gateway = g.launch(folder, name="no-room", environ={"TMPDIR": str(temporary)})
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    large = head + b"x" * 2 * MIB + b"\r\n--b--\r\n"
    small = head + b"x\r\n--b--\r\n"
    path = "/audio/transcriptions"
    try:
        await asyncio.to_thread(g.wait_until_ready, gateway)
        # Python looks for a directory once; by then there is one.
        assert (await post(gateway, path, io.BytesIO(large), kind))[0] == 200
        temporary.rmdir()
        status, _, got = await post(gateway, path, io.BytesIO(large), kind)
        error = json.loads(got)["error"]
        assert (status, error["code"]) == (503, "overloaded")
        assert "temporary directory" in error["message"] and str(tmp_path) not in error["message"]
        assert (await post(gateway, path, small, kind))[0] == 200
        temporary.mkdir()
        assert (await post(gateway, path, io.BytesIO(large), kind))[0] == 200
    finally:
        await asyncio.to_thread(gateway.stop)

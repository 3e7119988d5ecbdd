"""What a trace and the metrics say about a request, and that neither says too much."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from google.protobuf.json_format import (  # type: ignore[import-untyped]  # because protobuf ships no types
    MessageToDict,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support import gateway as g
from support import upstream as u

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER_SPAN}-01"


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        self.raw = b""
        self.spans: list[dict[str, Any]] = []

    async def take(self, received: u.Received, request: web.Request) -> web.StreamResponse:
        message = ExportTraceServiceRequest.FromString(received.body)
        self.raw += received.body
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [MessageToDict(span) for span in scope.spans]
        return web.Response()


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


@asynccontextmanager
async def traced(
    folder: Path, answer: u.Answer
) -> AsyncIterator[tuple[Collector, u.Upstream, g.Gateway]]:
    collector = Collector()
    async with u.serving(collector.take) as otlp, u.serving(answer) as one:
        targets: list[dict[str, Any]] = [
            {"provider": {"name": "broken"}, "model": "m-1"},
            {"provider": {"name": "one"}, "model": "m-2", "priority": 1},
        ]
        g.write(
            folder,
            g.caller(),
            g.mock("broken", failWith={"status": 503}),
            g.openai_compatible("one", one.base_url),
            g.route("m", ["m"], *targets, retries={"attempts": 1, "backoff": "1ms"}),
        )
        endpoint = otlp.base_url.removesuffix("/v1")
        gateway = g.launch(folder, name="traced", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        try:
            await asyncio.to_thread(g.wait_until_ready, gateway)
            yield collector, one, gateway
        finally:
            # Stopping sends what is queued.
            await asyncio.to_thread(gateway.stop)


async def ask(gateway: g.Gateway, **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "PLANTED-prompt"}], **fields}
    headers = {"Authorization": f"Bearer {g.KEY}", "traceparent": TRACEPARENT}
    async with aiohttp.ClientSession() as session:
        url = f"{gateway.base_url}/chat/completions"
        async with session.post(url, json=body, headers=headers) as answer:
            return await answer.read()


async def test_each_attempt_is_a_client_span_in_the_callers_trace(tmp_path: Path) -> None:
    async with traced(tmp_path, u.always()) as (collector, one, gateway):
        await ask(gateway)
        onwards = one.received[0].headers["traceparent"]
    assert [span["name"] for span in collector.spans] == ["chat m-1", "chat m-1", "chat m-2"]
    assert {span["kind"] for span in collector.spans} == {"SPAN_KIND_CLIENT"}
    failed, _, last = collector.spans
    assert attributes(failed)["error.type"] == "status"
    assert attributes(failed)["http.response.status_code"] == "503"
    assert attributes(last) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m-2",
        "tollhouse.provider": "ai/one",
        "tollhouse.attempt": "3",
        "http.response.status_code": "200",
        "gen_ai.usage.input_tokens": "3",
        "gen_ai.usage.output_tokens": "2",
    }
    trace, parent = onwards.split("-")[1:3]
    assert trace == TRACE
    assert parent != CALLER_SPAN
    assert b"PLANTED" not in collector.raw


async def test_a_streams_span_lasts_as_long_as_the_stream(tmp_path: Path) -> None:
    stream = u.streaming(u.chunk({"content": "x"}), 0.3, u.chunk({}, "stop"), u.USAGE_EVENT, u.DONE)
    async with traced(tmp_path, stream) as (collector, _, gateway):
        await ask(gateway, stream=True)
    last = collector.spans[-1]
    assert int(last["endTimeUnixNano"]) - int(last["startTimeUnixNano"]) > 250_000_000
    assert attributes(last)["gen_ai.usage.output_tokens"] == "2"


async def test_a_streams_estimate_is_marked_as_one(tmp_path: Path) -> None:
    uncounted = u.streaming(u.chunk({"content": "four char"}), u.chunk({}, "stop"), u.DONE)
    async with traced(tmp_path, uncounted) as (collector, _, gateway):
        await ask(gateway, stream=True)
    last = attributes(collector.spans[-1])
    assert last["tollhouse.usage.estimated"] is True
    assert last["gen_ai.usage.output_tokens"] == "3"


async def test_a_providers_own_count_is_not_marked(tmp_path: Path) -> None:
    counted = u.streaming(u.chunk({"content": "x"}), u.chunk({}, "stop"), u.USAGE_EVENT, u.DONE)
    async with traced(tmp_path, counted) as (collector, _, gateway):
        await ask(gateway, stream=True)
    assert "tollhouse.usage.estimated" not in attributes(collector.spans[-1])


OPERATIONS = {
    "/embeddings": "embeddings",
    "/completions": "text_completion",
    "/moderations": "moderation",
    "/rerank": "rerank",
    "/images/generations": "image_generation",
    "/images/edits": "image_edit",
    "/images/variations": "image_variation",
    "/audio/speech": "speech",
    "/audio/transcriptions": "transcription",
    "/audio/translations": "translation",
    "/responses": "responses",
}
FORMS = ("/images/edits", "/images/variations", "/audio/transcriptions", "/audio/translations")


async def test_each_endpoints_spans_have_its_name(tmp_path: Path) -> None:
    async with (
        traced(tmp_path, u.always()) as (collector, _, gateway),
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {g.KEY}"}) as session,
    ):
        for path in OPERATIONS:
            form = aiohttp.FormData({"model": "m"})
            form.add_field("file", b"x", filename="a")
            sent: Any = {"data": form} if path in FORMS else {"json": {"model": "m", "input": "Hi"}}
            async with session.post(f"{gateway.base_url}{path}", **sent) as answer:
                assert answer.status == 200, await answer.text()
    last = [span for span in collector.spans if span["name"].endswith(" m-2")]
    assert [span["name"] for span in last] == [f"{name} m-2" for name in OPERATIONS.values()]
    for span, operation in zip(last, OPERATIONS.values(), strict=True):
        assert attributes(span)["gen_ai.operation.name"] == operation


async def test_without_a_collector_the_callers_trace_travels_on(tmp_path: Path) -> None:
    async with u.serving(u.always()) as one:
        g.write(
            tmp_path,
            g.caller(),
            g.openai_compatible("one", one.base_url),
            g.route("m", ["m"], "one"),
        )
        gateway = g.launch(tmp_path, name="untraced")
        try:
            await asyncio.to_thread(g.wait_until_ready, gateway)
            await ask(gateway)
        finally:
            await asyncio.to_thread(gateway.stop)
    assert one.received[0].headers["traceparent"] == TRACEPARENT


def test_metrics_count_requests_attempts_and_tokens(tmp_path: Path) -> None:
    g.write(
        tmp_path,
        g.caller(),
        g.mock("echo", usage={"promptTokens": 7, "completionTokens": 11}),
        g.route("m", ["m"], "echo"),
    )
    with g.running(tmp_path, name="metrics") as gateway:
        answer = json.loads(asyncio.run(ask(gateway)))
        assert answer["usage"]["completion_tokens"] == 11
        status, text = gateway.ops("/metrics")
    assert status == 200
    for line in (
        'tollhouse_requests_total{code="ok",route="ai/m",status="200"} 1.0',
        'tollhouse_upstream_attempts_total{outcome="ok",provider="ai/echo"} 1.0',
        'tollhouse_tokens_total{direction="input",route="ai/m"} 7.0',
        'tollhouse_tokens_total{direction="output",route="ai/m"} 11.0',
        "tollhouse_config_synced 1.0",
        "tollhouse_in_flight_requests 0.0",
    ):
        assert line in text
    assert "PLANTED" not in text


def test_the_ops_port_has_probes_and_the_digest(tmp_path: Path) -> None:
    g.write(tmp_path, g.caller(), g.mock("echo"), g.route("m", ["m"], "echo"))
    with g.running(tmp_path, name="ops") as gateway:
        assert gateway.ops("/livez")[0] == 200
        assert gateway.ops("/readyz") == (200, "ok\n")
        config = gateway.config()
        assert (config["synced"], config["routes"], config["keys"]) == (True, 1, 1)
        assert len(config["digest"]) == 64
        assert gateway.ops("/v1/models")[0] == 404

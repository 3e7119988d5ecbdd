"""``POST /v1/responses``: the provider's own where it has one, else made of a chat completion."""

import os
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from tollhouse import routing
from tollhouse.api import chat, responses
from tollhouse.api import reasoning as reasons
from tollhouse.api.additions import Origin
from tollhouse.api.chat import ChatRequest
from tollhouse.api.responses import ResponsesRequest
from tollhouse.api.responses_answer import Frame, encoded, from_chat, from_native
from tollhouse.api.responses_chat import to_chat
from tollhouse.api.responses_stream import NativeWatch, TranslatedWatch
from tollhouse.api.usage import Usage
from tollhouse.endpoints import Context, is_strict, origin_of, priced, refusal
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers.responses import native_request, translated_request
from tollhouse.routing import Needs, Resolution, split_effort
from tollhouse.snapshot import Provider, Snapshot


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    request = responses.parse(await exchange.read_json(context.settings))
    effort = split_effort(request.model)[1]
    if effort is not None:
        request = responses.with_effort(request, effort)
    resolution = context.resolve(request.model, _needs(request))
    snapshot = context.table.snapshot
    resolution, asked = _prepare(request, resolution, snapshot)
    way = _Way(request, exchange, resolution, asked)
    searches = int(asked is not None and asked.web_search)
    call = await context.call(
        exchange, resolution, "responses", way.compose, request.fields, searches=searches
    )
    try:
        if request.stream:
            return await exchange.stream(
                context.upstream.stream(snapshot, call, exchange.trail, way),
                keepalive=context.settings.stream_keepalive,
                explain=lambda error: refusal(error, exchange, resolution),
                broken=way.broken,
            )
        await context.upstream.whole(snapshot, call, exchange.trail, way.read)
        return priced(exchange, way.origin(), way.made)
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None


class _Way:
    """How one request goes to the provider that is being tried, and how its answer comes back.

    Attempts follow one another, so that what ``compose`` saw last is where an answer comes from.
    For a stream it stands in for the watch of whichever way the attempt takes.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        exchange: Exchange,
        resolution: Resolution,
        asked: ChatRequest | None,
    ) -> None:
        self._request = request
        self._exchange = exchange
        self._resolution = resolution
        self._asked = asked
        self._fields: dict[str, Any] = {}
        self._reasoning = reasons.asked(asked, None) if asked is not None else None
        reasons.check(self._reasoning, resolution.route)
        self._excluded = self._reasoning is not None and self._reasoning.exclude
        self._strict = is_strict(exchange, resolution.route)
        self._native = False
        self._frame: Frame | None = None
        self._watch: NativeWatch | TranslatedWatch | None = None

    def compose(self, provider: Provider, model: str) -> tuple[str, bytes]:
        cap, parameters = self._resolution.max_tokens, self._resolution.route.parameters
        if provider.responses_native or self._asked is None:
            self._native = True
            return native_request(
                self._request, provider=provider, model=model, cap=cap, parameters=parameters
            )
        self._native = False
        return translated_request(
            self._asked,
            provider=provider,
            model=model,
            cap=cap,
            parameters=parameters,
            reasoning=self._reasoning,
            capabilities=self._resolution.route.capabilities,
        )

    def read(self, body: bytes) -> Usage | None:
        """Keep a whole answer; its usage. Raises ValueError for what is no answer."""
        if self._native:
            self._fields, usage = from_native(body)
        else:
            self._fields, usage = from_chat(body, self._make_frame(), excluded=self._excluded)
        return usage

    def made(self, origin: Origin, price: Decimal | None) -> bytes:
        """The whole answer as the caller gets it; ``price`` (USD) is that of its usage."""
        return encoded(self._fields, origin, price)

    def fresh(self) -> NativeWatch | TranslatedWatch:
        self._watch = (
            NativeWatch(self.origin(), self._request)
            if self._native
            else TranslatedWatch(self._make_frame(), self.origin())
        )
        return self._watch

    def origin(self) -> Origin:
        asked = self._asked if not self._native else None
        return origin_of(
            self._exchange,
            self._resolution,
            strict=self._strict,
            excluded=self._excluded,
            searches=int(asked is not None and asked.web_search),
        )

    def broken(self, error: RequestError) -> bytes:
        """How the stream that was begun ends in failure."""
        watch = self._watch or TranslatedWatch(self._make_frame(), self.origin())
        return watch.broken(error)

    def _make_frame(self) -> Frame:
        if self._frame is None:
            self._frame = Frame(self._request, name=os.urandom(16).hex(), created=int(time.time()))
        return self._frame


def _prepare(
    request: ResponsesRequest, resolution: Resolution, snapshot: Snapshot
) -> tuple[Resolution, ChatRequest | None]:
    """The targets that can serve the request, and the chat completion for those that need one.

    Raises RequestError when a chat completion cannot ask it and no target has its own responses.
    """
    targets = [it for it in resolution.route.targets if it.provider in snapshot.providers]
    native = tuple(it for it in targets if snapshot.providers[it.provider].responses_native)
    if len(native) == len(targets):
        return resolution, None
    try:
        asked = chat.parse(to_chat(request))
        if asked.web_search:
            resolution = routing.searching(resolution, "tools")
        return resolution, asked
    except RequestError:
        if not native:
            raise
    route = msgspec.structs.replace(resolution.route, targets=native)
    return replace(resolution, route=route), None


def _needs(request: ResponsesRequest) -> Needs:
    """What the request asks of a model; see ``chat`` for how its size is told."""
    given = bytes(request.input) if request.input is not None else b""
    vision = b'"input_image"' in given
    return Needs(
        vision=vision,
        tools=request.has_tools,
        web_search=request.searches,
        reasoning=request.reasoning.get("effort") not in (None, "none"),
        free_only=request.free_models_only,
        prompt_tokens=0 if vision else (len(given) + len(request.instructions or "")) // 4,
    )

"""Embeddings, completions, moderations, rerank, images and audio: bytes through.

A JSON body is read for ``model`` and ``stream``. A form is kept as it comes, beyond 1 MiB in a
temporary file, so that memory stays flat and a retry or a fallback can send it again; only when all
of it is here does the first attempt begin, so that a slow caller holds no provider's connection.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

import msgspec
from aiohttp import web

from tollhouse.api import forms, passthrough, shape
from tollhouse.api.additions import Origin
from tollhouse.api.shape import Shape
from tollhouse.binary import Binary
from tollhouse.endpoints import Context, Endpoint, is_strict, origin_of, priced, refusal
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers import passthrough as wire
from tollhouse.routing import Resolution
from tollhouse.snapshot import Provider
from tollhouse.stream import Stream
from tollhouse.transport import Upload
from tollhouse.upstream import Compose

_IN_MEMORY = 1024 * 1024
"""Bytes of a form that are kept in memory; what is larger goes to a temporary file."""
_PIECE = 256 * 1024
DEFAULT_MODERATION = "omni-moderation-latest"
"""What OpenAI takes a moderation without ``model`` to mean."""


@dataclass(frozen=True, slots=True)
class _Path:
    """``path`` begins after ``/v1``; ``operation`` is the word for it in spans.

    OpenTelemetry's conventions define ``embeddings`` and ``text_completion``. ``cut`` is the shape
    of a strict answer; OpenAI has none for rerank and speech.
    """

    path: str
    operation: str
    cut: Shape | None = None
    form: bool = False
    default_model: str | None = None


_PATHS = (
    _Path("/embeddings", "embeddings", shape.EMBEDDINGS),
    _Path("/completions", "text_completion", shape.COMPLETION),
    _Path("/moderations", "moderation", shape.MODERATION, default_model=DEFAULT_MODERATION),
    _Path("/rerank", "rerank"),
    _Path("/images/generations", "image_generation", shape.IMAGES),
    _Path("/images/edits", "image_edit", shape.IMAGES, form=True),
    _Path("/images/variations", "image_variation", shape.IMAGES, form=True),
    _Path("/audio/speech", "speech"),
    _Path("/audio/transcriptions", "transcription", shape.TRANSCRIPTION, form=True),
    _Path("/audio/translations", "translation", shape.TRANSLATION, form=True),
)


def _endpoint(path: _Path) -> Endpoint:
    async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
        if path.form:
            return await _answer_form(path, context, exchange)
        return await _answer_json(path, context, exchange)

    return answer


ENDPOINTS: dict[str, tuple[str, Endpoint]] = {
    f"/v1{path.path}": ("POST", _endpoint(path)) for path in _PATHS
}
"""Rows for the proxy's table."""


async def _answer_json(path: _Path, context: Context, exchange: Exchange) -> web.StreamResponse:
    body = await exchange.read_json(context.settings)
    request = passthrough.parse(body, path.default_model)
    resolution = context.resolve(request.model)
    completion = path.operation == "text_completion"

    def compose(provider: Provider, model: str) -> tuple[str, bytes]:
        if completion:
            return wire.completion_request(
                request,
                provider=provider,
                model=model,
                cap=resolution.max_tokens,
                parameters=resolution.route.parameters,
            )
        return wire.json_request(request, path=path.path, provider=provider, model=model)

    hides_usage = completion and not request.wants_usage
    return await _send(
        path, context, exchange, resolution, compose, request.fields, hides_usage=hides_usage
    )


async def _answer_form(path: _Path, context: Context, exchange: Exchange) -> web.StreamResponse:
    content_type = exchange.request.headers.get("Content-Type", "")
    finder = forms.ModelFinder(forms.boundary_of(content_type))
    with SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:

        def take(piece: bytes) -> None:
            finder.feed(piece)
            try:
                # Into the page cache: shorter than a trip to another thread and back.
                kept.write(piece)
            except OSError:
                raise RequestError(
                    "overloaded",
                    "The gateway has no room to keep a form larger than 1 MiB. Ask its operators "
                    "for a writable temporary directory with enough space.",
                ) from None

        await exchange.receive(context.settings, take)
        resolution = context.resolve(finder.model)
        length = kept.tell()

        def compose(provider: Provider, model: str) -> tuple[str, Upload]:
            value = model.encode()
            upload = Upload(
                content_type=content_type,
                length=length - (finder.end - finder.start) + len(value),
                pieces=_pieces(kept, finder, value, length),
            )
            return f"{provider.base_url}{path.path}", upload

        return await _send(path, context, exchange, resolution, compose, {}, hides_usage=False)


def _pieces(
    kept: "SpooledTemporaryFile[bytes]", finder: forms.ModelFinder, model: bytes, length: int
) -> Callable[[], AsyncIterator[bytes]]:
    """The form with this value in its ``model`` field, from the beginning at every call."""

    async def part(start: int, end: int) -> AsyncIterator[bytes]:
        # An attempt that was given up may still be sending when the form is closed.
        while start < end and not kept.closed:
            kept.seek(start)
            piece = kept.read(min(_PIECE, end - start))
            start += len(piece)
            yield piece

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in part(0, finder.start):
            yield piece
        yield model
        async for piece in part(finder.end, length):
            yield piece

    return pieces


async def _send(
    path: _Path,
    context: Context,
    exchange: Exchange,
    resolution: Resolution,
    compose: Compose,
    fields: Mapping[str, msgspec.Raw],
    *,
    hides_usage: bool,
) -> web.StreamResponse:
    call = await context.call(exchange, resolution, path.operation, compose, fields)
    strict = is_strict(exchange, resolution.route)

    def origin() -> Origin:
        return origin_of(exchange, resolution, strict=strict)

    whole = passthrough.Whole(path.cut)
    try:
        answer = await context.upstream.any(
            context.table.snapshot,
            call,
            exchange.trail,
            read_usage=whole.read,
            watch=passthrough.EventWatch(origin, hides_usage=hides_usage),
        )
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None
    if isinstance(answer, Stream):
        return await exchange.forward(answer)
    if isinstance(answer, Binary):
        return await exchange.forward_bytes(answer)
    return priced(exchange, origin(), whole.made)

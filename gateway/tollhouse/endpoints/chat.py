"""``POST /v1/chat/completions``."""

from aiohttp import web

from tollhouse.api import answers, chat
from tollhouse.endpoints import Context, refusal
from tollhouse.errors import UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers import openai
from tollhouse.snapshot import Provider


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    request = chat.parse(await exchange.read_json(context.settings))
    resolution = context.resolve(request.model)

    def compose(provider: Provider, model: str) -> tuple[str, bytes]:
        return openai.chat_request(
            request,
            provider=provider,
            model=model,
            cap=resolution.max_tokens,
            parameters=resolution.route.parameters,
        )

    call = context.call(exchange, resolution, "chat", compose)
    snapshot = context.table.snapshot
    try:
        if request.stream:
            watch = answers.StreamWatch(wants_usage=request.wants_usage, messages=request.messages)
            return await exchange.stream(
                context.upstream.stream(snapshot, call, exchange.trail, watch),
                keepalive=context.settings.stream_keepalive,
                explain=lambda error: refusal(error, exchange, resolution),
            )
        return exchange.whole(
            await context.upstream.whole(snapshot, call, exchange.trail, answers.read_usage)
        )
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None

"""``POST /v1/chat/completions``."""

from aiohttp import web

from tollhouse.api import answers, chat
from tollhouse.api.chat import ChatRequest
from tollhouse.endpoints import Context, refusal
from tollhouse.errors import UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers import openai
from tollhouse.routing import Needs
from tollhouse.snapshot import Provider


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    request = chat.parse(await exchange.read_json(context.settings))
    resolution = context.resolve(request.model, _needs(request))

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
            watch = answers.StreamWatch(wants_usage=request.wants_usage)
            stream = await context.upstream.stream(snapshot, call, exchange.trail, watch)
            return await exchange.forward(stream)
        return exchange.whole(
            await context.upstream.whole(snapshot, call, exchange.trail, answers.read_usage)
        )
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None


def _needs(request: ChatRequest) -> Needs:
    """What the request asks of a model. About four bytes of text are a token; how many an image
    in the text of the request makes, its size does not tell."""
    size = len(bytes(request.fields["messages"])) if not request.has_images else 0
    return Needs(
        vision=request.has_images,
        tools=request.has_tools,
        web_search=request.web_search,
        free_only=request.free_models_only,
        prompt_tokens=size // 4,
    )

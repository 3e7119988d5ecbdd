"""``POST /v1/chat/completions``."""

from aiohttp import web

from tollhouse import routing
from tollhouse.api import answers, chat
from tollhouse.api import reasoning as reasons
from tollhouse.api.additions import Origin
from tollhouse.api.chat import ChatRequest
from tollhouse.api.reasoning import Reasoning
from tollhouse.endpoints import Context, is_strict, origin_of, priced, refusal
from tollhouse.errors import UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers import openai
from tollhouse.routing import Needs, Resolution, split_effort
from tollhouse.snapshot import Provider


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    request = chat.parse(await exchange.read_json(context.settings))
    reasoning = reasons.asked(request, split_effort(request.model)[1])
    resolution = context.resolve(request.model, needs_of(request, reasoning))
    route, trail = resolution.route, exchange.trail
    reasons.check(reasoning, route)
    if request.web_search:
        resolution = searching(request, resolution)
        route = resolution.route
    strict = is_strict(exchange, route)
    excluded = reasoning is not None and reasoning.exclude

    def compose(provider: Provider, model: str) -> tuple[str, bytes]:
        return openai.chat_request(
            request,
            provider=provider,
            model=model,
            cap=resolution.max_tokens,
            parameters=route.parameters,
            reasoning=reasoning,
            capabilities=route.capabilities,
        )

    def origin() -> Origin:
        return origin_of(
            exchange,
            resolution,
            strict=strict,
            excluded=excluded,
            searches=int(request.web_search),
        )

    call = await context.call(
        exchange, resolution, "chat", compose, request.fields, searches=int(request.web_search)
    )
    snapshot = context.table.snapshot
    try:
        if request.stream:
            watch = answers.StreamWatch(
                wants_usage=request.wants_usage, messages=request.messages, origin=origin
            )
            return await exchange.stream(
                context.upstream.stream(snapshot, call, trail, watch),
                keepalive=context.settings.stream_keepalive,
                explain=lambda error: refusal(error, exchange, resolution),
            )
        whole = answers.Whole()
        await context.upstream.whole(snapshot, call, trail, whole.read)
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None
    return priced(exchange, origin(), whole.made)


def searching(request: ChatRequest, resolution: Resolution) -> Resolution:
    """The targets that search the web. Raises RequestError when there is none."""
    by_tool = request.web_search_tool is not None
    return routing.searching(resolution, "tools" if by_tool else "webSearchEnabled")


def needs_of(request: ChatRequest, reasoning: Reasoning | None) -> Needs:
    """What the request asks of a model. About four bytes of text are a token; how many an image
    in the text of the request makes, its size does not tell."""
    size = len(bytes(request.fields["messages"])) if not request.has_images else 0
    return Needs(
        vision=request.has_images,
        tools=request.has_tools,
        reasoning=reasoning is not None and reasoning.wanted,
        web_search=request.web_search,
        free_only=request.free_models_only,
        prompt_tokens=size // 4,
    )

"""``POST /v1/chat/completions``."""

from aiohttp import web

from tollhouse.api import answers, chat, cost
from tollhouse.api import reasoning as reasons
from tollhouse.api.additions import Origin, whole
from tollhouse.api.chat import ChatRequest
from tollhouse.endpoints import Context, refusal
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.providers import openai
from tollhouse.routing import Needs, Resolution
from tollhouse.snapshot import Provider
from tollhouse.upstream import Trail


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    request = chat.parse(await exchange.read_json(context.settings))
    resolution = context.resolve(request.model, _needs(request))
    route, trail = resolution.route, exchange.trail
    reasoning = reasons.asked(request, resolution.effort)
    reasons.check(reasoning, route)
    if request.web_search:
        _check_web_search(request, resolution)
    strict = route.strict or _asks_strictly(exchange)
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
        return _origin(resolution, trail, strict=strict, excluded=excluded)

    call = await context.call(exchange, resolution, "chat", compose, request.fields)
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
        body = await context.upstream.whole(snapshot, call, trail, answers.read_usage)
    except UpstreamError as error:
        raise refusal(error, exchange, resolution) from None
    who = origin()
    price = cost.of(trail.usage, who.pricing)
    headers = {} if price is None else {"x-tollhouse-cost": cost.text(price)}
    return exchange.whole(whole(body, who, trail.usage), headers)


def _asks_strictly(exchange: Exchange) -> bool:
    return exchange.request.headers.get("x-tollhouse-strict", "").lower() == "true"


def _origin(resolution: Resolution, trail: Trail, *, strict: bool, excluded: bool) -> Origin:
    """Who answers, once an attempt is under way."""
    requested = resolution.requested
    named = requested if "/" in requested else resolution.model
    prefix, slash, _ = named.partition("/")
    provider, target = trail.provider, trail.target
    return Origin(
        requested_model=requested,
        requested_provider=prefix if slash else None,
        used_model=resolution.model,
        used_provider=provider.name if provider is not None else "",
        upstream_model=trail.model,
        pricing=cost.pricing_of(resolution.route, target) if target is not None else None,
        strict=strict,
        exclude_reasoning=excluded,
    )


def _check_web_search(request: ChatRequest, resolution: Resolution) -> None:
    """Raise RequestError unless the route says that its targets search the web."""
    if resolution.route.capabilities.web_search is not True:
        param = (
            "tools"
            if b"web_search" in bytes(request.fields.get("tools", b""))
            else ("webSearchEnabled")
        )
        raise RequestError(
            "unsupported_parameter",
            f"{resolution.model} has no target that searches the web. Leave out `{param}`, or use "
            "a model whose `capabilities` at GET /v1/models name web search.",
            param=param,
        )


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

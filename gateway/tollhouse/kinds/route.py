"""ModelRoute: names that callers use, and where they go."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tollhouse.kinds.fields import (
    Delay,
    LabelSelector,
    ModelPattern,
    ObjectName,
    Price,
    RouteModel,
    Text,
    Timeouts,
    Tokens,
)
from tollhouse.kinds.schema import Merging, Model, Rule, matching, says


class ProviderRef(Model):
    name: Annotated[ObjectName, says("The Provider's name, in the ModelRoute's namespace.")]


class Tier(Model):
    """What all tokens of a request cost whose prompt is longer than that; what is left out costs
    as it does without tiers."""

    above: Annotated[Tokens, says("The tier holds for prompts of more tokens than this.")]
    input: Annotated[Price | None, says("USD per million tokens of prompt.")] = None
    cached_input: Annotated[
        Price | None, says("USD per million tokens of prompt that came from a cache.")
    ] = None
    cache_write: Annotated[
        Price | None, says("USD per million tokens of prompt that went into a cache.")
    ] = None
    cache_write_hour: Annotated[
        Price | None, says("USD per million of those that the cache keeps for an hour.")
    ] = None
    output: Annotated[Price | None, says("USD per million tokens of answer.")] = None


class Pricing(Model):
    """What is left out comes from the prices that the gateway knows."""

    input: Annotated[Price | None, says("USD per million tokens of prompt.")] = None
    cached_input: Annotated[
        Price | None,
        says("USD per million tokens of prompt that came from a cache. Default: as input."),
    ] = None
    cache_write: Annotated[
        Price | None,
        says("USD per million tokens of prompt that went into a cache. Default: as input."),
    ] = None
    cache_write_hour: Annotated[
        Price | None,
        says("USD per million of those that the cache keeps for an hour. Default: as cacheWrite."),
    ] = None
    output: Annotated[Price | None, says("USD per million tokens of answer.")] = None
    reasoning: Annotated[
        Price | None, says("USD per million tokens of reasoning. Default: as output.")
    ] = None
    input_audio: Annotated[
        Price | None, says("USD per million tokens of audio in the prompt. Default: as input.")
    ] = None
    cached_audio: Annotated[
        Price | None,
        says("USD per million tokens of audio that came from a cache. Default: as inputAudio."),
    ] = None
    output_audio: Annotated[
        Price | None, says("USD per million tokens of audio in the answer. Default: as output.")
    ] = None
    input_image: Annotated[
        Price | None, says("USD per million tokens of images in the prompt. Default: as input.")
    ] = None
    cached_image: Annotated[
        Price | None,
        says("USD per million tokens of images that came from a cache. Default: as inputImage."),
    ] = None
    output_image: Annotated[
        Price | None, says("USD per million tokens of images in the answer. Default: as output.")
    ] = None
    web_search: Annotated[Price | None, says("USD for one web search, beside the tokens.")] = None
    request: Annotated[Price | None, says("USD for one request, beside the tokens.")] = None
    tiers: Annotated[
        tuple[Tier, ...],
        says("Other prices for long prompts.", max_length=8),
        Merging(("above",)),
    ] = ()


class Target(Model):
    provider: Annotated[ProviderRef, says("The upstream account to use.")]
    model: Annotated[
        Text | None,
        says(
            "The provider's own name for the model. Default: the route's first model without its "
            "provider prefix; on a wildcard route what the * matched.",
            min_length=1,
        ),
    ] = None
    weight: Annotated[
        int,
        says(
            "This target's share among those of the same priority; 0 is tried only when the "
            "others failed.",
            ge=0,
            le=1_000_000,
        ),
    ] = 1
    priority: Annotated[
        int,
        says("Lower is tried first; the next priority only when this one failed.", ge=0, le=1000),
    ] = 0
    pricing: Annotated[
        Pricing | None, says("What this target charges. Default: the published prices.")
    ] = None
    web_search: Annotated[
        bool | None,
        says(
            "Whether this target searches the web; one that does not is passed over by requests "
            "that ask for it. Default: the route's capabilities, then what the gateway knows."
        ),
    ] = None


class Select(Model):
    """The gateway chooses a route per request, among other models that can serve it."""

    from_: Annotated[
        Annotated[tuple[ModelPattern, ...], Field(min_length=1, max_length=64), Merging()],
        says("The models to choose among, such as openai/*.", alias="from"),
    ]
    by: Annotated[
        Literal["Price", "Latency", "Weight"], says("What decides between those that can serve.")
    ] = "Price"


class Retries(Model):
    attempts: Annotated[
        int, says("How often each priority is tried again after its first try.", ge=0, le=10)
    ] = 2
    backoff: Annotated[
        Delay, says("How long to wait before the first retry; it doubles, with jitter.")
    ] = "250ms"
    retry_on: Annotated[
        tuple[
            Annotated[
                str,
                Field(max_length=16),
                matching(
                    "^(Connect|Timeout|5xx|[45][0-9][0-9])$",
                    'must be Connect, Timeout, 5xx or a status in quotes, such as "429"',
                ),
            ],
            ...,
        ],
        says("What is tried again: Connect, Timeout, 5xx or a single status.", max_length=32),
        Merging(),
    ] = ("Connect", "Timeout", "429", "5xx")


class Parameters(Model):
    defaults: Annotated[
        dict[str, Any],
        says("Request fields to fill in where the caller left them out, such as temperature."),
    ] = Field(default_factory=dict)
    overrides: Annotated[
        dict[str, Any], says("Request fields to set, whatever the caller asked for.")
    ] = Field(default_factory=dict)
    max_tokens: Annotated[
        Tokens | None, says("The most tokens that an answer may have; also put in when absent.")
    ] = None
    unsupported: Annotated[
        Literal["Drop", "Reject"],
        says("What becomes of a parameter that the target cannot take: dropped, or a 400."),
    ] = "Drop"


class Capabilities(Model):
    """What is left out comes from what the gateway knows about the model."""

    vision: Annotated[bool | None, says("Whether the model takes images.")] = None
    tools: Annotated[bool | None, says("Whether the model calls tools.")] = None
    reasoning: Annotated[bool | None, says("Whether the model reasons.")] = None
    web_search: Annotated[bool | None, says("Whether the model searches the web.")] = None
    context_window: Annotated[
        Tokens | None, says("How many tokens prompt and answer may have together.")
    ] = None


class ShareWith(Model):
    from_: Annotated[
        Literal["Same", "All", "Selector"],
        says(
            "Same: ApiKeys of this namespace. All: of every namespace. Selector: of the "
            "namespaces that selector matches, and of this one.",
            alias="from",
        ),
    ] = "Same"
    selector: Annotated[LabelSelector | None, says("Labels of namespaces, for from Selector.")] = (
        None
    )
    rules = (
        Rule(
            "has(self.selector) == (has(self.from) && self.from == 'Selector')",
            "give a selector with from Selector, and only then",
            lambda it: (it.selector is not None) == (it.from_ == "Selector"),
            field="selector",
        ),
    )


class ModelRouteSpec(Model):
    """Names that callers use, and where they go: to targets, or to a choice of other models."""

    models: Annotated[
        tuple[RouteModel, ...],
        says(
            "The names that callers may use. The first is the canonical id; a trailing * matches "
            "the rest, as in openai/*.",
            min_length=1,
            max_length=64,
        ),
        Merging(),
    ]
    targets: Annotated[
        tuple[Target, ...] | None,
        says("Where requests go, by priority and then by weight.", min_length=1, max_length=32),
    ] = None
    select: Annotated[
        Select | None, says("Instead of targets: choose another route for each request.")
    ] = None
    retries: Annotated[
        Retries, says("What is tried again before the next priority has its turn.")
    ] = Retries()
    timeouts: Annotated[
        Timeouts | None, says("Timeouts for this route, in place of the Provider's.")
    ] = None
    parameters: Annotated[Parameters, says("Request fields to fill in, to set and to cap.")] = (
        Parameters()
    )
    capabilities: Annotated[
        Capabilities | None, says("What the model can do, where the gateway does not know.")
    ] = None
    free: Annotated[bool, says("Whether callers that ask for free models only may be served.")] = (
        False
    )
    strict: Annotated[
        bool, says("Answer in OpenAI's shape alone, without the gateway's own fields.")
    ] = False
    share_with: Annotated[
        ShareWith, says("Whose ApiKeys may call this route. Default: this namespace's.")
    ] = ShareWith()
    rules = (
        Rule(
            "has(self.targets) != has(self.select)",
            "give either targets or select",
            lambda it: (it.targets is None) != (it.select is None),
        ),
    )

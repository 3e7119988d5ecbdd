"""ApiKey, RateLimitPolicy and Budget: callers, and what they may use."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from tollhouse.kinds.fields import (
    Amount,
    Delay,
    Duration,
    LabelSelector,
    ModelName,
    ModelPattern,
    ObjectName,
    Patterns,
    Text,
    TimeZone,
    Tokens,
    seconds,
)
from tollhouse.kinds.schema import Merging, Model, Rule, says

Period = Literal["Day", "Week", "Month", "Total"]
LimitedModels = Annotated[tuple[ModelPattern, ...], Field(max_length=16), Merging()]
_KEYS_SHOWN = "names of at most 256 characters"


class Limit(Model):
    """One limit: exactly one thing that is counted, per window or at once."""

    requests: Annotated[Tokens | None, says("Requests per window.")] = None
    tokens: Annotated[Tokens | None, says("Tokens per window, prompt and answer.")] = None
    input_tokens: Annotated[Tokens | None, says("Prompt tokens per window.")] = None
    output_tokens: Annotated[Tokens | None, says("Answer tokens per window.")] = None
    concurrent: Annotated[Tokens | None, says("Requests at once; takes no `per`.")] = None
    per: Annotated[
        Literal["Second", "Minute", "Hour", "Day"] | None, says("The window's length.")
    ] = None
    rules = (
        Rule(
            "[has(self.requests), has(self.tokens), has(self.inputTokens), has(self.outputTokens), "
            "has(self.concurrent)].filter(x, x).size() == 1",
            "give exactly one of requests, tokens, inputTokens, outputTokens and concurrent",
            lambda it: (
                sum(
                    count is not None
                    for count in (
                        it.requests,
                        it.tokens,
                        it.input_tokens,
                        it.output_tokens,
                        it.concurrent,
                    )
                )
                == 1
            ),
        ),
        Rule(
            "has(self.concurrent) || has(self.per)",
            "say per what: Second, Minute, Hour or Day",
            lambda it: it.concurrent is not None or it.per is not None,
            field="per",
        ),
        Rule(
            "!(has(self.concurrent) && has(self.per))",
            "leave per out: concurrent counts requests at once",
            lambda it: it.concurrent is None or it.per is None,
            field="per",
        ),
    )


class KeyBudget(Model):
    amount: Annotated[Amount, says('The most that may be spent in a period, in USD: "50.00".')]
    period: Annotated[Period, says("When spend starts again from zero; Total: never.")] = "Month"
    time_zone: Annotated[
        TimeZone, says("The IANA time zone in which periods begin, such as Europe/Paris.")
    ] = "UTC"


class Rotation(Model):
    every: Annotated[
        Duration, says("How old a key may become before a new one is written; 1m at least.")
    ]
    overlap: Annotated[Delay, says("How long the old key stays valid beside the new one.")] = "24h"
    rules = (
        Rule(
            "duration(self.every) >= duration('1m')",
            "must be at least 1m",
            lambda it: seconds(it.every) >= 60,
            field="every",
        ),
    )


class ApiKeySpec(Model):
    """A caller: who it is, what it may call, and how much."""

    owner: Annotated[
        Text | None, says("Who answers for this key: a person or team, as people write it.")
    ] = None
    secret_name: Annotated[
        ObjectName | None,
        says(
            "The Secret that holds OPENAI_API_KEY and OPENAI_BASE_URL; the operator writes it "
            "unless it holds a key already. Default: the ApiKey's own name."
        ),
    ] = None
    allowed_models: Annotated[
        Patterns | None,
        says("Models this key may call, such as openai/*. Default: all shared with it."),
    ] = None
    model_aliases: Annotated[
        dict[str, ModelName],
        says("Names of this caller's own for models: {fast: openai/gpt-4o-mini}.", max_length=256),
        Rule(
            "self.all(name, name.size() > 0 && name.size() <= 256)",
            f"must have {_KEYS_SHOWN}",
            lambda aliases: all(0 < len(name) <= 256 for name in aliases),
        ),
    ] = Field(default_factory=dict)
    max_tokens: Annotated[
        dict[str, Tokens],
        says(
            'The most tokens that an answer may have, by model; "*" is for all others.',
            max_length=256,
        ),
        Rule(
            "self.all(name, name.size() > 0 && name.size() <= 256)",
            f"must have {_KEYS_SHOWN}",
            lambda caps: all(0 < len(name) <= 256 for name in caps),
        ),
    ] = Field(default_factory=dict)
    limits: Annotated[
        tuple[Limit, ...], says("Limits on this key; every one must allow.", max_length=16)
    ] = ()
    budget: Annotated[
        KeyBudget | None,
        says(
            "How much this key may spend, in USD per period. Requests beyond it get a 429 until "
            "the period ends."
        ),
    ] = None
    expires_at: Annotated[
        AwareDatetime | None, says("When the key stops working, such as 2027-01-01T00:00:00Z.")
    ] = None
    rotation: Annotated[
        Rotation | None, says("How often the operator writes a new key, and how long both work.")
    ] = None
    disabled: Annotated[bool, says("Refuse this key everywhere, without deleting it.")] = False
    tags: Annotated[
        dict[str, Text],
        says("Words for traces, logs and spend reports: {team: payments}.", max_length=32),
    ] = Field(default_factory=dict)


class PolicyLimit(Limit):
    name: Annotated[
        str, says("What callers and metrics know the limit by.", min_length=1, max_length=63)
    ]
    scope: Annotated[
        Literal["Shared", "Each", "User"],
        says(
            "Shared: one counter for all targets. Each: one per ApiKey. User: one per `user` "
            "field of the request."
        ),
    ] = "Each"
    models: Annotated[
        LimitedModels | None, says("Count only requests for these models, such as openai/o*.")
    ] = None


class TargetRef(Model):
    kind: Annotated[Literal["ModelRoute", "ApiKey", "Provider"], says("What kind it is.")]
    name: Annotated[ObjectName, says("Its name, in this namespace.")]


class KindSelector(LabelSelector):
    kind: Annotated[
        Literal["ModelRoute", "ApiKey", "Provider"], says("Which kind the labels are of.")
    ]


class RateLimitPolicySpec(Model):
    """Limits attached to many objects at once."""

    target_refs: Annotated[
        Annotated[
            tuple[TargetRef, ...],
            Field(min_length=1, max_length=64),
            Merging(("kind", "name")),
        ]
        | None,
        says("The objects that are limited, by name."),
    ] = None
    selector: Annotated[
        KindSelector | None, says("Instead of targetRefs: the objects by their labels.")
    ] = None
    limits: Annotated[
        tuple[PolicyLimit, ...],
        says("The limits; every one must allow.", min_length=1, max_length=32),
        Merging(("name",)),
    ]
    on_store_failure: Annotated[
        Literal["Allow", "Deny", "Local"],
        says(
            "What happens while the counters cannot be reached: let through, refuse, or each "
            "gateway pod enforces its share."
        ),
    ] = "Local"
    rules = (
        Rule(
            "has(self.targetRefs) != has(self.selector)",
            "give either targetRefs or selector",
            lambda it: (it.target_refs is None) != (it.selector is None),
        ),
    )


class BudgetSpec(KeyBudget):
    """Money for a group of ApiKeys; each key's own budget must allow too."""

    selector: Annotated[LabelSelector, says("The ApiKeys of this namespace, by their labels.")]
    warn_at: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100)], ...],
        says("Percentages of the amount at which to warn, such as [50, 80].", max_length=10),
        Merging(),
    ] = ()
    on_exceeded: Annotated[
        Literal["Reject", "Warn"],
        says("Reject: requests get a 429 until the period ends. Warn: only an event and a metric."),
    ] = "Reject"

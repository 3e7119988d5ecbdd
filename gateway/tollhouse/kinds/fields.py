"""Types that fields of several kinds share: durations, money, names, label selectors."""

import re
import zoneinfo
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from tollhouse.kinds.schema import Merging, Model, Rule, matching, says

_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
_MONEY = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
_SUCH_AS = "such as 250ms, 30s, 5m or 1h30m"

Delay = Annotated[
    str, Field(max_length=24), matching(_DURATION, f"must be a duration {_SUCH_AS}; 0s for none")
]
Duration = Annotated[
    str,
    Field(max_length=24),
    matching(_DURATION, f"must be a duration longer than 0s, {_SUCH_AS}", also="[1-9]"),
]
Price = Annotated[
    str,
    Field(max_length=24),
    matching(_MONEY, 'must be a decimal string in USD, such as "2.50"'),
]
Amount = Annotated[
    str,
    Field(max_length=24),
    matching(_MONEY, 'must be a decimal string in USD above 0, such as "50.00"', also="[1-9]"),
]


def seconds(duration: str) -> float:
    """``1m30s`` → 90.0, for what ``Duration`` and ``Delay`` take: whole h, m, s and ms."""
    parts = re.findall(r"([0-9]+)(ms|h|m|s)", duration)
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts)


@lru_cache(maxsize=1024)
def known_time_zone(name: str) -> bool:
    """Whether ``name`` is in the IANA time zone database, as ``Europe/Paris`` is."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return name == "UTC"
    return True


TimeZone = Annotated[
    str,
    Field(max_length=64),
    matching(r"^[A-Za-z][A-Za-z0-9_+/-]*$", "must be an IANA time zone such as Europe/Paris"),
    Rule("", "is no IANA time zone; write one such as Europe/Paris or UTC", known_time_zone),
]


_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
_NAME_SAYS = "must be a Kubernetes name: lower-case letters, digits, - and ."
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")

ObjectName = Annotated[str, Field(max_length=253), matching(_NAME, _NAME_SAYS)]
DataKey = Annotated[
    str,
    Field(max_length=253),
    matching(r"^[A-Za-z0-9._-]+$", "must be a data key: letters, digits, -, _ and ."),
]
Text = Annotated[str, Field(max_length=256)]
ModelName = Annotated[
    str,
    Field(max_length=256),
    matching(r"^[^\s*]+$", "must be a model name without spaces or *"),
]
ModelPattern = Annotated[
    str,
    Field(max_length=256),
    matching(
        r"^([^\s*]+\*?|\*)$",
        "must be a model name without spaces; * may only stand at its end, as in openai/*",
    ),
]
RouteModel = Annotated[
    ModelPattern,
    Rule(
        f"!self.matches(':({'|'.join(_EFFORTS)})$')",
        "must not end in an effort such as :high: the gateway takes it off before it looks for a "
        "route",
        lambda value: not value.endswith(tuple(f":{effort}" for effort in _EFFORTS)),
    ),
]
Tokens = Annotated[int, Field(ge=1, le=1_000_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000_000)]
Patterns = Annotated[tuple[ModelPattern, ...], Field(max_length=512), Merging()]
Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)]


class Requirement(Model):
    """One expression over labels."""

    key: Annotated[str, says("The label's name.", max_length=317)]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"], says("How `values` are compared.")
    ]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=63)], ...],
        says("The label's values, for In and NotIn.", max_length=64),
    ] = ()
    rules = (
        Rule(
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            "In and NotIn need values; Exists and DoesNotExist take none",
            lambda it: (it.operator in ("In", "NotIn")) == bool(it.values),
        ),
    )

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelSelector(Model):
    """Objects by their labels; all of what is given must match, and nothing given matches all."""

    match_labels: Annotated[Labels, says("Labels that must have exactly these values.")] = Field(
        default_factory=dict
    )
    match_expressions: Annotated[
        tuple[Requirement, ...], says("Expressions that must all be true.", max_length=16)
    ] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


class Timeouts(Model):
    """Whichever is left out on a ModelRoute is the Provider's."""

    connect: Annotated[Duration | None, says("How long connecting may take, TLS included.")] = None
    first_byte: Annotated[
        Duration | None, says("How long the upstream may take from the request to its answer.")
    ] = None
    idle: Annotated[
        Duration | None, says("How long the upstream may pause in the middle of an answer.")
    ] = None
    total: Annotated[Duration | None, says("How long one attempt may take as a whole.")] = None

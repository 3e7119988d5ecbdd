"""What a route says of parameters, laid over the fields of a request to its provider."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tollhouse.snapshot import Parameters

_NULL = msgspec.Raw(b"null")

Fields = dict[str, Any]
"""The members of a request's body, mostly ``msgspec.Raw``."""

Put = Callable[[Fields, str, Any, bool], None]
"""Sets the field of this name; unless the last argument says to replace, only where none is."""


def put(fields: Fields, name: str, value: Any, replace: bool) -> None:
    """Set a field under its own name. Null counts as none."""
    if replace or fields.get(name, _NULL) == _NULL:
        fields[name] = value


def apply(
    fields: Fields,
    parameters: Parameters,
    cap: int | None,
    *,
    caps: Sequence[str],
    otherwise: str,
    put: Put = put,
) -> None:
    """Put the route's defaults and overrides into ``fields``, and clamp the output to ``cap``.

    ``caps`` are the protocol's names for the most output tokens; where none of them is given,
    ``otherwise`` is. ``put`` knows where the protocol has other names than chat's.
    """
    for name, value in parameters.defaults.items():
        put(fields, name, value, False)
    for name, value in parameters.overrides.items():
        put(fields, name, value, True)
    if cap is None:
        return
    asked = False
    for name in caps:
        value = fields.get(name)
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value)
        if isinstance(value, int):
            asked = True
            fields[name] = min(value, cap)
    if not asked:
        fields[otherwise] = cap

"""A route's own prices and capabilities, completed by what is publicly known about models.

Pure: compiling asks for the models that resources name, routing for those of wildcards.
"""

from collections.abc import Sequence

import msgspec

from tollhouse.snapshot import Capabilities, KnownModel, Pricing, Target

_OF_INPUT = (
    *("cached_input", "cache_write", "cache_write_hour"),
    *("input_audio", "cached_audio", "input_image", "cached_image"),
)
_OF_OUTPUT = ("reasoning", "output_audio", "output_image")
_PER_CALL = ("web_search", "request")


def merged(own: Pricing | None, said: Pricing) -> Pricing:
    """A route's own prices, and where it is silent the published ones (``said``).

    A published price for one kind of input, such as cached, says nothing beside an input price of
    one's own; the same goes for output, and for tiers beside either.
    """
    if own is None:
        return said
    names = ["input", "output", *_PER_CALL]
    names += _OF_INPUT if own.input is None else ()
    names += _OF_OUTPUT if own.output is None else ()
    filled = {name: getattr(own, name) or getattr(said, name) for name in names}
    if own.input is None and own.output is None and not own.tiers:
        filled["tiers"] = said.tiers
    return msgspec.structs.replace(own, **filled)


def searches(target: Target, able: Capabilities) -> bool:
    """Whether a target of a route with these capabilities searches the web: known or said."""
    return (able.web_search if target.web_search is None else target.web_search) is True


def completed(
    targets: Sequence[Target], able: Capabilities, models: Sequence[KnownModel | None]
) -> tuple[tuple[Target, ...], Capabilities]:
    """The targets and the route's own capabilities, completed by what is known about each
    target's model (None: nothing).

    Whichever target is tried must take the whole prompt, so the smallest window counts, if all are
    known. Searches go to those targets that have them: the route as a whole has them when all do.
    """
    says_nothing = able.web_search is None
    filled = tuple(
        target if model is None else _completed(target, model, searching=says_nothing)
        for target, model in zip(targets, models, strict=True)
    )
    windows = [it.context_window for it in models if it is not None and it.context_window]
    if able.context_window is None and windows and None not in models:
        able = msgspec.structs.replace(able, context_window=min(windows))
    if says_nothing and filled and all(it.web_search for it in filled):
        able = msgspec.structs.replace(able, web_search=True)
    return filled, able


def _completed(target: Target, model: KnownModel, *, searching: bool) -> Target:
    found = merged(target.pricing, model.pricing)
    known = model.web_search if searching and target.web_search is None else target.web_search
    return msgspec.structs.replace(
        target, pricing=found if found != Pricing() else None, web_search=known
    )

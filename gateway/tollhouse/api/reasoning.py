"""How much a model is to reason: four ways to ask, one normal form.

Sources of the forms: ``reasoning_effort`` is OpenAI's, ``reasoning: {effort, max_tokens,
exclude}`` OpenRouter's, ``thinking: {type, budget_tokens}`` Anthropic's, and the suffix of a
model's name (``openai/o4:high``) the gateway's own.
"""

import msgspec

from tollhouse.api.chat import ChatRequest
from tollhouse.errors import RequestError
from tollhouse.snapshot import Route

_DEFAULT = "medium"
"""What thinking without an amount comes to: OpenAI's own default."""
_WORDS = ((10_000, "high"), (5_000, "medium"), (2_000, "low"))
"""From which budget (tokens) each word holds, as LiteLLM translates Anthropic's budgets."""


class Reasoning(msgspec.Struct, frozen=True):
    """What the caller asked for: an effort word, a budget in tokens, or both.

    ``exclude`` keeps the reasoning out of the answer; ``param`` is the field that asked, for
    errors. Effort ``none`` turns reasoning off and has no budget.
    """

    effort: str | None = None
    max_tokens: int | None = None
    exclude: bool = False
    param: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether the model is asked to reason at all."""
        return self.word not in (None, "none")

    @property
    def word(self) -> str | None:
        """The effort, or the one that the budget comes to; None where neither was asked for."""
        if self.effort is not None or self.max_tokens is None:
            return self.effort
        for least, word in _WORDS:
            if self.max_tokens >= least:
                return word
        return "minimal"


def asked(request: ChatRequest, suffix: str | None) -> Reasoning | None:
    """The normal form; None when nothing of it was sent.

    ``reasoning_effort`` beats ``reasoning`` beats ``thinking``, and any of them the ``suffix``.
    """
    given, thinking = request.reasoning, request.thinking
    if given is None and thinking is None and request.reasoning_effort is None and suffix is None:
        return None
    budget = given.max_tokens if given is not None else None
    if budget is None and thinking is not None and thinking.type != "disabled":
        budget = thinking.budget_tokens
    exclude = given is not None and given.exclude is True
    effort, param = _effort(request, suffix, budget)
    return Reasoning(
        effort=effort,
        max_tokens=None if effort == "none" else budget,
        exclude=exclude,
        param=param,
    )


def check(reasoning: Reasoning | None, route: Route) -> None:
    """Raise RequestError when reasoning is wanted of a route that has none and refuses to drop it.

    Turning reasoning off is never refused: a model without it complies.
    """
    if (
        reasoning is not None
        and reasoning.wanted
        and route.capabilities.reasoning is False
        and route.parameters.unsupported == "Reject"
    ):
        named = reasoning.param
        what = "the effort at the end of `model`" if named == "model" else f"`{named}`"
        raise RequestError(
            "unsupported_parameter",
            f"{route.models[0]} does not reason. Leave out {what}, or use another model.",
            param=reasoning.param,
        )


def _effort(
    request: ChatRequest, suffix: str | None, budget: int | None
) -> tuple[str | None, str | None]:
    """The effort word and the field that asked; no word where only a budget did."""
    given, thinking = request.reasoning, request.thinking
    if request.reasoning_effort is not None:
        return request.reasoning_effort, "reasoning_effort"
    if given is not None and given.effort is not None:
        return given.effort, "reasoning.effort"
    if given is not None and given.max_tokens is not None:
        return None, "reasoning.max_tokens"
    if thinking is not None:
        if thinking.type == "disabled":
            return "none", "thinking"
        return (_DEFAULT if budget is None else None), "thinking"
    return suffix, "model" if suffix is not None else None

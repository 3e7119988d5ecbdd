"""Tokens where the provider counted none: a stream that was cut off, or a server without usage.

Four characters to a token is what OpenAI's own guide gives for English text. It needs no table of
a model's vocabulary, and a caller who hangs up early is counted all the same.
"""

from tollhouse.api.usage import Usage

_CHARACTERS_PER_TOKEN = 4
_WRITTEN = frozenset(
    {
        "content",
        "text",
        "refusal",
        "reasoning",
        "reasoning_content",
        "tool_calls",
        "function",
        "function_call",
        "name",
        "arguments",
    }
)
"""The fields of messages and deltas that hold words; images and audio are no words."""


class Estimate(Usage, frozen=True):
    """Tokens as the gateway reckons them, in place of the provider's own count."""


def usage(messages: object, written: int) -> Estimate:
    """The estimate for these messages and an answer of ``written`` characters."""
    return Estimate(prompt_tokens=_tokens(characters(messages)), completion_tokens=_tokens(written))


def characters(value: object) -> int:
    """How many characters of text a message, a delta, or a list of them holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(characters(part) for name, part in value.items() if name in _WRITTEN)
    if isinstance(value, list):
        return sum(characters(part) for part in value)
    return 0


def _tokens(count: int) -> int:
    return -(-count // _CHARACTERS_PER_TOKEN)

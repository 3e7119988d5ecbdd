"""What the gateway puts into an answer, and what it takes out; the rest goes on as it came.

Added: the name that the caller asked by, the reasoning under both of its common names, the cost,
token details where other clients look for them, and ``metadata`` that says who answered. A strict
answer is cut to OpenAI's shape instead. Whole answers and streams are treated alike.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from tollhouse.api import cost, shape
from tollhouse.api.usage import Usage
from tollhouse.snapshot import Pricing

_REASONING = ("reasoning", "reasoning_content")
"""The two names that servers give it: OpenRouter's and vLLM's, and DeepSeek's."""
_EXCLUDED = (*_REASONING, "reasoning_details")
_FINISH_REASONS = {
    b'"function_call"': msgspec.Raw(b'"tool_calls"'),
    b'"tool_use"': msgspec.Raw(b'"tool_calls"'),
    b'"eos"': msgspec.Raw(b'"stop"'),
    b'"end_turn"': msgspec.Raw(b'"stop"'),
    b'"max_tokens"': msgspec.Raw(b'"length"'),
}
"""Other servers' words for OpenAI's."""
_EMPTY = (b"null", b'""')

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices_decoder = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Fields = dict[str, Any]
"""The members of a JSON object, mostly ``msgspec.Raw``."""


class Origin(msgspec.Struct, frozen=True):
    """Who was asked and who answers, and what of the answer the caller wants.

    Models are by canonical id but for ``requested_model``, the name as sent, and
    ``upstream_model``, the provider's own. ``pricing`` None: nobody knows the price. ``searches``
    are the web searches to charge where the provider does not count them.
    """

    requested_model: str
    requested_provider: str | None
    used_model: str
    used_provider: str
    upstream_model: str
    pricing: Pricing | None = None
    strict: bool = False
    exclude_reasoning: bool = False
    searches: int = 0


def whole(body: bytes, origin: Origin, usage: Usage | None) -> bytes:
    """A whole answer as the caller gets it; ``usage`` is what was read of it.

    What does not read as a chat completion passes on as it came.
    """
    try:
        fields: Fields = dict(_fields_decoder.decode(body))
    except _BROKEN:
        return body
    underlying = fields.get("model")
    fields["model"] = origin.requested_model
    reasons = b'"reasoning"' in body or b'"reasoning_content"' in body
    _normalise(fields, "message", origin, reasons=reasons)
    if origin.strict:
        return _strictly(fields)
    if usage is not None:
        fields["usage"] = _usage(fields["usage"], usage, origin)
    fields["metadata"] = _metadata(origin, underlying)
    return msgspec.json.encode(fields)


class Chunks:
    """The chunks of one stream as the caller gets them.

    Most need nothing but the caller's name for the model: as long as chunks begin with the same
    bytes up to that name, only those are exchanged. ``metadata`` goes onto each chunk that
    finishes a choice and onto the usage chunk, so nothing has to be held back to know the last.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._model = msgspec.Raw(msgspec.json.encode(origin.requested_model))
        self._head = b""
        self._new_head = b""

    def plain(self, data: bytes) -> bytes:
        """A chunk of which nothing but the model's name has to change."""
        if self._origin.strict:
            return self.rewritten(data, None, finishes=False, reasons=False, shows_usage=True)
        if not self._head or not data.startswith(self._head):
            self._learn(data)
            if not self._head:
                return self.rewritten(data, None, finishes=False, reasons=False, shows_usage=True)
        return self._new_head + data[len(self._head) :]

    def rewritten(
        self, data: bytes, usage: Usage | None, *, finishes: bool, reasons: bool, shows_usage: bool
    ) -> bytes:
        """A chunk that finishes a choice, reasons, or counts (``usage``); b"" for one left empty.

        Without ``shows_usage`` the caller has not asked for the count, so it is taken out.
        """
        origin = self._origin
        try:
            fields: Fields = dict(_fields_decoder.decode(data))
        except _BROKEN:
            return data
        underlying = fields.get("model")
        fields["model"] = self._model
        empty = _normalise(fields, "delta", origin, reasons=reasons)
        if usage is not None and not shows_usage:
            del fields["usage"]
        if empty and "usage" not in fields:
            return b""
        if origin.strict:
            return _strictly(fields)
        if usage is not None and shows_usage:
            fields["usage"] = _usage(fields["usage"], usage, origin)
        if finishes or (usage is not None and shows_usage):
            fields["metadata"] = _metadata(origin, underlying)
        return msgspec.json.encode(fields)

    def _learn(self, data: bytes) -> None:
        """Note the chunk's bytes up to the end of its model, where that can be told for sure."""
        self._head = b""
        before, name, _ = data.partition(b'"model"')
        try:
            # Only where a member of the chunk itself may stand do these bytes read as an object.
            _fields_decoder.decode(before + b'"model":0}')
            model = bytes(_fields_decoder.decode(data)["model"])
        except (*_BROKEN, KeyError):
            return
        for head in (before + name + b":" + model, before + name + b": " + model):
            if model.startswith(b'"') and data.startswith(head):
                self._head = head
                self._new_head = head[: -len(model)] + bytes(self._model)


def _normalise(fields: Fields, part: str, origin: Origin, *, reasons: bool) -> bool:
    """Put finish reasons and reasoning right in ``choices``; True when nothing is left in them.

    ``part`` is ``message`` or ``delta``; ``reasons`` says that there may be reasoning in it.
    """
    try:
        choices: list[Fields] = list(_choices_decoder.decode(fields["choices"]))
        changed = False
        empty = bool(choices) and origin.exclude_reasoning and reasons
        for choice in choices:
            finish = choice.get("finish_reason", b"null")
            word = _FINISH_REASONS.get(bytes(finish))
            if word is not None:
                choice["finish_reason"] = word
                changed = True
            if reasons:
                inner = dict(_fields_decoder.decode(choice[part]))
                if origin.exclude_reasoning:
                    for name in _EXCLUDED:
                        inner.pop(name, None)
                else:
                    _mirror(inner)
                choice[part] = inner
                changed = True
                empty = empty and bytes(finish) == b"null" and _is_empty(list(inner.values()))
    except (*_BROKEN, KeyError):
        return False
    if changed:
        fields["choices"] = choices
    return empty


def _mirror(message: Fields) -> None:
    """Give the reasoning under both names."""
    one, other = _REASONING
    for given, missing in ((one, other), (other, one)):
        text = message.get(given)
        if text is not None and bytes(text).startswith(b'"'):
            if bytes(message.get(missing, b"null")) == b"null":
                message[missing] = text
            return


def _is_empty(values: Sequence[msgspec.Raw]) -> bool:
    return all(bytes(value) in _EMPTY for value in values)


def _usage(given: msgspec.Raw, usage: Usage, origin: Origin) -> Fields:
    """The provider's ``usage`` with the cost (USD, null when unknown) and the details added."""
    fields: Fields = dict(_fields_decoder.decode(given))
    if usage.reasoning_tokens is not None:
        fields["reasoning_tokens"] = usage.reasoning_tokens
        _detail(fields, "completion_tokens_details", "reasoning_tokens", usage.reasoning_tokens)
    if usage.cached_tokens is not None:
        _detail(fields, "prompt_tokens_details", "cached_tokens", usage.cached_tokens)
    price = cost.of(usage, origin.pricing, origin.searches)
    fields["cost"] = None if price is None else msgspec.Raw(cost.text(price).encode())
    return fields


def _detail(fields: Fields, details: str, name: str, tokens: int) -> None:
    given = fields.get(details, b"null")
    if bytes(given) == b"null":
        fields[details] = {name: tokens}
        return
    inner: Fields = dict(_fields_decoder.decode(given))
    if bytes(inner.get(name, b"null")) == b"null":
        inner[name] = tokens
        fields[details] = inner


def _metadata(origin: Origin, underlying: msgspec.Raw | None) -> Fields:
    known = underlying is not None and bytes(underlying).startswith(b'"')
    return {
        "requested_model": origin.requested_model,
        "requested_provider": origin.requested_provider,
        "used_model": origin.used_model,
        "used_provider": origin.used_provider,
        "underlying_used_model": underlying if known else origin.upstream_model,
    }


def _strictly(fields: Fields) -> bytes:
    encoded = msgspec.json.encode(fields)
    try:
        return msgspec.json.encode(shape.completion(msgspec.json.decode(encoded)))
    except _BROKEN:
        # Text that is not UTF-8, say: nobody can read it, and it is not ours to repair.
        return encoded

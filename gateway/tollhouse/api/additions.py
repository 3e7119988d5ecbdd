"""What the gateway puts into an answer, and what it takes out; the rest goes on as it came.

Added: the name that the caller asked by, the reasoning under both of its common names, the cost,
token details where other clients look for them, and ``metadata`` that says who answered. A strict
answer is cut to OpenAI's shape instead. Whole answers and streams are treated alike.

A Response has a ``metadata`` of its own, which is the caller's: who answered is told in
``tollhouse_metadata`` there.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from tollhouse.api import cost, shape
from tollhouse.api.shape import Shape
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
_NULL = msgspec.Raw(b"null")

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

    def price(self, usage: Usage | None) -> Decimal | None:
        """What this usage costs, in USD; None where that is unknown."""
        return cost.of(usage, self.pricing, self.searches)


class _Message(msgspec.Struct):
    reasoning: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: msgspec.Raw = _NULL


class Completion(msgspec.Struct):
    """What is read of a whole chat completion, in one pass."""

    choices: list[_Choice]
    model: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_plain(self) -> bool:
        """Whether its choices are as the caller is to have them."""
        return all(
            bytes(it.finish_reason) not in _FINISH_REASONS
            and bytes(it.message.reasoning) == bytes(it.message.reasoning_content) == b"null"
            for it in self.choices
        )


def whole(
    body: bytes,
    seen: Completion | None,
    origin: Origin,
    usage: Usage | None,
    price: Decimal | None,
) -> bytes:
    """A whole chat completion as the caller gets it; ``price`` (USD) is that of its ``usage``.

    ``seen`` is what was read of it, None where it does not read as one; what is no JSON object
    passes on as it came.
    """
    plain = seen is not None and seen.is_plain and not origin.exclude_reasoning
    if seen is not None and plain:
        made = (
            _cut_whole(body, origin)
            if origin.strict
            else _spliced(body, seen, origin, usage, price)
        )
        if made is not None:
            return made
    try:
        fields: Fields = dict(_fields_decoder.decode(body))
    except _BROKEN:
        return body
    underlying = fields.get("model")
    fields["model"] = origin.requested_model
    if not plain:
        _normalise(fields, "message", origin, reasons=b'"reasoning' in body)
    if origin.strict:
        return strictly(shape.CHAT, fields)
    if usage is not None:
        fields["usage"] = _usage(fields["usage"], usage, price)
    fields["metadata"] = metadata(origin, underlying)
    return msgspec.json.encode(fields)


def _spliced(
    body: bytes, seen: Completion, origin: Origin, usage: Usage | None, price: Decimal | None
) -> bytes | None:
    """The same for an answer of which only the model's name, usage and ``metadata`` differ.

    A long answer is not read again for them. None where it cannot be told for sure where they
    stand.
    """
    end = len(body.rstrip()) - 1
    model = bytes(seen.model)
    at = body.find(b'"model"')
    start = body.find(model, at)
    if at < 0 or seen.metadata is not msgspec.UNSET or body[at + 7 : start].strip() != b":":
        return None
    pieces = [body[:start], msgspec.json.encode(origin.requested_model)]
    rest = start + len(model)
    try:
        # Only where a member of the answer itself may stand do these bytes read as an object.
        _fields_decoder.decode(body[:at] + b'"model":0}')
        if usage is not None:
            at = body.rfind(b'"usage"')
            start = body.find(bytes(seen.usage), at)
            if at < rest or body[at + 7 : start].strip() != b":":
                return None
            _fields_decoder.decode(b"{" + body[at:])
            pieces += (body[rest:start], msgspec.json.encode(_usage(seen.usage, usage, price)))
            rest = start + len(bytes(seen.usage))
    except _BROKEN:
        return None
    added = msgspec.json.encode(metadata(origin, seen.model))
    return b"".join((*pieces, body[rest:end], b',"metadata":', added, b"}"))


def _cut_whole(body: bytes, origin: Origin) -> bytes | None:
    """The same for a strict caller; None for text that is not UTF-8."""
    try:
        answer = {**msgspec.json.decode(body), "model": origin.requested_model}
        return msgspec.json.encode(shape.only(shape.CHAT, answer))
    except _BROKEN:
        return None


def passed(
    cut: Shape | None, fields: Mapping[str, Any], origin: Origin, price: Decimal | None
) -> bytes:
    """An answer or an event of an endpoint whose bodies pass through, as the caller gets it.

    Its model, where it names one, has the caller's name; ``usage``, where there is one, tells the
    ``price`` (USD). ``cut`` is OpenAI's shape of it; None where OpenAI has no such answer.
    """
    shown = dict(fields)
    if "model" in fields:
        shown["model"] = origin.requested_model
    if origin.strict:
        return msgspec.json.encode(shown) if cut is None else strictly(cut, shown)
    shown |= with_cost(fields, price)
    shown["metadata"] = metadata(origin, fields.get("model"))
    return msgspec.json.encode(shown)


def response(fields: Mapping[str, Any], origin: Origin, price: Decimal | None) -> Fields:
    """A response that is over as the caller gets it: what it cost (USD), and who answered.

    ``fields["model"]`` is still the provider's own name for the model, where it gave one.
    """
    shown = dict(fields)
    if "model" in fields:
        shown["model"] = origin.requested_model
    if not origin.strict:
        shown |= with_cost(fields, price)
        shown["tollhouse_metadata"] = metadata(origin, fields.get("model"))
    return shown


def with_cost(fields: Mapping[str, Any], price: Decimal | None) -> Fields:
    """``usage`` with its cost (USD, null when unknown), in place of the one that is there."""
    given = fields.get("usage")
    if isinstance(given, msgspec.Raw):
        try:
            given = _fields_decoder.decode(given)
        except _BROKEN:
            return {}
    return {} if given is None else {"usage": {**given, "cost": _number(price)}}


class Chunks:
    """The chunks of one stream as the caller gets them.

    Most need nothing but the caller's name for the model: as long as chunks begin with the same
    bytes up to that name, only those are exchanged. ``metadata`` goes onto each chunk that
    finishes a choice and onto the usage chunk, so nothing has to be held back to know the last.
    ``cut`` is the shape of a strict one: that of chat, or of a text completion.
    """

    def __init__(self, origin: Origin, cut: Shape = shape.CHAT) -> None:
        self._origin = origin
        self._cut = cut
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
            return strictly(self._cut, fields)
        if usage is not None and shows_usage:
            price = origin.price(usage)
            fields["usage"] = _usage(fields["usage"], usage, price)
        if finishes or (usage is not None and shows_usage):
            fields["metadata"] = metadata(origin, underlying)
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


def _usage(given: msgspec.Raw, usage: Usage, price: Decimal | None) -> Fields:
    """The provider's ``usage`` with the cost (USD, null when unknown) and the details added."""
    try:
        fields: Fields = dict(_fields_decoder.decode(given))
    except _BROKEN:
        fields = {}
    if usage.reasoning_tokens is not None:
        fields["reasoning_tokens"] = usage.reasoning_tokens
        _detail(fields, "completion_tokens_details", "reasoning_tokens", usage.reasoning_tokens)
    if usage.cached_tokens is not None:
        _detail(fields, "prompt_tokens_details", "cached_tokens", usage.cached_tokens)
    fields["cost"] = _number(price)
    return fields


def _number(price: Decimal | None) -> msgspec.Raw:
    return _NULL if price is None else msgspec.Raw(cost.text(price).encode())


def _detail(fields: Fields, details: str, name: str, tokens: int) -> None:
    given = fields.get(details, b"null")
    if bytes(given) == b"null":
        fields[details] = {name: tokens}
        return
    try:
        inner: Fields = dict(_fields_decoder.decode(given))
    except _BROKEN:
        return
    if bytes(inner.get(name, b"null")) == b"null":
        inner[name] = tokens
        fields[details] = inner


def metadata(origin: Origin, underlying: object) -> Fields:
    """Who was asked and who answered; ``underlying`` is the model in the provider's own answer."""
    if isinstance(underlying, str):
        underlying = msgspec.Raw(msgspec.json.encode(underlying))
    known = isinstance(underlying, msgspec.Raw) and bytes(underlying).startswith(b'"')
    return {
        "requested_model": origin.requested_model,
        "requested_provider": origin.requested_provider,
        "used_model": origin.used_model,
        "used_provider": origin.used_provider,
        "underlying_used_model": underlying if known else origin.upstream_model,
    }


def strictly(cut: Shape, fields: Fields) -> bytes:
    """These fields as JSON, without those that are not in the shape."""
    encoded = msgspec.json.encode(fields)
    try:
        return msgspec.json.encode(shape.only(cut, msgspec.json.decode(encoded)))
    except _BROKEN:
        # Text that is not UTF-8, say: nobody can read it, and it is not ours to repair.
        return encoded

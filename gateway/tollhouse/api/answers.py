"""Chat completions on their way back: what the gateway reads of them as they pass.

Source of the format: the OpenAI API reference, "Create chat completion" and its streaming chunks.
Readers are tolerant, since providers differ; what is not understood passes on as it came.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from tollhouse.api import additions, estimate, sse, usage
from tollhouse.api.additions import Completion, Origin
from tollhouse.api.usage import Usage
from tollhouse.errors import StatusError

_NULL = msgspec.Raw(b"null")


class _Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """What the gateway reads of one stream chunk; tolerant, since it is the provider's."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NULL
    error: Any = None

    @property
    def has_content(self) -> bool:
        """Whether a caller would see something of the answer in it, or that it is over."""
        return any(
            choice.finish_reason is not None
            or any(value and name != "role" for name, value in (choice.delta or {}).items())
            for choice in self.choices or ()
        )

    @property
    def reasons(self) -> bool:
        """Whether it holds a piece of reasoning, under either of its names."""
        for choice in self.choices or ():
            delta = choice.delta
            if delta and (
                delta.get("reasoning") is not None or delta.get("reasoning_content") is not None
            ):
                return True
        return False

    @property
    def characters(self) -> int:
        """How much was written in it: words, reasoning, the arguments of tool calls."""
        written = 0
        for choice in self.choices or ():
            delta = choice.delta or {}
            text = delta.get("content")
            # Nearly every chunk of a stream is a few words and nothing else.
            if len(delta) == 1 and isinstance(text, str):
                written += len(text)
            else:
                written += estimate.characters(delta)
        return written

    @property
    def finishes(self) -> bool:
        for choice in self.choices or ():  # noqa: SIM110  # because a generator costs twice the loop, for every chunk
            if choice.finish_reason is not None:
                return True
        return False


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _NULL


_chunk_decoder = msgspec.json.Decoder(Chunk)
_completion_decoder = msgspec.json.Decoder(Completion)
_answer_decoder = msgspec.json.Decoder(_Answer)


def read_chunk(data: bytes) -> Chunk | None:
    """The chunk in an event's data, or None when it is not one."""
    try:
        return _chunk_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Whole:
    """A whole chat completion: read for its usage, then made into what the caller gets."""

    def __init__(self) -> None:
        self._body = b""
        self._seen: Completion | None = None
        self._usage: Usage | None = None

    def read(self, body: bytes) -> Usage | None:
        """Keep the answer; its usage, None where there is none. Raises ValueError unless JSON."""
        self._body, self._seen = body, None
        try:
            given = self._look(body)
        except msgspec.ValidationError:
            given = _NULL
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError("the answer is not JSON") from error
        self._usage = None if given == _NULL else usage.read(given)
        return self._usage

    def made(self, origin: Origin, price: Decimal | None) -> bytes:
        """What the caller gets; ``price`` (USD) is that of the usage."""
        return additions.whole(self._body, self._seen, origin, self._usage, price)

    def _look(self, body: bytes) -> msgspec.Raw:
        try:
            self._seen = _completion_decoder.decode(body)
            return self._seen.usage
        except msgspec.ValidationError:
            # Not a completion in every part; its usage counts all the same.
            return _answer_decoder.decode(body).usage


def status_of(error: object) -> int:
    """The HTTP status that an error inside a stream would have had; 500 where it does not say."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return 429 if code == "rate_limit_exceeded" else 500


class StreamWatch:
    """Looks at a chat completion's chunks as they pass, and makes of each what the caller gets.

    Usage is always asked of the provider; it goes on only if the caller wants it too. Until it
    comes, ``usage`` is an estimate from ``messages`` and from what was written. ``origin`` is asked
    once per attempt who answers; without it every chunk goes on in its own bytes.
    """

    def __init__(
        self,
        *,
        wants_usage: bool,
        messages: object = (),
        origin: Callable[[], Origin] | None = None,
    ) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self._counted: Usage | None = None
        self._characters = 0
        self._wants_usage = wants_usage
        self._messages = messages
        self._origin = origin
        self._chunks: additions.Chunks | None = None

    @property
    def usage(self) -> Usage | None:
        if self._counted is None and self._characters:
            return estimate.usage(msgspec.to_builtins(self._messages), self._characters)
        return self._counted

    def fresh(self) -> "StreamWatch":
        return StreamWatch(
            wants_usage=self._wants_usage, messages=self._messages, origin=self._origin
        )

    def see(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data == b"[DONE]":
            self.done = self.begun = True
            return sse.DONE
        chunk = read_chunk(data) if data else None
        if chunk is None:
            return event
        if chunk.error is not None:
            raise StatusError(status_of(chunk.error), data)
        finishes, reasons = chunk.finishes, chunk.reasons
        self.finished = self.finished or finishes
        self.begun = self.begun or chunk.has_content
        self._characters += chunk.characters
        counted = usage.read(chunk.usage) if chunk.usage != _NULL else None
        if counted is not None:
            self._counted = counted
            if not chunk.choices and not self._wants_usage:
                return b""
        if self._chunks is None:
            if self._origin is None:
                return event
            self._chunks = additions.Chunks(self._origin())
        if finishes or reasons or counted is not None:
            passed = self._chunks.rewritten(
                data, counted, finishes=finishes, reasons=reasons, shows_usage=self._wants_usage
            )
        else:
            passed = self._chunks.plain(data)
        if b"\n" in passed:
            passed = passed.replace(b"\n", b"\ndata: ")
        return b"data: " + passed + b"\n\n" if passed else b""

    def ending(self) -> bytes:
        return sse.DONE

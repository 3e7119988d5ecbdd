"""What an answer cost in tokens, in one form for every protocol."""

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them; None where it did not say.

    ``cached_tokens`` are part of the prompt, ``reasoning_tokens`` part of the completion.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _ChatUsage(msgspec.Struct):
    """``usage`` of a chat completion; the last two are where other servers put the details."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    reasoning_tokens: int | None = None


_decoder = msgspec.json.Decoder(_ChatUsage | None)


def of_chat(raw: bytes | msgspec.Raw) -> Usage | None:
    """The tokens in a chat completion's ``usage``; None for null and for what is no such thing.

    Source of the format: the OpenAI API reference; ``prompt_cache_hit_tokens`` is DeepSeek's.
    """
    try:
        said = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if said is None:
        return None
    prompt, completion = said.prompt_tokens_details, said.completion_tokens_details
    cached = prompt.cached_tokens if prompt is not None else None
    reasoning = completion.reasoning_tokens if completion is not None else None
    if cached is None:
        cached = said.prompt_cache_hit_tokens
    if reasoning is None:
        reasoning = said.reasoning_tokens
    return Usage(
        prompt_tokens=max(0, said.prompt_tokens or 0),
        completion_tokens=max(0, said.completion_tokens or 0),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )

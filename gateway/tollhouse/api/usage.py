"""What an answer cost in tokens, in one form for every protocol."""

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them; None where it did not say.

    The prompt holds ``cached_tokens`` (read from a cache; those of audio and images among them),
    ``cache_write_tokens`` (those that it keeps for an hour among them) and the prompt's audio and
    images, the completion ``reasoning_tokens`` and the completion's audio and images.
    ``web_searches`` are no tokens.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_hour_tokens: int | None = None
    prompt_audio_tokens: int | None = None
    prompt_image_tokens: int | None = None
    cached_audio_tokens: int | None = None
    cached_image_tokens: int | None = None
    completion_audio_tokens: int | None = None
    completion_image_tokens: int | None = None
    web_searches: int | None = None

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def has_kinds(self) -> bool:
        """Whether there are tokens of more kinds than plain, cached and reasoning ones."""
        return bool(
            self.cache_write_tokens
            or self.prompt_audio_tokens
            or self.prompt_image_tokens
            or self.cached_audio_tokens
            or self.cached_image_tokens
            or self.completion_audio_tokens
            or self.completion_image_tokens
        )


class _ByMedium(msgspec.Struct):
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cached_tokens_details: _ByMedium | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: int | None = None


_NO_PROMPT = _PromptDetails()
_NO_COMPLETION = _CompletionDetails()
_NO_MEDIA = _ByMedium()


class _Said(msgspec.Struct):
    """``usage`` of any answer: chat's names, those of responses and images, and where other
    servers put the details."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    reasoning_tokens: int | None = None
    server_tool_use: _ServerTools | None = None
    num_search_queries: int | None = None


_decoder = msgspec.json.Decoder(_Said | None)


def read(raw: bytes | msgspec.Raw | None) -> Usage | None:
    """The counts in an answer's ``usage``; None where it has none of tokens, or is no such thing.

    Sources of the format: the OpenAI API reference (chat, responses, images, ``cached_tokens_
    details`` of realtime); ``prompt_cache_hit_tokens`` is DeepSeek's, ``cache_write_tokens`` and
    ``server_tool_use`` OpenRouter's, ``cache_creation…`` Anthropic's as LiteLLM passes it on,
    ``num_search_queries`` Perplexity's. xAI counts reasoning beside the completion and not in it,
    which its total gives away.
    """
    try:
        said = None if raw is None else _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if said is None:
        return None
    prompt = said.prompt_tokens_details or said.input_tokens_details or _NO_PROMPT
    completion = said.completion_tokens_details or said.output_tokens_details or _NO_COMPLETION
    cached_media = prompt.cached_tokens_details or _NO_MEDIA
    given = _either(said.prompt_tokens, said.input_tokens)
    written_out = _either(said.completion_tokens, said.output_tokens)
    completion_tokens = written_out or 0
    if given is None and said.total_tokens is not None:
        given = said.total_tokens - completion_tokens
    prompt_tokens = given or 0
    reasoning = _either(completion.reasoning_tokens, said.reasoning_tokens)
    if reasoning and said.total_tokens == prompt_tokens + completion_tokens + reasoning:
        completion_tokens += reasoning
    searches = said.num_search_queries
    if said.server_tool_use is not None:
        searches = _either(said.server_tool_use.web_search_requests, searches)
    if given is None and written_out is None and searches is None:
        return None
    written = _either(prompt.cache_write_tokens, prompt.cache_creation_tokens)
    hour = said.cache_creation.ephemeral_1h_input_tokens if said.cache_creation else None
    return Usage(
        prompt_tokens=max(0, prompt_tokens),
        completion_tokens=max(0, completion_tokens),
        cached_tokens=_either(prompt.cached_tokens, said.prompt_cache_hit_tokens),
        reasoning_tokens=reasoning,
        cache_write_tokens=_either(written, said.cache_creation_input_tokens),
        cache_write_hour_tokens=hour,
        prompt_audio_tokens=prompt.audio_tokens,
        prompt_image_tokens=prompt.image_tokens,
        cached_audio_tokens=cached_media.audio_tokens,
        cached_image_tokens=cached_media.image_tokens,
        completion_audio_tokens=completion.audio_tokens,
        completion_image_tokens=completion.image_tokens,
        web_searches=searches,
    )


def _either(count: int | None, other: int | None) -> int | None:
    """The first of two counts that was given."""
    return other if count is None else count

"""What an answer cost in tokens, in one form for every protocol."""

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

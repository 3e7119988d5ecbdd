"""Tokens where nobody has counted: before a call, and for a stream without usage.

All of it is approximate, and needs no table of a model's vocabulary. A prompt is weighed by what
its bytes are, since plain words have four to five bytes to a token, and digits, code and scripts
other than Latin two or three. The weights come from counting texts of 26 kinds with OpenAI's o200k
and cl100k vocabularies; ``tests/unit/test_estimate.py`` holds some of the counts against them.
"""

import re

from tollhouse.api.usage import Usage

IMAGE_TOKENS = 1_600
"""What an image in a prompt is taken for: about the most at OpenAI in high detail and at Anthropic;
their guides to images give both."""
AUDIO_TOKENS = 2_000
"""The same for a recording: a minute at Gemini, which counts 32 tokens a second."""
FILE_TOKENS = 4_000
"""The same for a document, such as a PDF of two pages."""

_BYTES_PER_TOKEN = 4
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
_LOWER, _BLANK, _DENSE, _FOREIGN, _OTHER = b"a", b" ", b"0", b"\xff", b"."
_WEIGHTS = ((_LOWER, 25), (_BLANK, 6), (_DENSE, 70), (_FOREIGN, 42))
_WEIGHT_OF_OTHERS = 55
"""Hundredths of a token for a byte of each kind: lower-case letters, blanks, digits and capitals,
what is not ASCII, and the rest."""
_BLOCKS, _BLOCK = 8, 128
"""How many pieces of a long prompt are looked at, spread evenly over it, and of how many bytes."""
_ESCAPE = 190
"""What a character written as ``\\u4eca`` weighs too much by itself, in hundredths."""
_KINDS = bytes(
    _FOREIGN[0]
    if byte > 127
    else _LOWER[0]
    if 97 <= byte <= 122
    else _DENSE[0]
    if chr(byte).isalnum()
    else _BLANK[0]
    if byte in b" \t\r\n"
    else _OTHER[0]
    for byte in range(256)
)
# Within a JSON string every quote has a backslash before it, so text cannot look like a field.
_PAYLOAD = re.compile(
    rb'"(?:url|image_url|data|file_data)"\s*:\s*"(?:data:[^",]*,)?[A-Za-z0-9+/=_-]{64,}"'
)
_MEDIA = (b'"image', b'"input_', b'"file"', b'"document"')
_PART = re.compile(
    rb'"type"\s*:\s*"(?:(image_url|input_image|image)|(input_audio)|(file|input_file|document))"'
)


class Estimate(Usage, frozen=True):
    """Tokens as the gateway reckons them, in place of the provider's own count."""


def prompt(body: bytes) -> int:
    """The prompt tokens of a JSON body, or of a piece of one such as its ``messages``.

    Approximate, and rather too much than too little. What images, audio and files hold is not
    looked at: each counts as ``IMAGE_TOKENS``, ``AUDIO_TOKENS`` or ``FILE_TOKENS``.
    """
    media = 0
    # Looking for bytes costs more than weighing them, so few are looked for.
    if b'"type"' in body and any(it in body for it in _MEDIA):
        for image, audio, _ in _PART.findall(body):
            media += IMAGE_TOKENS if image else AUDIO_TOKENS if audio else FILE_TOKENS
        body = _PAYLOAD.sub(b"", body)
    sample = body
    if len(body) > 2 * _BLOCKS * _BLOCK:
        step = len(body) // _BLOCKS
        sample = b"".join([body[it * step : it * step + _BLOCK] for it in range(_BLOCKS)])
    kinds = sample.translate(_KINDS)
    others, weight = len(kinds), 0
    for kind, each in _WEIGHTS:
        count = kinds.count(kind)
        others -= count
        weight += count * each
    weight += others * _WEIGHT_OF_OTHERS
    if b"\\" in sample:
        weight -= max(0, sample.count(b"\\u") - sample.count(b"\\\\u")) * _ESCAPE
    return media - (-weight * len(body) // (100 * max(1, len(sample))))


def usage(messages: object, written: int) -> Estimate:
    """The estimate for these messages and an answer that holds ``written`` bytes of text."""
    return Estimate(prompt_tokens=_tokens(characters(messages)), completion_tokens=_tokens(written))


def characters(value: object) -> int:
    """How much text a message, a delta, or a list of them holds, in bytes of UTF-8."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if isinstance(value, dict):
        return sum(characters(part) for name, part in value.items() if name in _WRITTEN)
    if isinstance(value, list):
        return sum(characters(part) for part in value)
    return 0


def _tokens(count: int) -> int:
    return -(-count // _BYTES_PER_TOKEN)

"""Tokens are reckoned from what was written, and from nothing else."""

from tollhouse.api import answers, estimate
from tollhouse.api.estimate import Estimate
from tollhouse.api.usage import Usage

MESSAGES = [
    {"role": "system", "content": "12345678"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "1234"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "1234"}}]},
]
HELLO = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8}}\n\n'


def test_four_characters_of_text_are_a_token_and_images_are_none() -> None:
    assert estimate.usage(MESSAGES, 9) == Estimate(prompt_tokens=4, completion_tokens=3)


def test_a_stream_is_estimated_until_the_provider_has_counted() -> None:
    watch = answers.StreamWatch(wants_usage=False, messages=MESSAGES)
    found = [watch.usage]
    for event in (HELLO, USAGE):
        watch.see(event)
        found.append(watch.usage)
    assert found == [
        None,
        Estimate(prompt_tokens=4, completion_tokens=2),
        Usage(prompt_tokens=9, completion_tokens=8),
    ]
    assert not isinstance(found[-1], Estimate)


def test_another_attempt_starts_from_nothing() -> None:
    watch = answers.StreamWatch(wants_usage=False, messages=MESSAGES)
    watch.see(HELLO)
    assert watch.fresh().usage is None

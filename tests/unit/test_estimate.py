"""Tokens are reckoned from what was written, and from nothing else."""

import json
import timeit
from pathlib import Path

import msgspec
import pytest
import yaml

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

SAMPLES = yaml.safe_load(
    (Path(__file__).parents[1] / "support/texts.yaml").read_text(encoding="utf-8")
)


def prompt(content: object) -> bytes:
    return msgspec.json.encode([{"role": "user", "content": content}])


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_prompt_is_rather_estimated_too_high_than_too_low(kind: str) -> None:
    sample = SAMPLES[kind]
    text = sample["text"] * (2000 // len(sample["text"].encode()) + 1)
    found = estimate.prompt(prompt(text))
    newer, older = sample["o200k"], sample["cl100k"]
    print(f"{kind}: {found} for {newer} (o200k) and {older} (cl100k) tokens")
    # Nobody writes base64 by hand; cl100k takes a token for every byte or two of some scripts.
    assert (0.6 if kind == "base64" else 0.9) * newer <= found <= 3.5 * newer
    assert found >= 0.55 * older


@pytest.mark.parametrize("kind", ["Chinese", "Korean", "emoji"])
def test_escaped_characters_count_about_as_plain_ones(kind: str) -> None:
    text = SAMPLES[kind]["text"] * 20
    escaped = json.dumps([{"role": "user", "content": text}]).encode()
    assert 0.6 < estimate.prompt(escaped) / estimate.prompt(prompt(text)) < 2.5


def test_backslashes_take_nothing_away() -> None:
    assert estimate.prompt(prompt("\\u" * 1000)) > 1000


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 90_000}"}},
            1600,
        ),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, 1600),
        ({"type": "input_image", "image_url": f"data:image/png;base64,{'A' * 90_000}"}, 1600),
        ({"type": "image", "source": {"type": "base64", "data": "A" * 90_000}}, 1600),
        ({"type": "input_audio", "input_audio": {"data": "A" * 90_000, "format": "wav"}}, 2000),
        ({"type": "file", "file": {"file_data": f"data:x;base64,{'A' * 90_000}"}}, 4000),
    ],
    ids=["data URI", "address", "responses", "messages", "audio", "file"],
)
def test_what_is_no_text_counts_by_the_piece(part: object, tokens: int) -> None:
    assert (
        tokens
        < estimate.prompt(prompt([{"type": "text", "text": "What is it?"}, part]))
        < (tokens + 100)
    )


def test_text_that_looks_like_an_image_is_text() -> None:
    text = '"type":"image_url","url":"data:image/png;base64,' + "A" * 90_000 + '"'
    assert estimate.prompt(prompt([{"type": "text", "text": text}])) > 20_000


def test_estimating_is_cheap() -> None:
    body = prompt(SAMPLES["English"]["text"] * 28)[:4096]
    took = min(timeit.repeat(lambda: estimate.prompt(body), number=200, repeat=20)) / 200
    print(f"the estimate of a prompt of 4 KiB: {took * 1e6:.1f} µs")
    assert estimate.prompt(body * 1000) > 500 * estimate.prompt(body)


def test_four_bytes_of_text_are_a_token_and_images_are_none() -> None:
    assert estimate.usage(MESSAGES, 9) == Estimate(prompt_tokens=4, completion_tokens=3)
    assert estimate.usage("", len("你好".encode())).completion_tokens == 2
    assert estimate.characters({"content": "你好"}) == 6


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

"""What the additions to an answer cost, in microseconds per chunk and per whole answer.

Run: python bench/additions.py
"""

import time
import timeit

import msgspec

from tollhouse.api import answers, cost
from tollhouse.api.additions import Origin
from tollhouse.snapshot import Pricing

ORIGIN = Origin(
    requested_model="openai/gpt-4o",
    requested_provider="openai",
    used_model="openai/gpt-4o",
    used_provider="openai",
    upstream_model="gpt-4o",
    pricing=Pricing(input="2.50", output="10.00"),
)


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    body = {
        "id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
        "object": "chat.completion.chunk",
        "created": 1739200000,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def whole(size: int) -> bytes:
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1739200000,
            "model": "gpt-4o-2024-08-06",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "x" * size},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 24,
                "completion_tokens": 52,
                "total_tokens": 76,
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }
    )


def made(body: bytes, origin: Origin) -> bytes:
    read = answers.Whole()
    return read.made(origin, cost.of(read.read(body), origin.pricing))


def microseconds(statement: str, **names: object) -> float:
    timer = timeit.Timer(statement, timer=time.process_time, globals=names)
    count, _ = timer.autorange()
    return min(timer.repeat(5, count)) / count * 1e6


def main() -> None:
    strict = msgspec.structs.replace(ORIGIN, strict=True)
    watches = {
        "bytes through": answers.StreamWatch(wants_usage=True),
        "with additions": answers.StreamWatch(wants_usage=True, origin=lambda: ORIGIN),
        "strict": answers.StreamWatch(wants_usage=True, origin=lambda: strict),
    }
    events = {
        "text chunk": chunk({"content": " word"}),
        "reasoning chunk": chunk({"reasoning_content": " word"}),
        "last chunk": chunk({}, "stop"),
    }
    for what, event in events.items():
        for how, watch in watches.items():
            spent = microseconds("see(event)", see=watch.see, event=event)
            print(f"{what:16} {how:15} {spent:7.2f} µs")
    for size in (200, 20_000):
        body = whole(size)
        read = microseconds("read(body)", read=answers.Whole().read, body=body)
        print(f"whole, {size:6} B    read for usage  {read:7.2f} µs")
        for how, origin in (("with additions", ORIGIN), ("strict", strict)):
            spent = microseconds("made(body, origin)", made=made, body=body, origin=origin)
            print(f"whole, {size:6} B    {how:15} {spent:7.2f} µs")


if __name__ == "__main__":
    main()

"""What a process holds of all callers' bodies has a bound, whatever they send: real sockets."""

import asyncio
from collections import Counter
from pathlib import Path

from support import gateway as g
from support import raw
from support.eventually import eventually
from support.gateway import Gateway

MIB = 2**20
LIMIT = 8 * MIB


def write(folder: Path) -> None:
    g.write(
        folder,
        g.caller(),
        g.mock("slow", reply="Text", text="done", firstByteDelay="5s"),
        g.route("m", ["m"], "slow"),
    )


def memory(gateway: Gateway, which: str = "VmHWM") -> float:
    """MiB: VmHWM is the most that the process ever had."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) / 1024


BOUNDS = ("--max-body-bytes", str(4 * MIB), "--max-inflight-bytes", str(LIMIT))


async def ask(gateway: Gateway, size: int) -> raw.Answered:
    async with raw.connection(gateway.port) as (reader, writer):
        writer.write(raw.post(raw.chat("m", "x" * size)))
        return await raw.read_answer(reader, 30)


async def test_beyond_the_bound_callers_are_told_to_come_again(tmp_path: Path) -> None:
    write(tmp_path)
    with g.running(tmp_path, *BOUNDS, name="inflight") as gateway:
        before = memory(gateway)
        answers = await asyncio.gather(*(ask(gateway, 2 * MIB) for _ in range(30)))
        rise = memory(gateway) - before
        statuses = Counter(answer.status for answer in answers)
        refused = [answer for answer in answers if answer.status == 503]
        print(f"30 bodies of 2 MiB against 8 MiB: {dict(statuses)}, peak +{rise:.0f} MiB")
        # Three fit, since a body is a little more than its text; each is held for 5 s.
        assert set(statuses) == {200, 503} and statuses[503] > statuses[200]
        assert {answer.error["code"] for answer in refused} == {"overloaded"}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        # Thirty times 2 MiB, each up to three times over, would be 180 MiB.
        assert rise < 3 * LIMIT / MIB + 30
        # What was held is given back, by those refused too.
        for _ in range(2):
            assert (await ask(gateway, 2 * MIB)).status == 200


async def test_what_is_announced_and_never_sent_keeps_nobody_out(tmp_path: Path) -> None:
    write(tmp_path)
    with g.running(tmp_path, *BOUNDS, name="announced") as gateway:
        async with asyncio.TaskGroup() as tasks:
            released = asyncio.Event()

            async def announce() -> None:
                async with raw.connection(gateway.port) as (_, writer):
                    writer.write(raw.post(b"{", length=4 * MIB))
                    await released.wait()

            for _ in range(10):
                tasks.create_task(announce())
            await eventually(lambda: "in_flight_requests 10.0" in gateway.ops("/metrics")[1], 30)
            assert (await ask(gateway, 2 * MIB)).status == 200
            released.set()


async def test_the_bound_is_at_least_that_of_one_body(tmp_path: Path) -> None:
    write(tmp_path)
    gateway = g.launch(tmp_path, "--max-inflight-bytes", "100000", name="bound-too-small")
    assert await asyncio.to_thread(gateway.process.wait, 60) == 2
    assert "--max-inflight-bytes is at least --max-body-bytes" in gateway.text()

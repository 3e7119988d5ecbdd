"""What a request costs in the gateway, beside the plainest proxy that aiohttp can be.

    .venv/bin/python bench/overhead.py

Starts an upstream, the plain proxy and a gateway, each a process of its own on loopback, sends the
same requests through both in turn, and prints the processor time that each process spent per
request (user and system, from the kernel's accounting), so that the client's own slowness does not
count. The ratio is what to compare between machines; the absolute figures are this machine's.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support import gateway as g  # noqa: E402  # because the path above leads there

CALLERS = 8
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")


def start(*arguments: str) -> tuple["subprocess.Popen[str]", int]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("no standard output")
    return process, int(process.stdout.readline())


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def load(port: int, requests: int, *, stream: bool, key: str = g.KEY) -> list[float]:
    """Seconds of each request."""
    body = {
        "model": "up/m",
        "messages": [{"role": "user", "content": "hello " * 200}],
        "stream": stream,
    }
    took = []
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def caller() -> None:
            for _ in range(requests // CALLERS):
                begun = time.perf_counter()
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                async with session.post(url, json=body) as answer:
                    await answer.read()
                    answer.raise_for_status()
                took.append(time.perf_counter() - begun)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return took


def compare(bare: tuple[int, int], gateway: tuple[int, int], requests: int, *, stream: bool) -> str:
    """A line of figures; each of ``bare`` and ``gateway`` is (pid, port)."""
    costs: dict[str, list[float]] = {"bare": [], "gateway": []}
    p50: dict[str, list[float]] = {"bare": [], "gateway": []}
    for _ in range(ROUNDS):
        for name, (pid, port) in (("bare", bare), ("gateway", gateway)):
            before = processor_seconds(pid)
            took = asyncio.run(load(port, requests, stream=stream))
            costs[name].append((processor_seconds(pid) - before) / requests * 1e6)
            p50[name].append(statistics.median(took) * 1e3)
    plain, ours = (statistics.median(costs[name]) for name in ("bare", "gateway"))
    slow = statistics.median(p50["gateway"]) - statistics.median(p50["bare"])
    kind = "50-chunk stream" if stream else "whole answer"
    return (
        f"{kind:16} bare proxy {plain:5.0f} us, gateway {ours:5.0f} us of processor time per "
        f"request, ratio {ours / plain:.2f}; median latency +{slow:.2f} ms at {CALLERS} callers"
    )


def main() -> None:
    upstream, upstream_port = start(str(HERE / "upstream.py"))
    bare, bare_port = start(str(HERE / "proxy.py"), f"http://127.0.0.1:{upstream_port}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            g.write(
                Path(folder),
                g.caller(),
                g.openai_compatible("up", f"http://127.0.0.1:{upstream_port}/v1"),
                g.route("up", ["up/m"], "up"),
            )
            begun = time.perf_counter()
            with g.running(folder, name="bench") as gateway:
                print(f"ready to serve after {time.perf_counter() - begun:.2f} s")
                print(f"idle memory {resident_mib(gateway.process.pid):.0f} MiB resident")
                bare_at, gateway_at = (bare.pid, bare_port), (gateway.process.pid, gateway.port)
                print(compare(bare_at, gateway_at, 2000, stream=False))
                print(compare(bare_at, gateway_at, 400, stream=True))
                print(f"memory after that {resident_mib(gateway.process.pid):.0f} MiB resident")
    finally:
        for process in (upstream, bare):
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

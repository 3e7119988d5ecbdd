"""Prices and web search through a real gateway, and what published prices cost it at its start."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support import gateway as g
from support import upstream as u

ASK: Any = [{"role": "user", "content": "What is new?"}]
PRICES = {"input": "1", "cacheWrite": "2", "output": "10", "inputAudio": "50", "webSearch": "0.01"}
STARTS = 3


def answering(name: str, **usage: Any) -> u.Answer:
    """Always the same answer, with these counts in its usage."""
    return u.always(
        text=name,
        usage={"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, **usage},
    )


@asynccontextmanager
async def gateway(folder: Path, **upstreams: u.Upstream) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a gateway whose route ``m`` goes to a blind target, then to one that searches;
    ``blind`` has the first alone, and ``said`` both, which its capabilities say search."""
    targets: list[dict[str, Any]] = [
        {"provider": {"name": "blind"}, "pricing": PRICES, "webSearch": False},
        {"provider": {"name": "seeing"}, "pricing": PRICES, "webSearch": True, "priority": 1},
    ]
    said = [{"provider": {"name": name}, "model": name} for name in upstreams]
    g.write(
        folder,
        g.caller(),
        *(g.openai_compatible(name, it.base_url) for name, it in upstreams.items()),
        g.route("m", ["m"], *targets),
        g.route("blind", ["blind"], targets[0]),
        g.route("said", ["said"], *said, capabilities={"webSearch": True}),
        g.manifest("ModelRoute", "auto", {"models": ["auto"], "select": {"from": ["blind", "m"]}}),
    )
    with g.running(folder, name="prices") as running:
        headers = {"Authorization": f"Bearer {g.KEY}"}
        async with aiohttp.ClientSession(running.base_url + "/", headers=headers) as session:
            yield session


async def asked(session: aiohttp.ClientSession, model: str, **body: Any) -> dict[str, Any]:
    url, request = "chat/completions", {"model": model, "messages": ASK, **body}
    async with session.post(url, json=request) as answer:
        found: dict[str, Any] = await answer.json()
        return found


def said(answer: dict[str, Any]) -> tuple[str, float]:
    return answer["choices"][0]["message"]["content"], answer["usage"]["cost"]


async def test_a_search_goes_to_targets_that_search_and_its_surcharge_into_the_cost(
    tmp_path: Path,
) -> None:
    counted = {"server_tool_use": {"web_search_requests": 3}}
    async with (
        u.serving(answering("blind")) as blind,
        u.serving(answering("seeing")) as seeing,
        gateway(tmp_path, blind=blind, seeing=seeing) as session,
    ):
        assert said(await asked(session, "m")) == ("blind", 0.0002)
        for body in ({"webSearchEnabled": True}, {"tools": [{"type": "web_search"}]}):
            assert said(await asked(session, "m", **body)) == ("seeing", 0.0102)
            assert said(await asked(session, "auto", **body)) == ("seeing", 0.0102)
            refused = await asked(session, "blind", **body)
            assert refused["error"]["code"] == "unsupported_parameter"
            assert refused["error"]["param"] in body
        assert len(blind.received) == 1
        for model, able in (("m", True), ("blind", None), ("said", True)):
            async with session.get(f"models/{model}") as answer:
                assert (await answer.json())["capabilities"]["web_search"] is able
        seeing.answer = answering("seeing", **counted)
        assert said(await asked(session, "m", webSearchEnabled=True)) == ("seeing", 0.0302)
        unpriced = await asked(session, "said", webSearchEnabled=True)
        assert unpriced["usage"]["cost"] is None


async def test_cache_writes_and_audio_have_their_own_prices(tmp_path: Path) -> None:
    details = {"prompt_tokens_details": {"cache_write_tokens": 50, "audio_tokens": 10}}
    async with (
        u.serving(answering("blind", **details)) as blind,
        u.serving(answering("seeing")) as seeing,
        gateway(tmp_path, blind=blind, seeing=seeing) as session,
    ):
        assert said(await asked(session, "m")) == ("blind", 0.00074)


@pytest.mark.timeout(180)
def test_published_prices_leave_a_restart_quick(tmp_path: Path) -> None:
    """Against a gateway that needs none of them, in turns: a machine is not the same all the time.

    Bytecode is kept below the test's own folder, as an installed gateway has it beside its code.
    """
    environ = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    folders: dict[str, Any] = {
        "mock": g.mock("p"),
        "openai": g.openai_compatible("p", "https://api.openai.com/v1"),
    }
    for name, provider in folders.items():
        (tmp_path / name).mkdir()
        g.write(tmp_path / name, g.caller(), provider, g.route("r", ["openai/*"], "p"))
    took: dict[str, list[float]] = {name: [] for name in folders}
    memory: dict[str, int] = {}
    for turn in range(STARTS + 1):
        for name in folders:
            begun = time.monotonic()
            with g.running(tmp_path / name, name="start", environ=environ) as running:
                if turn:
                    took[name].append(time.monotonic() - begun)
                status = Path(f"/proc/{running.process.pid}/status").read_text()
                memory[name] = int(status.partition("VmRSS:")[2].split()[0]) // 1024
    mock, openai = (min(took[name]) for name in folders)
    print(
        f"started in {openai:.2f} s and {memory['openai']} MiB with published prices, in "
        f"{mock:.2f} s and {memory['mock']} MiB without"
    )
    assert openai < 2 * mock
    assert memory["openai"] < memory["mock"] + 30

"""The OpenAI Node SDK, unmodified, through a real gateway with only its base URL changed."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support import gateway as g

HERE = g.ROOT / "tests" / "node"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tollhouse" / "node"


def unavailable(why: str) -> None:
    """Skip where this cannot run, but fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"no Node SDK in CI: {why}")
    pytest.skip(f"no Node SDK here: {why}")


@pytest.fixture(scope="module")
def workshop() -> Path:
    """A folder outside of the tree with the script and the SDK that the lock names, made once."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            unavailable(f"{tool} is not installed")
    manifests = [HERE / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in manifests)).hexdigest()[:16]
    folder = CACHE / digest
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = folder / ".installed"
        if not installed.exists():
            for file in manifests:
                shutil.copy(file, folder)
            done = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            if done.returncode:
                unavailable(f"npm ci failed: {done.stderr[-500:]}")
            installed.touch()
    return folder


def test_the_node_sdk_chats_streams_calls_tools_and_knows_the_errors(
    workshop: Path, tmp_path: Path
) -> None:
    g.write(
        tmp_path,
        g.caller(),
        g.caller("narrow", g.OTHER_KEY, allowedModels=["mock/text"]),
        g.mock("echo"),
        g.mock("text", reply="Text", text="A fixed answer."),
        g.mock("tools", toolCalls=[{"name": "get_weather", "arguments": '{"city":"Paris"}'}]),
        g.mock("busy", failWith={"status": 429}),
        g.mock("down", failWith={"status": 500}),
        *(
            g.route(name, [f"mock/{name}"], name, retries={"attempts": 0})
            for name in ("echo", "text", "tools", "busy", "down")
        ),
    )
    # Node looks for packages beside the script, not beside where it was started.
    script = shutil.copy(HERE / "check.mjs", workshop / f"check-{os.getpid()}.mjs")
    try:
        with g.running(tmp_path, name="node-sdk") as gateway:
            done = subprocess.run(
                ["node", script],
                env={
                    "PATH": os.environ["PATH"],
                    "BASE_URL": gateway.base_url,
                    "API_KEY": g.KEY,
                    "OTHER_API_KEY": g.OTHER_KEY,
                },
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
    finally:
        Path(script).unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        word
        for name in ("chat", "stream", "streaming_helper", "tools", "errors", "models")
        for word in ("ok", name)
    ]

"""Search what a test run printed and logged for the secrets that it planted.

    python tests/leaks.py

It reads ``build/test-output.log`` and every file below the log directory, says how much it read,
and names each leak by file and line, never by value. It fails on a leak, and also when there was
nothing to read: a search of nothing is no evidence.
"""

import base64
import bisect
import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from support import planted

OUTPUT = planted.ROOT / "build" / "test-output.log"
HALVED_FROM = 32
"""Characters. The halves of a secret this long are searched for too: a cut secret is a leak."""
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Leak:
    """``form`` says how the secret was written there; ``line`` counts from 1."""

    file: Path
    line: int
    form: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What was read (``size`` in bytes), and at most one leak for each line of it."""

    files: int
    size: int
    leaks: tuple[Leak, ...]


@dataclass(frozen=True, slots=True)
class Needle:
    form: str
    text: bytes


def needles(secret: str) -> tuple[Needle, ...]:
    """Every form in which ``secret`` may stand in a file, each once."""
    raw = secret.encode()
    line = b"".join(_lines(raw))
    forms = [
        ("plain", line),
        ("JSON", json.dumps(secret)[1:-1].encode()),
        ("percent-encoded", quote(secret, safe="").encode()),
        ("hex", raw.hex().encode()),
    ]
    if len(line) >= HALVED_FROM:
        middle = len(line) // 2
        forms += [("first half", line[:middle]), ("second half", line[middle:])]
    forms += [("base64", text) for text in _base64(raw)]
    first_form: dict[bytes, str] = {}
    for form, text in forms:
        first_form.setdefault(text, form)
    return tuple(Needle(form, text) for text, form in first_form.items())


def scan(paths: Iterable[Path], secrets: Sequence[str]) -> Scan:
    """Search these files for ``planted.MARK`` and for each of ``secrets``."""
    wanted = [needle for secret in (planted.MARK, *secrets) for needle in needles(secret)]
    files = size = 0
    leaks: dict[tuple[Path, int], Leak] = {}
    for path in paths:
        content = path.read_bytes()
        files += 1
        size += len(content)
        for leak in _search(path, content, wanted):
            leaks.setdefault((leak.file, leak.line), leak)
    return Scan(files, size, tuple(leaks[place] for place in sorted(leaks)))


def main() -> int:
    """The exit status: 0 when there was something to read and no leak in it."""
    logs = sorted(path for path in planted.log_directory().rglob("*") if path.is_file())
    outputs = [OUTPUT] if OUTPUT.is_file() else []
    found = scan([*outputs, *logs], planted.registered())
    print(
        f"Searched {found.files} files, {found.size / 2**20:.1f} MiB, for planted secrets: "
        f"{len(found.leaks)} leaks."
    )
    for leak in found.leaks:
        print(f"{leak.file}:{leak.line}: a planted secret ({leak.form})")
    for part, paths in (("the tests' output", outputs), ("the processes' logs", logs)):
        if not any(path.stat().st_size for path in paths):
            print(f"There was nothing to search in {part}, which is no evidence.")
            return 1
    return 1 if found.leaks else 0


def _base64(raw: bytes) -> Iterable[bytes]:
    """What base64 makes of ``raw`` wherever it stands: six bits of it may straddle each end."""
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + raw)
        whole = encoded[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))


def _search(path: Path, content: bytes, wanted: Iterable[Needle]) -> Iterable[Leak]:
    """Lines are joined first, so that a secret wrapped at a terminal's width is found too."""
    lines = _lines(_ESCAPES.sub(b"", content))
    ends = list(itertools.accumulate(map(len, lines)))
    joined = b"".join(lines)
    for needle in wanted:
        at = joined.find(needle.text)
        while at >= 0:
            yield Leak(path, bisect.bisect_right(ends, at) + 1, needle.form)
            at = joined.find(needle.text, at + 1)


def _lines(content: bytes) -> list[bytes]:
    return [line.strip() for line in content.split(b"\n")]


if __name__ == "__main__":
    sys.exit(main())

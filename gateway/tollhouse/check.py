"""``tollhouse check``: what is wrong with a folder of resources, for people and for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from tollhouse.compile import Finding, compile_snapshot
from tollhouse.folder import FolderReader, Loaded

_STYLES = {"error": "bold red", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to tell. ``object`` is ``namespace/name``; line and column count from 1.

    ``reason`` is a condition's, or ``Unreadable`` for what could not be read at all.
    """

    file: str | None
    line: int | None
    column: int | None
    severity: Literal["error", "warning"]
    kind: str | None
    object: str | None
    reason: str
    path: str
    message: str

    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "-"

    def what(self) -> str:
        about = f"{self.kind} {self.object}  " if self.kind and self.object else ""
        where = f"{self.path}: " if self.path else ""
        return f"{about}{self.reason}: {where}{self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """``remarks`` by file and line; ``live`` counts what a gateway would serve, by noun."""

    remarks: tuple[Remark, ...]
    live: Mapping[str, int]

    @property
    def errors(self) -> int:
        return sum(remark.severity == "error" for remark in self.remarks)

    @property
    def warnings(self) -> int:
        return len(self.remarks) - self.errors

    @property
    def exit_code(self) -> int:
        """0 when nothing is wrong, warnings aside; else 1."""
        return 1 if self.errors else 0

    def summary(self) -> str:
        """``3 routes, 2 providers, 4 keys: 1 error, 2 warnings``"""
        counted = [_count(number, noun) for noun, number in self.live.items()]
        told = [_count(number, noun) for noun, number in
                (("error", self.errors), ("warning", self.warnings)) if number]  # fmt: skip
        return f"{', '.join(counted)}: {', '.join(told) or 'nothing wrong'}"

    def to_json(self) -> str:
        """The remarks as a JSON list of objects."""
        return json.dumps([asdict(remark) for remark in self.remarks], indent=2)


def check(path: Path, environ: Mapping[str, str]) -> Report:
    """What ``tollhouse serve`` would make of a folder. Raises ConfigError when it is not there.

    ``environ`` is where it would find credentials that the folder does not hold.
    """
    loaded = FolderReader(path, environ).load()
    compiled = compile_snapshot(loaded.resources, datetime.now(UTC).date())
    remarks = [
        Remark(
            file=problem.file,
            line=problem.line,
            column=problem.column,
            severity="error",
            kind=problem.kind,
            object=problem.name,
            reason="Unreadable" if problem.kind is None else "Duplicate",
            path="",
            message=problem.message,
        )
        for problem in loaded.problems
    ]
    remarks += [_remark(loaded, finding) for finding in compiled.findings]
    return Report(
        remarks=tuple(sorted(remarks, key=lambda it: (it.file or "", it.line or 0))),
        live={
            "route": len(compiled.snapshot.routes),
            "provider": len(compiled.snapshot.providers),
            "key": compiled.snapshot.key_count(),
        },
    )


def render(report: Report, console: Console) -> None:
    """Prints the report: per file, a line for each remark, then a summary."""
    for _, remarks in groupby(report.remarks, lambda remark: remark.file):
        rows = list(remarks)
        width = max(len(row.place()) for row in rows)
        for row in rows:
            console.print(
                Text.assemble(
                    (row.place().ljust(width), "cyan"),
                    "  ",
                    (row.severity.ljust(len("warning")), _STYLES[row.severity]),
                    "  ",
                    row.what(),
                ),
                soft_wrap=True,
            )
        console.print()
    style = "bold red" if report.errors else "yellow" if report.warnings else "green"
    console.print(Text(report.summary(), style=style), soft_wrap=True)


def _remark(loaded: Loaded, finding: Finding) -> Remark:
    place = loaded.locate(finding)
    return Remark(
        file=place[0] if place else None,
        line=place[1] if place else None,
        column=None,
        severity="error" if finding.severity == "Error" else "warning",
        kind=finding.kind,
        object=f"{finding.namespace}/{finding.name}",
        reason=str(finding.reason),
        path=finding.path,
        message=loaded.explain(finding).message,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

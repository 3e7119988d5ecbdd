"""Write the table of values in charts/tollhouse/README.md from the comments of values.yaml.

    python charts/values_table.py

A value without a comment of its own is described by the comment of the mapping that it is in.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "tollhouse"
BEGIN, END = "<!-- values -->", "<!-- /values -->"
_KEY = re.compile(r"^( *)([A-Za-z][\w-]*):(.*)$")


@dataclass(frozen=True, slots=True)
class Value:
    """One leaf of values.yaml; ``default`` is JSON."""

    path: str
    default: str
    comment: str


def values(text: str) -> list[Value]:
    """Every leaf in the order of the file. A list, and a mapping written in one line, is a leaf."""
    tree = yaml.safe_load(text)
    found: list[Value] = []
    keys: list[tuple[int, str, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
            continue
        match = _KEY.match(line)
        if match is None:
            comment = []
            continue
        indent, key = len(match[1]), match[2]
        while keys and keys[-1][0] >= indent:
            keys.pop()
        inherited = keys[-1][2] if keys else ""
        path = ".".join([*(name for _, name, _ in keys), key])
        said = " ".join(comment) or inherited
        comment = []
        keys.append((indent, key, said))
        if match[3].strip():
            found.append(Value(path, json.dumps(_at(tree, path)), said))
    return found


def _at(tree: Any, path: str) -> object:
    for key in path.split("."):
        tree = tree[key]
    return tree


def table(text: str) -> str:
    """The Markdown table for values.yaml's text."""
    rows = ["| value | default | what it is |", "| --- | --- | --- |"]
    for value in values(text):
        comment = value.comment.replace("|", "\\|")
        rows.append(f"| `{value.path}` | `{value.default}` | {comment} |")
    return "\n".join(rows)


def readme() -> str:
    """README.md as it has to be."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table((CHART / "values.yaml").read_text())
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())

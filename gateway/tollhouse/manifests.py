"""Manifests from text: YAML or JSON, many documents to a file, each value with its place.

Plain words mean what they mean to ``kubectl apply``, so that the same file works in a folder and
in a cluster: ``yes`` and ``on`` are booleans, an unquoted time stays a string. What kubectl takes
in silence and people do not mean is refused: a key given twice, a key that YAML reads as a boolean.

Values are built from the parser's events, without recursion, and what aliases expand to is
bounded, so that no text makes this module run away or crash.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 100
MAX_ALIASED = 100_000
"""How many values all aliases of a file may expand to together."""

Path = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(f"{_TAG}{word}" for word in ("null", "bool", "int", "float"))
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    spelled: value
    for value, words in ((True, "y yes true on"), (False, "n no false off"))
    for word in words.split()
    for spelled in (word, word.capitalize(), word.upper())
}
_LONGEST_NUMBER = 64
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_BASED = re.compile(r"[-+]?0([xX][0-9a-fA-F_]+|o?[0-7_]+|b[01_]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a text is not YAML that can be used; line and column count from 1."""

    line: int
    column: int
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or one item of a ``kind: List``.

    ``number`` counts the file's documents from 0, ``prefix`` leads from the document's root to
    ``value``, ``line`` is where ``value`` starts (from 1).
    """

    value: Any
    number: int
    prefix: Path
    line: int


def read(text: str) -> tuple[Document, ...] | Fault:
    """The documents of a text, empty ones left out, or the first fault in it."""
    builder = _Builder()
    try:
        builder.build(text)
    except _FaultError as error:
        return error.fault
    return tuple(_items(builder))


def line_of(text: str, document: Document, path: Path) -> int:
    """The line (from 1) of what ``path`` leads to from the document's value.

    Where the path leads nowhere, the line of the last thing on the way; texts that ``read``
    refuses give the document's own line.
    """
    places = _Builder(number=document.number)
    try:
        places.build(text)
    except _FaultError:
        return document.line
    whole = (*document.prefix, *path)
    for length in range(len(whole), len(document.prefix), -1):
        if whole[:length] in places.lines:
            return places.lines[whole[:length]]
    return document.line


def _items(builder: "_Builder") -> Iterator[Document]:
    for number, (value, line) in enumerate(builder.documents):
        if isinstance(value, Mapping) and value.get("kind") == "List":
            items = value.get("items")
            if isinstance(items, list):
                for index, item in enumerate(items):
                    at = builder.item_lines.get((number, index), line)
                    yield Document(item, number, ("items", index), at)
                continue
        if value is not None:
            yield Document(value, number, (), line)


class _FaultError(Exception):
    def __init__(self, mark: Any, message: str) -> None:
        self.fault = Fault(mark.line + 1, mark.column + 1, message)


@dataclass(slots=True)
class _Open:
    """A list or map whose end has not come yet."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    start: Any
    size_before: int
    key: str | None = None
    merging: bool = False
    merged: list[Mapping[str, Any]] = field(default_factory=list)


class _Builder:
    """Builds values from events. ``lines`` gets the places of the document ``number``, by path."""

    def __init__(self, number: int | None = None) -> None:
        self.documents: list[tuple[Any, int]] = []
        self.item_lines: dict[tuple[int, int], int] = {}
        self.lines: dict[Path, int] = {}
        self._number = number
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._size = 0
        self._aliased = 0

    def build(self, text: str) -> None:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.context, error.problem) if part)
            raise _FaultError(mark or _NOWHERE, what) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position if isinstance(error.position, int) else 0)
            raise _FaultError(_Mark(line, 0), "a character that YAML does not allow") from None

    def _take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.DocumentStartEvent():
                self._anchors.clear()

    def _scalar(self, event: Any) -> None:
        if self._wants_key():
            self._key(event)
            return
        self._size += 1
        value = _resolve(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        self._place(value, event.start_mark)

    def _open(self, event: Any) -> None:
        if self._wants_key():
            raise _FaultError(event.start_mark, "a key must be a plain word or a string")
        if len(self._stack) >= MAX_DEPTH:
            raise _FaultError(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        if event.tag not in (None, f"{_TAG}map", f"{_TAG}seq", "!"):
            raise _FaultError(event.start_mark, f"the tag {event.tag} cannot be used here")
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._note(event.start_mark)
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)
        self._size += 1
        self._stack.append(_Open(value, event.anchor, event.start_mark, self._size))

    def _close(self) -> None:
        done = self._stack.pop()
        if isinstance(done.value, dict):
            for merged in done.merged:
                for key, value in merged.items():
                    done.value.setdefault(key, value)
        if done.anchor is not None:
            self._anchors[done.anchor] = (done.value, self._size - done.size_before + 1)
        self._place(done.value, done.start, noted=True)

    def _alias(self, event: Any) -> None:
        if self._wants_key():
            raise _FaultError(event.start_mark, "a key must be a plain word or a string")
        if event.anchor not in self._anchors:
            raise _FaultError(event.start_mark, f"*{event.anchor} names no anchor before it")
        value, size = self._anchors[event.anchor]
        self._size += size
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise _FaultError(event.start_mark, f"aliases expand to over {MAX_ALIASED} values")
        self._place(value, event.start_mark)

    def _wants_key(self) -> bool:
        top = self._stack[-1] if self._stack else None
        return top is not None and isinstance(top.value, dict) and top.key is None

    def _key(self, event: Any) -> None:
        top = self._stack[-1]
        value = _resolve(event)
        if isinstance(value, bool):
            raise _FaultError(
                event.start_mark,
                f"YAML reads the key {event.value} as {str(value).lower()}: "
                f'write "{event.value}" in quotes',
            )
        top.merging = event.value == "<<" and event.implicit[0]
        if not top.merging and event.value in top.value:
            raise _FaultError(event.start_mark, f'the key "{event.value}" is given twice')
        top.key = event.value
        self._note(event.start_mark)

    def _place(self, value: Any, mark: Any, *, noted: bool = False) -> None:
        """Puts a finished value where it belongs: into what is open, or among the documents."""
        if not self._stack:
            self.documents.append((value, mark.line + 1))
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            if not noted:
                self._note(mark)
            if len(self._stack) == 2 and self._stack[0].key == "items":
                self.item_lines[(len(self.documents), len(top.value))] = mark.line + 1
            top.value.append(value)
            return
        key, top.key = top.key, None
        if top.merging:
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise _FaultError(mark, "<< takes a map or a list of maps")
            top.merged.extend(sources)
        elif key is not None:
            top.value[key] = value

    def _note(self, mark: Any) -> None:
        """Remembers the line of the value that starts here. A map's entries start at their key."""
        if self._number != len(self.documents):
            return
        steps: list[str | int] = []
        for level in self._stack:
            if isinstance(level.value, list):
                steps.append(len(level.value))
            elif level.key is not None:
                steps.append(level.key)
        self.lines.setdefault(tuple(steps), mark.line + 1)


@dataclass(frozen=True, slots=True)
class _Mark:
    line: int
    column: int


_NOWHERE = _Mark(0, 0)


def _resolve(event: Any) -> Any:
    """What a scalar stands for: a string when quoted, else what its letters say."""
    text: str = event.value
    plain = event.tag is None and event.implicit[0]
    if not plain and event.tag not in _PLAIN_TAGS:
        if event.tag in (None, "!", f"{_TAG}str"):
            return text
        raise _FaultError(event.start_mark, f"the tag {event.tag} cannot be used here")
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    digits = text.replace("_", "").lower()
    if _INTEGER.match(text):
        number = int(digits)
    elif _BASED.match(text):
        number = int(digits, 8 if digits.lstrip("+-")[1].isdigit() else 0)
    else:
        return float(text) if _FLOAT.match(text) else text
    # Go's int64, which is all that Kubernetes and the snapshot can hold; others are floats there.
    return number if -(2**63) <= number < 2**63 else float(number)

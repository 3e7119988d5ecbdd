"""Resources from a folder of YAML and JSON files: the same manifests that kubectl applies.

A folder is read again and again while people edit it, so whatever is wrong in it leaves what was
good before in force: a file that cannot be read keeps what it held last, an object that is not
valid keeps its last valid version. Every problem and every finding has its file and line.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tollhouse import manifests
from tollhouse.errors import ConfigError
from tollhouse.findings import Finding, Reason
from tollhouse.inventory import Inventory, identify
from tollhouse.manifests import Document, Fault
from tollhouse.resources import GROUP, KINDS, Ref, Resources, SecretObject
from tollhouse.snapshot import Credential

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_FILES = 10_000
_READS = 3
"""How often a file that changes while it is being read is read again."""

_KEPT = "; what the file held before stays in force"

_Identity = tuple[str, Ref]


@dataclass(frozen=True, slots=True)
class FolderProblem:
    """What keeps a file, or an object in it, from being read; its last good state stays in force.

    ``file`` is relative to the folder, ``line`` and ``column`` count from 1, ``kind`` and ``name``
    (``namespace/name``) are given where they are known.
    """

    file: str
    line: int
    message: str
    column: int = 1
    kind: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Origin:
    file: str
    text: str = field(repr=False)
    document: Document = field(repr=False)


@dataclass(frozen=True, slots=True)
class _File:
    """A file's last good text and what it held."""

    text: str = field(repr=False)
    documents: tuple[Document, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a folder held. ``problems`` are about files; ``resources.refused`` is about objects."""

    resources: Resources
    problems: tuple[FolderProblem, ...]
    files: tuple[str, ...]
    _origins: Mapping[_Identity, _Origin] = field(repr=False)

    def locate(self, finding: Finding) -> tuple[str, int] | None:
        """(file relative to the folder, line from 1) of what a finding is about.

        A field that is not written down gives the line of the nearest thing around it.
        """
        origin = self._origins.get((finding.kind, (finding.namespace, finding.name)))
        if origin is None:
            return None
        path = _path(finding.path, origin.document.value)
        return origin.file, manifests.line_of(origin.text, origin.document, path)

    def explain(self, finding: Finding) -> Finding:
        """The finding, with what to do about it in a folder."""
        if finding.kind == "Provider" and finding.reason is Reason.SECRET_NOT_FOUND:
            advice = f"put it into the folder, or set {environment_name(finding.name)}"
        elif finding.reason in _ABSENT:
            advice = "put it into the folder"
        else:
            return finding
        return replace(finding, message=f"{finding.message}: {advice}")


_ABSENT = (Reason.SECRET_NOT_FOUND, Reason.SERVICE_NOT_FOUND, Reason.CA_REF_NOT_FOUND)


def environment_name(provider: str) -> str:
    """The variable that holds a Provider's credential where no Secret does: ``OPENAI_API_KEY``."""
    return re.sub(r"[^A-Z0-9]", "_", provider.upper()) + "_API_KEY"


class FolderReader:
    """Reads one folder, or one file, as often as it is asked to. Not for several threads at once.

    ``environ`` is where the credentials of Providers come from whose Secrets are not there.
    """

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._files: dict[str, _File] = {}
        self._origins: dict[_Identity, _Origin] = {}
        self._inventory = Inventory()

    def load(self) -> Loaded:
        """The folder as it is now. Raises ConfigError when there is no such folder."""
        problems: list[FolderProblem] = []
        self._files = self._read_files(problems)
        origins = self._find_objects(problems)
        for kind, (namespace, name) in self._origins.keys() - origins.keys():
            self._inventory.remove(kind, namespace, name)
        for identity, origin in origins.items():
            before = self._origins.get(identity)
            if before is None or before.document.value is not origin.document.value:
                self._inventory.apply(origin.document.value)
        self._origins = origins
        return Loaded(
            resources=_with_environment(
                replace(self._inventory.resources(), standalone=True), self._environ
            ),
            problems=tuple(problems),
            files=tuple(self._files),
            _origins=origins,
        )

    def _read_files(self, problems: list[FolderProblem]) -> dict[str, _File]:
        files: dict[str, _File] = {}
        for name, path in find_files(self._path):
            before = self._files.get(name)
            read = _read(path, before)
            if isinstance(read, Fault):
                kept = _KEPT if before else ""
                problems.append(
                    FolderProblem(name, read.line, f"{read.message}{kept}", read.column)
                )
            elif read is not None:
                files[name] = read
                continue
            if before is not None:
                files[name] = before
        return files

    def _find_objects(self, problems: list[FolderProblem]) -> dict[_Identity, _Origin]:
        """Where each object is; what is no object is a problem."""
        places: dict[_Identity, list[_Origin]] = {}
        mistakes: list[FolderProblem] = []
        for name, file in self._files.items():
            for document in file.documents:
                mistake = _mistake(document.value)
                if mistake is not None:
                    path, message = mistake
                    line = manifests.line_of(file.text, document, path)
                    mistakes.append(FolderProblem(name, line, message))
                    continue
                identity = identify(document.value)
                if identity is not None:
                    places.setdefault(identity, []).append(_Origin(name, file.text, document))
        # What is no object may be one whose name was mistyped, so the file's others stay.
        mistaken = {mistake.file for mistake in mistakes}
        kept = {
            identity: before
            for identity, before in self._origins.items()
            if before.file in mistaken and identity not in places
        }
        places |= {identity: [before] for identity, before in kept.items()}
        keepers = {before.file for before in kept.values()}
        problems += [
            replace(it, message=f"{it.message}{_KEPT}") if it.file in keepers else it
            for it in mistakes
        ]
        return {it: self._choose(it, found, problems) for it, found in places.items()}

    def _choose(
        self, identity: _Identity, found: list[_Origin], problems: list[FolderProblem]
    ) -> _Origin:
        """Of several places for an object, the file that it was in before, else the first; the
        others are problems."""
        before = self._origins.get(identity, found[0])
        chosen = next((it for it in found if it.file == before.file), found[0])
        kind, (namespace, name) = identity
        full_name = name if kind == "Namespace" else f"{namespace}/{name}"
        for other in found:
            if other is chosen:
                continue
            message = (
                f"the {kind} {full_name} stands twice; the one at "
                f"{chosen.file}:{chosen.document.line} is in force, remove one of them"
            )
            line = other.document.line
            problems.append(FolderProblem(other.file, line, message, kind=kind, name=full_name))
        return chosen


def _mistake(value: Any) -> tuple[manifests.Path, str] | None:
    """(where, what) when a document is no Kubernetes object, or one of ours by an unknown name."""
    if not isinstance(value, Mapping):
        return (), "must be an object with apiVersion, kind, metadata and spec"
    for key in ("apiVersion", "kind"):
        if not isinstance(value.get(key), str):
            return (key,), f"{key} is required, and must be a string"
    metadata = value.get("metadata")
    if not isinstance(metadata, Mapping) or metadata.get("name") in (None, ""):
        return ("metadata",), "metadata.name is required"
    if value["apiVersion"].startswith(f"{GROUP}/") and value["kind"] not in KINDS:
        kinds = ", ".join(KINDS)
        return ("kind",), f"{GROUP} has no kind {value['kind']}; the kinds are {kinds}"
    return None


def find_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(name relative to the root, path) of every file to read, in a stable order.

    Dotfiles and what lies below them are left out, so that a mounted ConfigMap, whose files are
    links into a ``..data`` folder, is read once. A file that several names lead to is read once.
    Raises ConfigError when there is no such folder, or too much in it.
    """
    if root.is_file():
        yield root.name, root
        return
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}")
    found: list[tuple[str, Path]] = []
    seen: set[str] = set()
    for directory, below, names in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.suffix in SUFFIXES:
                found.append((path.relative_to(root).as_posix(), path))
    if len(found) > MAX_FILES:
        raise ConfigError(f"{root} has {len(found)} files; at most {MAX_FILES} are read")
    for name, path in sorted(found):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield name, path


def _unreadable(error: OSError) -> None:
    # Passed over in silence, it would look as if all that lies there had been removed.
    if not isinstance(error, FileNotFoundError):
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read(path: Path, before: _File | None) -> _File | Fault | None:
    """A file as it is now, what is wrong with it, or None when it is gone."""
    try:
        data = _settled(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Fault(1, 1, f"cannot be read: {error.strerror}")
    if len(data) > MAX_FILE_BYTES:
        return Fault(1, 1, f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Fault(data.count(b"\n", 0, error.start) + 1, 1, "is not UTF-8 text")
    if before is not None and text == before.text:
        return before
    if before is not None and before.documents and not text.strip():
        # Most likely an editor that has emptied the file and is about to write it.
        return Fault(1, 1, "is empty; remove the file to remove its objects")
    documents = manifests.read(text)
    if isinstance(documents, Fault):
        return documents
    return _File(text, documents)


def _settled(path: Path) -> bytes:
    """The bytes of a file that did not change while they were read, or of the last of the tries."""
    data = b""
    for _ in range(_READS):
        with path.open("rb") as file:
            start = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1)
            end = os.fstat(file.fileno())
        if (start.st_size, start.st_mtime_ns) == (end.st_size, end.st_mtime_ns):
            break
    return data


def _path(dotted: str, value: Any) -> manifests.Path:
    """``spec.targets[0].provider`` as steps into ``value``; a step may hold dots of its own."""
    steps: list[str | int] = []
    here, rest = value, dotted
    while rest:
        if isinstance(here, list):
            index, _, rest = rest.removeprefix("[").partition("]")
            number = int(index) if index.isdigit() else len(here)
            steps.append(number)
            here = here[number] if number < len(here) else None
        elif isinstance(here, Mapping):
            fitting = [
                key for key in here if rest == key or rest.startswith((f"{key}.", f"{key}["))
            ]
            key = max(fitting, key=len, default=re.split(r"[.\[]", rest, maxsplit=1)[0])
            steps.append(key)
            here, rest = here.get(key), rest[len(key) :]
        else:
            break
        rest = rest.removeprefix(".")
    return tuple(steps)


def _with_environment(resources: Resources, environ: Mapping[str, str]) -> Resources:
    """The resources, with a Secret from the environment for each credential that has none."""
    added: dict[Ref, SecretObject] = {}
    for ref in sorted(resources.providers):
        credentials = resources.providers[ref].spec.credentials
        secret_ref = credentials.secret_ref if credentials else None
        value = environ.get(environment_name(ref[1]), "").strip()
        if secret_ref is None or not value:
            continue
        where = (ref[0], secret_ref.name)
        if where in resources.secrets:
            continue
        others = added[where].data if where in added else {}
        added[where] = SecretObject(*where, {**others, secret_ref.key: Credential(value)})
    if not added:
        return resources
    return replace(resources, secrets={**resources.secrets, **added})

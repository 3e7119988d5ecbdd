"""Manifests → what gateways serve, and what each object's status says.

Each ``compile/*.in.yaml`` is a story that its first comment tells; the ``*.out.yaml`` beside it is
what it comes to. ``--update-golden`` writes the latter anew.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tollhouse import manifests
from tollhouse.compile import Compiled, compile_snapshot, conditions
from tollhouse.inventory import Inventory, identify
from tollhouse.resources import KINDS
from tollhouse.snapshot import Credential

CASES = sorted(Path(__file__).parent.glob("compile/*.in.yaml"))


def compiled(text: str) -> tuple[Compiled, list[tuple[str, str, str]]]:
    """What the manifests compile to, and the objects of our kinds among them, each once."""
    documents = manifests.read(text)
    assert not isinstance(documents, manifests.Fault), documents
    inventory = Inventory()
    objects: dict[tuple[str, str, str], None] = {}
    for document in documents:
        inventory.apply(document.value)
        identity = identify(document.value)
        leaving = "deletionTimestamp" in document.value["metadata"]
        if identity is not None and identity[0] in KINDS and not leaving:
            objects[identity[0], *identity[1]] = None
    return compile_snapshot(inventory.resources()), list(objects)


def plain(value: Any) -> Any:
    """A value of the snapshot as YAML shows it best: only what is not a default, and no secret."""
    if isinstance(value, Credential):
        return str(value)
    if isinstance(value, msgspec.Struct):
        fields = {it.name: it for it in msgspec.structs.fields(value)}
        shown = {name: getattr(value, name) for name in fields}
        return {name: plain(it) for name, it in shown.items() if it != default(fields[name])}
    if isinstance(value, dict):
        return {key: plain(it) for key, it in value.items()}
    if isinstance(value, tuple | list):
        return [plain(it) for it in value]
    return value


def default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def readable(result: Compiled, objects: list[tuple[str, str, str]]) -> dict[str, Any]:
    snapshot = plain(result.snapshot)
    for provider in snapshot["providers"].values():
        if "ca_pem" in provider:
            provider["ca_pem"] = "(certificates)"
    keys = {f"{digest[:8]}…": key for shard in snapshot["key_shards"]
            for digest, key in shard.items()}  # fmt: skip
    found = result.by_object()
    return {
        "snapshot": {
            "providers": snapshot["providers"],
            "routes": snapshot["routes"],
            "keys": dict(sorted(keys.items(), key=lambda item: (item[1]["name"], item[0]))),
            **{name: snapshot[name] for name in ("policies", "budgets") if name in snapshot},
        },
        "status": {
            f"{kind} {namespace}/{name}": {
                it.type: f"{it.status}, {it.reason}: {it.message}"
                for it in conditions(kind, found.get((kind, namespace, name), ()))
            }
            for kind, namespace, name in objects
        },
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removesuffix(".in.yaml"))
def test_compile(case: Path, request: pytest.FixtureRequest) -> None:
    result, objects = compiled(case.read_text())
    text = yaml.dump(readable(result, objects), sort_keys=False, allow_unicode=True, width=100)
    golden = case.with_name(case.name.replace(".in.", ".out."))
    if request.config.getoption("--update-golden"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden.name} differs; --update-golden writes it anew"
    assert "PLANTED" not in text
    assert "PLANTED" not in str(result.findings)


def test_every_golden_file_has_its_case() -> None:
    outputs = {path.name.replace(".out.", ".in.") for path in CASES[0].parent.glob("*.out.yaml")}
    assert outputs == {case.name for case in CASES}
    assert len(CASES) >= 12

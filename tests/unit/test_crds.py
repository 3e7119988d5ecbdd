"""The CRDs: fresh, structural, and with something to say about every field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tollhouse import crds
from tollhouse.resources import KINDS

DIRECTORY = Path(__file__).resolve().parents[2] / "crds"
MANIFESTS = crds.crd_manifests()
ROOTS = {
    manifest["spec"]["names"]["kind"]: manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for manifest in MANIFESTS.values()
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below one, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from _nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from _nodes(schema["additionalProperties"], f"{path}{{}}")


def _ours(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    properties = ROOTS[kind]["properties"]
    yield from _nodes(properties["spec"], "spec")
    yield from _nodes(properties["status"], "status")


class TestFiles:
    def test_the_checked_in_files_are_fresh(self):
        written = {path.name: path.read_text() for path in DIRECTORY.glob("*.yaml")}
        expected = {name: crds.render(manifest) for name, manifest in MANIFESTS.items()}
        assert written == expected, "crds/ is stale: run `tollhouse crds`"

    def test_writing_makes_the_directory_and_says_what_it_wrote(self, tmp_path: Path):
        paths = crds.write(tmp_path / "new" / "crds")
        assert [path.name for path in paths] == list(MANIFESTS)
        assert all(yaml.safe_load(path.read_text()) == MANIFESTS[path.name] for path in paths)

    def test_every_kind_has_one(self):
        assert set(ROOTS) == set(KINDS)


class TestSchemas:
    @each_kind
    def test_every_field_has_a_description(self, kind: str):
        silent = [
            path
            for path, node in _ours(kind)
            if not path.endswith(("[]", "{}")) and len(node.get("description", "")) < 12
        ]
        assert silent == []

    @each_kind
    def test_nothing_that_makes_a_schema_unstructural(self, kind: str):
        for path, node in _ours(kind):
            assert "type" in node, path
            assert not {"$ref", "anyOf", "oneOf", "title", "nullable"} & set(node), path
            assert not ("properties" in node and "additionalProperties" in node), path

    @each_kind
    def test_every_list_map_and_string_is_bounded(self, kind: str):
        """The API server prices CEL rules by these bounds, and etcd by what they let in."""
        for path, node in _ours(kind):
            match node["type"]:
                case "array":
                    assert "maxItems" in node, path
                case "string":
                    bounds = {"maxLength", "enum", "format"}
                    assert bounds & set(node), path
                case "object" if "additionalProperties" in node:
                    assert "maxProperties" in node, path

    @each_kind
    def test_every_number_is_bounded_below(self, kind: str):
        for path, node in _ours(kind):
            if node["type"] == "integer":
                assert "minimum" in node, path

    def test_only_request_parameters_keep_unknown_fields(self):
        free = [
            f"{kind}: {path}"
            for kind in KINDS
            for path, node in _ours(kind)
            if node.get("x-kubernetes-preserve-unknown-fields")
        ]
        assert free == [
            "ModelRoute: spec.parameters.defaults",
            "ModelRoute: spec.parameters.overrides",
        ]

    @each_kind
    def test_conditions_merge_by_type(self, kind: str):
        conditions = ROOTS[kind]["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]

    def test_defaults_are_in_the_schema(self):
        timeouts = ROOTS["Provider"]["properties"]["spec"]["properties"]["timeouts"]
        assert timeouts["default"] == {}
        defaults = {name: node["default"] for name, node in timeouts["properties"].items()}
        assert defaults == {"connect": "5s", "firstByte": "60s", "idle": "60s", "total": "10m"}


class TestNames:
    @each_kind
    def test_short_name_category_and_status(self, kind: str):
        shorts = {
            "Provider": "prov",
            "ModelRoute": "mroute",
            "ApiKey": "ak",
            "RateLimitPolicy": "rlp",
            "Budget": "bud",
        }
        (spec,) = (
            manifest["spec"]
            for manifest in MANIFESTS.values()
            if manifest["spec"]["names"]["kind"] == kind
        )
        assert spec["names"]["shortNames"] == [shorts[kind]]
        assert spec["names"]["categories"] == ["tollhouse"]
        (version,) = spec["versions"]
        assert version["subresources"] == {"status": {}}
        assert version["served"] and version["storage"]

    def test_the_columns_of_apikeys(self):
        (version,) = MANIFESTS["tollhouse.dev_apikeys.yaml"]["spec"]["versions"]
        shown = [
            column["name"]
            for column in version["additionalPrinterColumns"]
            if not column.get("priority")
        ]
        assert shown == ["Prefix", "Owner", "Spend", "Budget", "Expires", "Programmed", "Age"]

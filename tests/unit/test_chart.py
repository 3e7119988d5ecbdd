"""The chart's files agree with each other and the project; what Helm renders has other tests."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tollhouse"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
OBVIOUS = re.compile(
    r"\.(enabled|pullPolicy|\w*[aA]nnotations|\w*[lL]abels|nodeSelector|tolerations|affinity|"
    r"priorityClassName|interval|className|type|extraArgs|env|logFormat|logLevel|hostnames|"
    r"minReplicas|maxReplicas|size|tag|repository|requests|limits)$"
)
"""What Kubernetes has the same word for, or a neighbour's comment explains."""


def table() -> Any:
    spec = importlib.util.spec_from_file_location("values_table", ROOT / "charts/values_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["values_table"] = module
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_table_that_the_values_give() -> None:
    assert (CHART / "README.md").read_text() == table().readme(), "run `make chart`"


def test_every_value_says_what_it_is() -> None:
    text = (CHART / "values.yaml").read_text()
    silent = [one.path for one in table().values(text) if not one.comment]
    assert [path for path in silent if not OBVIOUS.search(path)] == []


def test_a_comment_belongs_to_the_value_below_it() -> None:
    text = "# About a.\na:\n  # About b.\n  b: 1\n  c: [x]\nd: {e: 2}\n"
    assert [(one.path, one.default, one.comment) for one in table().values(text)] == [
        ("a.b", "1", "About b."),
        ("a.c", '["x"]', "About a."),
        ("d", '{"e": 2}', ""),
    ]


def test_the_schema_knows_every_value_and_no_other() -> None:
    def paths(values: Any, schema: Any, path: str) -> Iterator[str]:
        properties = schema.get("properties", {})
        if not isinstance(values, dict) or "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, path
        yield from (f"{path}.{key}" for key in properties.keys() ^ values.keys())
        for key in properties.keys() & values.keys():
            yield from paths(values[key], properties[key], f"{path}.{key}")

    assert list(paths(VALUES, SCHEMA, "")) == [".global"]  # Helm's own


def test_the_definitions_in_the_chart_are_those_of_the_repository() -> None:
    inside = {path.name: path.read_text() for path in (CHART / "files/crds").iterdir()}
    assert inside == {path.name: path.read_text() for path in (ROOT / "crds").iterdir()}, (
        "run `make crds`"
    )


def test_the_chart_has_the_projects_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == version


def test_what_is_written_down_about_rights_has_reasons() -> None:
    rights = yaml.safe_load((CHART / "files/rights.yaml").read_text())
    assert rights.keys() == {"gateway", "operator", "valkey"}
    assert rights["valkey"] == []
    for entry in (*rights["gateway"], *rights["operator"]):
        assert len(entry["reason"].split()) >= 4, entry


class TestImage:
    TEXT = (ROOT / "Dockerfile").read_text()

    def test_it_runs_as_a_user_without_rights(self) -> None:
        assert re.findall(r"^USER (.+)$", self.TEXT, re.MULTILINE) == ["65532:65532"]

    def test_everything_that_is_installed_is_pinned_by_hash(self) -> None:
        text = self.TEXT.replace("\\\n", " ")
        installs = re.findall(r"(?:pip install|pip sync) [^&\n]+", text)
        assert len(installs) == 3
        assert all("--require-hashes" in one or "--no-index" in one for one in installs)

    def test_the_context_has_every_file_that_is_copied(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text()
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", self.TEXT, re.MULTILINE)
        for name in " ".join(copied).split():
            assert f"!{name}\n" in ignored

    @pytest.mark.parametrize("name", ["tollhouse", "tollhouse-operator"])
    def test_both_programs_are_console_scripts(self, name: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert name in project["scripts"]

"""The OpenAPI document: it describes every endpoint that is served, and its copy is not stale."""

import json
from pathlib import Path

from typer.testing import CliRunner

from tollhouse import proxy
from tollhouse.__main__ import cli
from tollhouse.api import openapi
from tollhouse.errors import KINDS

ROOT = Path(__file__).resolve().parents[2]


def test_the_copy_in_docs_is_up_to_date() -> None:
    written = (ROOT / "docs/openapi.json").read_bytes()
    assert written == openapi.encode(), "run `make openapi`"


def test_the_command_writes_and_prints_it(tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    assert CliRunner().invoke(cli, ["openapi", str(file)]).exit_code == 0
    assert file.read_bytes() == openapi.encode()
    assert CliRunner().invoke(cli, ["openapi"]).stdout.encode() == openapi.encode()


def test_it_describes_what_is_served() -> None:
    served = {path: method for path, (method, _) in proxy.ENDPOINTS.items()}
    served |= {f"{path}{{id}}": method for path, (method, _) in proxy.PREFIXES.items()}
    assert {path: one.method for path, one in openapi.OPERATIONS.items()} == served
    assert {path for path, one in openapi.OPERATIONS.items() if one.public} == proxy.PUBLIC


def test_every_error_is_documented_on_every_path() -> None:
    document = openapi.document()
    for methods in document["paths"].values():
        for operation in methods.values():
            assert {str(kind.status) for kind in KINDS.values()} <= set(operation["responses"])
    described = json.dumps(document["components"]["responses"])
    assert all(code in described for code in KINDS)


def test_ranges_and_required_fields_are_those_of_the_checks() -> None:
    body = openapi.document()["components"]["schemas"]["ChatBody"]
    assert body["required"] == ["model", "messages"]
    temperature, null = body["properties"]["temperature"]["anyOf"]
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert null == {"type": "null"}
    assert "webSearchEnabled" in body["properties"]

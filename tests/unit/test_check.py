"""``tollhouse check``: the same findings for people, for programs, and as an exit status."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tollhouse.auth import checksum_holds
from tollhouse.check import Report, check, render
from tollhouse.compile import KEY_NAME
from tollhouse.errors import ConfigError
from tollhouse.folder import FolderReader

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ROUTES = """\
apiVersion: tollhouse.dev/v1alpha1
kind: Provider
metadata: {name: echo, namespace: ai}
spec: {type: Mock}
---
apiVersion: tollhouse.dev/v1alpha1
kind: ModelRoute
metadata: {name: gpt-4o, namespace: ai}
spec:
  models: [gpt-4o]
  targets:
    - provider: {name: echo}
    - provider: {name: "[red]nowhere[/red]"}
---
apiVersion: tollhouse.dev/v1alpha1
kind: Budget
metadata: {name: all, namespace: ai}
spec: {selector: {}, amount: "10"}
"""


def printed(report: Report, width: int = 40) -> list[str]:
    out = io.StringIO()
    render(report, Console(file=out, width=width, force_terminal=False))
    return out.getvalue().splitlines()


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("a: [1\n")
    (tmp_path / "routes.yaml").write_text(ROUTES.replace('"[red]nowhere[/red]"', "nowhere"))
    return tmp_path


def test_people_read_file_line_and_what_to_do(faulty: Path):
    assert "\n".join(printed(check(faulty, {}))) == (
        "a.yaml:2  error    Unreadable: "
        "while parsing a flow sequence did not find expected ',' or ']'\n"
        "\n"
        "routes.yaml:13  error    ModelRoute ai/gpt-4o  ProviderNotFound: "
        "spec.targets[1].provider: the Provider ai/nowhere does not exist, "
        "so the target is left out\n"
        "routes.yaml:18  warning  Budget ai/all  NothingSelected: "
        "spec.selector: no ApiKeys in the namespace ai have these labels, so it limits nothing\n"
        "\n"
        "1 route, 1 provider, 0 keys: 2 errors, 1 warning"
    )


def test_programs_read_json(faulty: Path):
    remarks = json.loads(check(faulty, {}).to_json())
    assert remarks[1] == {
        "file": "routes.yaml",
        "line": 13,
        "column": None,
        "severity": "error",
        "kind": "ModelRoute",
        "object": "ai/gpt-4o",
        "reason": "ProviderNotFound",
        "path": "spec.targets[1].provider",
        "message": "the Provider ai/nowhere does not exist, so the target is left out",
    }


def test_what_manifests_hold_is_not_taken_for_markup(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(ROUTES)
    assert "[red]" not in "".join(printed(check(tmp_path, {})))
    (tmp_path / "a.yaml").write_text("a: 1\n'[red]b': 2\n'[red]b': 3\n")
    assert 'the key "[red]b" is given twice' in printed(check(tmp_path, {}))[0]


def test_the_environment_counts(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        "apiVersion: tollhouse.dev/v1alpha1\nkind: Provider\nmetadata: {name: openai}\n"
        "spec: {type: OpenAI, credentials: {secretRef: {name: openai}}}\n"
    )
    assert "set OPENAI_API_KEY" in printed(check(tmp_path, {}))[0]
    assert check(tmp_path, {"OPENAI_API_KEY": "sk-provider-PLANTED-1"}).remarks == ()


def test_no_folder(tmp_path: Path):
    with pytest.raises(ConfigError):
        check(tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("text", "status"), [(ROUTES, 1), (ROUTES.replace('"[red]nowhere[/red]"', "echo"), 0)]
)
def test_the_command_exits_with_1_on_errors_and_not_on_warnings(tmp_path: Path, text, status):
    (tmp_path / "a.yaml").write_text(text)
    command = [sys.executable, "-m", "tollhouse", "check", str(tmp_path), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert json.loads(done.stdout)


class TestQuickstart:
    def test_there_is_nothing_wrong_with_it(self):
        assert printed(check(QUICKSTART, {}))[-1] == "3 routes, 3 providers, 1 key: nothing wrong"

    def test_its_key_looks_like_one_of_ours(self):
        secret = FolderReader(QUICKSTART, {}).load().resources.secrets[("default", "demo")]
        assert checksum_holds(secret.data[KEY_NAME].value)

"""The documents say what the code does."""

import re
from pathlib import Path

import yaml

from tollhouse.errors import KINDS
from tollhouse.findings import Reason

ROOT = Path(__file__).resolve().parents[2]


def test_every_error_code_is_documented_with_its_status_and_type() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\w+) \| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE
    )
    documented = {code: (int(status), kind) for status, kind, code in rows}
    assert documented == {code: (kind.status, kind.type) for code, kind in KINDS.items()}


def test_every_file_that_a_document_names_exists() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} names {target}"


def test_every_proof_that_the_compatibility_page_names_exists() -> None:
    _, _, text = (ROOT / "docs/compatibility.md").read_text().partition("\n## ")
    file = None
    for name, proof in re.findall(r"`((?:[\w/]+\.py)|…)(?:::(\w+))?`", text):
        if name != "…":
            file = ROOT / (name if "/" in name else f"tests/integration/{name}")
        assert file is not None and file.exists(), f"{name} is not there"
        assert re.search(rf"^(?:class|(?:async )?def) {proof}", file.read_text(), re.MULTILINE), (
            proof
        )


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for package in (ROOT / "gateway/tollhouse", ROOT / "operator/tollhouse_operator"):
        for path in package.iterdir():
            name = f"{path.name}/" if path.is_dir() else path.name
            if name.startswith((".", "__pycache__")) or name in {"__init__.py", "py.typed"}:
                continue
            assert f"`{name}" in text, f"docs/architecture.md does not mention {name}"


def test_every_reason_of_a_condition_and_every_metric_says_what_to_do() -> None:
    text = (ROOT / "docs/operate.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    operator = ROOT / "operator/tollhouse_operator"
    status = (operator / "status.py").read_text() + (operator / "spend.py").read_text()
    reasons = {str(reason) for reason in Reason}
    reasons |= set(re.findall(r'"(?:False|True)", "(\w+)"', status))
    reasons |= set(re.findall(r'Note\("\w+", "(\w+)"', status))
    reasons |= set(re.findall(r'Trouble\(\s*"(\w+)"', (operator / "keys.py").read_text()))
    assert reasons - named == set()
    files = (ROOT / "gateway/tollhouse/telemetry.py", operator / "ops.py")
    metrics = {it for file in files for it in re.findall(r'"(tollhouse_\w+)"', file.read_text())}
    assert metrics - named == set()


def test_the_snippets_of_the_quickstart_use_its_key() -> None:
    (key,) = [
        document["stringData"]["OPENAI_API_KEY"]
        for document in yaml.safe_load_all((ROOT / "examples/quickstart/3-keys.yaml").read_text())
        if document["kind"] == "Secret"
    ]
    for place in ("README.md", "examples/quickstart/try.txt"):
        assert (ROOT / place).read_text().count(key) == 2

"""LiteLLM's config.yaml → custom resources that pass ``tollhouse check``, and what is left to do.

Each ``import/*.in.yaml`` is a configuration that its first comment describes; the ``*.out.yaml``
beside it is what it comes to. ``--update-golden`` writes the latter anew.
"""

from pathlib import Path

import pytest
import yaml

from tollhouse.check import check
from tollhouse.importing import write
from tollhouse.importing.litellm import litellm

CASES = sorted(Path(__file__).parent.glob("import/*.in.yaml"))
LEFT = {"UnsupportedType", "SecretNotFound", "ProviderNotReady"}
"""What may be wrong with the resources: a type that this version does not speak yet, which makes
its routes wait too, and the key that a person brings or the operator makes."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removesuffix(".in.yaml"))
def test_import(case: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    imported = litellm(case.read_text(), "ai")
    write(imported, tmp_path, with_secrets=False)
    found = [it for it in check(tmp_path, {}).remarks if it.severity == "error"]
    assert {it.reason for it in found} <= LEFT, found
    assert {it.kind for it in found if it.reason == "SecretNotFound"} <= {"ApiKey"}
    remarks = "".join(f"# {remark}\n" for remark in imported.remarks)
    text = f"{imported.to_yaml()}{remarks}"
    assert "PLANTED" not in text
    assert len(list(yaml.safe_load_all(text))) >= 2
    golden = case.with_name(case.name.replace(".in.", ".out."))
    if request.config.getoption("--update-golden"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden.name} differs; --update-golden writes it anew"


def test_every_golden_file_has_its_case() -> None:
    outputs = {path.name.replace(".out.", ".in.") for path in CASES[0].parent.glob("*.out.yaml")}
    assert outputs == {case.name for case in CASES}
    assert len(CASES) >= 8
